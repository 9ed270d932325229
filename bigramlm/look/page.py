"""The page of what a model has learned, a self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigramlm.runs.folder import versions
from bigramlm.utils import html

GENERATOR = "bigramlm look"
"""The generator in the metadata of the page. A file without this generator is not overwritten."""

SCRIPTS = ("parts.js", "passage.js", "pairs.js", "layers.js", "sampling.js", "page.js")
"""The files of the page's own script, in the order in which they are joined."""


# The sections in their order, and their names in the bar.
_PARTS = {
    "passage": "Surprise",
    "worst": "Most surprising",
    "table": "Pairs",
    "attention": "Attention",
    "lens": "Layer by layer",
    "embedding": "Embeddings",
    "weights": "Weights",
    "activations": "Activations",
    "sampling": "Sampling",
}


def write(
    data: dict[str, Any], path: Path, *, title: str, facts: Sequence[tuple[str, str]], notes: Sequence[str]
) -> None:
    """Write the page to a file.

    Raises UserError if the file exists and is not such a page, or cannot be written.
    """
    html.write(
        path, lambda: page(data, title=title, facts=facts, notes=notes), generator=GENERATOR, noun="page of a model"
    )


def page(data: dict[str, Any], *, title: str, facts: Sequence[tuple[str, str]], notes: Sequence[str]) -> str:
    """Return the page as HTML.

    data: the sections, as `gather` makes them; a section that is None is absent. facts: names and values at the top.
    notes: sentences about what is not on the page.
    """
    worst = data.get("worst")
    return html.render(
        "bigramlm.look",
        scripts=SCRIPTS,
        generator=GENERATOR,
        data={name: part for name, part in data.items() if name != "worst"},
        title=title,
        version=versions()["bigramlm"],
        facts=facts,
        notes=notes,
        worst=worst,
        content=data,
        parts=[(name, text) for name, text in _PARTS.items() if data.get(name)],
    )
