// The distribution from which a token is drawn, before and after temperature, top-k and top-p.

const { sampling } = data;
const N_DRAWN = 20;
const TINY = 2 ** -126; // a temperature below it counts as 0, as in generate.py

// The probabilities after a position, of the model and as they are drawn with these settings. The tokens with the
// highest logits are single; the others are in bins of tokens with equal logits.
function distribution(position, { temperature, top_k, top_p }) {
  const bins = [...sampling.logits[position].map((logit) => [logit, 1]), ...sampling.tail[position]];
  const before = softmax(bins, 1);
  let kept = bins.map(([, count]) => count); // the number of tokens that remain
  let after;
  if (temperature < TINY) {
    kept = kept.map((_, at) => (at === 0 ? 1 : 0));
    after = kept;
  } else {
    const n = kept.reduce((sum, count) => sum + count, 0);
    if (top_k > 0 && top_k < n) kept = atMost(kept, top_k);
    const p = softmax(bins.map(([logit], at) => [logit, kept[at]]), temperature);
    if (top_p < 1) kept = nucleus(kept, p, Math.max(top_p, TINY));
    const left = p.map((value, at) => (kept[at] > 0 ? value * kept[at] : 0));
    const total = left.reduce((sum, value) => sum + value, 0);
    after = left.map((value) => value / total);
  }
  return {
    before: before.map((value, at) => value * bins[at][1]),
    after,
    tokens: sampling.tokens[position],
    remaining: kept.reduce((sum, count) => sum + count, 0),
    size: bins.reduce((sum, [, count]) => sum + count, 0),
    removed: before.reduce((sum, value, at) => sum + value * (bins[at][1] - kept[at]), 0),
  };
}

// The probability of one token of each bin.
function softmax(bins, temperature) {
  const most = Math.max(...bins.map(([logit]) => logit));
  const powers = bins.map(([logit]) => Math.exp((logit - most) / temperature));
  const total = powers.reduce((sum, power, at) => sum + power * bins[at][1], 0);
  return powers.map((power) => power / total);
}

// The first `most` tokens.
function atMost(counts, most) {
  let left = most;
  return counts.map((count) => {
    const own = Math.min(count, left);
    left -= own;
    return own;
  });
}

// The smallest set of likeliest tokens whose total probability is at least top_p: a token remains if all likelier ones
// have less.
function nucleus(counts, p, top_p) {
  let likelier = 0;
  return counts.map((count, at) => {
    const own = likelier < top_p ? Math.min(count, Math.ceil((top_p - likelier) / p[at])) : 0;
    likelier += p[at] * count;
    return own;
  });
}

// ---- what is shown

let samplingView = null;
const slider = (name) => document.querySelector('#sampling-switches [name="' + name + '"]');

function drawSampling() {
  if (!samplingView) {
    samplingView = textView(byId("sampling"), sampling.ids, (at) => { slider("position").value = at; showSampling(); }, { hover: false });
    slider("position").max = sampling.ids.length - 1;
    slider("position").value = Math.floor((sampling.ids.length - 1) / 2);
    slider("top_k").max = sampling.logits[0].length;
  }
  showSampling();
}

function showSampling() {
  const position = Number(slider("position").value);
  const settings = Object.fromEntries(["temperature", "top_k", "top_p"].map((name) => [name, Number(slider(name).value)]));
  const texts = { position: "after token " + (position + 1), temperature: settings.temperature.toFixed(2), top_k: settings.top_k || "off", top_p: settings.top_p < 1 ? settings.top_p.toFixed(2) : "off" };
  for (const [name, text] of Object.entries(texts)) slider(name).parentElement.querySelector("output").textContent = text;
  samplingView.move(position);
  samplingView.spans.forEach((span, at) => span.classList.toggle("later", at > position));
  const { before, after, tokens, remaining, size, removed } = distribution(position, settings);
  const left = remaining === size ? "all " + count(size) + " tokens remain." : count(remaining) + " of " + count(size) + " tokens remain; those removed had " + percent(removed) + " of the model's probability.";
  byId("sampling-readout").replaceChildren("After ", key(sampling.ids[position]), ": " + left);
  const next = sampling.ids[position + 1];
  const single = tokens.slice(0, N_DRAWN);
  const rows = single.map((token, at) => ({ head: key(token), values: [before[at], after[at]], text: percent(before[at]) + " / " + percent(after[at]), isMarked: token === next }));
  if (size > single.length) {
    const rest = (values) => values.slice(single.length).reduce((sum, value) => sum + value, 0);
    rows.push({ head: count(size - single.length) + " others", values: [rest(before), rest(after)], text: percent(rest(before)) + " / " + percent(rest(after)) });
  }
  byId("sampling-bars").replaceChildren(barNames("the model's probability", "as it is drawn"), bars(rows, Math.max(...rows.flatMap(({ values }) => values))));
}
