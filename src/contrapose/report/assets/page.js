"use strict";
// Themes, drawing and copying. Colours come from CSS: "var(--name)" in a figure is resolved for the theme in use.
const root = document.documentElement;
const page = JSON.parse(document.getElementById("data").textContent);
const coarse = matchMedia("(pointer: coarse)").matches;
const drawers = new Map(); // plot element -> () => figure in the colours of now

const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);

function colour(name) {
  probe.style.color = name;
  return getComputedStyle(probe).color;
}

function themed(value) {
  if (typeof value === "string") {
    if (value === "inherit") return getComputedStyle(document.body).fontFamily;
    return value.startsWith("var(--") ? colour(value) : value;
  }
  if (Array.isArray(value)) return value.map(themed);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item)]));
  }
  return value;
}

function draw(element) {
  const { data, layout } = themed(drawers.get(element)());
  const touch = coarse ? { dragmode: false } : {};
  if (innerWidth < 600) for (const axis of [layout.xaxis, layout.yaxis]) thin(axis, 16);
  const config = {
    responsive: true, displaylogo: false, displayModeBar: !coarse && element.classList.contains("large-plot") ? "hover" : false,
    showSendToCloud: false, plotlyServerURL: "", // nothing leaves the page
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  return Plotly.react(element, data, { ...layout, ...touch, autosize: true }, config);
}

function thin(axis, most) { // named ticks that would overlap on a phone
  if (!axis?.tickvals || axis.type === "log") return;
  const apart = Math.ceil(axis.tickvals.length / most);
  axis.tickvals = axis.tickvals.filter((_, i) => i % apart === 0);
  axis.ticktext = axis.ticktext.filter((_, i) => i % apart === 0);
}

function drawAll() {
  for (const element of drawers.keys()) if (element.dataset.drawn) draw(element);
}

function dark() {
  const chosen = root.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function showTheme() {
  const button = document.getElementById("theme");
  button.hidden = false;
  button.textContent = dark() ? "Light" : "Dark";
  button.setAttribute("aria-label", `Switch to the ${dark() ? "light" : "dark"} theme`);
}

function setTheme(name) {
  if (name) root.dataset.theme = name;
  else delete root.dataset.theme;
  showTheme();
  drawAll();
}

function remembered(name) {
  try { // storage is refused in some browsers when a page is opened from a file
    if (name) localStorage.setItem("contrapose-theme", name);
    return localStorage.getItem("contrapose-theme");
  } catch { return null; }
}

async function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    getSelection().selectAllChildren(source);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

async function inflate(element) {
  const bytes = Uint8Array.from(atob(element.textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
}

const stored = remembered();
if (stored === "dark" || stored === "light") root.dataset.theme = stored;
showTheme();
document.getElementById("theme").addEventListener("click", () => {
  const name = dark() ? "light" : "dark";
  remembered(name);
  setTheme(name);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(root.dataset.theme));

for (const button of document.querySelectorAll(".copy")) {
  button.hidden = false;
  button.addEventListener("click", () => copy(button));
}

let beforePrint;
addEventListener("beforeprint", () => { beforePrint = root.dataset.theme; setTheme("light"); });
addEventListener("afterprint", () => setTheme(beforePrint));

for (const element of document.querySelectorAll("[data-figure]")) {
  const figure = page.figures[element.dataset.figure];
  drawers.set(element, figure.points ? () => mapFigure(element, figure) : () => figure);
}

async function start() {
  try {
    const script = document.createElement("script");
    script.textContent = await inflate(document.getElementById("plotly"));
    document.head.append(script);
  } catch {
    for (const element of drawers.keys()) element.textContent = "This browser is too old to draw the plots; one from 2024 or later does.";
    return;
  }
  for (const element of drawers.keys()) {
    await draw(element);
    element.dataset.drawn = "yes";
    if (page.figures[element.dataset.figure].points) listen(element);
    await new Promise((resume) => setTimeout(resume)); // lets the reader scroll meanwhile
  }
  root.dataset.plots = "drawn";
}
