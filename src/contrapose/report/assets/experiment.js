// A legend gets rows of its own, so that the plot below keeps its height on a phone.
for (const element of document.querySelectorAll("[data-figure]")) {
  const { data, layout } = page.figures[element.dataset.figure];
  const names = data.filter((trace) => trace.name && trace.showlegend !== false).map((trace) => trace.name.length);
  if (!layout.showlegend || names.length < 2) continue;
  const across = Math.max(1, Math.floor((element.clientWidth - 60) / (7 * Math.max(...names) + 44)));
  const rows = Math.ceil(names.length / across);
  element.style.height = `${element.clientHeight + 19 * (rows - 1)}px`;
  layout.margin.t = 14 + 19 * rows;
}
start();
