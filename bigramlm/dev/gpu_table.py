"""The table of GPUs in docs/performance.md, from the JSON files in docs/gpu/.

`python scripts/bench.py gpu` writes these files; `make docs` writes the table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bigramlm.cli.common import command
from bigramlm.utils import files, paths

# The cards that have a column even if nobody has measured them.
CARDS = ("H100", "A100", "RTX 4090", "MPS")
NOT_MEASURED = "not measured"

_MARKS = ("<!-- table of GPUs: make docs -->\n", "<!-- end of the table of GPUs -->\n")

# The rows: the part, its figure, the label, and the format of the value.
ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("gpt", "gpt_gpu to 1.47", "`gpt_gpu`, seconds to a val loss of 1.47", ".1f"),
    ("gpt", "nanogpt_gpu to 1.47", "`nanogpt_gpu`, seconds to a val loss of 1.47", ".1f"),
    ("gpt", "ratio", "ratio of the two (asked: 0.25)", ".2f"),
    ("gpt", "gpt_gpu lowest val", "`gpt_gpu`, lowest val loss (asked: below 1.45)", ".3f"),
    ("gpt", "nanogpt_gpu lowest val", "`nanogpt_gpu`, lowest val loss", ".3f"),
    ("gpt", "gpt_gpu seconds", "`gpt_gpu`, seconds in all", ".1f"),
    ("gpt", "nanogpt_gpu seconds", "`nanogpt_gpu`, seconds in all", ".1f"),
    ("gpt2", "compiled tokens per second", "GPT-2's shape, compiled: tokens per second", ",.0f"),
    ("gpt2", "compiled MFU", "GPT-2's shape, compiled: MFU (asked: 45%)", ".1%"),
    ("gpt2", "compiled peak GB", "GPT-2's shape, compiled: peak memory, GB", ".1f"),
    ("gpt2", "uncompiled tokens per second", "GPT-2's shape: tokens per second", ",.0f"),
    ("gpt2", "uncompiled MFU", "GPT-2's shape: MFU", ".1%"),
    ("gpt2", "uncompiled peak GB", "GPT-2's shape: peak memory, GB", ".1f"),
    ("gpt2", "batch size", "GPT-2's shape: rows of 1,024 tokens", ".0f"),
    ("gpt2", "seconds to compile", "GPT-2's shape: seconds to compile", ".1f"),
    ("bigram", "compiled steps per second", "the bigram, compiled: steps per second", ",.0f"),
    ("bigram", "uncompiled steps per second", "the bigram: steps per second", ",.0f"),
    ("sampling", "with the cache", "characters per second with a cache", ",.0f"),
    ("sampling", "without", "characters per second without", ",.0f"),
    ("trainer", "ratio", "the Trainer / a bare loop", ".3f"),
    ("batches", "on the device ms", "a batch of 64 rows on the GPU, ms", ".3f"),
    ("batches", "mapped ms", "a batch of 64 rows from a mapped file, ms", ".3f"),
    *(
        ("precision", f"{size} {name} ms", f"a step of {size} parameters, {name}, ms", ".2f")
        for size in ("0.1M", "1M", "3M", "10M")
        for name in ("fp32", "tf32", "bf16", *(["compiled"] if size in ("0.1M", "10M") else []))
    ),
)


@command
def main() -> None:
    """Write the table: python -m bigramlm.dev.gpu_table."""
    path = paths.home() / "docs" / "performance.md"
    files.write(path, [with_table(path.read_text("utf-8"), measured()).encode()])


def measured() -> list[dict[str, Any]]:
    """Read the results in docs/gpu/."""
    return [json.loads(path.read_text("utf-8")) for path in sorted((paths.home() / "docs" / "gpu").glob("*.json"))]


def with_table(page: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Return the page with the table between its marks replaced."""
    before, _, rest = page.partition(_MARKS[0])
    _, _, after = rest.partition(_MARKS[1])
    return before + _MARKS[0] + table(results) + _MARKS[1] + after


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table with a column for each card.

    results: what `bench.py gpu` has written, one per card. Cards of `CARDS` without a result get a column that says so.
    """
    missing = [card for card in CARDS if not any(re.search(rf"\b{card}\b", str(r["card"])) for r in results)]
    columns = [*results, *({"card": card, "parts": {}} for card in missing)]
    rows = [["", *(str(column["card"]) for column in columns)], ["---"] * (len(columns) + 1)]
    for part, name, label, spec in ROWS:
        cells = [_cell(column["parts"].get(part, {}).get("figures", {}), name, spec) for column in columns]
        rows.append([label, *cells])
    for field in ("driver", "torch", "commit", "date"):
        cells = [str(column.get(field, "")) or NOT_MEASURED for column in columns]
        rows.append([field, *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(figures: Mapping[str, float], name: str, spec: str) -> str:
    return format(figures[name], spec) if name in figures else NOT_MEASURED


if __name__ == "__main__":
    main()
