"use strict";
// The charts of the page, drawn with Plotly, and its controls. The rest of the page works without this script.

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs;
const byId = (id) => document.getElementById(id);

// Plotly interprets some HTML tags in the texts that it shows. Escaping keeps names literal.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text, length) => (text.length <= length ? text : "…" + text.slice(1 - length)); // keeps the end
for (const run of runs) {
  run.label = plain(short(data.kind + " " + run.name, 60)) + (run.typed ? "<br>" + plain(short(run.typed, 90)) : "");
}
const number = (value) => Number(value).toLocaleString("en", { maximumSignificantDigits: 4 });

const CATEGORIES = ["#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#bab0ac"];
const LIGHT_SCALE = ["#440154", "#482878", "#443983", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#44bf70", "#6ccd5a", "#9bbb2a"];
const DARK_SCALE = ["#5a68c0", "#4b7cc4", "#3c8fbe", "#2ea0ad", "#28ae98", "#35b779", "#5ec962", "#8fd744", "#c2df30", "#fde725"];
// With more curves than this, dotted lines are hard to distinguish and slow to draw.
const MANY = 20;
const LOOKS = {
  val: () => ({ width: 2, opacity: 1 }),
  train: (isMany) => (isMany ? { width: 1, opacity: 0.6 } : { width: 1.5, dash: "dot", opacity: 1 }),
  batch: () => ({ width: 1, opacity: 0.45 }),
};
const UNITS = { step: "step", tokens: "tokens", seconds: "seconds" };

const state = {
  x: "step", y: "linear", val: true, train: runs.length <= CATEGORIES.length, batch: false, // axes and losses
  colour: "", picked: null, // the index of the highlighted run
  words: "", brushes: {}, axes: null, // the filters: words, and the ranges on the parallel axes, by their index
};
state.colour = colourChoices()[0].key;

// ---- filters and colours

function colourChoices() {
  const found = data.fields.filter((field) => field.name !== "seed" && distinct(field.name).length > 1);
  const choices = found.map((field) => ({ key: "field " + field.name, text: field.name }));
  const each = { key: "run", text: "one colour per run" };
  const loss = { key: "final", text: "final " + data.measure };
  const isFew = runs.length <= CATEGORIES.length;
  if (data.groups.length > 0 && choices.length > 0) return [...choices, ...(isFew ? [each] : []), loss];
  return isFew ? [each, ...choices, loss] : [...choices, loss];
}

function distinct(field) {
  return [...new Set(runs.map((run) => run.values[field]))];
}

// Numbers by size, then texts, then missing values.
function sortedTexts(texts) {
  const rank = (text) => (text === "" || text === "-" ? 2 : isNumber(text) ? 0 : 1);
  const order = (a, b) => (rank(a) === 0 ? toNumber(a) - toNumber(b) : a.localeCompare(b, "en", { numeric: true }));
  return [...texts].sort((a, b) => rank(a) - rank(b) || order(a, b));
}

const toNumber = (text) => Number(text.replace(/,/g, ""));
const isNumber = (text) => text !== "" && isFinite(toNumber(text));

function isShown(run) {
  return state.words.split(/\s+/).every((word) => matches(run, word)) && isInBrushes(run);
}

// A word matches part of the run's name, values or status; FIELD=VALUE matches a field, or its last part, exactly.
function matches(run, word) {
  const [, name, value] = /^([^=]+)=(.*)$/.exec(word) ?? [];
  if (name === undefined) return (run.name + " " + run.typed + " " + run.status).toLowerCase().includes(word);
  const isSame = (text) => text.toLowerCase() === value || (text !== "" && Number(text) === Number(value));
  return value === "" || Object.entries(run.values).some(
    ([field, text]) => ("." + field.toLowerCase()).endsWith("." + name) && isSame(text));
}

function isInBrushes(run) {
  return Object.entries(state.brushes).every(([at, ranges]) => {
    const value = dimensions()[at].coordinateOf(run);
    return value !== null && ranges.some(([low, high]) => low <= value && value <= high);
  });
}

// The groups of runs with one colour: name, colour and runs. If there are many numbers, neighbours share a colour.
function groups(shown) {
  const scale = isDark() ? DARK_SCALE : LIGHT_SCALE;
  if (state.colour === "run") {
    return shown.map((run) => ({ name: data.kind + " " + run.name, colour: CATEGORIES[runs.indexOf(run)], runs: [run] }));
  }
  const field = data.fields.find((candidate) => "field " + candidate.name === state.colour);
  const valueOf = field ? (run) => run.values[field.name] : (run) => run.final;
  const isNumeric = field ? field.numeric : true;
  const values = [...new Set(shown.map(valueOf))];
  const known = values.filter((value) => value !== null);
  const title = field ? field.name + " " : "final ";
  let found;
  if (isNumeric && known.length > scale.length) {
    const sorted = known.map(Number).sort((a, b) => a - b);
    const bin = (value) => Math.min(scale.length - 1, Math.floor((sorted.indexOf(Number(value)) * scale.length) / sorted.length));
    found = scale.map((colour, at) => {
      const inside = sorted.filter((value) => bin(value) === at);
      return {
        name: title + [...new Set([inside[0], inside[inside.length - 1]])].map(number).join(" to "),
        colour,
        runs: shown.filter((run) => valueOf(run) !== null && bin(valueOf(run)) === at),
      };
    });
  } else if (isNumeric) {
    const sorted = known.sort((a, b) => a - b);
    found = sorted.map((value, at) => ({
      name: title + (field ? value : number(value)),
      colour: scale[Math.round((at * (scale.length - 1)) / Math.max(1, sorted.length - 1))],
      runs: shown.filter((run) => valueOf(run) === value),
    }));
  } else {
    const all = distinct(field.name);
    const first = all.slice(0, CATEGORIES.length - 1);
    found = values.filter((value) => first.includes(value)).map((value) => ({
      name: title + value,
      colour: CATEGORIES[all.indexOf(value)],
      runs: shown.filter((run) => valueOf(run) === value),
    }));
    found.push({ name: "others", colour: CATEGORIES[9], runs: shown.filter((run) => !first.includes(valueOf(run))) });
  }
  found.push({ name: "without a final loss", colour: CATEGORIES[9], runs: shown.filter((run) => valueOf(run) === null) });
  return found.filter((group) => group.runs.length > 0);
}

// ---- appearance

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function colours() {
  const text = getComputedStyle(document.body).color;
  return { text, line: isDark() ? "#343b44" : "#d8dee4", ground: getComputedStyle(document.body).backgroundColor };
}

function axis(options) {
  const { text, line } = colours();
  return { gridcolor: line, zerolinecolor: line, tickfont: { color: text }, automargin: true, exponentformat: "e", ...options };
}

function draw(id, traces, options, buttons = ["zoom2d", "pan2d", "resetScale2d", "toImage"]) {
  const { text, ground, line } = colours();
  const element = byId(id);
  const layout = {
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: text },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: ground, bordercolor: line, font: { color: text }, align: "left", namelength: -1 },
    margin: { l: 55, r: 15, t: 15, b: 45 },
    hovermode: "closest",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: text },
    ...options,
  };
  // Only Plotly's buttons for viewing; another of its buttons would upload the data.
  const config = { responsive: true, displaylogo: false, modeBarButtons: [buttons] };
  const isFirst = !element.on;
  Plotly.react(element, traces, layout, config);
  if (isFirst) {
    element.on("plotly_click", ({ points }) => points[0].customdata !== undefined && pick(points[0].customdata));
    element.on("plotly_restyle", () => element === byId("parallel") && brush(element.data[0].dimensions));
  }
}

// ---- the charts

function xValues(run, series) {
  if (state.x === "tokens") return series.step.map((step) => (run.tokensPerStep === null ? null : step * run.tokensPerStep));
  return state.x === "seconds" ? series.seconds : series.step;
}

// One trace for all curves of a colour, with gaps between them, stays fast with hundreds of runs.
function joined(members, loss, look) {
  const trace = { x: [], y: [], text: [], customdata: [], ...look };
  for (const run of members) {
    const series = run.series[loss];
    const at = runs.indexOf(run);
    xValues(run, series).forEach((x, point) => {
      trace.x.push(x);
      trace.y.push(series.loss[point]);
      trace.text.push(run.label);
      trace.customdata.push(at);
    });
    trace.x.push(null);
    trace.y.push(null);
    trace.text.push("");
    trace.customdata.push(at);
  }
  return trace;
}

function hover(loss) {
  const position = state.x === "seconds" ? "%{x:.1f} s" : UNITS[state.x] + " %{x:,d}";
  return "%{text}<br>" + (loss === "batch" ? "training batch" : loss) + " %{y:.4f}, " + position + "<extra></extra>";
}

const pickedOf = (shown) => shown.find((run) => runs.indexOf(run) === state.picked);

function drawCurves() {
  const shown = runs.filter(isShown);
  const picked = pickedOf(shown);
  const losses = ["batch", "train", "val"].filter((loss) => state[loss]);
  const all = groups(shown);
  const traces = [];
  const named = new Set();
  const hasPoints = (group, loss) => group.runs.some((run) => run.series[loss].loss.length > 0);
  const isPoint = (run, loss) => run.series[loss].loss.length === 1;
  const isMany = shown.length > MANY;
  const add = (group, loss, { isFaded = false, wider = 0 } = {}) => {
    const { width, dash = "solid", opacity } = LOOKS[loss](isMany);
    const look = {
      type: "scatter",
      mode: "lines",
      line: { color: group.colour, width: width + wider, dash },
      opacity: isFaded ? 0.2 * opacity : opacity,
      marker: { color: group.colour, size: 8 },
      hovertemplate: hover(loss),
      name: plain(short(group.name, 40)),
      legendgroup: group.name,
      showlegend: loss === losses.filter((drawn) => hasPoints(group, drawn)).pop(),
    };
    if (!hasPoints(group, loss)) return;
    named.add(group.name);
    // A single record makes no line, so it is drawn as a marker.
    const points = group.runs.filter((run) => isPoint(run, loss));
    const curves = group.runs.filter((run) => !isPoint(run, loss));
    if (hasPoints({ runs: curves }, loss)) traces.push(joined(curves, loss, look));
    if (points.length > 0) {
      const isNamed = look.showlegend && !hasPoints({ runs: curves }, loss);
      traces.push(joined(points, loss, { ...look, mode: "markers", showlegend: isNamed }));
    }
  };
  for (const loss of losses) {
    for (const group of all) add(group, loss, { isFaded: picked !== undefined });
  }
  if (picked) {
    const group = all.find(({ runs }) => runs.includes(picked));
    for (const loss of losses) {
      add({ name: data.kind + " " + picked.name, colour: group.colour, runs: [picked] }, loss, { wider: 1.5 });
    }
  }
  const { shapes, annotations } = references(shown, losses);
  const { range, isClipped } = lossRange(shown, losses);
  byId("clipped").hidden = !isClipped;
  const isCrowded = named.size > 12;
  draw("curves", traces, {
    xaxis: axis({ title: { text: UNITS[state.x] }, rangemode: "tozero", exponentformat: "SI" }),
    yaxis: axis({ title: { text: data.unit }, type: state.y, ...(range ? { range } : {}) }),
    showlegend: named.size > 1 && !isCrowded,
    uirevision: state.x + state.y, // a zoom is kept until an axis changes
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", itemsizing: "constant" },
    shapes,
    annotations,
  });
}

// The counting baselines of the visible split, as horizontal lines.
function references(shown, losses) {
  const { text, ground } = colours();
  const split = losses.includes("val") ? "val" : "train";
  const lines = data.references
    .map((line) => ({ ...line, of: line.runs.filter((at) => shown.includes(runs[at])).length }))
    .filter((line) => line.split === split && line.of > 0 && losses.some((loss) => loss !== "batch"))
    .filter((line) => state.y === "linear" || line.loss > 0)
    .slice(0, 10);
  const shapes = lines.map((line) => ({
    type: "line", xref: "paper", x0: 0, x1: 1, y0: line.loss, y1: line.loss, line: { color: text, width: 1, dash: "dash" }, opacity: 0.6,
  }));
  // The names of lines that lie close together are placed side by side.
  const near = 0.04 * extent(shown, losses).height;
  let above = Infinity;
  let column = 0;
  const annotations = lines.sort((a, b) => b.loss - a.loss).map((line) => {
    column = above - line.loss < near ? column + 1 : 0;
    if (column === 0) above = line.loss;
    return {
      xref: "paper", x: 1 - 0.17 * column, xanchor: "right", y: state.y === "log" ? Math.log10(line.loss) : line.loss, yanchor: "bottom",
      showarrow: false, bgcolor: ground, opacity: 0.85, font: { size: 11, color: text }, borderpad: 0,
      text: plain(line.name) + " " + line.loss.toFixed(3) + (line.of < shown.length ? " (of " + line.of + ")" : ""),
    };
  });
  return { shapes, annotations };
}

// The largest final loss in the charts, so that diverging runs do not flatten the others: the highest initial loss if a
// run ends far above it.
const ceiling = (() => {
  const first = runs.map((run) => run.series.val.loss[0]).filter((loss) => typeof loss === "number");
  const highest = Math.max(...runs.map((run) => run.final ?? -Infinity));
  return first.length > 0 && highest > 1.5 * Math.max(...first) ? Math.max(...first) : Infinity;
})();
const isAboveCeiling = (run) => run.final > ceiling;

// The lowest and highest value of these losses, the highest initial value, and the height of the chart.
function extent(shown, losses) {
  const found = { low: Infinity, high: -Infinity, first: -Infinity };
  for (const run of shown) {
    for (const loss of losses) {
      const values = run.series[loss].loss;
      if (values.length > 0) found.first = Math.max(found.first, values[0]);
      for (const value of values) {
        if (value < found.low) found.low = value;
        if (value > found.high) found.high = value;
      }
    }
  }
  return { ...found, height: Math.min(found.high, found.first) - found.low };
}

// The range of the loss axis: losses far above the initial ones are cut off until a double click.
function lossRange(shown, losses) {
  const { low, high, first, height } = extent(shown, losses);
  if (!(high > 1.5 * first)) return { range: null, isClipped: false };
  const range = state.y === "log" ? [Math.log10(low) - 0.02, Math.log10(first) + 0.02] : [low - 0.05 * height, first + 0.05 * height];
  return { range, isClipped: true };
}

function drawFields() {
  byId("above").hidden = ceiling === Infinity;
  const shown = runs.filter((run) => isShown(run) && run.final !== null);
  data.fields.forEach((field, at) => drawField("field-" + at, field, shown));
}

function drawField(id, field, shown) {
  const categories = sortedTexts(distinct(field.name));
  const valueOf = (run) => (field.numeric ? Number(run.values[field.name]) : categories.indexOf(run.values[field.name]));
  const picked = pickedOf(shown);
  const traces = [lowestAtEach(field, shown, valueOf)].filter(Boolean);
  for (const group of groups(shown)) {
    traces.push({
      type: "scatter",
      mode: "markers",
      x: group.runs.map(valueOf),
      y: group.runs.map((run) => Math.min(run.final, ceiling)),
      text: group.runs.map((run) => run.label + "<br>final " + data.short + " " + run.final.toFixed(4)),
      customdata: group.runs.map((run) => runs.indexOf(run)),
      marker: {
        color: group.colour,
        symbol: group.runs.map((run) => (isAboveCeiling(run) ? "triangle-up" : "circle")),
        size: group.runs.map((run) => (run === picked ? 14 : 8)),
        opacity: group.runs.map((run) => (picked === undefined || run === picked ? 0.85 : 0.3)),
      },
      hovertemplate: "%{text}<extra></extra>",
    });
  }
  const values = [...new Set(shown.map(valueOf))].sort((a, b) => a - b);
  const textOf = (value) => (field.numeric ? String(value) : plain(short(categories[value], 24) || "–"));
  const hasTicks = !field.numeric || values.length <= 8;
  draw(id, traces, {
    xaxis: axis({
      title: { text: plain(field.name) + (field.log ? " (log)" : "") },
      type: field.log ? "log" : "linear",
      ...(field.log ? {} : { exponentformat: "SI" }),
      ...(hasTicks ? { tickmode: "array", tickvals: values, ticktext: values.map(textOf) } : {}),
      ...(field.numeric ? {} : { range: [-0.5, categories.length - 0.5] }),
    }),
    yaxis: axis({ title: { text: "final " + data.measure }, type: state.y }),
    showlegend: false,
    uirevision: state.y,
  });
}

// The lowest final loss, or mean over seeds, at each value of a numeric field with 2 to 10 values; null for others.
function lowestAtEach(field, shown, valueOf) {
  const best = new Map();
  const keepLowest = (x, y, std) => {
    if (!best.has(x) || y < best.get(x).y) best.set(x, { y, std });
  };
  if (data.groups.length > 0 && field.name !== "seed") {
    for (const group of data.groups) {
      const members = group.runs.map((at) => runs[at]).filter((run) => shown.includes(run));
      if (members.length < group.runs.length || members.some(isAboveCeiling)) continue;
      keepLowest(valueOf(members[0]), group.mean, group.std ?? 0);
    }
  } else {
    for (const run of shown) if (!isAboveCeiling(run)) keepLowest(valueOf(run), run.final, 0);
  }
  if (!field.numeric || best.size < 2 || best.size > 10) return null;
  const points = [...best].sort(([a], [b]) => a - b);
  const { text } = colours();
  return {
    type: "scatter",
    mode: "lines",
    x: points.map(([x]) => x),
    y: points.map(([, point]) => point.y),
    error_y: { type: "data", array: points.map(([, point]) => point.std), visible: data.groups.length > 0, color: text, thickness: 1 },
    line: { color: text, width: 1 },
    opacity: 0.6,
    hoverinfo: "skip",
  };
}

let allDimensions = null;

// The axes of the parallel coordinates: the swept fields and the loss. The value of a category is its index.
function dimensions() {
  if (allDimensions) return allDimensions;
  const completed = runs.filter((run) => run.final !== null);
  allDimensions = data.fields.map((field) => {
    const categories = sortedTexts(distinct(field.name));
    const numberOf = (run) => (field.log ? Math.log10(Number(run.values[field.name])) : Number(run.values[field.name]));
    const coordinateOf = field.numeric ? numberOf : (run) => categories.indexOf(run.values[field.name]);
    const textOf = (value) => (field.numeric && !Number.isInteger(Number(value)) ? String(+Number(value).toPrecision(4)) : value);
    const texts = new Map(completed.map((run) => [coordinateOf(run), short(textOf(run.values[field.name]), 20) || "–"]));
    return { label: field.name, coordinateOf, ...ticks(texts) };
  });
  const finalOf = (run) => (run.final === null ? null : Math.min(run.final, ceiling));
  const digits = [3, 4, 5, 6].find((n) => new Set(completed.map((run) => finalOf(run).toFixed(n))).size > 6) ?? 4;
  const texts = new Map(completed.map((run) => [finalOf(run), (isAboveCeiling(run) ? "≥ " : "") + finalOf(run).toFixed(digits)]));
  allDimensions.push({ label: "final " + data.measure, coordinateOf: finalOf, ...ticks(texts) });
  return allDimensions;
}

// There is a tick at each value, because Plotly's brushes snap to ticks. A tick too close to the one below gets an
// invisible text, which is unique because Plotly merges ticks with the same text.
function ticks(texts) {
  const values = [...texts.keys()].sort((a, b) => a - b);
  const spacing = (values[values.length - 1] - values[0]) / 16;
  let last = -Infinity;
  const used = new Set();
  const ticktext = values.map((value, at) => {
    const text = texts.get(value);
    if (value - last < spacing || used.has(text)) return "\u200b".repeat(at + 1);
    last = value;
    used.add(text);
    return text;
  });
  return { tickvals: values, ticktext };
}

function drawParallel() {
  const element = byId("parallel");
  const completed = runs.filter((run) => run.final !== null);
  if (completed.length === 0) return element.closest("section").remove();
  if (!document.createElement("canvas").getContext("webgl")) {
    element.textContent = "This chart needs WebGL, which this browser does not support or has disabled.";
    element.style.height = "auto";
    return;
  }
  const finals = completed.map((run) => run.final).sort((a, b) => a - b);
  const scale = isDark() ? [...DARK_SCALE].reverse() : LIGHT_SCALE;
  const { text } = colours();
  const order = state.axes ?? dimensions().map((_, at) => at);
  element.style.minWidth = order.length * 7 + "rem";
  const trace = {
    type: "parcoords",
    dimensions: order.map((at) => ({
      name: String(at), // identifies the axis after the reader has moved it
      label: plain(short(dimensions()[at].label, 30)),
      values: completed.map(dimensions()[at].coordinateOf),
      tickvals: dimensions()[at].tickvals,
      ticktext: dimensions()[at].ticktext, // not escaped, because Plotly shows these texts literally
      ...(state.brushes[at] ? { constraintrange: state.brushes[at] } : {}),
    })),
    line: {
      color: completed.map((run) => run.final),
      colorscale: scale.map((colour, at) => [at / (scale.length - 1), colour]),
      cmin: finals[0],
      cmax: Math.max(finals[Math.floor(0.9 * (finals.length - 1))], finals[0] + 1e-6),
    },
    unselected: { line: { color: isDark() ? "#343b44" : "#d8dee4", opacity: 0.4 } },
    labelfont: { color: text, size: 12 },
    tickfont: { color: text, size: 11 },
    rangefont: { color: "rgba(0,0,0,0)" },
  };
  draw("parallel", [trace], { margin: { l: 70, r: 75, t: 50, b: 20 } }, ["toImage"]);
}

function brush(axes) {
  state.axes = axes.map(({ name }) => Number(name));
  state.brushes = {};
  for (const { name, constraintrange: ranges } of axes) {
    if (ranges && ranges.length) state.brushes[name] = Array.isArray(ranges[0]) ? ranges : [ranges];
  }
  show();
}

// ---- the page

// Only charts on or near the screen are drawn, so that with hundreds of runs a click does not wait for the others.
const DRAWN = { curves: drawCurves, fields: drawFields, parallel: drawParallel };
const stale = new Set();
const onScreen = new Set();
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) isIntersecting ? onScreen.add(target.id) : onScreen.delete(target.id);
    refresh();
  },
  { rootMargin: "150px" },
);

function redraw(...names) {
  for (const name of names) if (byId(name)) stale.add(name);
  refresh();
}

// Charts are drawn one at a time, so that the first appears before the others are ready.
let isWaiting = false;
function refresh() {
  const next = [...stale].find((name) => onScreen.has(name));
  if (isWaiting || next === undefined) return;
  stale.delete(next);
  DRAWN[next]();
  isWaiting = true;
  requestAnimationFrame(() => requestAnimationFrame(() => {
    isWaiting = false;
    refresh();
  }));
}

const tableRows = [...document.querySelectorAll("#results tbody tr")];
const samples = [...document.querySelectorAll("#samples figure")];
let maxSamples = 6;

// Updates the page after a change of the filters or the highlighted run.
function show() {
  const isIn = runs.map(isShown);
  const n = isIn.filter(Boolean).length;
  for (const row of tableRows) {
    row.hidden = !isIn[row.dataset.run];
    row.classList.toggle("picked", Number(row.dataset.run) === state.picked);
  }
  let remaining = maxSamples;
  const matching = samples.filter((figure) => isIn[figure.dataset.run]);
  for (const figure of samples) {
    const isPicked = Number(figure.dataset.run) === state.picked;
    figure.hidden = !matching.includes(figure) || (remaining <= 0 && !isPicked);
    figure.classList.toggle("picked", isPicked);
    if (!figure.hidden) remaining -= 1;
  }
  const more = byId("more");
  more.hidden = matching.length <= 6;
  more.textContent = maxSamples === 6 ? "Show all " + matching.length + " samples" : "Show the first 6";
  if (byId("count")) {
    byId("count").textContent = n === runs.length ? "all " + n : n + " of " + runs.length;
    byId("all").hidden = n === runs.length && state.picked === null;
  }
  redraw("curves", "fields");
}

function pick(at) {
  state.picked = state.picked === at ? null : at;
  show();
}

function sortBy(table, column, header) {
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => ({ row, text: row.cells[column].innerText.trim() }));
  const order = sortedTexts(new Set(keyed.map(({ text }) => text)));
  const isMissing = ({ text }) => text === "-" || text === "";
  keyed.sort((a, b) => {
    if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b); // last in both directions
    const difference = order.indexOf(a.text) - order.indexOf(b.text);
    return descending ? -difference : difference;
  });
  body.append(...keyed.map(({ row }) => row));
}

function listen() {
  for (const form of document.querySelectorAll("form")) {
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
  }
  for (const input of document.querySelectorAll("#bar input[name=y]")) {
    input.addEventListener("change", () => { state.y = input.value; redraw("curves", "fields"); });
  }
  for (const input of document.querySelectorAll("#curve-switches input")) {
    if (input.type === "checkbox") input.checked = state[input.name];
    input.addEventListener("change", () => {
      if (input.type === "checkbox") state[input.name] = input.checked;
      else state.x = input.value;
      redraw("curves");
    });
  }
  byId("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    drawAll();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  byId("more").addEventListener("click", () => {
    maxSamples = maxSamples === 6 ? Infinity : 6;
    show();
  });
  for (const table of document.querySelectorAll("table.sortable")) {
    table.querySelectorAll("thead th").forEach((header, column) =>
      header.addEventListener("click", () => sortBy(table, column, header)));
  }
  for (const row of tableRows) row.querySelector(".pick").addEventListener("click", () => pick(Number(row.dataset.run)));
  if (!byId("words")) return;
  for (const choice of colourChoices()) byId("colour").add(new Option(choice.text, choice.key));
  byId("colour").addEventListener("change", () => { state.colour = byId("colour").value; redraw("curves", "fields"); });
  byId("words").addEventListener("input", () => { state.words = byId("words").value.trim().toLowerCase(); show(); });
  byId("all").addEventListener("click", () => {
    Object.assign(state, { words: "", brushes: {}, picked: null });
    byId("words").value = "";
    show();
    redraw("parallel");
  });
}

function drawAll() {
  show();
  redraw("parallel");
}

listen();
drawAll();
for (const name of Object.keys(DRAWN)) if (byId(name)) watcher.observe(byId(name));
addEventListener("beforeprint", () => {
  for (const name of stale) DRAWN[name]();
  stale.clear();
});
