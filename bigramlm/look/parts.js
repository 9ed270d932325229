// The state of the page, and the parts of its sections: texts whose tokens can be pointed at, rows of bars, histograms.

const steps = data.history?.steps ?? [];
const state = {
  step: steps.length - 1, // the index of the shown step of training
  colour: "surprise", // of the passage
  show: "model", order: "use", row: 0, // of the table; `row` is a place in the order of use
  head: null, // the layer and number of the head that is shown large
  looking: 0, // the position whose attention is shown
};

const isLastStep = () => state.step === steps.length - 1;
// The value of a part of the history at the shown step, or the one of the model itself.
const atStep = (name, own) => (isLastStep() ? own : data.history[name]?.[state.step] ?? own);

// ---- texts

// Spaces and line ends are visible in a label.
const marked = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣");
const label = (token, length = 24) => short(marked(data.tokens[token]), length);
const percent = (p) => (p === 0 || p >= 0.001 ? (100 * p).toFixed(1) : p >= 0.00001 ? (100 * p).toFixed(3) : "<0.001") + "%";
const count = (n) => n.toLocaleString("en");

// Makes an element. Children that are texts stay texts, whatever they contain.
function make(name, className, ...children) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

// The text of a token, isolated so that its direction does not affect its neighbours.
const key = (token) => make("code", "key", make("bdi", "", label(token)));

// A shade of a colour of the theme. It follows the theme by itself.
const shade = (colour, share) =>
  share > 0.004 ? "color-mix(in srgb, var(--" + colour + ") " + Math.round(100 * Math.min(1, share)) + "%, transparent)" : "";

// ---- a text whose tokens can be pointed at

// Shows tokens as a text, and calls `point` with a position when the mouse, a finger or the arrow keys come to it.
// options: `starts`, the positions at which the context begins anew; `hover`, whether the mouse need not click.
function textView(element, ids, point, { starts = [], hover = true } = {}) {
  const begins = new Set(starts.slice(1));
  const spans = ids.map((token, at) => {
    const span = make("bdi", "token", data.tokens[token].replace(/\n/g, "↵\n").replace(/\t/g, "⇥\t"));
    span.dataset.at = at;
    span.tabIndex = at === 0 ? 0 : -1;
    return span;
  });
  element.replaceChildren(...spans.flatMap((span, at) => (begins.has(at) ? [boundary(), span] : [span])));
  const view = { spans, at: 0, move(at) { movePointer(view, at); } };
  const toToken = (event) => {
    const span = event.target.closest(".token");
    if (!span || view.at === Number(span.dataset.at)) return;
    view.move(Number(span.dataset.at));
    point(view.at);
  };
  element.addEventListener("focusin", toToken);
  if (hover) element.addEventListener("pointerover", toToken);
  element.addEventListener("keydown", (event) => {
    const next = neighbour(view, event.key);
    if (next === null) return;
    event.preventDefault();
    spans[next].focus();
  });
  movePointer(view, 0);
  return view;
}

function boundary() {
  const mark = make("span", "boundary");
  mark.title = "The context begins anew here: the model does not see what is before.";
  return mark;
}

function movePointer(view, at) {
  for (const [place, isIn] of [[view.at, false], [at, true]]) {
    view.spans[place].classList.toggle("pointed", isIn);
    view.spans[place].tabIndex = isIn ? 0 : -1;
  }
  view.at = at;
}

// The position to which a key leads; null for other keys, and at the ends of the text.
function neighbour({ spans, at }, pressed) {
  const places = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: spans.length - 1 };
  if (pressed in places) return places[pressed] in spans ? places[pressed] : null;
  if (pressed !== "ArrowUp" && pressed !== "ArrowDown") return null;
  const way = pressed === "ArrowDown" ? 1 : -1;
  const { left, top } = spans[at].getBoundingClientRect();
  let [best, distance, line] = [null, Infinity, null];
  for (let next = at + way; next in spans; next += way) {
    const box = spans[next].getBoundingClientRect();
    if (way * (box.top - top) < 4) continue;
    line ??= box.top;
    if (Math.abs(box.top - line) > 4) break;
    if (Math.abs(box.left - left) < distance) [best, distance] = [next, Math.abs(box.left - left)];
  }
  return best;
}

// ---- bars and histograms

// Rows of a label, one bar for each value, and a text. A value is a share of `most`.
function bars(rows, most) {
  return make("div", "bars", ...rows.map(({ head, values, text, isMarked }) => {
    const tracks = values.map((value, at) => {
      const track = make("span", "track series-" + at);
      track.style.width = (100 * Math.min(1, value / most)).toFixed(2) + "%";
      return track;
    });
    return make("div", isMarked ? "row marked" : "row", make("span", "head", head), make("span", "tracks", ...tracks), make("span", "amount", text));
  }));
}

// The names of the two bars of each row.
const barNames = (...names) => make("p", "hint names", ...names.flatMap((name, at) => [make("span", "swatch series-" + at), name + " "]));

function drawing(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  element.append(...children);
  return element;
}

function histogram(title, { counts, edges: [low, high] }, note) {
  const most = Math.max(1, ...counts);
  const path = counts.map((count, at) => "M" + at + " 20V" + (20 - (20 * count) / most).toFixed(2) + "h1V20z").join("");
  const zero = (counts.length * -low) / (high - low || 1);
  const parts = [drawing("path", { d: path })];
  if (zero > 0 && zero < counts.length) parts.push(drawing("line", { x1: zero, x2: zero, y1: 0, y2: 20, "vector-effect": "non-scaling-stroke" }));
  const picture = drawing("svg", { viewBox: "0 0 " + counts.length + " 20", preserveAspectRatio: "none", role: "img" }, ...parts);
  const ends = make("div", "ends", make("span", "", number(low)), make("span", "", number(high)));
  return make("figure", "", make("figcaption", "", title, make("br"), make("small", "", note)), picture, ends);
}

// ---- matrices

const decoded = new Map();

// The bytes of a base64 text. Each is decoded once.
function bytes(text) {
  if (!decoded.has(text)) decoded.set(text, Uint8Array.from(atob(text), (character) => character.charCodeAt(0)));
  return decoded.get(text);
}

// The colours of a matrix, from the ground to the strongest.
const SCALES = {
  light: [[0, "#ffffff"], [0.35, "#a9cbea"], [0.7, "#2f74b5"], [1, "#08264d"]],
  dark: [[0, "#14181d"], [0.35, "#17456f"], [0.7, "#3d8fd6"], [1, "#e2f1ff"]],
};
const DIVERGING = {
  light: [[0, "#1f64a5"], [0.5, "#ffffff"], [1, "#c2410c"]],
  dark: [[0, "#5fb0f5"], [0.5, "#14181d"], [1, "#f5843c"]],
};
const scaleOf = (scales) => (isDark() ? scales.dark : scales.light);

// The 256 colours of a scale as red, green and blue.
function ramp(scale) {
  const parts = ([, colour]) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return Array.from({ length: 256 }, (_, value) => {
    const next = Math.max(1, scale.findIndex(([place]) => place >= value / 255));
    const [low, high] = [scale[next - 1], scale[next]];
    const share = (value / 255 - low[0]) / (high[0] - low[0]);
    return parts(low).map((part, at) => Math.round(part + share * (parts(high)[at] - part)));
  });
}
