"use strict";
// What all pages share: the data, texts, colours, charts by Plotly, and the drawing of what is on the screen.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// Plotly interprets some HTML tags in the texts that it shows. Escaping keeps names literal.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text, length) => (text.length <= length ? text : "…" + text.slice(1 - length)); // keeps the end
const number = (value) => Number(value).toLocaleString("en", { maximumSignificantDigits: 4 });

// ---- colours

// Okabe and Ito's colours, which readers with any colour vision can tell apart; some darker or lighter for the ground.
const LIGHT_CATEGORIES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f7d00", "#444444"];
const DARK_CATEGORIES = ["#4fa3e0", "#f0763a", "#00c08b", "#e39ac4", "#e69f00", "#8fd3ff", "#f0e442", "#e6e6e6"];
const OTHER = "#999999";

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

// Calls `drawAll` when the reader or the system changes between light and dark.
function listenToTheme(drawAll) {
  byId("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    drawAll();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
}

// Forms are hidden without this script.
function showForms() {
  for (const form of document.querySelectorAll("form")) {
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
  }
}

// ---- charts

function colours() {
  const text = getComputedStyle(document.body).color;
  return { text, line: isDark() ? "#343b44" : "#d8dee4", ground: getComputedStyle(document.body).backgroundColor };
}

function axis(options) {
  const { text, line } = colours();
  return { gridcolor: line, zerolinecolor: line, tickfont: { color: text }, automargin: true, exponentformat: "e", ...options };
}

// Draws a chart, or draws it again. Returns true the first time.
function plot(element, traces, options, buttons = ["zoom2d", "pan2d", "resetScale2d", "toImage"]) {
  const { text, ground, line } = colours();
  const layout = {
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: text },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: ground, bordercolor: line, font: { color: text }, align: "left", namelength: -1 },
    margin: { l: 55, r: 15, t: 15, b: 45 },
    hovermode: "closest",
    showlegend: false,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: text },
    ...options,
  };
  // Only Plotly's buttons for viewing; another of its buttons would upload the data.
  const config = { responsive: true, displaylogo: false, modeBarButtons: [buttons] };
  const isFirst = !element.on;
  Plotly.react(element, traces, layout, config);
  return isFirst;
}

// ---- drawing

// Only what is on or near the screen is drawn, so that on a long page a click does not wait for the rest.
const DRAWN = {}; // the functions that draw, by the id of the element
const stale = new Set();
const onScreen = new Set();
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) isIntersecting ? onScreen.add(target.id) : onScreen.delete(target.id);
    refresh();
  },
  { rootMargin: "150px" },
);

function markStale(ids) {
  for (const id of ids) if (id in DRAWN) stale.add(id);
  refresh();
}

// Elements are drawn one at a time, so that the first appears before the others are ready.
let isWaiting = false;
function refresh() {
  const next = [...stale].find((id) => onScreen.has(id));
  if (isWaiting || next === undefined) return;
  stale.delete(next);
  DRAWN[next]();
  isWaiting = true;
  requestAnimationFrame(() => requestAnimationFrame(() => {
    isWaiting = false;
    refresh();
  }));
}

function watch() {
  for (const id of Object.keys(DRAWN)) watcher.observe(byId(id));
  addEventListener("beforeprint", () => {
    for (const id of stale) DRAWN[id]();
    stale.clear();
  });
}
