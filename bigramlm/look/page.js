// The controls of the page.

const BUILDERS = {
  passage: drawPassage, table: drawTable, heads: drawHeads, lens: drawLens, embedding: drawEmbedding,
  weights: drawWeights, activations: drawActivations, sampling: drawSampling,
};
for (const [id, build] of Object.entries(BUILDERS)) if (byId(id)) DRAWN[id] = build;

// Calls `change` with the value of a group of radio buttons when it changes.
function listenToChoice(form, name, change) {
  for (const input of byId(form)?.elements[name] ? document.querySelectorAll("#" + form + " [name=" + name + "]") : []) {
    input.addEventListener("change", () => change(input.value));
  }
}

function listenToSteps() {
  const slider = byId("step");
  if (!slider) return;
  slider.max = steps.length - 1;
  slider.value = state.step;
  const show = () => {
    byId("step-text").textContent = "step " + count(steps[state.step]) + " of " + count(steps[steps.length - 1]);
  };
  slider.addEventListener("input", () => {
    state.step = Number(slider.value);
    show();
    markStale(["passage", "table", "embedding"]);
  });
  show();
}

function listen() {
  showForms();
  listenToSteps();
  listenToTheme(() => markStale(["table", "heads", "embedding"]));
  listenToChoice("passage-switches", "colour", (value) => { state.colour = value; markStale(["passage"]); });
  listenToChoice("table-switches", "show", (value) => { state.show = value; markStale(["table"]); });
  listenToChoice("table-switches", "order", (value) => { state.order = value; markStale(["table"]); });
  if (table) fillTableLists();
  byId("sampling-switches")?.addEventListener("input", showSampling);
}

listen();
markStale(Object.keys(DRAWN));
watch();
