"""The import layers of the package, and the diagram of them in the docs."""

from __future__ import annotations

import html
from pathlib import Path

from bigramlm.utils import paths

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("utils",),
    ("model", "adapter", "tokenizer", "optim", "device", "logger"),
    ("data",),
    ("checkpoint", "generate"),
    ("trainer",),
    ("config",),
    ("runs",),
    ("report",),
    ("engine",),
    ("look",),
    ("sweeps",),
    ("api",),
    ("cli",),
    ("dev",),
    ("__main__",),
)
"""The layers of subpackages, from the bottom up.

A module may import from lower layers and from the same subpackage, but not from another subpackage of its layer.
"""

FLOWS: dict[str, tuple[str, ...]] = {
    "from a text to a sample": (
        *("data/text", "tokenizer/base", "data/corpus", "data/batches", "model/base", "trainer/step"),
        *("trainer/trainer", "checkpoint/manager", "generate", "engine/run", "engine/job", "cli/train"),
    ),
    "from an override to the optimizer": (
        *(
            "cli/train",
            "engine/command_line",
            "config/overrides",
            "config/run_config",
            "engine/resolve",
            "engine/build",
        ),
        *("trainer/trainer", "trainer/step", "optim/base"),
    ),
}
"""Two paths through the code, each as the list of modules in the order in which they are used."""

_COLORS = ("#c2410c", "#1d4ed8")
_WIDTH, _MARGIN, _GAP = 1080, 20, 10
_LINE, _HEAD, _COLUMN = 17, 30, 150

_STYLE = """
  text { font: 12px ui-sans-serif, system-ui, sans-serif; fill: #1f2937; }
  .box { fill: #f8fafc; stroke: #94a3b8; }
  .name { font-weight: 600; font-size: 13px; }
  .flow { fill: none; stroke-width: 2.5; stroke-opacity: .45; stroke-linejoin: round; }
  .stop { font-size: 10px; font-weight: 600; fill: #fff; text-anchor: middle; }
  .page { fill: #fff; }
"""


def modules(package: str) -> list[str]:
    """Return the names of the modules and nested subpackages in a subpackage.

    Names of nested subpackages end with a slash. For a top-level module, the list is empty.
    """
    folder = Path(__file__).parent.parent / package
    names = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
    subpackages = [f"{path.parent.name}/" for path in folder.glob("*/__init__.py")]
    return sorted(names) + sorted(subpackages)


def picture() -> str:
    """Return the diagram of the layers and the flows, with a legend, as SVG."""
    boxes: list[str] = []
    positions: dict[str, tuple[float, float]] = {}
    y = _MARGIN + 28.0 * len(FLOWS)
    for layer in reversed(LAYERS):
        width = (_WIDTH - 2 * _MARGIN - _GAP * (len(layer) - 1)) / len(layer)
        columns = max(1, int((width - 16) // _COLUMN))
        height = max(
            _HEAD + _LINE * -(-len(modules(package)) // columns) + 4 * bool(modules(package)) for package in layer
        )
        for number, package in enumerate(layer):
            x = _MARGIN + number * (width + _GAP)
            boxes.append(f'<rect class="box" x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height}" rx="6"/>')
            boxes.append(_text(x + 12, y + 20, package, "name"))
            positions[package] = (x + 12 + 8 * len(package) + 14, y + 16)
            for index, module in enumerate(modules(package)):
                column, row = index % columns, index // columns
                left, top = x + 12 + column * _COLUMN, y + _HEAD + 12 + row * _LINE
                boxes.append(_text(left, top, module))
                positions[f"{package}/{module}"] = (left + 7.2 * len(module) + 13, top - 4)
        y += height + _GAP
    bottom = y - _GAP + _MARGIN
    parts = [f'<rect class="page" width="{_WIDTH}" height="{bottom:.0f}"/>', *boxes]
    for number, (name, stops) in enumerate(FLOWS.items()):
        parts += _flow(name, [positions[stop] for stop in stops], number)
    size = f'width="{_WIDTH}" height="{bottom:.0f}" viewBox="0 0 {_WIDTH} {bottom:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="The import layers of bigramlm">'
    return "\n".join([head, f"<style>{_STYLE}</style>", *parts, "</svg>", ""])


def _flow(name: str, stops: list[tuple[float, float]], number: int) -> list[str]:
    color, shift = _COLORS[number], 17 * number  # so that the markers of both flows fit side by side
    points = [(x + shift, y) for x, y in stops]
    line = " ".join(f"{x:.0f},{y:.0f}" for x, y in points)
    parts = [f'<polyline class="flow" stroke="{color}" points="{line}"/>']
    for index, (x, y) in enumerate(points, start=1):
        parts.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="8" fill="{color}"/>')
        parts.append(_text(x, y + 3.5, str(index), "stop"))
    top = _MARGIN + 28 * number
    parts.append(f'<circle cx="{_MARGIN + 8}" cy="{top}" r="8" fill="{color}"/>')
    parts.append(_text(_MARGIN + 24, top + 4, name, "name"))
    return parts


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.1f}"{f" class={kind!r}" if kind else ""}>{html.escape(text)}</text>'


def main() -> None:
    """Write docs/pictures/floors.svg."""
    path = paths.home() / "docs" / "pictures" / "floors.svg"
    path.write_text(picture(), "utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
