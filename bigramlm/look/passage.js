// The passage: its colours, and the panel with the model's expectation at the token that is pointed at.

const { passage, compare } = data;
const numbers = (values) => values.filter((value) => value !== null);

const surpriseOf = (at) => atStep("surprise", passage.surprise)[at];
const minus = (a, b) => (a === null || b === null || b === undefined ? null : a - b);

// The value below which 95% of the values are, which the strongest colour begins at.
function top95(values) {
  const sorted = values.sort((a, b) => a - b);
  return sorted[Math.floor(0.95 * sorted.length)] ?? 1;
}

// The ways to colour the passage: the value of a token, its share of the strongest colour, and the ends of the scale.
// Shares below 0 are of the other colour.
const COLOURINGS = {};
if (passage) {
  const most = Math.max(1, Math.ceil(2 * top95(numbers(passage.surprise))) / 2);
  const lowest = Math.max(10, Math.min(100, Math.max(...numbers(passage.rank))));
  COLOURINGS.surprise = { valueOf: surpriseOf, share: (value) => value / most, ends: ["0", "≥ " + most + " nats"] };
  COLOURINGS.rank = { valueOf: (at) => passage.rank[at], share: (rank) => Math.log(rank) / Math.log(lowest), ends: ["1", "≥ " + lowest] };
  if (passage.ngram) COLOURINGS.ngram = diverging((at) => minus(surpriseOf(at), passage.ngram[at]), "the " + passage.ngram_order + "-gram");
  if (passage.difference) COLOURINGS.difference = diverging((at) => passage.difference[at], compare?.label ?? "the other run");
}

function diverging(valueOf, other) {
  const found = numbers(passage.ids.map((_, at) => valueOf(at))).map(Math.abs);
  const most = Math.max(0.5, Math.ceil(2 * top95(found)) / 2);
  return { valueOf, share: (value) => value / most, ends: ["less surprised than " + short(other, 30) + ", by ≥ " + most + " nats", "more"], isDiverging: true };
}

let passageView = null;

function drawPassage() {
  if (!passageView) {
    passageView = textView(byId("passage"), passage.ids, showToken, { starts: passage.windows });
    const most = Math.max(...numbers(passage.surprise));
    passageView.move(Math.max(0, passage.surprise.indexOf(most))); // the most surprising token is an example
  }
  const { valueOf, share, ends, isDiverging } = COLOURINGS[state.colour];
  passageView.spans.forEach((span, at) => {
    const value = valueOf(at);
    const strength = value === null || value === undefined ? 0 : share(value);
    span.style.backgroundColor = shade(strength < 0 ? "cool" : "hot", Math.abs(strength));
  });
  byId("scale").replaceChildren(ends[0], make("span", isDiverging ? "gradient diverging" : "gradient"), ends[1]);
  showSummary();
  showToken(passageView.at);
}

function showSummary() {
  const found = numbers(atStep("surprise", passage.surprise));
  const mean = found.reduce((sum, value) => sum + value, 0) / Math.max(1, found.length);
  const parts = ["Mean surprise " + mean.toFixed(3) + " nats per token, as if the model chose among " + Math.exp(mean).toFixed(1) + " equally likely tokens (the perplexity)."];
  const ranks = numbers(passage.rank);
  if (isLastStep()) parts.push(percent(ranks.filter((rank) => rank === 1).length / Math.max(1, ranks.length)) + " of the tokens were the likeliest.");
  if (passage.difference) {
    const sum = numbers(passage.difference).reduce((a, b) => a + b, 0);
    parts.push("Over the passage, this run is " + Math.abs(sum).toFixed(1) + " nats " + (sum < 0 ? "less" : "more") + " surprised than " + (compare?.label ?? "the other run") + ".");
  }
  if (passage.windows.length > 1) parts.push("At a dashed line the context begins anew.");
  byId("passage-summary").textContent = parts.join(" ");
}

// ---- the panel

function showToken(at) {
  const surprise = surpriseOf(at);
  const head = make("p", "chosen", key(passage.ids[at]), make("small", "", " token " + count(at + 1) + " of " + count(passage.ids.length)));
  if (surprise === null || surprise === undefined) {
    return byId("panel").replaceChildren(head, make("p", "note", "Without a prediction: nothing is before it."));
  }
  const facts = make("dl", "", ...[
    ["surprise", surprise.toFixed(2) + " nats"],
    ["probability", percent(Math.exp(-surprise))],
    ["rank", isLastStep() ? String(passage.rank[at]) : null],
    [passage.ngram_order + "-gram", given(passage.ngram?.[at])],
    ["than " + short(compare?.label ?? "the other run", 30), against(passage.difference?.[at])],
  ].filter(([, value]) => value !== null).map(([name, value]) => make("div", "", make("dt", "", name), make("dd", "", value))));
  byId("panel").replaceChildren(head, facts, ...course(at), ...competitors(at));
}

const given = (surprise) => (surprise === null || surprise === undefined ? null : surprise.toFixed(2) + " nats, " + percent(Math.exp(-surprise)));

const against = (value) => (value === null || value === undefined ? null : Math.abs(value).toFixed(2) + " nats " + (value > 0 ? "more" : "less"));

function competitors(at) {
  const own = passage.ids[at];
  const top = passage.top[at] ?? [];
  const rows = top.map(([token, p]) => ({ head: key(token), values: [p], text: percent(p), isMarked: token === own }));
  if (!top.some(([token]) => token === own)) {
    const p = Math.exp(-passage.surprise[at]);
    rows.push({ head: key(own), values: [p], text: percent(p), isMarked: true });
  }
  const title = isLastStep() ? "expected" : "expected at step " + count(steps[steps.length - 1]);
  return [make("p", "hint", title), bars(rows, 1)];
}

// The surprise at a token over the steps of training.
function course(at) {
  if (!data.history?.surprise || steps.length < 2) return [];
  const values = data.history.surprise.map((row) => row[at] ?? 0);
  const most = Math.max(...values, 0.1);
  const y = (value) => (30 - (28 * value) / most).toFixed(2);
  const points = values.map((value, step) => step + "," + y(value)).join(" ");
  const line = drawing("polyline", { points, "vector-effect": "non-scaling-stroke" });
  const now = drawing("line", { x1: state.step, x2: state.step, y1: 0, y2: 30, "vector-effect": "non-scaling-stroke" });
  const picture = drawing("svg", { viewBox: "0 0 " + (steps.length - 1) + " 30", preserveAspectRatio: "none", class: "course", role: "img" }, now, line);
  return [make("p", "hint", "surprise as it learned, from " + values[0].toFixed(2) + " to " + values[values.length - 1].toFixed(2)), picture];
}
