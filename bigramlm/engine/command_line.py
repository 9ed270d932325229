"""Translation of the user's arguments into flags and overrides for Hydra."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from bigramlm.config.extensions import import_extensions, names_in, store_presets
from bigramlm.config.mistakes import check_flag, check_words
from bigramlm.config.overrides import Overrides, quoted
from bigramlm.config.run_config import register_schemas
from bigramlm.data.piped import keep_piped_text
from bigramlm.engine.recipes import added_folders, check_recipes, field_of_recipes, preset_folders
from bigramlm.engine.resume import SAVED, saved_presets
from bigramlm.errors import UserError, require
from bigramlm.runs import find as runs
from bigramlm.runs.find import PLAN
from bigramlm.utils import paths

# The variables that contain the number of processes that a launcher has started beside each other. A batch script of
# Slurm is a single process, whatever SLURM_NTASKS says.
_RANKS = {
    "WORLD_SIZE": "torchrun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "SLURM_STEP_NUM_TASKS": "srun, or with srun -n1",
}

# A field in the style of other programs, -lr=0.1, which argparse would read as several flags: -l -r. It would take
# --config for the start of several flags.
_FIELD_AS_FLAG = re.compile(r"-(?!(cd|cp|cn|c|p|i)=)[^-=][^=]*=.*|--config(=.*)?", re.DOTALL)
# A flag that is on if it is given, with a value.
_SWITCH = re.compile(r"(--(?:multirun|run|help|hydra-help|resolve|shell-completion|version)|-[hmr])=(.*)", re.DOTALL)


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse Hydra's flags, which may be anywhere on the command line.

    In the result, `overrides` contains all other arguments, with the home folder for ~ in an output folder. Raises
    UserError for a flag that Hydra does not have, and for flags that cannot be combined.
    """

    def refuse(message: str) -> NoReturn:
        given = " ".join(argument for argument in arguments if argument.startswith("-"))
        raise UserError(f"{given}: {message}; --hydra-help lists the flags")

    followed = dict(itertools.pairwise([*arguments, ""]))
    for switch in filter(None, map(_SWITCH.fullmatch, arguments)):
        raise UserError(f"{switch[0]}: the flag takes no value; write {switch[1]}, or omit it")
    for flag in filter(_FIELD_AS_FLAG.fullmatch, arguments):
        check_flag(flag, followed.get(flag, ""))
    sys.argv = sys.argv or [""]  # empty in an embedded interpreter; argparse takes its first word
    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    flags, unknown = parser.parse_known_intermixed_args(list(arguments))
    for flag in unknown:
        if flag.startswith("-"):
            check_flag(flag, followed.get(flag, ""))
    commands = {"--run": flags.run, "--multirun": flags.multirun, "--cfg": flags.cfg, "--info": flags.info}
    given = [name for name, value in commands.items() if value]
    require(len(given) <= 1, f"{' '.join(given)}: only one of these flags can be given")
    require(
        flags.experimental_rerun is None,
        f"--experimental-rerun={flags.experimental_rerun}: a pickled config can execute code, and is not read; repeat "
        "the overrides of the run, or continue it with resume=RUN",
    )
    require(not flags.resolve or bool(flags.cfg), "--resolve: has no effect without --cfg; add --cfg job, or omit it")
    flags.overrides = [_expanded(word) for word in flags.overrides]
    return flags


@contextlib.contextmanager
def open_hydra(flags: argparse.Namespace | None = None) -> Iterator[Hydra]:
    """Set up Hydra for the presets in conf/ and in the folders that the flags name.

    A preset in such a folder replaces one of the same name in conf/. Raises UserError if such a folder does not exist,
    or if a preset is not a text.
    """
    flags = flags or parse_flags([])
    conf = paths.conf_dir() if flags.config_path is None else Path(flags.config_path).absolute()
    search_path, added = create_config_search_path(str(conf)), added_folders(flags)
    for folder in added:  # Hydra would put them behind conf/, where a preset of the same name hides the user's
        search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="main"))
    version.setbase("1.3")
    try:
        yield Hydra.create_main_hydra2("train", search_path)
    except UnicodeDecodeError as error:
        where = ", ".join(map(str, _not_utf8([conf, *added])))
        raise UserError(f"{where or 'a preset'}: is not UTF-8 text ({error}); save the file as UTF-8") from error
    finally:
        GlobalHydra.instance().clear()


def _not_utf8(folders: Sequence[Path]) -> list[Path]:
    found = []
    for path in (path for folder in dict.fromkeys(folders) for path in folder.rglob("*.yaml")):
        try:
            path.read_text("utf-8")
        except UnicodeDecodeError:
            found.append(path)
    return found


def refuse_ranks(does: str = "train a run of its own") -> None:
    """Raise UserError in a process that a launcher has started beside others.

    The launchers are torchrun, mpirun and srun. does: what each of these processes would do.
    """
    for name, launcher in _RANKS.items():
        try:
            n = int(os.environ.get(name, ""))
        except ValueError:
            continue
        require(
            n <= 1,
            f"{name}={n}: several processes cannot share the work yet, and each of the {n} processes would {does}; "
            f"start the command without {launcher} (or unset {name})",
        )


def set_up_hydra(arguments: Sequence[str] = ()) -> None:
    """Register the config schemas and resolvers that conf/ refers to.

    arguments: those of the command line, whose extensions are imported. Raises UserError if one cannot be imported.
    """
    import_extensions(_extensions(arguments))
    register_schemas()
    store_presets()
    OmegaConf.register_new_resolver("home", lambda: str(paths.home()), replace=True)


def command_line(arguments: Sequence[str], *, sweeps: bool | None = None, has_model: bool = False) -> list[str]:
    """Translate the command-line arguments into overrides for Hydra.

    Flags are dropped. Free text is quoted, and resume=, init_from= and sweep= are expanded into overrides. The last
    override sets `hydra.mode`. sweeps: if None, the flag -m and the composed `hydra.mode` decide whether the command
    sweeps. has_model: if True, Python passed a model. Raises UserError for arguments that are not overrides.
    """
    for argument in arguments:
        require(
            not any(0xD800 <= ord(character) < 0xE000 for character in argument),
            f"{argument!a}: is not UTF-8, so a config cannot store it; rename the file, or change the text",
        )
    flags = parse_flags(arguments)
    folders = preset_folders(flags)
    check_words(flags.overrides, folders=folders)
    words = keep_piped_text(flags.overrides)
    overrides = Overrides.typed(words)
    _check_paths(overrides)
    check_recipes(overrides.get("experiment", ""), folders)
    where, advice = overrides.get("resume", "null"), "resumes a single run; omit -m, or continue a sweep with sweep="
    require(where == "null" or not flags.multirun, f"resume={where}: {advice}")
    presets = saved_presets(overrides, folders, has_model=has_model)
    if sweeps is None:
        sweeps = flags.multirun or _composed_mode(flags, _merged(overrides, presets)) == RunMode.MULTIRUN
    if sweeps:
        require(where == "null", f"resume={where}: {advice}")
        overrides = Overrides.typed(words, sweeps=True)
    overrides += _sweep_folder(overrides, sweeps=sweeps)
    mode = RunMode.MULTIRUN if sweeps else RunMode.RUN
    return [*_merged(overrides, presets).words, f"hydra.mode={mode.name}"]


def _expanded(word: str) -> str:
    # Replaces ~ at the beginning of a folder, which Hydra would take for a name, or refuse in a list.
    (given,) = Overrides([word])
    name, _, value = word.partition("=")
    field = given.field
    if field in ("hydra.run.dir", "hydra.sweep.dir") and (path := value.strip("\"'")).startswith("~"):
        user, slash, rest = path.partition("/")
        return f"{name}={paths.typed(user, field)}{slash}{rest}"
    if field == "hydra.searchpath":
        return re.sub(r"(?<=[\[,])\s*([\"']?)(~[^\"',\]]*)\1", lambda found: quoted(str(paths.typed(found[2]))), word)
    return word


def _check_paths(overrides: Overrides) -> None:
    for name in ("resume", "init_from", "base", "sweep", "data.path", "tokenizer.path"):
        value = overrides.get(name) or ""
        require(
            re.search(r"\$\{[\w.]*[.:]", value) is None or paths.typed_pattern(value, name).exists(),
            f"{name}={value}: does not exist; the path is taken literally, so write it without ${{...}}",
        )


def _merged(overrides: Overrides, presets: Overrides) -> Overrides:
    if presets.has("model"):  # the config of the weights is more exact than model=gpt2
        overrides = overrides.without("model")
    # The last override of a field wins: presets replace fields of an experiment, and later overrides those of presets.
    first, rest = overrides.split_after("resume", "init_from", "experiment")
    return first + presets + rest


def _composed_mode(flags: argparse.Namespace, overrides: Overrides) -> RunMode | None:
    # None if no preset or override sets the mode, or if the config is invalid, which Hydra reports later.
    with open_hydra(flags) as hydra:
        mode: RunMode | None = hydra.get_mode(flags.config_name or "train", overrides.words)
    return mode


def job_overrides() -> Overrides:
    """Return the overrides of the job that Hydra is running.

    Those that implement `resume=` and `init_from=` are left out.
    """
    words = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)  # ${...} belongs to the config
    assert isinstance(words, list)
    return Overrides(map(str, words)).without_choice(SAVED)


def _extensions(arguments: Sequence[str]) -> list[str]:
    # The extensions that the overrides name, and those that a chosen recipe names.
    flags = parse_flags(arguments)
    overrides = Overrides.typed(Overrides.from_arguments(flags.overrides).words)
    given = [part for word in overrides.only("extensions").parsed() for part in names_in(word.value())]
    for value in field_of_recipes("extensions", overrides.get("experiment") or "", preset_folders(flags)):
        given += names_in(value)
    return list(dict.fromkeys(given))


def _sweep_folder(overrides: Overrides, *, sweeps: bool) -> Overrides:
    """Translate `sweep=` into an override of `hydra.sweep.dir`, Hydra's sweep folder.

    Raises UserError if `sweep=` does not name a sweep, or cannot be combined with the other overrides.
    """
    subdir, sweep = overrides.get("hydra.sweep.subdir"), overrides.get("sweep", "null")
    if subdir is not None and sweeps:
        raise UserError(
            f"hydra.sweep.subdir={subdir}: cannot be set, because a sweep can only be continued if its job folders are "
            "numbered; omit hydra.sweep.subdir"
        )
    if sweep in (None, "null"):
        return Overrides()
    require(
        sweeps,
        f"sweep={sweep}: only a command with -m can continue a sweep; add -m and the swept fields",
    )
    require(
        not overrides.has("hydra.sweep.dir"),
        f"sweep={sweep}: cannot be combined with hydra.sweep.dir, because both set the sweep folder; omit one of them",
    )
    folder = runs.find_sweep(str(sweep))
    require((folder / PLAN).exists(), f"sweep={sweep}: the folder contains no sweep of bigramlm: there is no {PLAN}")
    return Overrides([f"hydra.sweep.dir={quoted(str(folder))}"])
