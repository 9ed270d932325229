"""The command `completion`: prints a script for TAB completion in a shell.

The script calls `answer` at a TAB. Of a line that is not bigramlm's, only the names are looked at: nothing is imported
from the working folder, and no program that the line names is started. `candidates.py` says what is offered.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

from bigramlm.cli import COMMANDS
from bigramlm.utils import paths

if TYPE_CHECKING:
    from bigramlm.cli.common import ArgumentParser

SHELLS = ("bash", "zsh", "fish")

NOT_OURS = 3
"""The exit code of `answer` for a command line that the shell itself must complete."""

# The modules of the other commands import torch.
_COMPLETED = [name for name, (module, _) in COMMANDS.items() if module.startswith("bigramlm.cli.")]


def main() -> None:
    """Run the command line: python scripts/completion.py SHELL."""
    from bigramlm.cli.common import command  # slow, and not needed at a TAB

    command(_print_script)()


def parser() -> ArgumentParser:
    """Return the parser of the arguments."""
    from bigramlm.cli.common import ArgumentParser

    parser = ArgumentParser(
        "completion.py",
        description="Prints a script for TAB completion of all commands: groups, presets, fields, values, runs, "
        "sweeps, checkpoints and files. In bash and zsh, type, or add to the start file of the shell (in zsh after "
        'compinit): eval "$(python -m bigramlm completion SHELL)". In fish: '
        "python -m bigramlm completion fish | source",
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    return parser


def _print_script() -> None:
    from bigramlm.utils.console import show

    show(script(parser().parse_args().shell), end="")


def script(shell: str) -> str:
    """Return the script that sets up TAB completion in a shell: bash, zsh or fish."""
    # The working folder must not be searched for modules: a file there would be executed.
    root = str(Path(__file__).parents[2])
    code = f"import sys; sys.path[:] = [{root!r}, *(p for p in sys.path if p not in ('', '.', {root!r}))]"
    if not paths.IN_CHECKOUT:
        code = "import sys; sys.path[:] = [p for p in sys.path if p not in ('', '.')]"
    code += "; from bigramlm.cli.completion import answer; answer()"
    pythons = ["python", "python3", *(f"python3.{minor}" for minor in range(10, 16)), Path(sys.executable).name]
    programs = ["bigramlm", *(f"bigramlm-{name}" for name in _COMPLETED)]
    values = {
        "ANSWER": " ".join(_quoted(word, shell) for word in (sys.executable, "-B", "-c", code)),
        "PROGRAMS": " ".join([*programs, *dict.fromkeys(pythons)]),
        "SCRIPTS": "|".join(_COMPLETED),
    }
    text = Path(__file__).with_name(f"completion.{shell}").read_text("utf-8")
    return re.sub(r"@([A-Z]+)@", lambda name: values[name[1]], text)


def _quoted(word: str, shell: str) -> str:
    if shell != "fish":
        return shlex.quote(word)
    return "'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'"


def answer() -> None:
    """Print the completions for a shell, one per line, and exit.

    The arguments are the shell and the words up to the cursor, without quotes; in bash, the line up to the cursor
    instead. The exit code is NOT_OURS for a line that is not bigramlm's. Nothing is printed if anything fails.
    """
    shell, *words = sys.argv[1:]
    try:
        line = Line.parse(words[0], os.environ.get("COMP_WORDBREAKS", "")) if shell == "bash" else None
        found = command_of(words if line is None else line.words)
        if found is None:
            sys.exit(NOT_OURS)
        command, *before, word = found
        offered = [text for text in complete(command, before, word) if text.isprintable()]
        if line is not None:
            offered = [line.insertion(text) for text in offered]
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        print("\n".join(offered))
    except Exception:
        sys.exit(0)


def complete(command: str, before: Sequence[str], word: str) -> list[str]:
    """List the completions of a word, as `candidates.complete` does.

    If the command is empty, they are the commands.
    """
    if not command:
        return [f"{name} " for name in COMMANDS if name.startswith(word)]
    from bigramlm.cli.candidates import complete

    return complete(command, before, word)


def command_of(words: Sequence[str]) -> list[str] | None:
    """Return the command and its arguments.

    words: the words of the command line up to the cursor. The command is empty if it is the last word, as in `bigramlm
    tr`. Returns None for the line of another program, and if the program or its script is the last word.
    """
    if len(words) < 2:
        return None
    program, *rest = words
    name = PurePath(program).name.removesuffix(".exe")
    if name == "bigramlm":
        return _known(*rest) if rest[1:] else ["", *rest]
    if name.startswith("bigramlm-"):
        return _known(name.removeprefix("bigramlm-"), *rest)
    if re.fullmatch(r"python[\d.]*", name) is None:
        return None
    while rest[1:] and rest[0].startswith("-"):
        option, *rest = rest
        if option in ("-c", "-", "-m"):
            return command_of(rest) if option == "-m" and rest[0] == "bigramlm" else None
        rest = rest[1:] if option in ("-X", "-W") else rest
    if len(rest) < 2:
        return None
    file = Path(rest[0])
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        if file.expanduser().samefile(paths.home() / "scripts" / file.name):
            return _known(file.stem, *rest[1:])
    return None


def _known(command: str, *arguments: str) -> list[str] | None:
    return [command, *arguments] if command in _COMPLETED else None


class Line(NamedTuple):
    """The command line in bash, up to the cursor."""

    words: list[str]
    """The words without quotes; the last one is that before the cursor, and may be empty."""
    typed: str
    """The end of the line that bash replaces with a completion, as typed."""
    quote: str
    """The quote that is open at the cursor, or an empty string."""

    @classmethod
    def parse(cls, line: str, breaks: str) -> Line:
        """Split the last command of a line into words.

        breaks: the characters of COMP_WORDBREAKS. Bash replaces what follows the last of them that is not quoted, or
        what follows the quote that is open. Redirections are left out; there are no words if the cursor is in one.
        """
        words, word, quote = list[str](), None, ""
        replaced, opened, redirects, at = 0, 0, False, 0
        while at < len(line):
            character, following = line[at], line[at + 1 : at + 2]
            at += 1
            if character == "\\" and quote != "'" and (not quote or following in '$`"\\'):
                word, at = (word or "") + following, at + 1
            elif quote:
                word, quote = (word, "") if character == quote else ((word or "") + character, quote)
            elif character in "'\"":
                word, quote, opened = word or "", character, at
            elif character in " \t\n;|&<>":
                if word is not None and not (character in "<>" and word.isdecimal()):
                    words, redirects = (words, False) if redirects else ([*words, word], False)
                if character in "<>":
                    redirects = True
                elif character in ";|\n" or (character == "&" and following != ">" and line[at - 2] not in "<>"):
                    words, redirects = [], False
                word, replaced = None, at
            else:
                word = (word or "") + character
                replaced = at if character in breaks else replaced
        return cls([] if redirects else [*words, word or ""], line[opened if quote else replaced :], quote)

    def insertion(self, completion: str) -> str:
        """Return the text with which bash must replace the end of the line.

        completion: a completion of the last word.
        """
        ending = completion[len(self.words[-1]) :]
        if self.quote == "'":
            return self.typed + ending.rstrip(" ").replace("'", r"'\''")
        if self.quote:
            return self.typed + re.sub(r'([$`"\\])', r"\\\1", ending.rstrip(" "))
        space = " " if ending.endswith(" ") else ""
        return self.typed + re.sub(r"([^\w@%+:=,./~^-])", r"\\\1", ending.removesuffix(" ")) + space


if __name__ == "__main__":
    main()
