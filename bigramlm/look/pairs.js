// The table of pairs of tokens, and the plane of their embeddings. Both follow the slider of the steps.

const { table, embedding } = data;
const N_FOLLOWING = 12;
const N_WRITTEN = 200; // more embeddings would hide each other; the others, which are used less, are points
const TICK_PIXELS = 11; // the least distance of two ticks
const COLOUR_BAR = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1];

const modelTable = () => bytes(atStep("table", table.model));
const toP = (byte) => (byte / 255) ** 2;

const orderOf = () => (state.order === "use" ? table.tokens.map((_, at) => at) : table.alphabet);

// The values of the shown matrix, row by row, and the scale of their colours.
function tableValues(order) {
  const { size } = table;
  const model = modelTable();
  const counts = table.counts ? bytes(table.counts) : null;
  const value = {
    model: (at) => model[at] / 255,
    counts: (at) => counts[at] / 255,
    difference: (at) => (model[at] - counts[at]) / 255,
  }[state.show];
  const z = order.map((row) => order.map((column) => value(row * size + column)));
  const names = table.tokens.map((token) => plain(label(token)));
  const text = order.map((row) => order.map((column) => {
    const at = row * size + column;
    return "after " + names[row] + ": " + names[column] + "<br>model " + percent(toP(model[at])) + (counts ? "<br>text " + percent(toP(counts[at])) : "");
  }));
  return { z, text };
}

function tableColours(z) {
  if (state.show !== "difference") {
    return {
      colorscale: scaleOf(SCALES), zmin: 0, zmax: 1,
      ticks: { tickvals: COLOUR_BAR.map(Math.sqrt), ticktext: COLOUR_BAR.map((p) => number(100 * p) + "%") },
    };
  }
  let most = 0.1;
  for (const row of z) for (const value of row) most = Math.max(most, Math.abs(value));
  return { colorscale: scaleOf(DIVERGING), zmin: -most, zmax: most, ticks: { tickvals: [-most, 0, most], ticktext: ["too little", "equal", "too much"] } };
}

// An axis of tokens, with as many texts as there is room for.
function tokenAxis(order, pixels, title) {
  const every = Math.max(1, Math.ceil((order.length * TICK_PIXELS) / pixels));
  const shown = order.map((_, at) => at).filter((at) => at % every === 0);
  return axis({
    title: { text: title }, showgrid: false, zeroline: false, tickangle: 0, range: [-0.5, order.length - 0.5],
    tickvals: shown, ticktext: shown.map((at) => plain(label(table.tokens[order[at]], 8))), tickfont: { color: colours().text, size: 10 },
  });
}

function drawTable() {
  const element = byId("table");
  const order = orderOf();
  const { z, text } = tableValues(order);
  const { ticks, ...scale } = tableColours(z);
  const row = order.indexOf(state.row);
  const pixels = element.clientWidth - 110;
  const trace = {
    type: "heatmap", z, text, ...scale,
    hovertemplate: "%{text}<extra></extra>",
    colorbar: { thickness: 10, outlinewidth: 0, tickfont: { color: colours().text, size: 10 }, ...ticks },
  };
  const yaxis = { ...tokenAxis(order, element.clientHeight - 60, "token"), range: [order.length - 0.5, -0.5] };
  const mark = { type: "rect", x0: -0.5, x1: order.length - 0.5, y0: row - 0.5, y1: row + 0.5, line: { color: colours().text, width: 1 } };
  const isFirst = plot(element, [trace], {
    xaxis: tokenAxis(order, pixels, "next token"), yaxis, shapes: [mark], uirevision: state.order, margin: { l: 45, r: 10, t: 30, b: 40 },
  });
  if (isFirst) element.on("plotly_click", ({ points }) => showRow(orderOf()[points[0].pointIndex[0]]));
  fillRow();
}

function showRow(at) {
  state.row = at;
  fillRow();
  const row = orderOf().indexOf(at);
  Plotly.relayout(byId("table"), { "shapes[0].y0": row - 0.5, "shapes[0].y1": row + 0.5 });
}

// The likeliest tokens after that of the row, by the counts if there are any.
function fillRow() {
  const { size } = table;
  const own = (matrix) => matrix.subarray(state.row * size, (state.row + 1) * size);
  const model = own(modelTable());
  const counts = table.counts ? own(bytes(table.counts)) : null;
  const found = [...table.tokens.keys()].sort((a, b) => (counts ? counts[b] - counts[a] : 0) || model[b] - model[a]).slice(0, N_FOLLOWING);
  const rows = found.map((at) => ({
    head: key(table.tokens[at]),
    values: [model, ...(counts ? [counts] : [])].map((row) => toP(row[at])),
    text: [model, ...(counts ? [counts] : [])].map((row) => percent(toP(row[at]))).join(" / "),
  }));
  const most = Math.max(0.01, ...rows.flatMap(({ values }) => values));
  byId("row").value = state.row;
  byId("row-bars").replaceChildren(barNames("model", ...(counts ? ["training text"] : [])), bars(rows, most));
}

// The choices of rows, and the pairs that cost the model most. A click on a pair shows its row.
function fillTableLists() {
  for (const at of table.alphabet) byId("row").add(new Option(label(table.tokens[at]), at));
  byId("row").addEventListener("change", () => showRow(Number(byId("row").value)));
  byId("missing")?.replaceChildren(...table.missing.map(([first, second, counted, predicted]) => {
    const button = make("button", "pair", key(first), " then ", key(second));
    button.type = "button";
    button.addEventListener("click", () => showRow(table.tokens.indexOf(first)));
    return make("li", "", button, " text " + percent(counted) + ", model " + percent(predicted));
  }));
}

// ---- the plane

const KIND_NAMES = ["vowel", "consonant", "capital", "digit", "punctuation", "space", "other"];

function drawEmbedding() {
  const { x, y } = atStep("embedding", embedding);
  const palette = isDark() ? DARK_CATEGORIES : LIGHT_CATEGORIES;
  const places = [...embedding.tokens.keys()];
  const traces = KIND_NAMES.map((kind, at) => {
    const own = places.filter((place) => data.kinds[embedding.tokens[place]] === kind);
    const texts = own.map((place) => plain(label(embedding.tokens[place], 12)));
    return {
      type: "scatter", mode: own.some((place) => place >= N_WRITTEN) ? "markers+text" : "text", name: kind, x: own.map((place) => x[place]), y: own.map((place) => y[place]),
      text: own.map((place, n) => (place < N_WRITTEN ? texts[n] : "")),
      hovertext: texts,
      textfont: { color: palette[at], size: places.length > 100 ? 11 : 15 },
      marker: { color: palette[at], size: 7, opacity: own.map((place) => (place < N_WRITTEN ? 0 : 0.7)) },
      hovertemplate: "%{hovertext}<br>" + kind + "<extra></extra>",
    };
  }).filter(({ x }) => x.length > 0);
  const title = (at) => ["first", "second"][at] + " direction, " + percent(embedding.share[at] ?? 0) + " of the variance";
  plot(byId("embedding"), traces, {
    xaxis: axis({ title: { text: title(0) }, range: extent("x"), exponentformat: "SI" }),
    yaxis: axis({ title: { text: title(1) }, range: extent("y") }),
    showlegend: true,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { color: colours().text } },
    uirevision: "plane", // a zoom is kept while the steps change
  });
}

// The range of an axis over all steps, so that the tokens move and the plane does not.
function extent(name) {
  let [low, high] = [Infinity, -Infinity];
  for (const part of [embedding, ...(data.history?.embedding ?? [])]) {
    for (const value of part[name]) [low, high] = [Math.min(low, value), Math.max(high, value)];
  }
  const margin = 0.06 * (high - low || 1);
  return [low - margin, high + margin];
}
