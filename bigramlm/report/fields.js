// The charts of a section that compare its fields: final losses against each of them, and parallel coordinates.

// The largest final loss in the charts, so that diverging runs do not flatten the others: the highest initial loss if a
// run ends far above it.
for (const section of sections) {
  let [first, highest] = [-Infinity, -Infinity];
  for (const run of section.runs) {
    first = Math.max(first, seriesOf(run, "val").value[0] ?? -Infinity);
    highest = Math.max(highest, run.final ?? -Infinity);
  }
  section.ceiling = isFinite(first) && highest > 1.5 * first ? first : Infinity;
}
const isAboveCeiling = (run) => run.final > sectionOf.get(run).ceiling;
const finalOf = (run) => (run.final === null ? null : Math.min(run.final, sectionOf.get(run).ceiling));

function drawFields(section) {
  section.element.querySelector(".above").hidden = section.ceiling === Infinity;
  const shown = section.runs.filter((run) => isShown(run) && run.final !== null);
  const lows = shown.map((run) => run.final).sort((a, b) => a - b);
  section.fields.forEach((field, at) => drawField(section, "field-" + at + section.suffix, field, shown, lossAxis(section, { lows }).toY));
}

const hasValue = (run, field) => !field.numeric || (run.values[field.name] ?? "") !== "";

function drawField(section, id, field, all, toY) {
  const shown = all.filter((run) => hasValue(run, field));
  const categories = sortedTexts(distinct(section.runs.filter((run) => run.final !== null), field.name));
  const valueOf = (run) => (field.numeric ? Number(run.values[field.name]) : categories.indexOf(run.values[field.name]));
  const picked = shown.find((run) => run.at === state.picked);
  const traces = [lowestAtEach(section, field, shown, valueOf, toY)].filter(Boolean);
  for (const group of coloured(shown)) {
    traces.push({
      type: "scatter",
      mode: "markers",
      x: group.runs.map(valueOf),
      y: group.runs.map((run) => toY(finalOf(run))),
      text: group.runs.map((run) => run.hover + "<br>final " + section.short + " " + run.final.toFixed(4)),
      customdata: group.runs.map((run) => run.at),
      marker: {
        color: group.colour,
        line: { width: 0 },
        symbol: group.runs.map((run) => (isAboveCeiling(run) ? "triangle-up" : "circle")),
        size: group.runs.map((run) => (run === picked ? 14 : 8)),
        opacity: group.runs.map((run) => (picked === undefined || run === picked ? 0.85 : 0.3)),
      },
      hovertemplate: "%{text}<extra></extra>",
    });
  }
  const values = [...new Set(shown.map(valueOf))].sort((a, b) => a - b);
  const textOf = (value) => (field.numeric ? String(value) : plain(short(categories[value], 24) || "–"));
  const hasTicks = !field.numeric || (values.length <= 8 && !isCrowded(values.map((value) => (field.log ? Math.log10(value) : value))));
  draw(id, traces, {
    xaxis: axis({
      title: { text: plain(field.name) + (field.log ? " (log)" : "") },
      type: field.log ? "log" : "linear",
      ...(field.log ? {} : { exponentformat: "SI" }),
      ...(hasTicks ? { tickmode: "array", tickvals: values, ticktext: values.map(textOf) } : {}),
      ...(field.numeric ? {} : { range: [-0.5, categories.length - 0.5] }),
    }),
    yaxis: axis({ title: { text: "final " + section.measure + (state.y === "excess" ? ", above the best" : "") }, type: state.y === "linear" ? "linear" : "log" }),
    uirevision: state.y,
  }, { section });
}

// Whether two neighbours are so close that their texts would overlap.
function isCrowded(values) {
  const least = (values[values.length - 1] - values[0]) / 16;
  return values.some((value, at) => at > 0 && value - values[at - 1] < least);
}

// The lowest final loss, or mean over seeds, at each value of a numeric field with 2 to 10 values; null for others.
function lowestAtEach(section, field, shown, valueOf, toY) {
  const best = new Map();
  const keepLowest = (x, y, std) => {
    if (!best.has(x) || y < best.get(x).y) best.set(x, { y, std });
  };
  if (section.groups.length > 0 && field.name !== "seed") {
    const own = new Set(shown);
    for (const group of section.groups) {
      const members = group.runs.map((at) => section.runs[at]).filter((run) => own.has(run));
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
    y: points.map(([, point]) => toY(point.y)),
    error_y: { type: "data", array: points.map(([, point]) => point.std), visible: section.groups.length > 0, color: text, thickness: 1 },
    line: { color: text, width: 1 },
    opacity: 0.6,
    hoverinfo: "skip",
  };
}

// ---- parallel coordinates

// The axes: the fields that all completed runs have, and the loss. The value of a category is its index.
function dimensions(section) {
  if (section.dimensions) return section.dimensions;
  const completed = section.runs.filter((run) => run.final !== null);
  const fields = section.fields.filter((field) => completed.every((run) => hasValue(run, field)));
  section.dimensions = fields.map((field) => {
    const categories = sortedTexts(distinct(completed, field.name));
    const numberOf = (run) => (field.log ? Math.log10(Number(run.values[field.name])) : Number(run.values[field.name]));
    const coordinateOf = (run) => (!hasValue(run, field) ? null : field.numeric ? numberOf(run) : categories.indexOf(run.values[field.name]));
    const textOf = (value) => (field.numeric && !Number.isInteger(Number(value)) ? String(+Number(value).toPrecision(4)) : value);
    const texts = new Map(completed.map((run) => [coordinateOf(run), short(textOf(run.values[field.name]), 20) || "–"]));
    return { label: field.name, coordinateOf, ...ticks(texts) };
  });
  const digits = [3, 4, 5, 6].find((n) => new Set(completed.map((run) => finalOf(run).toFixed(n))).size > 6) ?? 4;
  const texts = new Map(completed.map((run) => [finalOf(run), (isAboveCeiling(run) ? "≥ " : "") + finalOf(run).toFixed(digits)]));
  section.dimensions.push({ label: "final " + section.measure, coordinateOf: finalOf, ...ticks(texts) });
  return section.dimensions;
}

// There is a tick at each value, because Plotly's brushes snap to ticks. A tick too close to the one below gets an
// invisible text, which is unique because Plotly merges ticks with the same text. With many values, Plotly chooses the
// ticks, and the brushes are free.
function ticks(texts) {
  const values = [...texts.keys()].sort((a, b) => a - b);
  if (values.length > MANY) return {};
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

function drawParallel(section) {
  const id = "parallel" + section.suffix;
  const element = byId(id);
  const completed = section.runs.filter((run) => run.final !== null);
  if (completed.length === 0) return element.closest("section").remove();
  if (!document.createElement("canvas").getContext("webgl")) {
    element.textContent = "This chart needs WebGL, which this browser does not support or has disabled.";
    element.style.height = "auto";
    return;
  }
  const { text } = colours();
  const axes = dimensions(section);
  const order = section.axes ?? axes.map((_, at) => at);
  element.style.minWidth = order.length * 7 + "rem";
  const n = palette.entries.length;
  const trace = {
    type: "parcoords",
    dimensions: order.map((at) => ({
      name: String(at), // identifies the axis after the reader has moved it
      label: plain(short(axes[at].label, 30)),
      values: completed.map(axes[at].coordinateOf),
      tickvals: axes[at].tickvals,
      ticktext: axes[at].ticktext, // not escaped, because Plotly shows these texts literally
      ...(section.brushes[at] ? { constraintrange: section.brushes[at] } : {}),
    })),
    line: {
      color: completed.map((run) => palette.entries.indexOf(palette.of.get(run)) + 0.5),
      colorscale: palette.entries.flatMap(({ colour }, at) => [[at / n, colour], [(at + 1) / n, colour]]),
      cmin: 0,
      cmax: n,
    },
    unselected: { line: { color: isDark() ? "#343b44" : "#d8dee4", opacity: 0.4 } },
    labelfont: { color: text, size: 12 },
    tickfont: { color: text, size: 11 },
    rangefont: { color: "rgba(0,0,0,0)" },
  };
  draw(id, [trace], { margin: { l: 70, r: 75, t: 50, b: 20 } }, { section, buttons: ["toImage"] });
}

function brush(section, axes) {
  section.axes = axes.map(({ name }) => Number(name));
  section.brushes = {};
  for (const { name, constraintrange: ranges } of axes) {
    if (ranges && ranges.length) section.brushes[name] = Array.isArray(ranges[0]) ? ranges : [ranges];
  }
  show();
}
