"""All commands under one name: python -m bigramlm COMMAND ..."""

from __future__ import annotations

import importlib
import sys

from bigramlm.cli.common import command
from bigramlm.errors import require
from bigramlm.utils.console import show

COMMANDS = {
    "train": ("bigramlm.cli.train", "train a model, resume a run, or make a sweep of runs with -m"),
    "sample": ("bigramlm.cli.sample", "write text with a trained model"),
    "prepare": ("bigramlm.cli.prepare", "turn a long text into token files, once"),
    "runs": ("bigramlm.cli.runs", "list runs, compare two, show a sweep's results, write a report"),
    "checkpoint": ("bigramlm.cli.checkpoint", "inspect, verify, strip, merge or export a checkpoint"),
    "verify_resume": ("bigramlm.cli.verify_resume", "kill runs, resume them, and compare them bit by bit"),
    "bench": ("bigramlm.dev.bench.main", "measure two things in alternating pairs"),
}
"""The commands: the module of each, and what it does."""


@command
def main() -> None:
    """Run a command by its name; without one, list them all."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        lines = [f"  {name:<14} {about}" for name, (_, about) in COMMANDS.items()]
        usage = "Usage: python -m bigramlm COMMAND ...      COMMAND --help says more\n\nCommands:\n"
        show(usage + "\n".join([*lines, "", "python -m bigramlm --version prints the version."]))
        return
    require(name in COMMANDS, f"{name}: there is no such command; choose one of {', '.join(COMMANDS)}")
    sys.argv = [f"python -m bigramlm {name}", *arguments]
    importlib.import_module(COMMANDS[name][0]).main()


if __name__ == "__main__":
    main()
