"""Tests of a run's surprises and of the page of what its model has learned."""

from pathlib import Path
from typing import Any

import pytest
import torch

import bigramlm
from tests.helpers import SHORT, refuses


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> bigramlm.Run:
    folder = tmp_path_factory.mktemp("run") / "run"
    return bigramlm.train(*SHORT, f"hydra.run.dir={folder}")


def test_surprises_are_those_of_the_logits(run: bigramlm.Run) -> None:
    text = "First C"
    found = run.surprise(text)
    assert "".join(record["token"] for record in found) == text
    log_p = run.logits(text).log_softmax(-1)
    ids = run.tokenizer.encode(text).tolist()
    assert (found[0]["surprise"], found[0]["rank"]) == (None, None)
    for at, record in enumerate(found[1:], start=1):
        assert record["surprise"] == pytest.approx(-float(log_p[at - 1, ids[at]]), abs=1e-5)
        assert record["rank"] == 1 + int((log_p[at - 1] > log_p[at - 1, ids[at]]).sum())


def test_looking_returns_a_page_that_a_notebook_shows_and_changes_nothing(run: bigramlm.Run, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    page = run.look("First Citizen", output=tmp_path / "page.html", compare=run)
    assert page.path == tmp_path / "page.html"
    shown = page._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert shown.count('"') == 8, "the page is one attribute"
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert run.look("First Citizen").path == run.folder / "look.html"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"prompt": 3}, "prompt=3: must be a str"),
        ({"prompt": "a", "text": "b"}, "cannot be combined"),
        ({"compare": "latest"}, "compare='latest': must be a bigramlm.Run"),
        ({"output": 3}, "output=3: must be a path"),
        ({"text": "nowhere.txt"}, "text=nowhere.txt: there is no such file"),
    ],
)
def test_other_arguments_are_refused(run: bigramlm.Run, arguments: dict[str, Any], named: str) -> None:
    with refuses(named):
        run.look(**arguments)


def test_surprises_need_a_text(run: bigramlm.Run) -> None:
    with refuses("the text is empty"):
        run.surprise("")
    with refuses("lacks 'é'"):
        run.surprise("é")
