"""Extensions: Python files of the user that add models, tokenizers and more.

An extension is an ordinary module. It registers its config classes with the decorator `register`. `extensions=FILE` on
the command line imports the file before Hydra composes the config, also in the processes of a sweep. A saved config
records the name and the SHA-256 of each extension, but never imports one: it could come from someone else.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bigramlm.config.run_config import KINDS, register_schemas
from bigramlm.errors import UserError, require
from bigramlm.logger.config import LOGGERS
from bigramlm.utils import files, paths

T = TypeVar("T", bound=type[Any])

REGISTRIES: dict[str, dict[str, Any]] = {**KINDS, "logger": LOGGERS}
"""The classes of each config group, by name. For `logger`, they are the loggers themselves."""


@dataclass(frozen=True)
class Extension:
    """An imported extension."""

    name: str
    """The file or folder, as the user gave it."""
    sha256: str


_imported: dict[Path, Extension] = {}
_registered: dict[tuple[str, str], str] = {}  # the module that registered each name


def register(group: str, name: str) -> Callable[[T], T]:
    """Return a decorator that makes a class available as GROUP=NAME.

    group: model, adapter, tokenizer, data or optim, for a dataclass that is derived from the config class of the group;
    or logger, for a class that is called with the logger config and the context. Raises UserError if the name exists.
    """
    require(group in [*REGISTRIES], f"register({group!r}): unknown group; choose one of {', '.join(REGISTRIES)}")
    require(isinstance(name, str) and name != "", f"register({group!r}, {name!r}): the name must be a str")

    def decorate(cls: T) -> T:
        require(hasattr(cls, "__qualname__"), f"{group}={name}: {cls!r} must be a class, with @register above it")
        known = REGISTRIES[group].get(name)
        owner = _registered.get((group, name))
        require(
            known is None or owner == cls.__module__,
            f"{group}={name}: {cls.__module__}.{cls.__qualname__} cannot be registered, because this name exists "
            f"already ({getattr(known, '__module__', '')}.{getattr(known, '__qualname__', known)}); choose a different "
            "name",
        )
        if group != "logger":
            _check_class(cls, group, name)
        REGISTRIES[group][name] = cls
        _registered[group, name] = cls.__module__
        register_schemas.cache_clear()
        return cls

    return decorate


def _check_class(cls: type[Any], group: str, name: str) -> None:
    # Refuses a class that Hydra could not use as a schema, or that could not be built.
    base = next(iter(KINDS[group].values())).__mro__[-2]
    which = f"{group}={name}: {cls.__qualname__}"
    require(
        "__dataclass_fields__" in vars(cls) and issubclass(cls, base),
        f"{which} must be a dataclass that is derived from {base.__qualname__}, with @dataclass below @register",
    )
    default = next(field.default for field in fields(cls) if field.name == "name")
    require(default == name, f"{which} must have the field `name: str = {name!r}`, the registered name")
    try:
        OmegaConf.structured(cls)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{which} has a field whose type or default a config cannot have: {reason}") from error
    if not hasattr(base, "build"):
        return
    expected = inspect.signature(base.build)
    parameters = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in expected.parameters.values()]
    by_keyword = {parameter.name: None for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    declared = f"build{inspect.Signature(parameters)}"
    require(cls.build is not base.build, f"{which} must have the method {declared}")
    try:
        inspect.signature(cls.build).bind(*[None] * (len(parameters) - len(by_keyword)), **by_keyword)
    except TypeError as error:
        raise UserError(f"{which}: its method must be {declared}: {error}") from None


def registered(group: str) -> list[str]:
    """Return the names that extensions have registered in a config group."""
    return [name for found, name in _registered if found == group]


def store_presets() -> None:
    """Offer the registered classes to Hydra as presets, with their default values."""
    for group, name in _registered:
        preset = {"use": [name]} if group == "logger" else REGISTRIES[group][name]
        ConfigStore.instance().store(name, preset, group=group)


def import_extensions(names: Iterable[str]) -> list[Extension]:
    """Import extensions, and import an extension again if its file has changed since.

    names: Python files, or folders of packages. Raises UserError if a file does not exist, raises an exception, or has
    the name of a different module.
    """
    return [_import(name) for name in names]


def describe(value: Any) -> list[dict[str, str]]:
    """Return the name and SHA-256 of each extension.

    value: the value of the field `extensions`. Entries of a saved config are returned unchanged.
    """
    saved = [] if value is None or isinstance(value, str) else [dict(e) for e in value if not isinstance(e, str)]
    return saved + [{"name": e.name, "sha256": e.sha256} for e in import_extensions(names_in(value))]


def names_in(value: Any) -> list[str]:
    """Return the names of the extensions to import.

    value: the value of the field `extensions`: `a.py,b.py` or a list. Entries of a saved config are left out.
    """
    entries = value.split(",") if isinstance(value, str) else list(value or [])
    return [str(entry) for entry in entries if isinstance(entry, str) and entry]


def differing(saved: Iterable[Any]) -> list[str]:
    """Return the names of extensions whose content is no longer the saved one.

    An extension may have been moved to another folder since it was saved.
    """
    now = {Path(extension.name).name: extension.sha256 for extension in _imported.values()}
    current = {entry["name"]: now.get(Path(entry["name"]).name, entry["sha256"]) for entry in saved}
    return [str(entry["name"]) for entry in saved if current[entry["name"]] != entry["sha256"]]


def _import(name: str) -> Extension:
    path = paths.typed(name, "extensions")
    files.refuse_dangling(path)
    source = path / "__init__.py" if path.is_dir() else path
    require(source.is_file(), f"extensions={name}: {source} does not exist; give a Python file or a package's folder")
    module_name = path.stem
    require(
        module_name.isidentifier() and source.suffix == ".py",
        f"extensions={name}: must be a .py file whose name can be imported, such as my_models.py",
    )
    # In the path, so that other processes import the module by its name when they unpickle its classes.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    before = os.environ.get("PYTHONPATH", "")
    if str(path.parent) not in before.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [before, str(path.parent)]))
    sha256 = _content(path)
    known = _imported.get(path)
    if known is not None and known.sha256 == sha256:
        return known
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
        same = Path(str(module.__file__)).absolute() == source
        if same and known is not None:
            importlib.reload(module)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too
        raise UserError(f"extensions={name}: the file cannot be imported: {type(error).__name__}: {error}") from error
    require(
        same,
        f"extensions={name}: there is a different module {module_name} ({module.__file__}); rename the file",
    )
    _imported[path] = extension = Extension(name, sha256)
    return extension


def _content(path: Path) -> str:
    # The SHA-256 of a file, or of the names and contents of a package's Python files.
    if path.is_file():
        return files.sha256(path)
    listed = sorted(path.rglob("*.py"))
    return files.sha256_of("".join(f"{file.relative_to(path).as_posix()} {files.sha256(file)}\n" for file in listed))
