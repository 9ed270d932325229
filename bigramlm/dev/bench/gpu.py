"""The benchmark of a GPU: every figure in one command, also as JSON."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bigramlm.dev.bench.gpu_parts import PARTS
from bigramlm.errors import require
from bigramlm.runs.git import git_state
from bigramlm.utils import files, paths
from bigramlm.utils.console import note, relative

# The seconds that a part needs at least, and after which it is stopped.
SECONDS = {
    "gpt2": (45, 150),
    "gpt": (60, 350),
    "bigram": (30, 90),
    "precision": (45, 120),
    "sampling": (15, 60),
    "trainer": (20, 90),
    "batches": (10, 40),
}


@dataclass
class Part:
    """The outcome of one part."""

    name: str
    figures: dict[str, float] = field(default_factory=dict)
    problem: str = ""
    """The reason why figures are missing; empty for a part that has ended."""
    seconds: float = 0.0
    ok: bool = True
    """False if the part failed; a part that was skipped or stopped has not failed."""

    def to_dict(self) -> dict[str, object]:
        return {"figures": self.figures, "problem": self.problem, "seconds": round(self.seconds, 1)}

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.problem}" if self.problem else f"{self.name} ({self.seconds:.0f} s)"]
        width = max(map(len, self.figures), default=0)
        shown = {name: f"{value:,.0f}" if value >= 1000 else f"{value:.4g}" for name, value in self.figures.items()}
        return "\n  ".join([*lines, *(f"{name:<{width}}  {value}" for name, value in shown.items())])


def gpu(pairs: int, *, parts: str = "", minutes: float = 9.0, output: Path | None = None) -> Iterator[Part]:  # noqa: ARG001
    """Measure everything that docs/performance.md lists for GPUs, within nine minutes.

    The figures are also written as JSON. Without a GPU, all parts run at toy size. --parts chooses some.
    """
    import torch

    return _measure("cuda" if torch.cuda.is_available() else "cpu", parts, minutes, output)


def mps(pairs: int, *, parts: str = "", minutes: float = 9.0, output: Path | None = None) -> Iterator[Part]:  # noqa: ARG001
    """Measure the same as `gpu` on the GPU of a Mac, as far as it goes.

    Without one, all parts run at toy size.
    """
    import torch

    return _measure("mps" if torch.backends.mps.is_available() else "cpu", parts, minutes, output)


def _measure(kind: str, chosen: str, minutes: float, output: Path | None) -> Iterator[Part]:
    names = [name.strip() for name in chosen.split(",")] if chosen else list(PARTS)
    unknown = [name for name in names if name not in PARTS]
    require(not unknown, f"--parts={chosen}: there is no part {unknown and unknown[0]!r}; choose of {', '.join(PARTS)}")
    require(minutes > 0, f"--minutes={minutes}: must be above 0")
    card = describe(kind)
    slug = re.sub(r"[^A-Za-z0-9]+", "-", str(card["card"])).strip("-").lower()
    path = output or paths.home() / "outputs" / "bench" / f"{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "cpu":
        note("no GPU was found: every part runs at toy size, as a test; its figures say nothing about speed")
    deadline = time.monotonic() + 60 * minutes
    result: dict[str, Any] = {**card, "parts": {}}
    for name in (name for name in PARTS if name in names):
        part = _run(name, kind, deadline - time.monotonic())
        result["parts"][name] = part.to_dict()
        files.write(path, [json.dumps(result, indent=1).encode() + b"\n"])
        yield part
    note(f"written: {relative(path)}")
    if kind != "cpu":
        note(
            "To add this card to docs/performance.md: copy the file into docs/gpu/, run `make docs`, and send both "
            "files in a pull request."
        )


def describe(kind: str) -> dict[str, object]:
    """Return the card's name, its driver and the versions, for the JSON file."""
    import torch

    card, driver, memory = "CPU at toy size", "", 0.0
    if kind == "cuda":
        card, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / 1e9
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    elif kind == "mps":
        card = f"{_output('sysctl', '-n', 'machdep.cpu.brand_string') or platform.processor()} (MPS)"
        driver = f"macOS {platform.mac_ver()[0]}"
    git = git_state() or {}
    return {
        "card": card,
        "kind": kind,
        "memory GB": round(memory, 1),
        "driver": driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "python": platform.python_version(),
        "commit": str(git.get("commit", ""))[:12] + ("+" if git.get("dirty") else ""),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout.strip().splitlines() or [""])[0]


def _run(name: str, kind: str, left: float) -> Part:
    """Run a part in a process of its own, for at most the seconds that are left."""
    least, most = SECONDS[name]
    if left < least and kind != "cpu":
        return Part(name, problem=f"skipped, because it takes at least {least} s and {max(left, 0):.0f} s are left")
    part, limit, started = Part(name), min(left, most) if kind != "cpu" else left, time.monotonic()
    command = [sys.executable, "-m", "bigramlm.dev.bench.gpu_parts", name, kind]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, text=True, start_new_session=os.name == "posix")
        try:
            process.wait(timeout=max(limit, 0.1))
        except subprocess.TimeoutExpired:
            part.problem = f"stopped after {limit:.0f} s"
        finally:
            _kill(process)
        part.seconds = time.monotonic() - started
        out.seek(0)
        errors.seek(0)
        for line in out:
            part.figures |= json.loads(line)
        if not part.problem and process.returncode:
            part.problem, part.ok = f"failed: {_last_line(errors.read().splitlines())}", False
    return part


def _kill(process: subprocess.Popen[str]) -> None:
    # With the processes that it has started.
    if process.poll() is None:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _last_line(lines: Sequence[str]) -> str:
    return next((line.strip().removeprefix("error: ") for line in reversed(lines) if line.strip()), "no message")
