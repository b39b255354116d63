// The map: points by class, a picture beside the pointer, and one filter for maps and neighbours.
const chosen = new Set(); // page-wide classes; empty = all
const filter = document.getElementById("filter");
const peek = document.getElementById("peek");

function mapFigure(element, figure) {
  const { x, y, class: ids, index } = figure.points;
  const shown = [], faded = [];
  ids.forEach((id, i) => (chosen.size === 0 || chosen.has(id) ? shown : faded).push(i));
  element.dataset.shown = shown.length;
  const pick = (places, values) => places.map((i) => values[i]);
  const colours = page.classes.map((c) => colour(c.colour));
  const none = colour(page.classes.length ? "var(--muted)" : "var(--accent)");
  const size = x.length > 2000 ? 5 : x.length > 600 ? 6 : 8;
  const back = {
    type: "scatter", mode: "markers", hoverinfo: "skip", x: pick(faded, x), y: pick(faded, y),
    marker: { size: size - 1, color: "var(--faded)" },
  };
  const front = {
    type: "scatter", mode: "markers", hoverinfo: "none", x: pick(shown, x), y: pick(shown, y), customdata: shown,
    marker: {
      size,
      color: shown.map((i) => colours[ids[i]] ?? none),
      symbol: shown.map((i) => page.classes[ids[i]]?.symbol ?? "circle"),
      line: { width: 0.5, color: "var(--bg)" },
    },
  };
  // the axes keep their range while the filter changes, so that places stay where the reader saw them
  return { data: [back, front], layout: { ...figure.layout, uirevision: "map", ...ranges(figure) } };
}

function ranges(figure) {
  const around = (values) => {
    const low = Math.min(...values), high = Math.max(...values), edge = 0.04 * (high - low) || 1;
    return [low - edge, high + edge];
  };
  return {
    xaxis: { ...figure.layout.xaxis, range: around(figure.points.x) },
    yaxis: { ...figure.layout.yaxis, range: around(figure.points.y) },
  };
}

function listen(element) {
  const figure = page.figures[element.dataset.figure];
  const show = (event) => {
    const point = event.points[0];
    if (point.customdata === undefined) return;
    const id = figure.points.class[point.customdata];
    const tile = peek.querySelector(".tile");
    tile.className = `tile ${element.dataset.figure.replace("_", "-")}`;
    const { columns, rows } = figure.sprite;
    const column = point.customdata % columns, row = Math.floor(point.customdata / columns);
    tile.style.backgroundPosition = `${(100 * column) / Math.max(columns - 1, 1)}% ${(100 * row) / Math.max(rows - 1, 1)}%`;
    peek.querySelector("strong").textContent = page.classes[id]?.name ?? (page.classes.length ? "no label" : "");
    peek.querySelector(".small").textContent = figure.points.file?.[point.customdata] ?? `image ${figure.points.index[point.customdata]}`;
    peek.hidden = false;
    const box = peek.getBoundingClientRect();
    const at = event.event.touches?.[0] ?? event.event;
    const left = at.clientX + 16 + box.width > innerWidth ? at.clientX - 16 - box.width : at.clientX + 16;
    peek.style.left = `${Math.max(8, left)}px`;
    peek.style.top = `${Math.max(8, Math.min(at.clientY - box.height / 2, innerHeight - box.height - 8))}px`;
  };
  element.on("plotly_hover", show);
  element.on("plotly_click", show);
  if (!coarse) element.on("plotly_unhover", () => { peek.hidden = true; }); // a finger lifts at once; the picture stays
}

function applyFilter() {
  for (const element of drawers.keys()) {
    if (element.dataset.drawn && page.figures[element.dataset.figure].points) draw(element);
  }
  for (const chip of document.querySelectorAll(".chip")) {
    chip.setAttribute("aria-pressed", String(chosen.has(Number(chip.dataset.class))));
  }
  for (const group of document.querySelectorAll(".queries")) {
    let left = 0;
    for (const row of group.children) {
      row.hidden = chosen.size > 0 && !chosen.has(Number(row.dataset.class));
      left += row.hidden ? 0 : 1;
    }
    group.nextElementSibling.hidden = left > 0;
  }
  const names = [...chosen].map((id) => page.classes[id].name);
  const words = names.length > 4 ? `${names.length} classes` : names.join(", ");
  for (const status of document.querySelectorAll(".status")) {
    status.textContent = chosen.size ? `Only ${words}` : "";
  }
  for (const clear of document.querySelectorAll(".clear")) clear.disabled = chosen.size === 0;
  document.querySelector(".echo").hidden = chosen.size === 0;
}

function searchClasses(text) {
  const wanted = text.trim().toLowerCase();
  const chips = [...filter.querySelectorAll(".chip")];
  const found = chips.filter((chip) => page.classes[chip.dataset.class].name.toLowerCase().includes(wanted));
  for (const chip of chips) chip.hidden = !found.includes(chip);
  filter.querySelector(".nothing").hidden = found.length > 0;
  return wanted ? found : [];
}

if (filter) {
  filter.hidden = false;
  filter.querySelector(".chips").addEventListener("click", (event) => {
    const chip = event.target.closest(".chip");
    if (!chip) return;
    const id = Number(chip.dataset.class);
    if (!chosen.delete(id)) chosen.add(id);
    applyFilter();
  });
  const search = document.getElementById("search");
  search.addEventListener("input", () => searchClasses(search.value));
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    const found = searchClasses(search.value);
    if (found.length === 0) return;
    chosen.clear();
    for (const chip of found) chosen.add(Number(chip.dataset.class));
    applyFilter();
  });
  for (const clear of document.querySelectorAll(".clear")) {
    clear.addEventListener("click", () => { chosen.clear(); search.value = ""; searchClasses(""); applyFilter(); });
  }
}
addEventListener("pointerdown", () => { peek.hidden = true; });
addEventListener("scroll", () => { peek.hidden = true; }, { passive: true });
start();
