// The state of the page: its runs, the filters, and the one rule by which every chart colours them.

const sections = data.sections;
const runs = sections.flatMap((section) => section.runs);
const sectionOf = new Map();

sections.forEach((section, at) => {
  section.suffix = at === 0 ? "" : "-" + (at + 1); // ends the ids of its elements
  section.element = document.querySelector('[data-section="' + at + '"]');
  section.brushes = {}; // the ranges on the parallel axes, by their index
  section.axes = null; // the order of the parallel axes after the reader has moved one
  section.xRange = null; // the zoom of the charts over time
  for (const run of section.runs) sectionOf.set(run, section);
});
runs.forEach((run, at) => {
  run.at = at;
  run.hover = plain(short(run.label, 60)) + (run.typed ? "<br>" + plain(short(run.typed, 90)) : "");
});

// Viridis, without its end that has no contrast with the ground.
const LIGHT_SCALE = ["#440154", "#482878", "#443983", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#44bf70", "#6ccd5a", "#9bbb2a"];
const DARK_SCALE = ["#5a68c0", "#4b7cc4", "#3c8fbe", "#2ea0ad", "#28ae98", "#35b779", "#5ec962", "#8fd744", "#c2df30", "#fde725"];
const N_CATEGORIES = LIGHT_CATEGORIES.length;

const MANY = 200; // above this number, a section shows only its best curves and rows at first

const state = {
  x: "step", y: "linear", val: true, train: runs.length <= 10, batch: false, // axes and losses
  smoothing: 0,
  limit: MANY, // the number of curves of a section
  colour: "", hidden: new Set(), // the names of the colours that are switched off
  picked: null, // the index of the highlighted run
  words: "",
};
state.colour = colourChoices()[0].key;

// ---- filters

function colourChoices() {
  const all = [...new Set(sections.flatMap(({ fields }) => fields.map(({ name }) => name)))];
  // The fields of a sweep are in the order in which they were typed; of other runs, presets such as the model are first.
  const isPreset = (name) => sections[0].kind === "run" && !name.includes(".");
  const names = [...all.filter(isPreset), ...all.filter((name) => !isPreset(name))];
  const choices = names.filter((name) => name !== "seed").map((name) => ({ key: "field " + name, text: name }));
  const each = runs.length <= N_CATEGORIES ? [{ key: "run", text: "one colour per run" }] : [];
  const loss = { key: "final", text: "final " + sections[0].measure };
  const hasSeeds = sections.some(({ groups }) => groups.length > 0) && choices.length > 0;
  return hasSeeds ? [...choices, ...each, loss] : [...each, ...choices, loss];
}

const distinct = (members, field) => [...new Set(members.map((run) => run.values[field] ?? ""))];

// Numbers by size, then texts, then missing values.
function sortedTexts(texts) {
  const rank = (text) => (text === "" || text === "-" ? 2 : isNumber(text) ? 0 : 1);
  const order = (a, b) => (rank(a) === 0 ? toNumber(a) - toNumber(b) : a.localeCompare(b, "en", { numeric: true }));
  return [...texts].sort((a, b) => rank(a) - rank(b) || order(a, b));
}

const toNumber = (text) => Number(text.replace(/,/g, ""));
const isNumber = (text) => text !== "" && isFinite(toNumber(text));

function isShown(run) {
  return state.words.split(/\s+/).every((word) => matches(run, word)) && isInBrushes(run) && !isColourHidden(run);
}

// A word matches part of the run's name, values or status; FIELD=VALUE matches a field, or its last part, exactly.
function matches(run, word) {
  const [, name, value] = /^([^=]+)=(.*)$/.exec(word) ?? [];
  if (name === undefined) return [run.name, run.label, run.typed, run.status].join(" ").toLowerCase().includes(word);
  const isSame = (text) => text.toLowerCase() === value || (text !== "" && Number(text) === Number(value));
  return value === "" || Object.entries(run.values).some(
    ([field, text]) => ("." + field.toLowerCase()).endsWith("." + name) && isSame(text));
}

function isInBrushes(run) {
  return Object.entries(sectionOf.get(run).brushes).every(([at, ranges]) => {
    const value = dimensions(sectionOf.get(run))[at].coordinateOf(run);
    return value !== null && ranges.some(([low, high]) => low <= value && value <= high);
  });
}

// The runs of a section whose curves are drawn: the best of those that are shown, and the highlighted one.
function drawnRuns(section) {
  const shown = section.runs.filter(isShown);
  return shown.filter((run, at) => at < state.limit || run.at === state.picked);
}

// ---- colours

// The colours of all runs on the page: `entries` are the colours with their names, and `of` gives each run its entry.
// They depend on no filter, so that a run keeps its colour.
let palette = null;

function makePalette() {
  const categories = isDark() ? DARK_CATEGORIES : LIGHT_CATEGORIES;
  if (state.colour === "run") {
    return toPalette("run", runs.map((run, at) => [run, { text: run.label, colour: categories[at] }]));
  }
  const field = sections.flatMap(({ fields }) => fields).find(({ name }) => "field " + name === state.colour);
  const title = field ? field.name : "final " + sections[0].measure;
  const valueOf = field ? (run) => run.values[field.name] ?? "" : (run) => run.final ?? "";
  const known = runs.filter((run) => valueOf(run) !== "");
  const isNumeric = known.every((run) => isFinite(valueOf(run)));
  const entryOf = isNumeric ? scaleEntries(known.map((run) => Number(valueOf(run))), field) : categoryEntries(known.map(valueOf), categories);
  const missing = { text: field ? "without a value" : "without a final loss", colour: OTHER };
  return toPalette(title, runs.map((run) => [run, valueOf(run) === "" ? missing : entryOf(isNumeric ? Number(valueOf(run)) : valueOf(run))]));
}

function toPalette(title, pairs) {
  const entries = [...new Set(pairs.map(([, entry]) => entry))].sort((a, b) => (a.order ?? 1e9) - (b.order ?? 1e9));
  return { title, entries, of: new Map(pairs) };
}

// Up to ten values have a colour each; of more, neighbours share one.
function scaleEntries(values, field) {
  const scale = isDark() ? DARK_SCALE : LIGHT_SCALE;
  const sorted = values.sort((a, b) => a - b);
  const different = [...new Set(sorted)];
  if (different.length <= scale.length) {
    const entries = new Map(different.map((value, at) => [value, {
      text: field ? String(value) : number(value), order: at,
      colour: scale[Math.round((at * (scale.length - 1)) / Math.max(1, different.length - 1))],
    }]));
    return (value) => entries.get(value);
  }
  const firsts = new Map();
  sorted.forEach((value, at) => firsts.has(value) || firsts.set(value, at));
  const bin = (value) => Math.min(scale.length - 1, Math.floor((firsts.get(value) * scale.length) / sorted.length));
  const entries = scale.map((colour, at) => {
    const inside = different.filter((value) => bin(value) === at);
    const ends = inside.length ? [...new Set([inside[0], inside[inside.length - 1]].map(number))] : [];
    return { text: ends.join(" to "), colour, order: at };
  });
  return (value) => entries[bin(value)];
}

// The most frequent values have a colour each; all others share one.
function categoryEntries(values, categories) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  const frequent = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a)).slice(0, categories.length);
  const entries = new Map(sortedTexts(frequent).map((value, at) => [value, { text: value, colour: categories[at], order: at }]));
  const others = { text: "others", colour: OTHER, order: 1e8 };
  return (value) => entries.get(value) ?? others;
}

const isColourHidden = (run) => state.hidden.has(palette.of.get(run).text);

// These runs by colour, in the order of the legend.
function coloured(members) {
  const found = new Map(palette.entries.map((entry) => [entry, []]));
  for (const run of members) found.get(palette.of.get(run)).push(run);
  return [...found].filter(([, own]) => own.length > 0).map(([{ text, colour }, own]) => ({ name: text, colour, runs: own }));
}

// One legend for all charts. A click on a colour hides its runs, or shows them again.
function showLegend() {
  const legend = byId("legend");
  if (!legend) return;
  const title = document.createElement("small");
  title.textContent = palette.title;
  const buttons = palette.entries.map(({ text, colour }) => {
    const button = document.createElement("button");
    const swatch = document.createElement("span");
    button.type = "button";
    button.setAttribute("aria-pressed", String(!state.hidden.has(text)));
    button.title = text;
    swatch.style.background = colour;
    button.append(swatch, short(text, 40) || "–");
    button.addEventListener("click", () => {
      if (!state.hidden.delete(text)) state.hidden.add(text);
      button.setAttribute("aria-pressed", String(!state.hidden.has(text)));
      show();
    });
    return button;
  });
  legend.replaceChildren(title, ...buttons);
}

function recolour() {
  palette = makePalette();
  showLegend();
}
