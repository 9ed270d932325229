"""Overrides: what was typed to change a config, parsed once by Hydra's own parser."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from bigramlm.config.run_config import escape_references

FREE_TEXT = ("sample.prompt", "data.path", "tokenizer.path", "resume", "init_from", "base", "sweep")
"""The fields of `train` that hold free text: taken as typed, whatever Hydra's grammar would make of it."""

# Of a place null is none, and no place of that name.
_NULLABLE = ("resume", "init_from", "base", "sweep")

# Free text is swept as a list in quotes: 'sample.prompt="To be","Or not"'. Anything else is one text.
_LIST = re.compile(r"""("[^"]*"|'[^']*')(,\s*("[^"]*"|'[^']*'))+""")


class Word(NamedTuple):
    """One override."""

    text: str
    """As Hydra takes it."""
    field: str
    """The field or group that is given a value, without a + before it; empty where none is, as in ~FIELD."""
    value: str
    """The value that follows the equals sign, without the quotes around it."""


class Overrides:
    """A list of overrides, FIELD=VALUE or GROUP=CHOICE, of which the last one of a field counts."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        """words: as Hydra takes them."""
        self.words = list(words)

    @classmethod
    def typed(cls, words: Iterable[str], free_text: Sequence[str] = FREE_TEXT, *, sweeps: bool = False) -> Overrides:
        """Take words as a person types them, and quote the values of these fields, which hold free text.

        sweeps: whether a list of texts in quotes is several texts.
        """
        return cls(_quoted(word, free_text, sweeps=sweeps) for word in words)

    @classmethod
    def among(cls, arguments: Iterable[str]) -> Overrides:
        """Take the overrides that are among a command's arguments, and leave its flags out."""
        return cls(word for word in arguments if word.startswith("~") or (not word.startswith("-") and "=" in word))

    def __iter__(self) -> Iterator[Word]:
        return map(_word, self.words)

    def __add__(self, other: Overrides) -> Overrides:
        return Overrides([*self.words, *other.words])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Overrides) and self.words == other.words

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Overrides({self.words})"

    def has(self, *names: str) -> bool:
        """Tell whether one of these fields or groups was typed."""
        return any(word.field in names for word in self)

    def touches(self, group: str) -> bool:
        """Tell whether a choice of this group was typed, or a field of it."""
        return any(word.field.split(".")[0] == group for word in self)

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the value of a field or group as it was typed, the last one if it was typed twice."""
        return self.values().get(name, default)

    def values(self) -> dict[str, str]:
        """Return all values by field or group: {"optim.lr": "0.01", ...}."""
        return {word.field: word.value for word in self if word.field}

    def only(self, *names: str) -> Overrides:
        """Return the overrides of these fields and groups."""
        return self._where(lambda word: word.field in names)

    def without(self, *names: str) -> Overrides:
        """Return the other overrides than those of these fields and groups."""
        return self._where(lambda word: word.field not in names)

    def without_choice(self, choice: str) -> Overrides:
        """Return the other overrides than those that choose this one of a group."""
        return self._where(lambda word: word.value != choice or "." in word.field)

    def after(self, *names: str) -> tuple[Overrides, Overrides]:
        """Cut the list behind the last override of these fields and groups, or behind the first override."""
        last = max((at for at, word in enumerate(self) if word.field in names), default=0)
        return Overrides(self.words[: last + 1]), Overrides(self.words[last + 1 :])

    def parsed(self, loader: ConfigLoader | None = None) -> list[Override]:
        """Return them as Hydra's parser does; loader: knows the choices of groups, for glob(*).

        Raises what Hydra raises for a word that is no override.
        """
        return OverridesParser.create(config_loader=loader).parse_overrides(self.words)

    def _where(self, keeps: Callable[[Word], bool]) -> Overrides:
        return Overrides(word.text for word in self if keeps(word))


def quoted(text: str) -> str:
    """Put a text in quotes of Hydra's grammar, so that it arrives as it stands."""
    # Hydra's quotes end at a quote; the backslashes before one, and before the end, count double.
    text = re.sub(
        r'(\\*)("|$(?![\s\S]))', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), escape_references(text)
    )
    return f'"{text}"'


def sets_a_field(override: Override) -> bool:
    """Tell whether an override sets a field that is there, and leaves alone which groups are composed."""
    is_field = "." in override.key_or_group or override.key_or_group == "seed"
    return is_field and not (override.is_add() or override.is_force_add() or override.is_delete())


def _quoted(word: str, free_text: Sequence[str], *, sweeps: bool) -> str:
    found = re.fullmatch(rf"(\+{{0,2}}({'|'.join(map(re.escape, free_text))})=)(.*)", word, re.DOTALL)
    if not found:
        return word
    before, field, text = found.groups()
    if (text == "null" and field in _NULLABLE) or (sweeps and _LIST.fullmatch(text)):
        return word
    return before + quoted(text)


@functools.cache
def _word(text: str) -> Word:
    name, equals, value = text.partition("=")
    if not equals or name.startswith(("~", "-")):
        return Word(text, "", "")
    try:
        (parsed,) = OverridesParser.create().parse_overrides([text])
    except HydraException:  # whoever composes with it will say what is wrong
        return Word(text, name.lstrip("+"), value)
    if not parsed.is_sweep_override() and value.startswith(('"', "'")):
        # OmegaConf would read \${ as ${, and half of the backslashes before that.
        value = re.sub(r"(\\+)\$\{", lambda found: found[1][: len(found[1]) // 2] + "${", str(parsed.value()))
    return Word(text, parsed.key_or_group, value)
