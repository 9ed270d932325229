"""Tests of the samples of a run."""

import json
from pathlib import Path

from bigramlm.runs.samples import add_sample, read_samples
from bigramlm.runs.summary import RunSummary


def test_samples_are_appended_once(tmp_path: Path) -> None:
    assert read_samples(tmp_path) == []
    texts = [(0, "abc"), (5, "several\n\nlines\n"), (10, ""), (10, "another of the same step")]
    for _ in range(2):
        for step, text in texts:
            add_sample(tmp_path, step, text)
    assert read_samples(tmp_path) == texts
    add_sample(tmp_path, 5, "several")
    assert read_samples(tmp_path)[-1] == (5, "several"), "a shorter one is another"


def test_a_file_that_a_person_has_edited(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"step": 1}))
    (tmp_path / "samples.txt").write_text("only text\n")
    assert RunSummary.read(tmp_path).sample == "only text"
    (tmp_path / "samples.txt").write_bytes(b"\xff---- step 99999999999999999999999\nabc\n---- step 7\nx")
    assert RunSummary.read(tmp_path).sample == "x"
