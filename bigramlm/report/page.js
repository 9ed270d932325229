// The controls of the page, and what they change. The rest of the page works without this script.

const KINDS = { curves: drawCurves, measures: drawMeasures, vitals: drawVitals, fields: drawFields, parallel: drawParallel };
for (const section of sections) {
  for (const [kind, drawKind] of Object.entries(KINDS)) {
    if (byId(kind + section.suffix)) DRAWN[kind + section.suffix] = () => drawKind(section);
  }
}

// Marks charts of all sections as out of date.
function redraw(...kinds) {
  markStale(sections.flatMap(({ suffix }) => kinds.map((kind) => kind + suffix)));
}

const N_SAMPLES = 6;
for (const section of sections) {
  section.table = section.element.querySelector(".results");
  section.figures = [...section.element.querySelectorAll(".samples figure")];
  section.maxSamples = N_SAMPLES;
  section.maxRows = MANY;
}

// Updates the page after a change of the filters or the highlighted run.
function show() {
  const isIn = runs.map(isShown);
  for (const section of sections) {
    showRows(section, isIn);
    showSamples(section, isIn);
  }
  if (byId("count")) {
    const n = isIn.filter(Boolean).length;
    byId("count").textContent = n === runs.length ? "all " + n : n + " of " + runs.length;
    byId("all").hidden = n === runs.length && state.picked === null;
  }
  redraw("curves", "measures", "vitals", "fields");
}

function showRows(section, isIn) {
  let n = 0;
  for (const row of section.table.tBodies[0].rows) {
    const isPicked = Number(row.dataset.run) === state.picked;
    if (isIn[row.dataset.run]) n += 1;
    row.hidden = !isIn[row.dataset.run] || (n > section.maxRows && !isPicked);
    row.classList.toggle("picked", isPicked);
  }
  showButton(section, ".more-rows", n, MANY, section.maxRows, "rows");
}

function showSamples(section, isIn) {
  let n = 0;
  for (const figure of section.figures) {
    const isPicked = Number(figure.dataset.run) === state.picked;
    if (isIn[figure.dataset.run]) n += 1;
    figure.hidden = !isIn[figure.dataset.run] || (n > section.maxSamples && !isPicked);
    figure.classList.toggle("picked", isPicked);
  }
  showButton(section, ".more", n, N_SAMPLES, section.maxSamples, "samples");
}

function showButton(section, selector, n, least, most, what) {
  const button = section.element.querySelector(selector);
  button.hidden = n <= least;
  button.textContent = most === least ? "Show all " + n + " " + what : "Show the first " + least;
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
  const keyed = [...body.rows].map((row) => ({ row, text: row.cells[column].textContent.trim() }));
  const order = new Map(sortedTexts(new Set(keyed.map(({ text }) => text))).map((text, at) => [text, at]));
  const isMissing = ({ text }) => text === "-" || text === "";
  keyed.sort((a, b) => {
    if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b); // last in both directions
    const difference = order.get(a.text) - order.get(b.text);
    return descending ? -difference : difference;
  });
  body.append(...keyed.map(({ row }) => row));
  show();
}

// The slider that shows the samples of all runs of a section at the step nearest to it.
function listenToSteps(section) {
  const control = section.element.querySelector(".steps");
  const steps = [...new Set(section.runs.flatMap((run) => (run.samples ?? []).map(([step]) => step)))].sort((a, b) => a - b);
  if (!control || steps.length < 2) return;
  const input = control.querySelector("input");
  const output = control.querySelector("output");
  const move = () => {
    const wanted = steps[input.value];
    output.textContent = wanted.toLocaleString("en") + " of " + steps[steps.length - 1].toLocaleString("en");
    for (const figure of section.figures) {
      const { samples } = runs[figure.dataset.run];
      if (!samples) continue;
      const [step, text] = samples.reduce((a, b) => (Math.abs(b[0] - wanted) <= Math.abs(a[0] - wanted) ? b : a));
      figure.querySelector(".step").textContent = step;
      figure.querySelector("pre").textContent = text;
    }
  };
  input.max = steps.length - 1;
  input.value = steps.length - 1;
  input.addEventListener("input", move);
  control.hidden = false;
  move();
}

function listenToSection(section) {
  section.element.querySelector(".more").addEventListener("click", () => {
    section.maxSamples = section.maxSamples === N_SAMPLES ? Infinity : N_SAMPLES;
    show();
  });
  section.element.querySelector(".more-rows").addEventListener("click", () => {
    section.maxRows = section.maxRows === MANY ? Infinity : MANY;
    show();
  });
  for (const row of section.table.tBodies[0].rows) {
    row.querySelector(".pick").addEventListener("click", () => pick(Number(row.dataset.run)));
  }
  listenToSteps(section);
  listenToVitals(section);
}

function listenToSwitches() {
  for (const input of document.querySelectorAll("#bar input[name=y]")) {
    input.addEventListener("change", () => { state.y = input.value; redraw("curves", "fields"); });
  }
  for (const input of document.querySelectorAll("#curve-switches input:not([name=smoothing])")) {
    if (input.type === "checkbox") input.checked = state[input.name];
    input.addEventListener("change", () => {
      if (input.type === "checkbox") state[input.name] = input.checked;
      else {
        state.x = input.value;
        for (const section of sections) section.xRange = null;
      }
      redraw("curves", ...(input.type === "checkbox" ? [] : ["measures"]));
    });
  }
  const smoothing = document.querySelector("[name=smoothing]");
  for (const kind of ["input", "change"]) {
    smoothing.addEventListener(kind, () => {
      state.smoothing = Number(smoothing.value);
      byId("smoothing").textContent = smoothing.value;
      redraw("curves", "measures");
    });
  }
  const limit = document.querySelector("[name=limit]");
  for (const [text, value] of [["the best 20", 20], ["the best " + MANY, MANY], ["all", Infinity]]) {
    limit.add(new Option(text, value, value === MANY, value === MANY));
  }
  byId("limits").hidden = sections.every((section) => section.runs.length <= MANY);
  limit.addEventListener("change", () => { state.limit = Number(limit.value); redraw("curves", "measures"); });
}

function listen() {
  showForms();
  listenToSwitches();
  sections.forEach(listenToSection);
  listenToTheme(drawAll);
  for (const table of document.querySelectorAll("table.sortable")) {
    table.querySelectorAll("thead th").forEach((header, column) =>
      header.addEventListener("click", () => sortBy(table, column, header)));
  }
  if (byId("copy")) {
    byId("copy").hidden = false;
    byId("copy").addEventListener("click", copyCommand);
  }
  if (!byId("words")) return;
  for (const choice of colourChoices()) byId("colour").add(new Option(choice.text, choice.key));
  byId("colour").addEventListener("change", () => {
    state.colour = byId("colour").value;
    state.hidden.clear();
    drawAll();
  });
  byId("words").addEventListener("input", () => { state.words = byId("words").value.trim().toLowerCase(); show(); });
  byId("all").addEventListener("click", () => {
    Object.assign(state, { words: "", picked: null });
    state.hidden.clear();
    for (const section of sections) section.brushes = {};
    byId("words").value = "";
    showLegend();
    show();
    redraw("parallel");
  });
}

// The command is also selected, because a browser may refuse the clipboard to a page from a file.
function copyCommand() {
  getSelection().selectAllChildren(byId("command"));
  navigator.clipboard?.writeText(byId("command").textContent).then(() => { byId("copy").textContent = "Copied"; }, () => {});
}

function drawAll() {
  recolour();
  show();
  redraw("parallel");
}

recolour();
listen();
drawAll();
watch();
