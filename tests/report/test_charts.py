"""Tests of the controls of the report's charts and samples in a real browser."""

import math
from pathlib import Path

import pytest

from bigramlm.dev.browser import Browser, unavailable_reason
from tests.dev.helpers import click, eventually, move_slider, settled
from tests.report.helpers import completed, show, traces

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=f"no browser: {unavailable_reason()}")


def shown_samples(window: Browser) -> list[list[str]]:
    """Return the step and the text of each sample that is shown."""
    script = """
        return [...document.querySelectorAll(".samples figure:not([hidden])")].map((figure) =>
          [figure.querySelector(".step").textContent, figure.querySelector("pre").textContent]);
    """
    return window.run(script)  # type: ignore[no-any-return]


def test_slider_shows_the_samples_of_the_nearest_step(window: Browser, tmp_path: Path) -> None:
    samples = [
        "".join(f"---- step {step}\nrun {run} at {step}\n" for step in steps)
        for run, steps in enumerate([(0, 10, 20), (0, 20)])
    ]
    show(
        window,
        tmp_path,
        *(({"model": str(n)}, (3.0, 2.0), {**completed(2.0 + n), "samples": text}) for n, text in enumerate(samples)),
    )
    control = ".steps"
    assert window.run("return document.querySelector(args[0]).hidden", control) is False
    assert [step for step, _ in shown_samples(window)] == ["20", "20"]
    move_slider(window, ".steps input", 1)
    assert "10 of 20" in window.run("return document.querySelector('.steps output').textContent")
    assert [(step, text.strip()) for step, text in shown_samples(window)] == [
        ("10", "run 0 at 10"),
        ("20", "run 1 at 20"),  # as near as step 0, and later
    ]
    move_slider(window, ".steps input", 0)
    assert [step for step, _ in shown_samples(window)] == ["0", "0"]


def test_smoothing_averages_the_batch_loss_and_leaves_the_val_loss(window: Browser, tmp_path: Path) -> None:
    losses = (4.0, 2.0, 3.0, 1.0)
    records = "\n".join(
        f'{{"step": {step}, "seconds": {step}, "train/batch_loss": {loss}, "val/loss": {loss}}}'
        for step, loss in enumerate(losses)
    )
    show(window, tmp_path, ({"model": "0"}, losses, {**completed(1.0), "metrics": records}))
    click(window, "[name=batch]")
    move_slider(window, "[name=smoothing]", 0.5)
    batch, val = (
        trace["y"][:4] for trace in sorted(traces(window), key=lambda trace: trace["opacity"]) if len(trace["y"]) >= 4
    )
    assert val == list(losses)
    weights = [[0.5 ** (at - k) for k in range(at + 1)] for at in range(4)]
    means = [math.fsum(w * y for w, y in zip(own, losses, strict=False)) / math.fsum(own) for own in weights]
    assert batch == pytest.approx(means), "the exponential moving average, without a bias towards 0"
    assert window.run("return document.getElementById('smoothing').textContent") == "0.5"
    move_slider(window, "[name=smoothing]", 0)
    assert sorted(traces(window), key=lambda trace: trace["opacity"])[0]["y"][:4] == list(losses)


def test_a_click_in_the_legend_hides_the_runs_of_a_colour_everywhere(window: Browser, tmp_path: Path) -> None:
    runs = [({"model": name, "seed": str(n)}, (3.0, 2.0 + n), completed(2.0 + n)) for n, name in enumerate("aab")]
    show(window, tmp_path, *runs)
    window.run(
        "const choice = document.getElementById('colour'); choice.value = 'field model';"
        "choice.dispatchEvent(new Event('change'))"
    )
    settled(window)
    legend = "return [...document.querySelectorAll('#legend button')].map((one) => one.textContent)"
    assert window.run(legend) == ["a", "b"]
    click(window, "#legend button")
    assert window.run("return document.getElementById('count').textContent") == "1 of 3"
    assert {run for trace in traces(window) for run in trace["runs"]} == {2}
    rows = "return [...document.querySelectorAll('#results tbody tr')].map((row) => row.hidden)"
    assert window.run(rows) == [True, True, False]
    click(window, "#legend button")
    assert window.run("return document.getElementById('count').textContent") == "all 3"
    assert window.run(rows) == [False, False, False]


def test_of_many_runs_the_best_are_drawn_until_all_are_chosen(window: Browser, tmp_path: Path) -> None:
    runs = [({"seed": str(n)}, (3.0, 2.0 + n / 1000), completed(2.0 + n / 1000)) for n in range(205)]
    show(window, tmp_path, *runs)

    def drawn() -> set[int]:
        return {run for trace in traces(window) for run in trace["runs"]}

    assert drawn() == set(range(200))
    limited = "const hint = document.querySelector('.limited'); return hint.hidden ? '' : hint.textContent"
    assert "200 best of 205" in window.run(limited)
    window.run(
        "const limit = document.querySelector('[name=limit]'); limit.value = 'Infinity';"
        "limit.dispatchEvent(new Event('change'))"
    )
    settled(window)
    assert len(drawn()) == 205
    assert window.run(limited) == ""
    visible = "return [...document.querySelectorAll('#results tbody tr:not([hidden])')].length"
    assert window.run(visible) == 200
    click(window, ".more-rows")
    eventually(window, visible + " === 205")


def test_much_longer_runs_and_counted_models_do_not_squeeze_the_best(window: Browser, tmp_path: Path) -> None:
    best = [({"model": str(n)}, (3.0, 2.0 + n / 100, 1.9 + n / 100), completed(1.9 + n / 100)) for n in range(5)]
    longer = ({"model": "long"}, tuple(4.0 - step / 100 for step in range(100)), completed(3.0))
    counted = ({"model": "counted"}, (1.0,), completed(1.0))
    show(window, tmp_path, *best, longer, counted)
    axes = "const {xaxis, yaxis} = document.getElementById('curves').layout; return [xaxis.range, yaxis.range]"
    (_, last), (low, high) = window.run(axes)
    assert last == 2, "the last step of the best five"
    assert low < 1.0 < high < 3.1
    assert max(x for trace in traces(window) for x in trace["x"] if x is not None) == 99, "it is cut off, not left out"
