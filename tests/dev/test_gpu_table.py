"""Tests of the table of GPUs in the docs."""

from bigramlm.dev import gpu_table
from bigramlm.utils import paths


def test_the_table_has_a_column_for_each_card() -> None:
    result = {
        "card": "NVIDIA H100 80GB HBM3",
        "driver": "570.1",
        "parts": {"gpt2": {"figures": {"compiled MFU": 0.4567}}, "gpt": {"figures": {}, "problem": "skipped"}},
    }
    lines = gpu_table.table([result]).splitlines()
    assert lines[0].startswith("|  | NVIDIA H100 80GB HBM3 | A100 |")
    rows = {line.split(" | ")[0].removeprefix("| "): line.strip("| ").split(" | ")[1:] for line in lines[2:]}
    assert rows["GPT-2's shape, compiled: MFU (asked: 45%)"] == ["45.7%", *["not measured"] * 3]
    assert rows["GPT-2's shape: MFU"] == ["not measured"] * 4
    assert rows["driver"][0] == "570.1"


def test_the_table_in_the_docs_is_up_to_date() -> None:
    page = (paths.home() / "docs" / "performance.md").read_text("utf-8")
    assert gpu_table.with_table(page, gpu_table.measured()) == page, "run `make docs`"
