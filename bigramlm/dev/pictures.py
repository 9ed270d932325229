"""The generator of the screenshots in the docs.

They show two small sweeps in TensorBoard, and the report page of one of the sweeps.
"""

from __future__ import annotations

import contextlib
import re
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

# The first section of a report, with the curves: its first line and its height in pixels.
_CURVES = """
const heading = document.querySelector("#curves").closest("section").querySelector("h3").getBoundingClientRect();
const legend = document.querySelector("#curves").getBoundingClientRect();
return [Math.floor(heading.top + scrollY) - 10, Math.ceil(legend.bottom - heading.top) + 15];
"""


@command
def main() -> None:
    """Run the command line: python scripts/pictures.py."""
    parser = ArgumentParser(
        "pictures.py",
        description="Train two small sweeps and write their screenshots to docs/pictures; requires Chromium.",
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
