"""The floors of the package: which rooms stand on which, and a picture of them."""

from __future__ import annotations

import html
from pathlib import Path

from bigramlm.utils import paths

FLOORS: tuple[tuple[str, ...], ...] = (
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
    ("sweeps",),
    ("cli",),
    ("dev",),
    ("__main__",),
)
"""From the ground up: a module imports from floors below its own and from its own room, never from a room beside it."""

ROADS: dict[str, tuple[str, ...]] = {
    "from a text to a sample": (
        *("data/text", "tokenizer/base", "data/corpus", "data/batches", "model/base", "trainer/step"),
        *("trainer/trainer", "checkpoint/manager", "generate", "engine/run", "cli/train"),
    ),
    "from a typed field to the optimizer": (
        *("cli/train", "config/overrides", "config/run_config", "engine/resolve", "engine/build"),
        *("trainer/trainer", "trainer/step", "optim/base"),
    ),
}
"""The roads through the package, by the modules that they pass."""

_COLORS = ("#c2410c", "#1d4ed8")
_WIDTH, _MARGIN, _GAP = 1080, 20, 10
_LINE, _HEAD, _COLUMN = 17, 30, 150

_STYLE = """
  text { font: 12px ui-sans-serif, system-ui, sans-serif; fill: #1f2937; }
  .room { fill: #f8fafc; stroke: #94a3b8; }
  .name { font-weight: 600; font-size: 13px; }
  .road { fill: none; stroke-width: 2.5; stroke-opacity: .45; stroke-linejoin: round; }
  .stop { font-size: 10px; font-weight: 600; fill: #fff; text-anchor: middle; }
  .page { fill: #fff; }
"""


def modules(room: str) -> list[str]:
    """Return the modules of a room, and the rooms within it with a slash; none for a module of the top level."""
    folder = Path(__file__).parent.parent / room
    found = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
    inner = [f"{path.parent.name}/" for path in folder.glob("*/__init__.py")]
    return sorted(found) + sorted(inner)


def picture() -> str:
    """Return the floors, the roads on them, and what the roads are, as SVG."""
    boxes: list[str] = []
    places: dict[str, tuple[float, float]] = {}
    y = _MARGIN + 28.0 * len(ROADS)
    for floor in reversed(FLOORS):
        width = (_WIDTH - 2 * _MARGIN - _GAP * (len(floor) - 1)) / len(floor)
        columns = max(1, int((width - 16) // _COLUMN))
        height = max(_HEAD + _LINE * -(-len(modules(room)) // columns) + 4 * bool(modules(room)) for room in floor)
        for number, room in enumerate(floor):
            x = _MARGIN + number * (width + _GAP)
            boxes.append(f'<rect class="room" x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height}" rx="6"/>')
            boxes.append(_text(x + 12, y + 20, room, "name"))
            places[room] = (x + 12 + 8 * len(room) + 14, y + 16)
            for at, module in enumerate(modules(room)):
                column, row = at % columns, at // columns
                left, top = x + 12 + column * _COLUMN, y + _HEAD + 12 + row * _LINE
                boxes.append(_text(left, top, module))
                places[f"{room}/{module}"] = (left + 7.2 * len(module) + 13, top - 4)
        y += height + _GAP
    bottom = y - _GAP + _MARGIN
    parts = [f'<rect class="page" width="{_WIDTH}" height="{bottom:.0f}"/>', *boxes]
    for number, (name, road) in enumerate(ROADS.items()):
        parts += _road(name, [places[stop] for stop in road], number)
    size = f'width="{_WIDTH}" height="{bottom:.0f}" viewBox="0 0 {_WIDTH} {bottom:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="The floors of bigramlm">'
    return "\n".join([head, f"<style>{_STYLE}</style>", *parts, "</svg>", ""])


def _road(name: str, stops: list[tuple[float, float]], number: int) -> list[str]:
    color, shift = _COLORS[number], 17 * number  # where both roads stop, their signs stand side by side
    points = [(x + shift, y) for x, y in stops]
    line = " ".join(f"{x:.0f},{y:.0f}" for x, y in points)
    parts = [f'<polyline class="road" stroke="{color}" points="{line}"/>']
    for at, (x, y) in enumerate(points, start=1):
        parts.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="8" fill="{color}"/>')
        parts.append(_text(x, y + 3.5, str(at), "stop"))
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
