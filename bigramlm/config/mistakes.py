"""One-line messages for mistakes in overrides and presets.

Hydra's own messages take several lines, and advise adding a field with `+`, which bigramlm refuses.
"""

from __future__ import annotations

import itertools
import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

from hydra.conf import HydraConf
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from bigramlm.config.choices import meant, no_such_preset, presets
from bigramlm.config.names import is_known, names_of, proposals, type_of, types
from bigramlm.config.overrides import FREE_TEXT, NULLABLE, Overrides
from bigramlm.config.run_config import GROUPS, KINDS
from bigramlm.errors import UserError, require
from bigramlm.utils import paths
from bigramlm.utils.console import relative

CONFIG_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)
"""The exceptions that a mistake in an override or a preset raises, when Hydra composes the config."""

# The types in OmegaConf's messages, and those of fields, in the user's words.
_TYPES = {"Float": "a number such as 1e-3", "Integer": "a whole number"}
_KINDS_IN_WORDS = {
    "float": _TYPES["Float"],
    "int": _TYPES["Integer"],
    "bool": "true or false",
    "list": "a list, such as [A,B]",
}

# Typographic dashes and the minus sign become hyphens; typographic quotation marks are omitted.
_QUOTES = "\u201c\u201d\u201e\u2018\u2019\u201a\u00ab\u00bb"
_DASHES = "\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FIGURE DASH}\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}"
_TYPOGRAPHIC = {**dict.fromkeys(map(ord, _DASHES), "-"), **dict.fromkeys(map(ord, _QUOTES))}


def check_words(
    words: Sequence[str],
    names: Sequence[str] = (),
    free_text: Sequence[str] = FREE_TEXT,
    folders: Sequence[Path] = (),
) -> None:
    """Refuse arguments that are not overrides, and fields that `+` would add.

    The message suggests the right spelling. words: the arguments without flags. names: the groups and fields; those of
    a run if empty. free_text: the fields whose values are taken literally. folders: the folders of presets. Raises
    UserError, and Hydra's exceptions for a malformed override.
    """
    names, overrides = names or names_of(), Overrides.typed(words, free_text)
    for at, (text, word) in enumerate(zip(words, overrides, strict=True)):
        name, equals, value = text.partition("=")
        if not equals and word.prefix != "~":
            bare = list(itertools.takewhile(lambda other: "=" not in other, words[at:]))
            before, after = words[at - 1] if at else "", words[at + len(bare) :]
            raise UserError(_about_file(bare, folders) or _bare(bare, before, after, names, free_text))
        field = name.strip()[len(word.prefix) :]
        if word.prefix == "~" and field in names and field not in GROUPS:
            no_value = f"; for no value, write {field}=null" if field in NULLABLE else ""
            raise UserError(f"{text}: a field cannot be deleted; omit {text}{no_value}")
        require(field != "", f"{text}: a field is missing before the =; --help lists the fields")
        written = _quoted(f"{name.strip()}={value.strip()}")
        require(name == name.strip(), f"{text}: there must be no space before the =; write {written}")
        if word.prefix in ("+", "++"):
            require(
                field not in GROUPS or field not in names,
                f"{text}: the group exists, so omit the {word.prefix}: {field}={value}",
            )
            is_users = any((folder / field.partition("@")[0]).is_dir() for folder in folders)
            require(is_users or is_known(field, names), _unknown(f"{field}={value}", names, typed=text))
    _check_choices(overrides, names, folders or [paths.conf_dir()])


def check_flag(flag: str, value: str, names: Sequence[str] = ()) -> None:
    """Refuse a flag that the command does not have, and suggest a field.

    value: the argument after the flag. names: the groups and fields; those of a run if empty. Raises UserError.
    """
    names = names or names_of()
    name, equals, given = flag.lstrip("-").replace("-", "_").partition("=")
    has_value = not equals and value != "" and not value.startswith("-") and "=" not in value
    shown, value = f"{flag} {value}" if has_value else flag, given if equals else value if has_value else "VALUE"
    similar = _or(proposals(name, value, names))
    advice = f"write {name}={value}" if name in names else f"did you mean {similar}?" if similar else "see --help"
    raise UserError(f"{shown}: unknown flag; fields are set without dashes, as FIELD=VALUE; {advice}")


def explained(error: BaseException, names: Sequence[str] = ()) -> UserError:
    """Return one of CONFIG_ERRORS as a UserError in one line.

    names: the groups and fields that may be meant; those of a run if empty.
    """
    names = names or names_of()
    if isinstance(error, YAMLError):
        return UserError(_damaged(error))
    if isinstance(error, MissingConfigException):
        return UserError(_missing(error))
    if isinstance(error, OverrideParseException):
        return UserError(_malformed(error, names))
    match = re.fullmatch(r"(?:In '([^']*)': )?([\s\S]*)", str(error))
    where, text = match.groups() if match else ("", "")
    text = f"{text}\n{error.__cause__ or ''}"
    message = _about_values(text, names) or _about_names(text, names) or _flattened(text)
    return UserError(_of_preset(where, message))


def _about_values(text: str, names: Sequence[str]) -> str | None:
    """Return the message for several values, or for a value of a wrong type."""
    if match := re.match(r"Sweeping over Hydra's configuration is not supported : '(.*)'", text):
        return f"{match[1]}: a setting of Hydra cannot be swept; choose one value"
    if match := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'", text):
        return _several(*match[1].partition("=")[::2])
    key = re.search(r"full_key: (\S+)", text)
    if key is None:
        return None
    field = re.sub(r"\[\d+\]$", "", key[1])
    override = re.match(r"Error merging override (.*)", text)
    given = override[1] if override else field
    if override and next(iter(Overrides([given]))).field not in (field, key[1], ""):
        return _unknown(given, names)  # below a field, such as optim.lr.x
    value = "" if override else " the value"
    if match := re.search(r"Value '(.*)' of type '.*' could not be converted to (Float|Integer)", text):
        whole = re.fullmatch(r"(-?\d+)\.0", match[1]) if match[2] == "Integer" else None
        value = "" if override and key[1] == field else f" {match[1]}"
        return f"{given}:{value} must be {_TYPES[match[2]]}{f', such as {whole[1]}' if whole else ''}"
    if "is not a valid bool" in text:
        return f"{given}:{value} must be true or false"
    if "is not Optional" in text or "Incompatible value 'None'" in text:
        return f"{given}:{value} cannot be null; omit {field}= for the default"
    if match := re.search(r"expected one of \[(.*)\]", text):
        return f"{given}:{value} must be one of {match[1]}"
    if "is not a ListConfig, list or tuple" in text:
        return f"{given}:{value} must be a list, such as {field}=[{given.partition('=')[2]}]"
    return f"{given}: {_flattened(text)}" if "nterpolation" in text or "at input" in text else None


def _several(field: str, value: str) -> str:
    """Return the message for several values where a single one is possible."""
    typed, kind = f"{field}={value}", type_of(field)
    if "interval(" in value:
        return f"{typed}: is a search space; to search it, add -m hydra/sweeper=optuna"
    single = ""
    if kind == "float" and re.fullmatch(r"[-+]?\d*,\d+(e[-+]?\d+)?", value):  # a decimal comma
        single = f", or write {field}={value.replace(',', '.')} for one number"
    elif kind == "int" and re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+", value):
        single = f", or write {field}={value.replace(',', '')} for one number"
    elif "(" not in value and (kind in ("list", "")):
        single = f", or write {field}=[{value}] for a list"
    elif "(" not in value and kind == "str":
        single = ", or write " + shlex.quote(f'{field}="{value}"') + " for one text"
    return f"{typed}: gives several values; add -m to sweep over them{single}"


def _about_names(text: str, names: Sequence[str]) -> str | None:
    """Return the message for a field that does not exist, or exists already."""
    if match := re.match(r"Could not append to config\. An item is already at '.*'\.\n.*: '(.*)'", text):
        return f"+{match[1]}: the field exists, so omit the +: {match[1]}"
    if match := re.match(r"Could not override '.*'[\s\S]*use \+(.*)", text):
        return _unknown(match[1], names)
    if match := re.match(r"Could not (override|delete) (?:from config\. )?'([^'=]*)", text):
        return _unknown(match[2], names, typed="~" * (match[1] == "delete") + match[2])
    if match := re.search(r"Key '(.*)' not in '.*'\n\s*full_key: (.*)", text):
        if match[1] == match[2] == "experiment":  # Hydra has put the content of the file below this key
            return "the file is no recipe; its first line must be: # @package _global_"
        return _unknown(match[2], names)
    if match := re.search(r"is not a subclass of (\w+)\. value: (.*)", text):
        kinds = {kind.__name__: group for group, kinds in KINDS.items() for kind in kinds.values()}
        group = {**{kind: name for name, kind in types().items()}, **kinds}.get(match[1], match[1])
        example = next((name for name in names if name.startswith(f"{group}.")), "FIELD")
        return f"{group}={match[2]}: {group} has fields, and is no value itself; set a field, such as {example}=VALUE"
    if match := re.match(r"Error merging override (~\S+)[\s\S]*does not support deletion", text):
        return f"{match[1]}: a field cannot be deleted; omit {match[1]}"
    return None


def _bare(bare: list[str], before: str, after: Sequence[str], names: Sequence[str], free_text: Sequence[str]) -> str:
    """Return the message for arguments without an equals sign.

    bare: these arguments. before, after: the argument before them, and those after them.
    """
    if after and after[0].startswith("="):  # optim.lr =0.1, or optim.lr = 0.1
        bare = [*bare, *filter(None, [after[0][1:], *itertools.takewhile(lambda other: "=" not in other, after[1:])])]
    text, joined = bare[0], " ".join(bare)
    if before.endswith(",") or text.startswith(","):
        return f"{before} {joined}: the list has a space; write {_quoted(before + ''.join(bare))}"
    if before.endswith("="):
        return f"{before} {joined}: there must be no space after the =; write {_quoted(before + joined)}"
    name, value = [*re.split(r"\s*:\s*|\s+", text, maxsplit=1), ""][:2]
    values = " ".join([value, *bare[1:]]).strip() or "VALUE"
    if name in names:
        return f"{joined}: write {_quoted(f'{name}={values}')}"
    if Overrides.typed([before], free_text).has(*free_text):
        whole = f"{before} {joined}"
        return f"{whole}: put the argument in quotes, because it contains spaces: {shlex.quote(whole)}"
    if not text:
        return f"an argument is empty, after {before or 'the name of the command'}; omit it"
    similar = _or(proposals(name, values, names))
    advice = f"did you mean {similar}?" if similar else "--help lists the fields"
    if not similar and "prompt" in names:
        is_run = text == "latest" or paths.typed(text).exists()
        advice = f"write {shlex.quote(f'run={text}')}" if is_run else f"write {_as_text('prompt', joined)}"
    if not similar and text[0] in _DASHES:  # a flag from a text program
        advice = f"write flags with hyphens, as -m or --help, not with {text[0]!a}"
    return f"{joined}: arguments have the form FIELD=VALUE; {advice}"


def _about_file(bare: list[str], folders: Sequence[Path]) -> str | None:
    """Return the message for a file of settings in place of an override."""
    if not re.search(r"\.(ya?ml|py)$", bare[0]):
        return None
    recipe = meant(bare[0], presets("experiment", folders))
    advice = f"did you mean experiment={recipe}?" if recipe else "recipes are conf/experiment/NAME.yaml"
    return f"{bare[0]}: arguments have the form FIELD=VALUE, and a recipe is chosen with experiment=NAME; {advice}"


def _check_choices(overrides: Overrides, names: Sequence[str], folders: Sequence[Path]) -> None:
    # Hydra reports a traceback if the choice of a group is a number, true, false or null.
    for word in overrides:
        is_name = word.field not in GROUPS or re.search(r"[^,/\[\]]{240}|\0", word.value) is None
        require(is_name, f"{word.field}={word.value[:40]}...: is too long for the name of a preset; --help lists them")
    for override in overrides.parsed():
        group = override.key_or_group
        if override.is_delete() or override.is_sweep_override() or not (group in GROUPS or "/" in group):
            continue
        given, choices = str(override.input_line), presets(group, folders)
        if isinstance(override.value(), (str, list, dict)):
            continue
        name, _, value = given.partition("=")
        as_text = shlex.quote(f'{name}="{value}"')
        require(value not in choices, f"{given}: {value} is no name to Hydra without quotes; write {as_text}")
        require(not choices, f"{given}: choose one of {', '.join(choices)}, or omit {group}=")
        raise UserError(_unknown(given, names))


def _unknown(override: str, names: Sequence[str], *, typed: str = "") -> str:
    """Return the message for a field that does not exist with the chosen presets."""
    name, equals, value = override.partition("=")
    group, _, field = name.partition(".")
    value = next(iter(Overrides([override]))).value or value  # without the quotes of a free text
    typed = typed or f"{name}{equals}{value}"
    if match := re.match(r"hydra\.(launcher|sweeper)\.", name):
        return f"{typed}: the chosen {match[1]} has no such field; choose the {match[1]} with hydra/{match[1]}=NAME"
    if name == "hydra":
        return f"{typed}: hydra is no field; set one of its fields, such as hydra.run.dir=FOLDER"
    if (chosen := name.partition("@")[0]) != name and chosen in GROUPS and chosen in names:
        return f"{typed}: a preset of {chosen} cannot be used elsewhere; did you mean {chosen}={value}?"
    if re.match(r"hydra\b", name):
        names = [f"hydra{mark}{other}" for mark in "./" for other in names_of(HydraConf)]
    kinds = [kind for kind, schema in KINDS.get(group, {}).items() if field in {of.name for of in fields(schema)}]
    if name in names and kinds:
        return f"{typed}: this field exists only with {group}={_or(kinds)}; choose one of them, or omit {name}="
    plain = (name.translate(_TYPOGRAPHIC), value.translate(_TYPOGRAPHIC) if name[:1] in _QUOTES else value)
    similar = _or(proposals(plain[0], plain[1] if equals else None, names))
    return f"{typed}: there is no field or group {name}; " + (f"did you mean {similar}?" if similar else "see --help")


def _missing(error: MissingConfigException) -> str:
    match = re.match(r"(?:In '(.*)': )?Could not (?:find|load) '(.*/.*)'", str(error))
    if match is None:
        return _flattened(str(error))
    where, whole = match[1] or "", match[2]
    folders = [Path(path) for path in re.findall(r"path=file://(.*)", str(error))]
    return _of_preset(where, no_such_preset(whole, where, error.options or [], folders))


def _of_preset(where: str | None, message: str) -> str:
    # The main config, and Hydra's, take their choices from the command line.
    return f"{where}.yaml: {message}" if where and "/" in where and not where.startswith("hydra/") else message


def _malformed(error: OverrideParseException, names: Sequence[str]) -> str:
    """Return the message for an override that Hydra's parser refuses."""
    (word,) = Overrides([str(error.override)])
    name, _, value = word.text.partition("=")
    if not is_known(name[len(word.prefix) :], names):
        return _unknown(word.text, names)
    plain = unicodedata.normalize("NFKC", value).translate(_TYPOGRAPHIC)
    if plain != value:
        strange = next(character for character in value if not character.isascii())
        written = _quoted(f"{name}={plain.strip()}")
        return f"{word.text}: the value contains the character {strange!a}, which is not on a keyboard; write {written}"
    if re.fullmatch(r"(choice|range|glob|shuffle|sort)\(\s*\)", value):
        return f"{word.text}: gives no value; write values between the brackets"
    types = "the name of a preset" if name in GROUPS else _KINDS_IN_WORDS.get(type_of(name[len(word.prefix) :]))
    if types:
        return f"{word.text}: must be {types}; omit other characters, also quotes and spaces"
    text = value.strip("\"'")
    return (
        f"{word.text}: the value has a character that needs quotes; for a text, use two pairs of quotes: "
        + shlex.quote(f'{name}="{text}"')
    )


def _damaged(error: YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    if mark is None or not isinstance(error, MarkedYAMLError):
        return f"a preset is not valid YAML: {_flattened(str(error))}"
    return f"{relative(Path(mark.name))}, line {mark.line + 1}: this is not valid YAML: {error.problem}"


def _flattened(text: str) -> str:
    # Lines about Hydra's syntax and its search path do not help here.
    hidden = ("To append", "full_key", "object_type", "reference_type", "See https")
    stripped = (line.strip().rstrip(".") for line in text.partition("\nConfig search path:")[0].splitlines())
    shown = dict.fromkeys(line for line in stripped if line and not line.startswith(hidden))
    first, *options = ", ".join(shown).split(":, ")
    return ": ".join([first, *options])


def _quoted(override: str) -> str:
    return shlex.quote(override) if re.search(r"\s", override) else override


def _as_text(field: str, text: str) -> str:
    # An override as one types it: field="some text".
    is_plain = not any(character in text for character in '"$`\\!')
    return f'{field}="{text}"' if is_plain else shlex.quote(f"{field}={text}")


def _or(names: Iterable[str]) -> str:
    *others, last = list(names) or [""]
    return f"{', '.join(others)} or {last}" if others else last
