// What is inside the layers: attention, the tokens that each layer would write, weights and activations.

const { attention, lens, weights, activations } = data;

// ---- attention

const headBytes = ([layer, head]) => bytes(attention.weights[layer][head]);
const headName = ([layer, head]) => "layer\u00a0" + layer + ", head\u00a0" + head;
const kindOf = ([layer, head]) => attention.kinds?.[layer]?.[head] ?? null;

// Paints attention as an image with a pixel for each pair of positions. Its colours are of the square roots of the
// weights, so that small weights are visible.
function paint(canvas, own, ramp) {
  const n = attention.ids.length;
  canvas.width = canvas.height = n;
  const context = canvas.getContext("2d");
  const image = context.createImageData(n, n);
  own.forEach((byte, at) => {
    const colour = ramp[Math.round(Math.sqrt(255 * byte))];
    image.data.set([...colour, 255], 4 * at);
  });
  context.putImageData(image, 0, 0);
}

// The head that fits its kind best is shown first.
function firstHead() {
  const scoreOf = (place) => Math.max(0, ...Object.values(kindOf(place)?.scores ?? {}));
  return allHeads().reduce((best, place) => (scoreOf(place) > scoreOf(best) ? place : best));
}

const allHeads = () => attention.weights.flatMap((heads, layer) => heads.map((_, head) => [layer, head]));

function drawHeads() {
  const grid = byId("heads");
  const colourOf = ramp(scaleOf(SCALES));
  if (!grid.childElementCount) {
    grid.style.setProperty("--heads", attention.heads);
    grid.append(...allHeads().map((place) => {
      const button = make("button", "small-head", make("canvas"), make("span", "", headName(place)), make("small", "", kindOf(place)?.name ?? ""));
      button.type = "button";
      button.addEventListener("click", () => openHead(place));
      return button;
    }));
  }
  allHeads().forEach((place, at) => paint(grid.children[at].querySelector("canvas"), headBytes(place), colourOf));
  openHead(state.head ?? firstHead());
}

let attentionView = null;

function openHead(place) {
  state.head = place;
  [...byId("heads").children].forEach((button, at) => button.setAttribute("aria-pressed", String(String(allHeads()[at]) === String(place))));
  const kind = kindOf(place);
  byId("head-title").textContent = headName(place)[0].toUpperCase() + headName(place).slice(1) + (kind ? ": " + kind.name : "");
  byId("head-scores").textContent = kind
    ? "On random tokens that are repeated, it gives " + Object.entries(kind.scores).map(([name, score]) => score.toFixed(2) + " to the " + (name === "induction" ? "token after an earlier one like this (induction)" : name)).join(", ") + "."
    : "";
  paint(byId("head").querySelector("canvas"), headBytes(place), ramp(scaleOf(SCALES)));
  if (!attentionView) {
    attentionView = textView(byId("attention-text"), attention.ids, look);
    state.looking = attention.ids.length - 1;
    listenToMap(byId("head"));
  }
  look(state.looking);
}

function listenToMap(map) {
  const toPosition = (event) => {
    const { left, top, width, height } = map.getBoundingClientRect();
    const place = (part) => Math.max(0, Math.min(attention.ids.length - 1, Math.floor(part * attention.ids.length)));
    look(place((event.clientY - top) / height), place((event.clientX - left) / width));
  };
  for (const kind of ["pointermove", "pointerdown"]) map.addEventListener(kind, toPosition);
}

// Shows what a position looks at. `column`: a position to name in any case.
function look(at, column = null) {
  state.looking = at;
  const n = attention.ids.length;
  const row = headBytes(state.head).subarray(at * n, (at + 1) * n);
  attentionView.move(at);
  attentionView.spans.forEach((span, other) => {
    span.style.backgroundColor = shade("cool", Math.sqrt(row[other] / 255));
    span.classList.toggle("later", other > at);
  });
  const mark = byId("head").querySelector(".row-mark");
  mark.hidden = false;
  mark.style.top = (100 * at) / n + "%";
  mark.style.height = 100 / n + "%";
  const most = [...row.keys()].slice(0, at + 1).sort((a, b) => row[b] - row[a]).filter((other) => row[other] > 0).slice(0, 4);
  const named = column === null || column > at || most.includes(column) ? most : [...most.slice(0, 3), column];
  const parts = named.flatMap((other) => [" ", key(attention.ids[other]), " " + percent(row[other] / 255) + (other === at ? " (itself)" : " (" + (at - other) + " before)")]);
  byId("attention-readout").replaceChildren(key(attention.ids[at]), " at position " + (at + 1) + " looks at", ...parts);
}

// ---- layer by layer

function drawLens() {
  if (byId("lens").childElementCount) return;
  const truth = lens.ids.map((_, at) => lens.ids[at + 1] ?? (passage && passage.ids.length > lens.ids.length ? passage.ids[at + 1] : null));
  const line = (name, cells, kind = "td") => make("tr", "", Object.assign(make("th", "", name), { scope: "row" }), ...cells.map((cell) => make(kind, "", cell)));
  const body = make("tbody", "", ...lens.layers.map((name, layer) => {
    const row = line(name, lens.top[layer].map(([[token]]) => make("bdi", "", label(token, 8))));
    lens.top[layer].forEach(([[token]], at) => {
      const cell = row.cells[at + 1];
      const surprise = lens.surprise[layer][at];
      cell.dataset.place = layer + " " + at;
      if (surprise !== null) cell.style.backgroundColor = shade("cool", Math.exp(-surprise));
      cell.classList.toggle("right", token === truth[at]);
    });
    return row;
  }));
  const text = (token) => make("bdi", "", token === null || token === undefined ? "" : label(token, 8));
  const head = make("thead", "", line("token", lens.ids.map(text), "th"));
  const foot = make("tfoot", "", line("next token", truth.map(text)));
  const found = make("table", "lens", head, body, foot);
  const toCell = (event) => {
    const place = event.target.closest("td")?.dataset.place;
    if (place) readLens(...place.split(" ").map(Number), truth);
  };
  for (const kind of ["pointerover", "click"]) found.addEventListener(kind, toCell);
  byId("lens").append(found);
}

function readLens(layer, at, truth) {
  const surprise = lens.surprise[layer][at];
  const likeliest = lens.top[layer][at].flatMap(([token, p]) => [" ", key(token), " " + percent(p)]);
  const true_ = surprise === null ? [] : ["; the true ", key(truth[at]), " has " + percent(Math.exp(-surprise))];
  byId("lens-readout").replaceChildren("After " + lens.layers[layer] + ", at ", key(lens.ids[at]), ":", ...likeliest, ...true_);
}

// ---- weights and activations

function drawWeights() {
  byId("weights").replaceChildren(...weights.map((matrix) => histogram(matrix.name, matrix, "standard deviation " + number(matrix.std))));
}

function drawActivations() {
  const { units, stream } = activations;
  const parts = [];
  if (units?.length) {
    const pictures = units.map((layer) => histogram(layer.name, layer, percent(layer.never) + " of the units never fire"));
    parts.push(make("h3", "", "Hidden units"), make("div", "histograms", ...pictures));
  }
  if (stream) {
    const rows = stream.layers.map((name, at) => ({ head: name, values: [stream.norm[at]], text: number(stream.norm[at]) }));
    parts.push(make("h3", "", "Length of the vector after each layer"), bars(rows, Math.max(...stream.norm)));
  }
  byId("activations").replaceChildren(...parts);
}
