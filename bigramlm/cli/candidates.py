"""The words that TAB completion offers at the end of a command line.

Fields, presets, subcommands and options are read from the config classes, the folders of presets and the parsers of the
commands, so that a new one is offered without a change here. Nothing of the user's is executed: an extension is not
imported, and so its classes are not offered. What is imported here must be fast, because it is imported at every TAB.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_type_hints

from bigramlm.cli import COMMANDS
from bigramlm.config.choices import presets
from bigramlm.config.run_config import GROUPS, KINDS, RunConfig
from bigramlm.errors import UserError
from bigramlm.utils import paths

NEWEST = 20
"""The number of runs that are offered, the newest first, and of sweeps."""

_PLUS, _MULTIRUN = "+", {"-m", "--multirun"}

# Arguments and fields with paths, by the last part of their names.
_PATHS = re.compile(r"path|paths|dir|folder|output|extensions|\w+_(file|dir)")


def complete(command: str, before: Sequence[str], word: str) -> list[str]:
    """List the completions of a word.

    command: the name of the command. before: its arguments before the word, without quotes. word: the beginning of the
    next argument; it may be empty. A completion that ends with a space is a complete argument; any other is to be
    continued.
    """
    return [text for text in dict.fromkeys(_offered(command, before, word)) if text.startswith(word)]


def _finished(words: Iterable[str]) -> Iterator[str]:
    return (f"{word} " for word in words)


def _offered(command: str, before: Sequence[str], word: str) -> Iterable[str]:
    if command == "train":
        if not any(text.startswith("-") for text in {*before, word} - _MULTIRUN):
            return _Overrides("train", RunConfig, before).complete(word)  # without importing Hydra
        from hydra._internal.utils import get_args_parser

        return _arguments(get_args_parser(), before, word)
    module = importlib.import_module(COMMANDS[command][0])
    if hasattr(module, "parser"):
        return _arguments(module.parser(), before, word)
    if word.startswith("-"):
        return _finished(("--help", "--version"))
    return _Overrides(command, getattr(module, f"{command.capitalize()}Command"), before).complete(word)


# Arguments of the commands that have a parser


def _arguments(parser: argparse.ArgumentParser, before: Sequence[str], word: str) -> Iterable[str]:
    """List the options, subcommands and values that a parser accepts next."""
    options = {name: action for action in parser._actions for name in action.option_strings}
    positional = [action for action in parser._actions if not action.option_strings]
    awaiting = None
    for at, given in enumerate(before):
        if awaiting is not None:
            awaiting = None
        elif given in options:
            awaiting = options[given] if options[given].nargs is None else None
        elif positional and not given.startswith("-"):
            if isinstance(positional[0], argparse._SubParsersAction):
                inner = positional[0].choices.get(given)
                return [] if inner is None else _arguments(inner, before[at + 1 :], word)
            if positional[0].nargs is None:
                del positional[0]
    if awaiting is not None:
        return _argument(awaiting, before, word)
    name, equals, value = word.partition("=")
    if equals and name in options:
        return (f"{name}={offered}" for offered in _argument(options[name], before, value))
    if word.startswith("-"):
        return _finished(name for name in (*options, "--version") if "experimental" not in name)
    return _argument(positional[0], before, word) if positional else []


def _argument(action: argparse.Action, before: Sequence[str], word: str) -> Iterator[str]:
    """Yield the values of an argument, according to its name and its help."""
    metavar, about = str(action.metavar), str(action.help)
    runs, sweeps = (name.upper() in metavar or f"{name} folder" in about for name in ("run", "sweep"))
    if action.choices is not None:
        yield from _finished(map(str, action.choices))
    elif action.dest == "overrides":
        yield from _Overrides("train", RunConfig, before).complete(word)
    elif re.search(r"\bcolumns?\b", about) and "FILTER" not in metavar:
        first, comma, last = word.rpartition(",")
        end = "" if "commas" in about else " "
        yield from (first + comma + (name if name.endswith(".") else name[:-1] + end) for name in _columns(last))
    elif runs or sweeps:
        yield from _runs(word, runs=runs, sweeps=sweeps)
    elif _PATHS.fullmatch(action.dest) or re.search(r"\b(file|folder|dir)\b", about):
        yield from (path for path in _files(word) if path.endswith("/") or "dir" not in action.dest)
    if "FILTER" in metavar and "=" not in word:
        yield from _columns(word)
    elif "FILTER" in metavar:
        from bigramlm.runs.listing import STATUSES

        yield from (f"status={status} " for status in sorted(STATUSES))
        yield from _Overrides("", RunConfig, []).complete(word)


def _columns(word: str) -> Iterator[str]:
    """Yield columns of `runs.py list` and fields, up to a dot or an equals sign."""
    from bigramlm.runs.listing import COLUMNS

    yield from (f"{name}=" for name in COLUMNS)
    names = _Overrides("", RunConfig, []).names(word)
    yield from (name for name in names if name.removesuffix("=") not in (*GROUPS, *COLUMNS))


# Overrides: groups, fields and their values


@dataclass
class _Overrides:
    """The overrides that a command accepts, after other words."""

    config: str
    """The name of its config in conf/; empty if no preset is chosen by default."""
    schema: type[Any]
    before: Sequence[str]

    def complete(self, word: str) -> Iterator[str]:
        """Yield names up to the next dot, or the values of a field or group."""
        prefix, name, equals, value = _split(word)
        offered = (f"{name}={text}" for text in self.values(name, value)) if equals else self.names(name)
        yield from (prefix + text for text in offered)

    def names(self, name: str) -> Iterator[str]:
        group, dot, _ = name.partition(".")
        if dot and group in self.parts:
            # The name of a part with several kinds is set by choosing a preset.
            names = (field.name for kind in self.parts[group] for field in fields(kind))
            yield from (f"{group}.{name}=" for name in names if not (name == "name" and group in KINDS))
        else:
            yield from (f"{group}=" for group in self.groups if group in GROUPS or name.startswith("h"))
            yield from (f"{field.name}=" for field in fields(self.schema) if field.name not in self.parts)
            yield from (f"{part}." for part in self.parts)
        if self.schema is RunConfig and name.startswith("h"):
            yield from ("hydra.run.dir=", "hydra.sweep.dir=", *self._hydra_fields())

    def values(self, name: str, value: str) -> Iterable[str]:
        part, _, last = name.rpartition(".")
        if last in ("resume", "init_from", "base", "run"):
            return _runs(value, runs=True, sweeps=False)
        if last == "sweep":
            return _runs(value, runs=False, sweeps=True)
        if last == "checkpoint":
            return _finished(_checkpoints(self._given("run") or "latest"))
        if _PATHS.fullmatch(last):
            return _files(value)
        if name in self.groups:
            choices = [*presets(name, self.folders), *(["basic"] if name == "hydra/launcher" else [])]
        else:
            kinds = self.parts.get(part, []) if part else [self.schema]
            choices = [choice for kind in kinds for choice in _choices(kind, last)]
        return _listed(choices, value, end="" if _MULTIRUN & {*self.before} else " ")

    @property
    def groups(self) -> Sequence[str]:
        """The groups from which a preset can be chosen."""
        if self.schema is RunConfig:
            return (*GROUPS, "hydra/launcher", "hydra/sweeper")
        return [group for group in GROUPS if group in self.parts]

    @functools.cached_property
    def parts(self) -> dict[str, list[type[Any]]]:
        """The parts of the config, each with the classes that it may have.

        These are the classes of the chosen presets, or all classes if a preset is not known.
        """
        types = get_type_hints(self.schema)
        found = {field.name: [types[field.name]] for field in fields(self.schema) if is_dataclass(types[field.name])}
        for name in found.keys() & KINDS.keys():
            kinds = [KINDS[name].get(preset) for preset in self._chosen(name).split(",")]
            known = [kind for kind in kinds if kind is not None]
            found[name] = list(dict.fromkeys(known if len(known) == len(kinds) else KINDS[name].values()))
        return found

    def _chosen(self, group: str) -> str:
        # The presets that are chosen, separated by commas; empty if they are not known.
        default = "" if any(map(self._given, ("experiment", "resume", "init_from"))) else self._default(group)
        return self._given(group) or default

    def _default(self, group: str) -> str:
        text = (paths.conf_dir() / f"{self.config}.yaml").read_text("utf-8") if self.config else ""
        found = re.search(rf"^  - {group}: (\S+)", text, re.MULTILINE)
        return found[1] if found else ""

    def _given(self, name: str) -> str:
        return next((value for _, given, _, value in map(_split, reversed(self.before)) if given == name), "")

    @functools.cached_property
    def folders(self) -> list[Path]:
        """The folders of presets, those of the user first."""
        if any(re.match(r"--config-dir|-cd|hydra\.searchpath", word) for word in self.before):
            from bigramlm.engine.command_line import parse_flags
            from bigramlm.engine.recipes import preset_folders

            with contextlib.suppress(Exception):  # the command reports it
                return preset_folders(parse_flags(self.before))
        return [paths.conf_dir()]

    def _hydra_fields(self) -> Iterator[str]:
        for group in ("launcher", "sweeper"):
            for path in (paths.conf_dir() / "hydra" / group).glob("*.yaml"):
                if path.stem in self._given(f"hydra/{group}").split(","):
                    names = re.findall(r"^([a-z]\w*):", path.read_text("utf-8"), re.MULTILINE)
                    yield from (f"hydra.{group}.{name}=" for name in names if name != "defaults")


def _split(word: str) -> tuple[str, str, str, str]:
    # The leading plus signs, the name, the equals sign and the value. An unfinished word is no override that can be
    # parsed, and the class Overrides imports Hydra.
    name = word.lstrip(_PLUS)
    return (word[: len(word) - len(name)], *name.partition("="))


def _listed(choices: Iterable[str], value: str, *, end: str) -> Iterator[str]:
    """Yield a value with each choice after its last comma.

    Choices that the value contains are left out.

    end: a space, or nothing if the list of values may go on.
    """
    first, comma, _ = value.rpartition(",")
    return (f"{first}{comma}{choice}{end}" for choice in choices if choice not in first.split(","))


def _choices(kind: type[Any], name: str) -> Sequence[str]:
    """Return the values of a field, if they are few."""
    of = get_type_hints(kind).get(name)
    if of is bool:
        return ("true", "false")
    try:
        kind(**{name: "?"})  # refused with the choices
    except UserError as error:
        return error.choices
    except Exception:
        return ()
    return ()


# Names on the disk


def _runs(word: str, *, runs: bool, sweeps: bool) -> Iterator[str]:
    """Yield `latest`, the newest runs or sweeps, and folders.

    Their names are those that `runs.py list` prints.
    """
    yield "latest "
    outputs = paths.home() / "outputs"
    folders = [*(["runs"] if runs else []), "sweeps"]
    found = [islice(_below(outputs / name, word, runs=runs, sweeps=sweeps), NEWEST) for name in folders]
    newest = sorted((path for paths in found for path in paths), key=_in_time, reverse=True)[:NEWEST]
    yield from newest
    if word or not newest:
        yield from (path for path in _files(word) if path.endswith("/"))


def _below(folder: Path, word: str, prefix: str = "", *, runs: bool, sweeps: bool) -> Iterator[str]:
    """Yield the runs or sweeps whose names begin with the word, newest first.

    prefix: the name of the folder, with a slash at its end. Of a sweep, its jobs are yielded only if the word names it.
    """
    for name in sorted(_folders_in(folder), key=_in_time, reverse=True):
        path, inside = f"{prefix}{name}", folder / name
        is_named = word.startswith(f"{path}/")
        if not (is_named or path.startswith(word) or prefix.count("/") < 1):
            continue
        if (inside / "summary.json").exists():
            yield from [f"{path} "] if runs else []
        elif (inside / "sweep.json").exists() and not is_named:
            yield f"{path} " if sweeps else f"{path}/"
        elif prefix.count("/") < 3:
            yield from _below(inside, word, f"{path}/", runs=runs, sweeps=sweeps)


def _folders_in(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    return []


def _in_time(name: str) -> list[int]:
    # Runs and sweeps are named after the moment at which they began, and jobs after their numbers.
    return [int(digits) for digits in re.findall(r"\d+", name)]


def _checkpoints(run: str) -> list[str]:
    """List the checkpoints of a run, by the names that `checkpoint=` takes."""
    names: list[str] = []
    with contextlib.suppress(UserError, OSError):
        from bigramlm.runs.find import find

        names = _folders_in(find(run) / "checkpoints")
    steps = sorted((step for name in names if (step := paths.step_of(name)) is not None), reverse=True)
    return ["last", "best", *map(str, steps)]


def _files(word: str) -> Iterator[str]:
    """Yield the paths that begin with the word; those of folders end with a slash."""
    parent, slash, last = word.rpartition("/")
    try:
        folder = Path(f"{parent}{slash}").expanduser()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (OSError, ValueError, RuntimeError):  # e.g. ~ of an unknown user
        return
    for entry in entries:
        if entry.name.startswith(last) and (last.startswith(".") or not entry.name.startswith(".")):
            yield f"{parent}{slash}{entry.name}" + ("/" if entry.is_dir() else " ")
