"""Tests of the report in a real browser, operated with the mouse."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bigramlm.dev.bench.report import write_synthetic_sweep
from bigramlm.dev.browser import Browser, unavailable_reason
from bigramlm.report.page import page, write
from bigramlm.report.results import RunTable
from bigramlm.runs.summary import RunSummary
from bigramlm.sweeps.plan import Sweep
from bigramlm.sweeps.results import Results
from tests.dev.helpers import click, eventually, mouse, settled
from tests.helpers import HOSTILE, run_with, wait_for
from tests.report.helpers import completed, show, traces

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=f"no browser: {unavailable_reason()}")


@pytest.fixture(scope="module")
def sweep_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a sweep: ten learning rates, four block sizes, two seeds."""
    folder = tmp_path_factory.mktemp("made-up")
    write_synthetic_sweep(folder, records=20, seeds=2)
    write(Results(Sweep(folder)), folder / "report.html", title="Made up")
    return folder / "report.html"


# The axes of the parallel coordinates.
DIMENSIONS = "document.getElementById('parallel').data[0].dimensions"

# Resets all controls of the page, and scrolls to the top.
RESET = """
  for (const form of document.querySelectorAll("form")) {
    form.reset();
    const inputs = [...form.elements].filter((input) => input.type !== "radio" || input.checked);
    for (const input of inputs) input.dispatchEvent(new Event(input.type === "search" ? "input" : "change"));
  }
  document.getElementById("all").click();
  scrollTo(0, 0);
"""


@pytest.fixture
def sweep(window: Browser, sweep_page: Path) -> Iterator[Browser]:
    """Return the browser with the page of the sweep, and check for errors afterwards.

    The page is opened once and reset for each test; `fresh_page_afterwards` opens it again.
    """
    window.set_viewport(width=1280, height=2400)
    if window.driver.current_url == sweep_page.as_uri():
        mouse(window, "mouseMoved", 1, 1)
        window.run(RESET)
        eventually(window, "return [...document.querySelectorAll('.hoverlayer')].every((layer) => !layer.textContent)")
    else:
        window.open(sweep_page)
        eventually(window, "return document.querySelectorAll('#curves .scatterlayer .trace').length > 0")
    settled(window)
    yield window
    assert window.console_errors() == []
    assert {address.partition(":")[0] for address in window.requested_urls()} <= {"file", "data", "blob"}


@pytest.fixture
def fresh_page_afterwards(window: Browser) -> Iterator[None]:
    """Make the next test open the page again, after changes that RESET does not undo."""
    yield
    window.open("about:blank")
    window.requested_urls()


def drag(window: Browser, *points: tuple[float, float]) -> None:
    """Press the mouse at the first point, and release it at the last."""
    mouse(window, "mouseMoved", *points[0])
    mouse(window, "mousePressed", *points[0])
    for point in points[1:]:
        mouse(window, "mouseMoved", *point)
    mouse(window, "mouseReleased", *points[-1])


def boxes(window: Browser, selector: str) -> list[tuple[float, float, float, float]]:
    """Return the boxes of elements, from left to right: x, y, width and height."""
    script = """
        const found = [...document.querySelectorAll(args[0])].map((one) => one.getBoundingClientRect());
        return found.sort((a, b) => a.x - b.x).map(({x, y, width, height}) => [x, y, width, height]);
    """
    return window.run(script, selector)  # type: ignore[no-any-return]


def column(window: Browser, head: str, table: str = "results") -> list[str]:
    """Return the cells of a column in the visible rows."""
    script = """
        const table = document.getElementById(args[1]);
        const at = [...table.querySelectorAll("th")].findIndex((th) => th.innerText.trim().split(" ")[0] === args[0]);
        return [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[at].innerText.trim());
    """
    return window.run(script, head, table)  # type: ignore[no-any-return]


def best_curve(window: Browser) -> dict[str, Any]:
    """Return the trace with the best run, which is inside the range of the loss axis."""
    return next(trace for trace in traces(window) if 0 in trace["runs"])


def position_of(window: Browser, chart: str, x: float, y: float) -> tuple[float, float]:
    """Return the position of a value of a chart on the screen, in pixels."""
    script = """
        const chart = document.getElementById(args[0]), {xaxis, yaxis} = chart._fullLayout;
        const {x, y} = chart.querySelector(".nsewdrag").getBoundingClientRect();
        return [x + xaxis.d2p(args[1]), y + yaxis.d2p(args[2])];
    """
    return window.run(script, chart, x, y)  # type: ignore[no-any-return]


def hovered(window: Browser, chart: str, x: float, y: float) -> str:
    """Move the mouse to a value of a chart, and return the chart's label."""
    for away in (3, 0):
        mouse(window, "mouseMoved", *(at + away for at in position_of(window, chart, x, y)))
    label = f"return document.querySelector('#{chart} .hoverlayer').textContent"
    eventually(window, label)
    return str(window.run(label))


def test_page_is_complete_and_fetches_nothing(window: Browser, sweep_page: Path) -> None:
    window.requested_urls()
    window.open(sweep_page)
    assert window.run("return [document.title, document.querySelector('h1').innerText]") == ["Made up", "Made up"]
    eventually(window, "return document.querySelector('#parallel canvas') !== null")
    settled(window)
    drawn = window.run("return [...document.querySelectorAll('.chart')].map((chart) => [chart.id, !!chart.data])")
    assert drawn == [[f, True] for f in ("curves", "grad_norm", "lr", "field-0", "field-1", "field-2", "parallel")]
    assert len(column(window, "val")) == 80
    assert column(window, "seeds", "seeds") == ["2"] * 40, "the number of seeds of each group"
    assert window.run("return document.querySelectorAll('#samples figure:not([hidden])').length") == 6
    requested = [address for address in window.requested_urls() if not address.startswith("data:")]  # of Plotly
    assert requested == [sweep_page.as_uri()]


def test_pointing_at_a_curve_names_its_run(sweep: Browser) -> None:
    curve = best_curve(sweep)
    run = sweep.run("return runs[args[0]]", curve["runs"][0])
    label = hovered(sweep, "curves", curve["x"][10], run["series"]["val"]["value"][10])
    name = label.partition("optim.lr=")[0]
    assert "val " in label
    assert "step 1,000" in label
    # The curves of other seeds are so close that the label may belong to one of them.
    found = sweep.run("return runs.find((run) => run.label === args[0]).typed", name)
    assert found in label
    assert found.split()[0] == run["typed"].split()[0]


def test_pointing_at_a_final_loss_names_its_run(sweep: Browser) -> None:
    label = hovered(sweep, "field-1", 64, sweep.run("return runs[0].final"))
    found = sweep.run("return runs.find((run) => args[0].startsWith(run.label + run.typed))", label)
    assert found["values"]["data.block_size"] == "64"
    assert label.endswith(f"final val {found['final']:.4f}")


def test_switches_change_charts(sweep: Browser) -> None:
    axis = "const {xaxis, yaxis} = document.getElementById('curves').layout; return [xaxis.title.text, yaxis.type]"
    assert sweep.run(axis) == ["step", "linear"]
    steps = traces(sweep)
    assert len(steps) == 10, "one colour per learning rate"
    click(sweep, "[name=x][value=tokens]")
    assert sweep.run(axis)[0] == "tokens"
    first = sweep.run("return runs[args[0]]", steps[0]["runs"][0])
    assert first["tokensPerStep"] == 32 * int(first["values"]["data.block_size"])
    assert traces(sweep)[0]["x"][1] == steps[0]["x"][1] * first["tokensPerStep"]
    click(sweep, "[name=x][value=seconds]")
    assert (sweep.run(axis)[0], traces(sweep)[0]["x"][1]) == ("seconds", 0.1)
    click(sweep, "#bar [name=y][value=log]")
    assert sweep.run(axis)[1] == "log"
    assert sweep.run("return document.getElementById('field-0').layout.yaxis.type") == "log"
    click(sweep, "[name=train]")
    assert len(traces(sweep)) == 20
    assert {(trace["line"]["width"], trace["opacity"]) for trace in traces(sweep)} == {(1, 0.6), (2, 1)}
    click(sweep, "[name=batch]")
    assert len(traces(sweep)) == 30
    for name in ("val", "train", "batch"):
        click(sweep, f"[name={name}]")
    assert traces(sweep) == []


def test_axes_of_fields_swept_by_factors_are_logarithmic(sweep: Browser) -> None:
    kinds = sweep.run("return [0, 1, 2].map((at) => document.getElementById('field-' + at).layout.xaxis.type)")
    assert kinds == ["log", "log", "linear"]
    axes = sweep.run(f"return {DIMENSIONS}.map((d) => [d.tickvals, d.ticktext])")
    places, texts = axes[0]
    assert [10**place for place in places] == pytest.approx([float(text) for text in texts]), "half a decade apart"
    assert axes[1][1] == ["8", "16", "32", "64"]
    places, texts = axes[3]
    assert len(set(texts)) == len(texts) == len(places), "one tick per final loss, some with a visible text"
    named = [(place, text) for place, text in zip(places, texts, strict=True) if text.strip("\u200b")]
    assert 5 <= len(named) <= 17
    assert all(text == "≥ 4.200" or float(text) == pytest.approx(place, abs=1e-3) for place, text in named)


def test_diverging_runs_do_not_flatten_others(sweep: Browser) -> None:
    assert sweep.run("return document.getElementById('curves')._fullLayout.yaxis.range[1]") < 5
    assert sweep.run("return !document.querySelector('.clipped').hidden")
    assert max(value for trace in traces(sweep, "field-0") for value in trace["y"]) < 5
    symbols = "return [...document.getElementById('field-0').data].flatMap(({marker}) => marker?.symbol ?? [])"
    assert sweep.run(symbols).count("triangle-up") == 8


def test_words_filter_runs_on_whole_page(sweep: Browser) -> None:
    sweep.driver.find_element("id", "words").send_keys("lr=0.01 seed=2")
    settled(sweep)
    assert sweep.run("return document.getElementById('count').innerText") == "4 of 80"
    assert set(column(sweep, "optim.lr")) == {"0.01"}
    assert sum(len(trace["runs"]) for trace in traces(sweep)) == 4
    captions = "return [...document.querySelectorAll('figure:not([hidden]) figcaption')].map((f) => f.innerText)"
    assert ["lr=0.01" in caption and "seed=2" in caption for caption in sweep.run(captions)] == [True] * 4
    found = {"seed=2 lr=1e-2": 4, "block_size=6": 0, "block_size=8": 20, "data.block_size=8 seed=1": 10}
    for words, left in found.items():
        sweep.run("words.value = args[0]; words.dispatchEvent(new Event('input'))", words)
        settled(sweep)
        assert len(column(sweep, "val")) == left, words
    click(sweep, "#all")
    assert len(column(sweep, "val")) == 80


def test_dragging_along_axis_filters_runs(sweep: Browser) -> None:
    eventually(sweep, "return document.querySelector('#parallel .axis-brush') !== null")
    x, top, width, height = boxes(sweep, "#parallel .axis-brush .background")[0]
    drag(sweep, *((x + width / 2, top + down) for down in (5, 0.1 * height, 0.3 * height, 0.45 * height)))
    eventually(sweep, "return document.getElementById('count').innerText !== 'all 80'")
    settled(sweep)
    low, high = sweep.run(f"return {DIMENSIONS}[0].constraintrange")
    left = {rate for rate in map(float, column(sweep, "optim.lr")) if low <= math.log10(rate) <= high}
    assert left == {float(rate) for rate in column(sweep, "optim.lr")}
    assert {0.1, 0.316, 1.0} <= left <= {0.0316, 0.1, 0.316, 1.0, 3.16}, "the learning rates along the dragged part"
    assert len(column(sweep, "optim.lr")) == 8 * len(left)
    assert sum(len(trace["runs"]) for trace in traces(sweep)) == 8 * len(left)
    click(sweep, "#all")
    assert len(column(sweep, "val")) == 80
    sweep.run("document.getElementById('parallel').scrollIntoView()")
    settled(sweep)
    assert sweep.run(f"return {DIMENSIONS}.every((d) => !d.constraintrange)")


def test_zoom_is_kept_when_run_is_picked(sweep: Browser) -> None:
    sweep.run("return Plotly.relayout('curves', {'xaxis.range': [0, 500]})")
    click(sweep, "#results tbody tr:nth-child(1) .pick")
    sweep.run("scrollTo(0, 0)")
    settled(sweep)
    shown = "return document.getElementById('curves')._fullLayout.xaxis.range"
    assert sweep.run(shown) == [0, 500]
    click(sweep, "[name=x][value=tokens]")
    assert sweep.run(shown) != [0, 500], "the old range is one of steps, not tokens"


def test_picked_run_is_highlighted(sweep: Browser) -> None:
    click(sweep, "#results tbody tr:nth-child(30) .pick")
    picked = "return [...document.querySelectorAll('.picked')].map((found) => found.tagName + found.dataset.run)"
    assert sweep.run(picked) == ["TR29", "FIGURE29"], "also its sample, which is not among the first six"
    sweep.run("scrollTo(0, 0)")  # charts are only drawn on the screen
    eventually(sweep, "return document.getElementById('curves').data.length === 11")
    *others, highlighted = traces(sweep)
    assert highlighted["runs"] == [29]
    assert highlighted["opacity"] == 1
    assert highlighted["line"]["width"] > others[0]["line"]["width"]
    assert {trace["opacity"] for trace in others} == {0.2}
    click(sweep, "#results tbody tr:nth-child(30) .pick")
    assert sweep.run(picked) == []
    sweep.run("scrollTo(0, 0)")
    eventually(sweep, "return document.getElementById('curves').data.length === 10")
    # A click on the curve picks the run, too.
    x, y = (best_curve(sweep)[axis][10] for axis in "xy")
    while not sweep.run(picked):  # Plotly ignores a click before it has noticed the mouse
        hovered(sweep, "curves", x, y)
        for kind in ("mousePressed", "mouseReleased"):
            mouse(sweep, kind, *position_of(sweep, "curves", x, y))
    assert len(sweep.run(picked)) == 2


def test_all_samples_can_be_shown(sweep: Browser) -> None:
    for n in (80, 6):
        click(sweep, ".more")
        assert sweep.run("return document.querySelectorAll('#samples figure:not([hidden])').length") == n


@pytest.mark.parametrize("width", [360, 768, 1920])
def test_page_fits_window_width(sweep: Browser, width: int) -> None:
    sweep.set_viewport(width=width, height=2400)
    eventually(sweep, "return document.getElementById('curves')._fullLayout.width <= innerWidth")
    is_wide = "(found) => !found.closest('.scroll') && found.getBoundingClientRect().right > innerWidth + 1"
    wide = f"[...document.querySelectorAll('body *')].filter({is_wide}).map((found) => found.tagName)"
    assert sweep.run(f"return [document.documentElement.scrollWidth, {wide}]") == [width, []]


@pytest.mark.usefixtures("fresh_page_afterwards")
def test_table_sorts_numerically_in_both_directions(sweep: Browser) -> None:
    assert (losses := column(sweep, "val")) == sorted(losses, key=float), "the best run comes first"
    click(sweep, "#results th:nth-child(3) button")
    assert (rates := column(sweep, "optim.lr")) == sorted(rates, key=float)
    assert (rates[0], rates[-1]) == ("0.0001", "3.16")
    click(sweep, "#results th:nth-child(3) button")
    assert column(sweep, "optim.lr") == rates[::-1]
    state = "return [...document.querySelectorAll('#results th')].map((th) => th.getAttribute('aria-sort'))"
    assert [sort for sort in sweep.run(state) if sort] == ["descending"]
    click(sweep, "#seeds th:nth-child(3) button")
    assert (spreads := column(sweep, "std", "seeds")) == sorted(spreads, key=float)


@pytest.mark.usefixtures("fresh_page_afterwards")
def test_moved_axis_filters_its_field(sweep: Browser) -> None:
    eventually(sweep, "return document.querySelectorAll('#parallel .axis-title').length === 4")
    axes = boxes(sweep, "#parallel .axis-brush .background")
    (x, y, width, height), (other, *_) = boxes(sweep, "#parallel .axis-title")[:2]
    drag(sweep, *((x + width / 2 + part * (other - x), y + height / 2) for part in (0, 0.3, 0.7, 1.2)))
    eventually(sweep, f"return {DIMENSIONS}[0].label === 'data.block_size'")
    wait_for(lambda: boxes(sweep, "#parallel .axis-brush .background") == axes)  # the end of an animation
    # The upper half of the axis that comes first now, except the end, contains block size 32.
    x, y, width, height = axes[0]
    drag(sweep, *((x + width / 2, y + part * height) for part in (0.1, 0.2, 0.3, 0.45)))
    eventually(sweep, "return document.getElementById('count').innerText !== 'all 80'")
    assert set(column(sweep, "data.block_size")) == {"32"}
    sweep.set_viewport(width=1280, height=2400, dark=True)
    settled(sweep)
    assert sweep.run(f"return {DIMENSIONS}[0].label") == "data.block_size", "the axis keeps its new position"
    assert set(column(sweep, "data.block_size")) == {"32"}


@pytest.mark.usefixtures("fresh_page_afterwards")
def test_colour_scheme_follows_system_until_chosen(sweep: Browser) -> None:
    def colours() -> list[str]:
        page = "const {color, backgroundColor} = getComputedStyle(document.body);"
        chart = "const font = document.getElementById('curves')._fullLayout.font.color;"
        return sweep.run(f"{page} {chart} return [color, backgroundColor, font]")  # type: ignore[no-any-return]

    light = colours()
    sweep.set_viewport(width=1280, height=2400, dark=True)
    eventually(sweep, "return document.getElementById('curves')._fullLayout.font.color !== args[0]", light[2])
    dark = colours()
    assert [sum(map(int, text[4:-1].split(","))) > 380 for text in (light[1], dark[1])] == [True, False]
    assert (light[0], dark[0]) == (light[2], dark[2]), "the charts use the text colour of the page"
    for chosen in (light, dark):
        click(sweep, "#theme")
        assert colours() == chosen


def test_missing_values_are_sorted_last(window: Browser, tmp_path: Path) -> None:
    failed = {"summary": {"status": "failed", **(text := {"data": {"sha256": "a"}})}}
    sizes = (("1000", completed(3.0, **text)), ("20", failed), ("3", completed(1.5, **text)))
    show(window, tmp_path, *(({"data.block_size": size}, (), files) for size, files in sizes))
    for _ in ("up", "down"):
        click(window, "#results th:nth-child(2) button")
        assert column(window, "val")[-1] == "-"
    assert column(window, "val") == ["3.0000", "1.5000", "-"]
    click(window, "#results th:nth-child(3) button")
    assert column(window, "data.block_size") == ["3", "20", "1000"]


def test_page_of_one_run(window: Browser, tmp_path: Path) -> None:
    show(window, tmp_path, ({"seed": "1"}, (4.0, 3.0, 2.0), {"config": "seed: 1", **completed(2.0)}))
    (trace,) = traces(window)
    assert trace["y"][:3] == [4, 3, 2]
    assert window.run("return document.querySelectorAll('#words, #colour, #fields, #parallel').length") == 0


@pytest.mark.parametrize("losses", [(), (4.0, None)])
def test_runs_with_few_records_cause_no_error(window: Browser, tmp_path: Path, losses: tuple[float, ...]) -> None:
    files = {"summary": {"status": "failed", "error": "it broke"}}
    both = ({"seed": n, "model": f"m{n}", "optim.lr": f"0.{n}"} for n in "01")
    show(window, tmp_path, *((fields, losses, files) for fields in both))
    n = len([loss for loss in losses if loss is not None])
    assert [len(trace["y"]) - 1 for trace in traces(window)] == ([n, n] if n else [])
    assert all(trace["mode"] == "markers" for trace in traces(window))
    assert window.console_errors() == []


def test_single_record_is_drawn_beside_longer_curves(window: Browser, tmp_path: Path) -> None:
    runs = (("counted", "0.1", (1.5,)), ("trained", "0.1", (4.0, 3.0, 2.0)), ("other", "0.2", (4.0, 2.5)))
    show(window, tmp_path, *(({"model": name, "optim.lr": lr}, losses, completed(2.0)) for name, lr, losses in runs))
    window.run("colour.value = 'field optim.lr'; colour.dispatchEvent(new Event('change'))")
    settled(window)
    drawn = [(trace["mode"], trace["name"], len(trace["y"]) - 1) for trace in traces(window)]
    assert drawn == [("lines", "0.1", 3), ("markers", "0.1", 1), ("lines", "0.2", 2)]


def test_long_names_with_common_prefix_are_distinct(window: Browser, tmp_path: Path) -> None:
    runs = []
    for n, name in enumerate(("a.txt", "b.txt", "c.txt")):
        path = f"/somewhere/in/a/folder/that/is/deep/{name}"
        fields = {"experiment": path, "seed": str(n), "optim.lr": f"{n % 2}.123456789"}
        runs.append((fields, (4.0, 2.0 + n), completed(n)))
    show(window, tmp_path, *runs)
    axis = window.run("return document.getElementById('field-0').layout.xaxis")
    assert axis["tickvals"] == [0, 1, 2]
    assert [text[-5:] for text in axis["ticktext"]] == ["a.txt", "b.txt", "c.txt"]
    eventually(window, "return document.querySelector('#parallel .axis-title') !== null")
    texts = window.run(f"return {DIMENSIONS}.map((d) => d.ticktext)")
    assert texts[2] == ["0.1235", "1.123"]
    assert [text[-5:] for text in texts[0]] == ["a.txt", "b.txt", "c.txt"]
    assert "b.txt" in hovered(window, "curves", 1, 3.0)


def test_hostile_names_are_not_executed(window: Browser, tmp_path: Path) -> None:
    files = {"config": json.dumps({"sample": {"prompt": HOSTILE}}), "samples": f"---- step 1\n{HOSTILE}\n"}
    runs = []
    for n in range(3):
        fields = {HOSTILE: f"{n}", "optim": f"{HOSTILE}{n}", "optim.lr": f"0.{n + 1}", "model": f"<i>{n}</i>"}
        summary = completed(2.0 + n, name=f"{HOSTILE}{n}", overrides=[f"sample.prompt={HOSTILE}"])
        runs.append((fields, (4.0, 2.0 + n), {**files, **summary}))
    show(window, tmp_path, *runs)
    label = hovered(window, "curves", 1, 3.0)
    assert "<img src=x onerror=hacked" in label, "literal text, not a tag"
    assert "model=<i>1</i>" in label, "also for tags that Plotly interprets"
    eventually(window, "return document.querySelector('#parallel .axis-title') !== null")
    click(window, "#results .pick")
    choose = "const choice = document.getElementById('colour'); choice.selectedIndex = args[0];"
    for at in range(window.run("return document.getElementById('colour').length")):
        window.run(f"{choose} choice.dispatchEvent(new Event('change'))", at)
        settled(window)
        legend = window.run("return document.querySelector('#legend').textContent")
        if window.run("return state.colour") == "field optim":
            assert legend.count("src=x onerror") >= 3, "the end of each name"
    found = "return [window.hacked, document.querySelectorAll('img, pre script, td script, b, i').length]"
    assert window.run(found) == [None, 0]
    shown = window.run("return document.querySelector('#results').innerText + document.querySelector('pre').innerText")
    assert shown.count("<script>window.hacked = 1</script>") >= 4
    assert window.run("return document.querySelector('#parallel').textContent").count("<i>0</i>") == 1
    assert window.console_errors() == []
    assert {address.partition(":")[0] for address in window.requested_urls()} - {"data"} == {"file"}


def test_policy_blocks_injected_scripts(window: Browser, tmp_path: Path) -> None:
    run_with(tmp_path / "run", summary={"status": "completed"})
    text = page(RunTable([RunSummary.read(tmp_path / "run", "run", {})]), title="t")
    head = text[: text.index("<main>")]  # with the policy, but without the page's scripts
    for n, attack in enumerate(("<script>window.hacked = 1</script>", "<img src='x:' onerror='window.hacked = 1'>")):
        path = tmp_path / f"{n}.html"
        path.write_text(f"{head}<main>{attack}</main></body></html>", "utf-8")
        window.open(path)
        eventually(window, "return document.readyState === 'complete'")
        wait_for(lambda: any("Content Security Policy" in complaint for complaint in window.console_errors()))
        assert window.run("return window.hacked ?? null") is None
