// The vital signs of one run of a section: a heat map of layer by step.

const SIGNS = {
  update_ratio: { title: "update / weights", log: true },
  grad_norm: { title: "gradient norm", log: true },
  rms: { title: "RMS of the stream", log: true },
  dead: { title: "dead units (share)", range: [0, 1] },
  alike: { title: "units like another (share)", range: [0, 1] },
  entropy: { title: "entropy of attention (share of the largest)", range: [0, 1] },
  max: { title: "largest logit" },
};
const ROW_HEIGHT = 20; // in pixels

// The highlighted run if it has vital signs, or else the best that is shown.
function runWithVitals(section) {
  const found = section.runs.filter((run) => run.vitals);
  return found.find((run) => run.at === state.picked) ?? found.find(isShown) ?? found[0];
}

function listenToVitals(section) {
  const control = section.element.querySelector(".vitals");
  if (!control) return;
  const select = control.querySelector("select");
  const names = Object.keys(SIGNS).filter((name) => section.runs.some((run) => run.vitals && name in run.vitals));
  for (const name of names) select.add(new Option(SIGNS[name].title, name));
  select.addEventListener("change", () => redraw("vitals"));
  control.hidden = false;
}

function drawVitals(section) {
  const control = section.element.querySelector(".vitals");
  const name = control.querySelector("select").value;
  const run = runWithVitals(section);
  control.querySelector("output").textContent = short(run.label, 60);
  const { steps, layers, values } = run.vitals[name] ?? { steps: [], layers: [], values: [] };
  const { title, log, range } = SIGNS[name];
  const element = byId("vitals" + section.suffix);
  element.style.height = Math.min(900, 110 + ROW_HEIGHT * Math.max(3, layers.length)) + "px";
  const { text } = colours();
  draw("vitals" + section.suffix, [{
    type: "heatmap",
    x: steps,
    y: layers.map((layer) => plain(short(layer, 40))),
    z: values.map((row) => row.map((value) => (log && value !== null ? (value > 0 ? Math.log10(value) : null) : value))),
    text: values.map((row) => row.map((value) => (value === null ? "" : String(value)))),
    hovertemplate: "%{y}, step %{x:,d}<br>" + title + " %{text}<extra></extra>",
    colorscale: "Viridis",
    colorbar: { title: { text: log ? "log10" : "" }, tickfont: { color: text }, thickness: 12 },
    ...(range ? { zmin: range[0], zmax: range[1] } : {}),
  }], {
    xaxis: axis({ title: { text: "step" }, exponentformat: "SI" }),
    yaxis: axis({ type: "category", autorange: "reversed", dtick: layers.length > 40 ? undefined : 1 }),
    margin: { l: 55, r: 15, t: 32, b: 45 }, // room for the buttons, which would hide cells
    uirevision: name + run.at,
  }, { section });
}
