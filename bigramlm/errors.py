"""The error class for problems that the user can fix, and texts that are shown."""

import re


def printable(text: str) -> str:
    """Escape the characters of a text that are not printable, e.g. line ends.

    The result is one line that a terminal shows and does not obey.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# The control characters except for the line end and the tab, and those that change the direction of a text.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Escape the characters of a text that a terminal or a page would obey.

    The lines and the other characters stay as they are.
    """
    return _OBEYED.sub(lambda match: printable(match[0]), text)


class UserError(Exception):
    """An error that the user can fix, described in one line.

    The message contains the offending value, the reason and a fix. The command line prints the message without a
    traceback and exits with code 2. Characters that are not printable are escaped.
    """

    choices: tuple[str, ...] = ()
    """The values to choose from, if the error is an unknown value."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def require(ok: bool, message: str) -> None:
    """Raise UserError(message) if ok is False."""
    if not ok:
        raise UserError(message)


def require_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError that lists the choices unless value is one of the choices."""
    if value not in choices:
        error = UserError(f"{field}={value}: unknown; choose one of {', '.join(choices)}")
        error.choices = choices
        raise error
