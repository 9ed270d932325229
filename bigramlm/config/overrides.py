"""Overrides of a config, parsed by Hydra's parser."""

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

FREE_TEXT = (
    *("sample.prompt", "data.path", "tokenizer.path", "resume", "init_from", "base", "sweep", "extensions"),
    *("name", "note"),
)
"""The free-text fields of `train`. Their values are taken literally instead of being parsed by Hydra's grammar."""

NULLABLE = ("resume", "init_from", "base", "sweep", "name")
"""The free-text fields whose value null means no value, not a folder named "null"."""

# A list of quoted texts is a sweep over these texts: 'sample.prompt="To be","Or not"'. Any other value is one text.
_TEXT = r"""("([^"\\]|\\.)*"|'([^'\\]|\\.)*')"""
_LIST = re.compile(rf"{_TEXT}(\s*,\s*{_TEXT})+", re.DOTALL)


_PLAIN_NAME = re.compile(r"\+{0,2}[A-Za-z_][\w./]*")


# The number of characters outside of quotes up to which an override is parsed: brackets in brackets could take minutes,
# and the overrides of a run may come from anyone.
_MAX_LENGTH = 1000


class Word(NamedTuple):
    """One override."""

    text: str
    """The whole override, in Hydra's grammar."""
    field: str
    """The overridden field or group, without a leading +. It is empty if no value is assigned, as in ~FIELD."""
    value: str
    """The value after the equals sign, without surrounding quotes."""

    @property
    def prefix(self) -> str:
        """The characters before the field: +, ++ or ~, or none."""
        return self.text[: len(self.text) - len(self.text.lstrip("+~"))]


class Overrides:
    """A list of overrides, FIELD=VALUE or GROUP=CHOICE.

    If a field or group is overridden several times, the last override takes effect.
    """

    def __init__(self, words: Iterable[str] = ()) -> None:
        """Store the overrides, which are words in Hydra's grammar."""
        self.words = list(words)

    @classmethod
    def typed(cls, words: Iterable[str], free_text: Sequence[str] = FREE_TEXT, *, sweeps: bool = False) -> Overrides:
        """Convert command-line arguments, quoting the values of free-text fields.

        sweeps: if True, a list of quoted texts is a sweep over these texts, and is not quoted as a whole. Each text is
        taken literally.
        """
        return cls(_quoted(word, free_text, sweeps=sweeps) for word in words)

    @classmethod
    def from_arguments(cls, arguments: Iterable[str]) -> Overrides:
        """Select the overrides from command-line arguments; flags are dropped."""
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
        """Check whether any of these fields or groups is overridden."""
        return any(word.field in names for word in self)

    def touches(self, group: str) -> bool:
        """Check whether this group or any of its fields is overridden."""
        return any(word.field.split(".")[0] == group for word in self)

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the value of a field or group, or the default if it is not overridden."""
        return self.values().get(name, default)

    def values(self) -> dict[str, str]:
        """Map every overridden field or group to its value, e.g. {"optim.lr": "0.01"}."""
        return {word.field: word.value for word in self if word.field}

    def as_typed(self) -> list[str]:
        """Return the overrides as arguments of a command.

        Free text has none of the quotes of Hydra's grammar.
        """
        return [f"{w.prefix}{w.field}={w.value}" if w.field in FREE_TEXT else w.text for w in self]

    def only(self, *names: str) -> Overrides:
        """Return the overrides of these fields and groups."""
        return self._filter(lambda word: word.field in names)

    def without(self, *names: str) -> Overrides:
        """Return all overrides except those of these fields and groups."""
        return self._filter(lambda word: word.field not in names)

    def without_choice(self, choice: str) -> Overrides:
        """Return all overrides except those that select this preset for a group."""
        return self._filter(lambda word: word.value != choice or "." in word.field)

    def split_after(self, *names: str) -> tuple[Overrides, Overrides]:
        """Split the list after the last override of any of these fields and groups.

        If none of them is overridden, the list is split after the first override.
        """
        last = max((at for at, word in enumerate(self) if word.field in names), default=0)
        return Overrides(self.words[: last + 1]), Overrides(self.words[last + 1 :])

    def parsed(self, loader: ConfigLoader | None = None) -> list[Override]:
        """Parse the overrides into Hydra's objects.

        loader: used to list the presets of a group for a glob(*) sweep. Raises HydraException for a malformed
        override.
        """
        return OverridesParser.create(config_loader=loader).parse_overrides(self.words)

    def _filter(self, predicate: Callable[[Word], bool]) -> Overrides:
        return Overrides(word.text for word in self if predicate(word))


def quoted(text: str) -> str:
    """Quote a text so that Hydra's parser returns it unchanged."""
    # Hydra halves the backslashes before a quote and before the end of the text, so they are doubled here.
    text = re.sub(
        r'(\\*)("|$(?![\s\S]))', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), escape_references(text)
    )
    return f'"{text}"'


def sets_a_field(override: Override) -> bool:
    """Check whether an override sets an existing field, and does not select a preset."""
    is_field = "." in override.key_or_group or override.key_or_group == "seed"
    return is_field and not (override.is_add() or override.is_force_add() or override.is_delete())


def _quoted(word: str, free_text: Sequence[str], *, sweeps: bool) -> str:
    match = re.fullmatch(rf"(\+{{0,2}}({'|'.join(map(re.escape, free_text))})=)(.*)", word, re.DOTALL)
    if not match:
        return word
    prefix, field, text = match.groups()
    if field == "extensions" and text.startswith("["):
        return word
    if text == "null" and field in NULLABLE:
        return word
    if sweeps and _LIST.fullmatch(text):
        return prefix + escape_references(text)
    return prefix + quoted(text)


@functools.cache
def _word(text: str) -> Word:
    name, equals, value = text.partition("=")
    if not equals or name.startswith(("~", "-")):
        return Word(text, "", "")
    if _PLAIN_NAME.fullmatch(name) and not value.startswith(('"', "'")):
        return Word(text, name.lstrip("+"), value)  # what Hydra's parser would find, which takes a millisecond
    if len(re.sub(_TEXT, "", text, flags=re.DOTALL)) > _MAX_LENGTH:
        return Word(text, name.lstrip("+"), value)
    try:
        (parsed,) = OverridesParser.create().parse_overrides([text])
    except (HydraException, RecursionError):  # Hydra reports the error when it composes
        return Word(text, name.lstrip("+"), value)
    if not parsed.is_sweep_override() and value.startswith(('"', "'")):
        # OmegaConf reads \${ as ${, and halves the backslashes before it.
        value = re.sub(r"(\\+)\$\{", lambda match: match[1][: len(match[1]) // 2] + "${", str(parsed.value()))
    return Word(text, parsed.key_or_group, value)
