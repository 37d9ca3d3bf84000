"""What every part of a configuration is checked by, and the error that people see."""

import dataclasses
import math
import os
import types
import typing
from functools import cache
from typing import Any, Literal

MODALITIES = ("image", "audio", "text")
LONGEST_MESSAGE = 900  # characters
MEANT = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}


class UserError(ValueError):
    """A mistake of input, not of code: one line with the value, the rule and the remedy. The command line exits 2."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class Checked:
    """A dataclass whose fields have the types that they declare, whoever builds it: Python, the command line or JSON.

    Its own `__post_init__`, if any, may rely on that. A list becomes a tuple, a path a text and a whole number a
    fraction where these are declared, so that what is built equals what is read back from JSON.

    Errors:
        UserError: a value of another type, or none of the choices; the message names the field.
    """

    def __init_subclass__(cls) -> None:
        cls._rules = cls.__dict__.get("__post_init__")  # type: ignore[attr-defined]
        cls.__post_init__ = _check  # type: ignore[attr-defined]


def _check(self: Any) -> None:
    """The types of its fields, then the rules of its class and before these those of the classes that it inherits."""
    for name, kind in _kinds(type(self)).items():
        object.__setattr__(self, name, conform(kind, getattr(self, name), f"{type(self).__name__}.{name}"))
    for owner in reversed(type(self).__mro__):
        if (rules := owner.__dict__.get("_rules")) is not None:
            rules(self)


@cache
def _kinds(owner: type) -> dict[str, Any]:
    hints = typing.get_type_hints(owner)
    return {field.name: hints[field.name] for field in dataclasses.fields(owner)}


def conform(kind: Any, value: Any, where: str) -> Any:
    """`value` as a `kind`: a dataclass, tuple, union, Literal or plain type. `where` names its place.

    Errors:
        UserError: it is of another type; nothing is rounded, parsed or guessed.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return value if value is None and type(None) in arguments else _one_of(arguments, value, where)
    if origin is Literal:
        known = any(type(value) is type(choice) and value == choice for choice in arguments)
        require(known, f"{where}={value!r} is none of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        return _tuple(arguments, value, where)
    if kind is float and type(value) is int and abs(value) < 1e300:
        return float(value)
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    named = getattr(kind, "named", None)
    if named is not None and isinstance(value, str):  # an extension, as "file.py:Name"
        return named(value)
    if kind not in MEANT:
        called = kind.__name__ if isinstance(kind, type) else str(kind)
        require(not isinstance(kind, type) or isinstance(value, kind), f"{where}={_shown(value)} should be a {called}")
        return value
    told = f"{where}={_shown(value)} should be {MEANT[kind]}"
    whole = kind is int and type(value) is float and value.is_integer()
    require(type(value) is kind, f"{told}, such as {int(value)}" if whole else f"{told}, not a {type(value).__name__}")
    require(kind is not float or math.isfinite(value), f"{where}={value} is no finite number")
    return value


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    told = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return conform(kind, value, where)
            except UserError as why:
                told.append(str(why))
    if len(told) == 1:
        raise UserError(told[0])
    names = ", ".join("None" if kind is type(None) else getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise UserError(f"{where}={_shown(value)} should be one of {names}")


def _tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    listed = isinstance(value, (tuple, list))
    require(listed, f"{where}={_shown(value)} should be a tuple, such as ({_shown(value)},)")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    require(len(kinds) == len(value), f"{where}={_shown(value)} should have {len(kinds)} entries, not {len(value)}")
    return tuple(conform(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:60]} ..."


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
