"""What every part of a configuration checks itself with, and the error that people see."""

from typing import Any

MODALITIES = ("image", "audio", "text")
LONGEST_MESSAGE = 900  # characters


class UserError(ValueError):
    """A mistake of input, not of code: one line with the value, the rule and the remedy. The command line exits 2."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """Whatever a file put into a message: no line break, no control of the screen, and not a whole file of it."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return shown if len(shown) <= LONGEST_MESSAGE else f"{shown[: LONGEST_MESSAGE - 300]} ... {shown[-280:]}"


def require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


def positive(owner: Any, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        require(value > 0, f"{type(owner).__name__}.{name}={value} must be greater than 0")
