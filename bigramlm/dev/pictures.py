"""The generator of the screenshots in the docs.

They show two small sweeps in TensorBoard, the report page of one of the sweeps, and what three models have learned.
"""

from __future__ import annotations

import contextlib
import random
import re
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bigramlm.cli.common import ArgumentParser, command
from bigramlm.dev.browser import Browser, browser
from bigramlm.utils import paths
from bigramlm.utils.console import show

# The sweeps shown in the screenshots, each with its overrides.
SWEEPS = {
    "rates": (
        *("optim.lr=1e-3,3e-3,1e-2,3e-2,1e-1,1", "data.batch_size=8,32,128", "seed=1,2"),
        *("trainer.steps=1000", "trainer.eval_every=50"),
    ),
    "models": ("model=bigram,attention,transformer", "trainer.steps=300", "trainer.eval_every=20"),
}

# The models whose pages are shown: for each picture the overrides, the section, and a script that is run in the page.
MODELS = {
    "pairs": (("data=bundled",), "table", "showRow(table.tokens.findIndex((at) => data.tokens[at] === 'q'))"),
    "surprise": (("experiment=quick_gpt", "data=bundled"), "passage", ""),
    "induction": (("experiment=induction", "data.path={repeated}"), "attention", ""),
}

# The first section of a report, with the curves: its first line and its height in pixels.
_CURVES = """
const heading = document.querySelector("#curves").closest("section").querySelector("h3").getBoundingClientRect();
const legend = document.querySelector("#curves").getBoundingClientRect();
return [Math.floor(heading.top + scrollY) - 10, Math.ceil(legend.bottom - heading.top) + 15];
"""


# A section of the page of a model: its first line and its height in pixels.
_SECTION = """
const {top, height} = document.getElementById(args[0]).getBoundingClientRect();
return [Math.max(0, Math.floor(top + scrollY) - 5), Math.ceil(height) + 15];
"""


@command
def main() -> None:
    """Run the command line: python scripts/pictures.py."""
    parser = ArgumentParser(
        "pictures.py",
        description="Train small sweeps and models, and write their screenshots to docs/pictures; requires Chromium.",
    )
    parser.add_argument("--to", type=Path, default=paths.home() / "docs" / "pictures", help="the output folder")
    arguments = parser.parse_args()
    with browser(width=1280, height=800) as window, tempfile.TemporaryDirectory() as temporary:
        arguments.to.mkdir(parents=True, exist_ok=True)
        folder = Path(temporary)
        for name, overrides in SWEEPS.items():
            _command("train.py", "-m", "data=bundled", f"hydra.sweep.dir={folder / name}", *overrides)
            show(f"trained: {name}")
        for name, fragment, sweep in (
            ("tensorboard-hparams", "#hparams", "rates"),
            ("tensorboard-loss", "#custom_scalars", "models"),
        ):
            window.set_viewport(width=1500, height=800)
            with tensorboard(folder / sweep) as server:
                window.open(f"{server}{fragment}")
                time.sleep(8)  # TensorBoard does not signal when it has loaded
                _take_screenshot(window, arguments.to / f"{name}.png", height=500)
        _command("runs.py", "report", str(folder / "rates"))
        for dark in (False, True):
            window.set_viewport(width=1280, height=1630, dark=dark)
            window.open(folder / "rates" / "report.html")
            time.sleep(2)  # charts are drawn only once they are on screen
            colours = "dark" if dark else "light"
            _take_screenshot(window, arguments.to / f"report-{colours}.png", height=1630)
            top, height = window.run(_CURVES)
            _take_screenshot(window, arguments.to / f"curves-{colours}.png", top=top, height=height)
        take_models(window, folder, arguments.to)


def take_models(window: Browser, folder: Path, to: Path) -> None:
    """Train the models, and take the pictures of their pages."""
    repeated = folder / "repeated.txt"
    repeated.write_text(repeated_strings(14_000), "utf-8")
    for name, (overrides, section, script) in MODELS.items():
        words = [word.format(repeated=repeated) for word in overrides]
        _command("train.py", f"hydra.run.dir={folder / name}", "logger=none", *words)
        _command("look.py", f"run={folder / name}")
        show(f"trained: {name}")
        window.set_viewport(width=1280, height=1200)
        window.open(folder / name / "look.html")
        window.run(
            f"document.getElementById('{section}-section').scrollIntoView(); document.getElementById('bar').remove()"
        )
        time.sleep(2)  # charts are drawn only once they are on screen
        window.run(script)
        time.sleep(1)
        top, height = window.run(_SECTION, f"{section}-section")
        _take_screenshot(window, to / f"look-{name}.png", top=top, height=height)


def repeated_strings(n: int, seed: int = 1) -> str:
    """Return n lines of random strings that are repeated, as docs/look.md makes them."""
    letters, rng = string.ascii_letters + string.digits, random.Random(seed)
    lines = []
    for _ in range(n):
        part = rng.choices(letters, k=rng.randint(3, 32))
        lines.append("".join(part) * max(2, -(-48 // len(part))) + "\n")
    return "".join(lines)


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """Start TensorBoard on a folder and yield its URL."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
        yield address
    finally:
        server.terminate()
        server.wait()


def _command(script: str, *arguments: str) -> None:
    command = [sys.executable, str(paths.home() / "scripts" / script), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _take_screenshot(window: Browser, path: Path, *, height: int, top: int = 0) -> None:
    from PIL import Image

    window.screenshot(path, top=top, height=height)
    with Image.open(path) as image:
        image.convert("RGB").quantize(128).save(path, optimize=True)  # a third of the size, with no visible difference
    show(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
