"""The entry point of all commands: python -m bigramlm COMMAND ..."""

from __future__ import annotations

import importlib
import sys

from bigramlm.cli import COMMANDS
from bigramlm.cli.common import command, exit_codes
from bigramlm.errors import UserError, require
from bigramlm.utils.console import show


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
