"""The entry point of all commands: python -m bigramlm COMMAND ..."""

from __future__ import annotations

import importlib
import sys

from bigramlm.cli.common import command, exit_codes
from bigramlm.errors import UserError, require
from bigramlm.utils.console import show

COMMANDS = {
    "train": ("bigramlm.cli.train", "train a model, resume a run, or run a sweep with -m"),
    "sample": ("bigramlm.cli.sample", "generate text with a trained model"),
    "prepare": ("bigramlm.cli.prepare", "encode a long text into token files"),
    "runs": ("bigramlm.cli.runs", "list and compare runs, show sweep results, write a report"),
    "checkpoint": ("bigramlm.cli.checkpoint", "inspect, verify, strip, merge or export a checkpoint"),
    "verify_resume": ("bigramlm.cli.verify_resume", "check that a killed and resumed run gives the same bits"),
    "bench": ("bigramlm.dev.bench.main", "benchmark two variants by measuring them alternately"),
}
"""The module and the description of each command, by command name."""


@command
def main() -> None:
    """Run the command named by the first argument, or list all commands."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        lines = [f"  {name:<14} {description}" for name, (_, description) in COMMANDS.items()]
        usage = "Usage: python -m bigramlm COMMAND ...      (COMMAND --help for details)\n\nCommands:\n"
        show(usage + "\n".join([*lines, "", "python -m bigramlm --version prints the version."]))
        return
    require(name in COMMANDS, f"{name}: unknown command; choose one of {', '.join(COMMANDS)}")
    sys.argv = [f"python -m bigramlm {name}", *arguments]
    importlib.import_module(COMMANDS[name][0]).main()


def refuse_module(name: str) -> None:
    """Refuse `python -m bigramlm.NAME`, and name the command that is meant."""
    meant = name.removesuffix("_tool")  # checkpoint_tool is an old name
    advice = f"type: python -m bigramlm {meant} ..." if meant in COMMANDS else "python -m bigramlm lists the commands"
    with exit_codes():
        raise UserError(f"python -m bigramlm.{name}: this module is not a command; {advice}")


if __name__ == "__main__":
    main()
