"""Tests of the heat maps of vital signs: their data, its bounds, and the chart."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bigramlm.dev.browser import Browser, unavailable_reason
from bigramlm.report.page import page
from bigramlm.report.results import RunTable
from bigramlm.report.vitals import MAX_ROWS, MAX_STEPS, SIGNS, VitalsTable
from tests.dev.helpers import click, settled
from tests.helpers import HOSTILE, run_with
from tests.report.helpers import completed, show

IN_BROWSER = pytest.mark.skipif(unavailable_reason() is not None, reason=f"no browser: {unavailable_reason()}")
SECTION = "<h3>Vital signs</h3>"


def record(step: int, **signs: Any) -> dict[str, Any]:
    """Return a record with vital signs, which are named LAYER__SIGN."""
    names = {f"vitals/{name.replace('__', '/')}": value for name, value in signs.items()}
    return {"step": step, "seconds": 1.0, "val/loss": 3.0, **names}


def table_of(*records: dict[str, Any]) -> VitalsTable:
    table = VitalsTable()
    for one in records:
        table.add(one)
    return table


def test_the_table_has_a_row_for_each_layer_and_a_column_for_each_step() -> None:
    table = table_of(
        record(0, wte__rms=1.0, h__dead=0.25),
        {"step": 50, "val/loss": 2.0},
        record(100, wte__rms=None, lm_head__rms=3.14159265),
    )
    assert table.data() == {
        "rms": {"steps": [0, 100], "layers": ["wte", "lm_head"], "values": [[1.0, None], [None, 3.142]]},
        "dead": {"steps": [0, 100], "layers": ["h"], "values": [[0.25, None]]},
    }
    assert table_of({"step": 0, "val/loss": 2.0}).data() == {}


def test_a_long_run_keeps_both_ends_and_even_distances() -> None:
    table = table_of(*(record(step, wte__rms=step / 10) for step in range(0, 100_000, 10)))
    assert len(table) <= 2 * MAX_STEPS
    found = table.data()["rms"]
    assert MAX_STEPS // 2 <= len(found["steps"]) <= MAX_STEPS
    gaps = [b - a for a, b in zip(found["steps"], found["steps"][1:], strict=False)]
    assert max(gaps) <= 2 * min(gaps)
    assert found["steps"][0] == 0
    assert found["steps"][-1] > 97_000
    assert found["values"] == [[pytest.approx(step / 10, rel=1e-3) for step in found["steps"]]]


def test_a_hostile_run_is_bounded() -> None:
    many = {f"vitals/layer {n}/rms": float(n) for n in range(20_000)}
    odd = {
        "vitals/a/rms": 10**400,
        "vitals/b/rms": math.nan,
        "vitals/c/rms": "1",
        "vitals/d/rms": [1],
        "vitals/e/no": 1,
    }
    table = table_of(*({"step": step, **odd, **many, f"vitals/{'x' * 999}/dead": 1.0} for step in range(30)))
    found = table.data()
    assert found.keys() == {"rms"}
    assert len(found["rms"]["layers"]) == MAX_ROWS
    assert all(layer.startswith("layer ") for layer in found["rms"]["layers"])
    assert sum(map(len, found["rms"]["values"])) <= 200_000
    assert table.data(n_runs=1000) == {}, "there is no space for them"
    assert len(table_of(*(record(step, wte__rms=1.0) for step in range(30))).data(n_runs=1000)["rms"]["steps"]) == 30


def test_the_page_has_a_section_only_if_a_run_has_vital_signs(tmp_path: Path) -> None:
    without = run_with(tmp_path / "a", metrics=json.dumps({"step": 0, "val/loss": 3.0}))
    lines = "\n".join(json.dumps(record(step, **{HOSTILE[:60] + "__rms": 1.0, "wte__rms": 2.0})) for step in (0, 10))
    one = run_with(tmp_path / "b", metrics=lines)
    assert SECTION not in page(RunTable([without]))
    text = page(RunTable([without, one]))
    assert text.count(SECTION) == 1
    assert "<script>window.hacked" not in text


def heat_map(window: Browser) -> dict[str, Any]:
    script = """
        const [{type, x, y, z}] = document.getElementById("vitals").data;
        return {type, x: [...x], y: [...y], z: z.map((row) => [...row])};
    """
    return window.run(script)  # type: ignore[no-any-return]


def choose(window: Browser, sign: str) -> None:
    window.run(
        "const choice = document.querySelector('.vitals select'); choice.value = args[0];"
        "choice.dispatchEvent(new Event('change'))",
        sign,
    )
    settled(window)


@IN_BROWSER
def test_heat_map_shows_the_highlighted_run_and_the_chosen_sign(window: Browser, tmp_path: Path) -> None:
    def files(loss: float, *layers: str) -> dict[str, Any]:
        signs = {f"vitals/{layer}/{sign}": 10.0**-n for n, layer in enumerate(layers) for sign in ("rms", "dead")}
        lines = [{"step": step, "seconds": step, "val/loss": loss, **signs} for step in (0, 100, 200)]
        return {**completed(loss), "metrics": "\n".join(map(json.dumps, lines))}

    hostile = "<b>bold</b>"
    runs = [files(2.0), files(2.5, "wte", "h.0"), files(3.0, hostile)]
    show(window, tmp_path, *(({"model": str(n)}, (3.0,), entry) for n, entry in enumerate(runs)))
    options = "return [...document.querySelectorAll('.vitals option')].map((option) => option.value)"
    assert window.run(options) == ["rms", "dead"]
    assert heat_map(window) == {"type": "heatmap", "x": [0, 100, 200], "y": ["wte", "h.0"], "z": [[0] * 3, [-1] * 3]}
    choose(window, "dead")
    assert heat_map(window)["z"] == [[1] * 3, [0.1] * 3]
    click(window, "#results tbody tr:nth-child(3) .pick")
    assert heat_map(window)["y"] == ["&lt;b&gt;bold&lt;/b&gt;"]
    assert "2" in window.run("return document.querySelector('.vitals output').textContent")
    assert hostile in window.run("return document.getElementById('vitals').textContent"), "the tags are shown"
    assert window.console_errors() == []


@IN_BROWSER
def test_all_signs_have_a_chart(window: Browser, tmp_path: Path) -> None:
    signs = {f"vitals/wte/{sign}": 0.5 for sign in SIGNS}
    lines = "\n".join(json.dumps({"step": step, "val/loss": 2.0, **signs}) for step in (0, 100))
    show(window, tmp_path, ({"model": "0"}, (3.0,), {**completed(2.0), "metrics": lines}))
    for sign in SIGNS:
        choose(window, sign)
        assert heat_map(window)["y"] == ["wte"]
    assert window.console_errors() == []
