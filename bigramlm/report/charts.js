// The charts of a section over time, drawn with Plotly: curves of the losses and of other measures.

// With more curves than this, dotted lines are hard to distinguish and slow to draw.
const MANY_DOTTED = 20;
const LOOKS = {
  val: () => ({ width: 2, opacity: 1 }),
  train: (isMany) => (isMany ? { width: 1, opacity: 0.6 } : { width: 1.5, dash: "dot", opacity: 1 }),
  batch: () => ({ width: 1, opacity: 0.45 }),
  measure: () => ({ width: 1.5, opacity: 0.9 }),
};
const UNITS = { step: "step", tokens: "tokens", seconds: "seconds" };
const MEASURES = {
  grad_norm: { title: "gradient norm", form: ".4g" },
  lr: { title: "learning rate", form: ".4g" },
  speed: { title: "tokens per second", form: ",.4s" },
  mfu: { title: "MFU", form: ".1%" },
};
const SMOOTHED = ["batch", "grad_norm", "speed", "mfu"];
// The range of the loss axis is that of the best curves, without the first part of their steps, so that the best can be
// told apart: a quarter of the curves, and at least so many.
const LEFT_OUT = 0.05;
const LEAST_DECIDING = 5;
const MUCH_LONGER = 3;

function draw(id, traces, options, { section, isOverTime = false, buttons }) {
  const element = byId(id);
  if (plot(element, traces, options, buttons)) {
    element.on("plotly_click", ({ points }) => points[0].customdata !== undefined && pick(points[0].customdata));
    element.on("plotly_restyle", () => id === "parallel" + section.suffix && brush(section, element.data[0].dimensions));
    if (isOverTime) element.on("plotly_relayout", (event) => zoomTogether(section, element, event));
  }
}

const measuresOf = (section) => Object.keys(MEASURES).filter((name) => byId(name + section.suffix));

// The charts over time of a section share their zoom of the horizontal axis.
let isZooming = false;
function zoomTogether(section, element, event) {
  const range = event["xaxis.range"] ?? ("xaxis.range[0]" in event ? [event["xaxis.range[0]"], event["xaxis.range[1]"]] : null);
  if (isZooming || (range === null && !event["xaxis.autorange"])) return;
  section.xRange = range;
  isZooming = true;
  const others = ["curves", ...measuresOf(section)].map((name) => byId(name + section.suffix)).filter((other) => other !== element && other.on);
  Promise.all(others.map((other) => Plotly.relayout(other, range ? { "xaxis.range": [...range] } : { "xaxis.autorange": true })))
    .finally(() => { isZooming = false; });
}

// ---- curves

const seriesOf = (run, name) => run.series[name] ?? { step: [], seconds: [], value: [] };

function xValues(run, series) {
  if (state.x === "tokens") return series.step.map((step) => (run.tokensPerStep === null ? null : step * run.tokensPerStep));
  return state.x === "seconds" ? series.seconds : series.step;
}

function valuesOf(run, name) {
  const values = seriesOf(run, name).value;
  return state.smoothing > 0 && SMOOTHED.includes(name) ? smoothed(values, state.smoothing) : values;
}

// The exponential moving average, divided by the sum of its weights, so that it does not begin at 0.
function smoothed(values, factor) {
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    sum = factor * sum + (1 - factor) * value;
    weight = factor * weight + (1 - factor);
    return sum / weight;
  });
}

// One trace for all curves of a colour, with gaps between them, stays fast with hundreds of runs.
function joined(members, name, look, toY = (value) => value) {
  const trace = { x: [], y: [], text: [], customdata: [], ...look };
  for (const run of members) {
    const xs = xValues(run, seriesOf(run, name));
    valuesOf(run, name).forEach((value, point) => {
      trace.x.push(xs[point]);
      trace.y.push(toY(value));
      trace.text.push(state.y === "excess" && name in LOOKS ? run.hover + "<br>" + name + " " + value.toFixed(4) : run.hover);
      trace.customdata.push(run.at);
    });
    trace.x.push(null);
    trace.y.push(null);
    trace.text.push("");
    trace.customdata.push(run.at);
  }
  return trace;
}

function position() {
  return state.x === "seconds" ? "%{x:.1f} s" : UNITS[state.x] + " %{x:,d}";
}

function hoverOf(name) {
  if (name in MEASURES) return "%{text}<br>" + MEASURES[name].title + " %{y:" + MEASURES[name].form + "}, " + position() + "<extra></extra>";
  if (state.y === "excess") return "%{text}, " + position() + "<extra></extra>";
  return "%{text}<br>" + (name === "batch" ? "training batch" : name) + " %{y:.4f}, " + position() + "<extra></extra>";
}

// The traces of some series of these runs; a highlighted run comes last, and the others are then pale.
function curveTraces(drawn, names, toY) {
  const picked = drawn.find((run) => run.at === state.picked);
  const isMany = drawn.length > MANY_DOTTED;
  const traces = [];
  const add = (group, name, { isFaded = false, wider = 0 } = {}) => {
    const { width, dash = "solid", opacity } = (LOOKS[name] ?? LOOKS.measure)(isMany);
    const look = {
      type: "scatter", mode: "lines", name: plain(short(group.name, 40)),
      line: { color: group.colour, width: width + wider, dash },
      opacity: isFaded ? 0.2 * opacity : opacity,
      marker: { color: group.colour, size: 8 },
      hovertemplate: hoverOf(name),
    };
    // A single record makes no line, so it is drawn as a marker.
    const lengthOf = (run) => seriesOf(run, name).value.length;
    const curves = group.runs.filter((run) => lengthOf(run) > 1);
    const points = group.runs.filter((run) => lengthOf(run) === 1);
    if (curves.length > 0) traces.push(joined(curves, name, look, toY));
    if (points.length > 0) traces.push(joined(points, name, { ...look, mode: "markers" }, toY));
  };
  const groups = coloured(drawn);
  for (const name of names) for (const group of groups) add(group, name, { isFaded: picked !== undefined });
  if (picked) {
    for (const name of names) add({ name: picked.label, colour: palette.of.get(picked).colour, runs: [picked] }, name, { wider: 1.5 });
  }
  return traces;
}

function lastX(drawn) {
  let last = 0;
  for (const run of drawn) {
    for (const series of Object.values(run.series)) last = Math.max(last, xValues(run, series)[series.step.length - 1]);
  }
  return last;
}

// The same axis for all charts over time, although not every series has a value at the last step. Much longer runs than
// the best, whose losses decide the other axis, are cut off.
function timeAxis(section, drawn, deciding = drawn) {
  const [last, best] = [lastX(drawn), lastX(deciding)];
  const range = section.xRange ?? (last > 0 ? [0, best > 0 && last > MUCH_LONGER * best ? best : last] : null);
  return axis({ title: { text: UNITS[state.x] }, rangemode: "tozero", exponentformat: "SI", ...(range ? { range: [...range] } : {}) });
}

function drawCurves(section) {
  const drawn = drawnRuns(section);
  const names = ["batch", "train", "val"].filter((name) => state[name]);
  const found = extent(drawn, names);
  const { toY, title } = lossAxis(section, found);
  const { range, isClipped } = lossRange(found, toY);
  const { shapes, annotations } = references(section, drawn, names, found, toY);
  const clipped = section.element.querySelector(".clipped");
  clipped.hidden = !isClipped;
  clipped.textContent = "The range of the axis is that of " + (found.deciding.length < found.lows.length ? "the best " + found.deciding.length + " runs" : "the curves") + " after the first 5% of the steps. Double-click to show all losses.";
  const limited = section.element.querySelector(".limited");
  const nShown = section.runs.filter(isShown).length;
  limited.hidden = drawn.length === nShown;
  limited.textContent = "The curves of the " + drawn.length + " best of " + nShown + " runs. Show words or a range to see others, or choose all curves above.";
  draw("curves" + section.suffix, curveTraces(drawn, names, toY), {
    xaxis: timeAxis(section, drawn, found.deciding),
    yaxis: axis({ title: { text: title }, type: state.y === "linear" ? "linear" : "log", ...(range ? { range } : {}) }),
    uirevision: state.x + state.y, // a zoom is kept until an axis changes
    shapes,
    annotations,
  }, { section, isOverTime: true });
}

// The conversion of a loss to a value of the axis, and the title of the axis. The axis "above the best" begins a little
// below the lowest loss, by the distance of the second best run, so that a logarithmic axis can show both.
function lossAxis(section, { lows }) {
  if (state.y !== "excess" || lows.length === 0) return { toY: (value) => value, title: section.unit };
  const best = lows[0];
  const next = lows.find((low) => low > best) ?? best + 0.01;
  const zero = best - Math.min(0.1, Math.max(1e-4, next - best));
  return { toY: (value) => value - zero, title: section.unit + ", minus " + zero.toFixed(4) };
}

// The ranges of these series: the lowest value of each run, sorted; the highest value; and the top of the axis.
function extent(drawn, names) {
  const limits = [];
  let [high, first] = [-Infinity, -Infinity];
  for (const run of drawn) {
    const own = { run, low: Infinity, later: -Infinity, isCurve: names.some((name) => seriesOf(run, name).step.length > 1) };
    for (const name of names) {
      const { step } = seriesOf(run, name);
      const values = valuesOf(run, name);
      const start = LEFT_OUT * (step[step.length - 1] ?? 0);
      if (values.length > 0) first = Math.max(first, values[0]);
      values.forEach((value, at) => {
        own.low = Math.min(own.low, value);
        high = Math.max(high, value);
        if (step[at] >= start) own.later = Math.max(own.later, value);
      });
    }
    if (own.low < Infinity) limits.push(own);
  }
  limits.sort((a, b) => a.low - b.low);
  // A counted model has a single point, which says nothing about the range of the others.
  const curves = limits.some(({ isCurve }) => isCurve) ? limits.filter(({ isCurve }) => isCurve) : limits;
  const deciding = curves.slice(0, Math.max(LEAST_DECIDING, Math.ceil(curves.length / 4)));
  let later = -Infinity;
  for (const own of deciding) later = Math.max(later, own.later);
  // Losses far above the initial ones are those of diverging runs.
  return { lows: limits.map(({ low }) => low), low: limits[0]?.low ?? Infinity, high, top: later > 1.5 * first ? first : later, deciding: deciding.map(({ run }) => run) };
}

// The range of the loss axis, until a double click shows all; null if all losses are in it anyway.
function lossRange({ low, high, top }, toY) {
  if (!(high > top) || !(top > low)) return { range: null, isClipped: false };
  const [bottom, upper] = [toY(low), toY(top)];
  if (state.y === "linear") return { range: [bottom - 0.04 * (upper - bottom), upper + 0.04 * (upper - bottom)], isClipped: true };
  if (!(bottom > 0)) return { range: null, isClipped: false };
  const margin = 0.04 * Math.log10(upper / bottom);
  return { range: [Math.log10(bottom) - margin, Math.log10(upper) + margin], isClipped: true };
}

// The counting baselines of the visible split, as horizontal lines.
function references(section, drawn, names, { low, top }, toY) {
  const { text, ground } = colours();
  const split = names.includes("val") ? "val" : "train";
  const own = new Set(drawn);
  const lines = section.references
    .map((line) => ({ ...line, y: toY(line.loss), of: line.runs.filter((at) => own.has(section.runs[at])).length }))
    .filter((line) => line.split === split && line.of > 0 && names.some((name) => name !== "batch"))
    .filter((line) => state.y === "linear" || line.y > 0)
    .slice(0, 10);
  const shapes = lines.map(({ y }) => ({
    type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: text, width: 1, dash: "dash" }, opacity: 0.6,
  }));
  // The names of lines that lie close together are placed side by side.
  const near = 0.04 * (top - low);
  let above = Infinity;
  let column = 0;
  const width = Math.max(0.17, 120 / byId("curves" + section.suffix).clientWidth);
  const annotations = lines.sort((a, b) => b.loss - a.loss).map((line) => {
    column = above - line.loss < near ? column + 1 : 0;
    if (column === 0) above = line.loss;
    return {
      xref: "paper", x: 1 - width * column, xanchor: "right", y: state.y === "linear" ? line.y : Math.log10(line.y), yanchor: "bottom",
      showarrow: false, bgcolor: ground, opacity: 0.85, font: { size: 11, color: text }, borderpad: 0,
      text: plain(line.name) + " " + line.loss.toFixed(3) + (line.of < drawn.length ? " (of " + line.of + ")" : ""),
    };
  });
  return { shapes, annotations };
}

function drawMeasures(section) {
  const drawn = drawnRuns(section);
  for (const name of measuresOf(section)) {
    let [low, high] = [Infinity, 0];
    for (const run of drawn) for (const value of seriesOf(run, name).value) [low, high] = [Math.min(low, value), Math.max(high, value)];
    draw(name + section.suffix, curveTraces(drawn, [name]), {
      xaxis: timeAxis(section, drawn),
      yaxis: axis({
        title: { text: MEASURES[name].title },
        type: low > 0 && high > 100 * low ? "log" : "linear",
        rangemode: "tozero",
        ...(name === "speed" ? { exponentformat: "SI" } : name === "mfu" ? { tickformat: ".2~%" } : {}),
      }),
      uirevision: state.x,
    }, { section, isOverTime: true });
  }
}
