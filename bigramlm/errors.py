"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """An error that the user can mend: one line with what was wrong, the value, and the way out.

    The command line prints it without a traceback and ends with exit code 2.
    """


def require(ok: bool, message: str) -> None:
    """Raise UserError(message) unless ok."""
    if not ok:
        raise UserError(message)


def require_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError unless value is one of choices; the message lists them."""
    require(value in choices, f"{field}={value}: unknown; choose one of {', '.join(choices)}")
