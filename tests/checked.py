"""The checks of mmfm's annotations, as jaxtyping's import hook puts them around every function, at half their price.

jaxtyping checks a function's arguments twice and binds them once more, whether any is an array or not, and builds its
checks of a function within a function anew at each call. Half of the tests' time went there. Here beartype checks each
call once, a function with shapes has letters of its own, and one within another is not checked.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, ForwardRef, Literal, get_args, get_origin

import jaxtyping
from beartype import beartype
from jaxtyping._storage import pop_shape_memo, push_shape_memo

theirs = jaxtyping.jaxtyped


def install(package: str) -> None:
    """Of what is imported from now on."""
    jaxtyping.jaxtyped = lambda fn=None, typechecker=None: around if fn is None else around(fn)  # type: ignore
    jaxtyping.install_import_hook(package, "beartype.beartype")


def around(fn: Any) -> Any:
    """A function, or a class whose __init__ is made by dataclass, with its annotations checked."""
    if inspect.isclass(fn):
        if dataclasses.is_dataclass(fn) and "__init__" in vars(fn):
            fn.__init__ = checked(fn.__init__)
        return fn
    return fn if "<locals>" in fn.__qualname__ else checked(fn)


def checked(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Left to jaxtyping: generators, whose bodies run when their letters are gone, and what is quoted."""
    hints = list(fn.__annotations__.values())
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn) or any(within(hint, quoted) for hint in hints):
        return theirs(fn, typechecker=beartype)
    if not hints:
        return fn
    inner, shapes = beartype(fn), any(within(hint, shaped) for hint in hints)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return fn(*args, **kwargs)
        if not shapes:
            return inner(*args, **kwargs)
        push_shape_memo({})
        try:
            return inner(*args, **kwargs)
        finally:
            pop_shape_memo()

    return call


def within(hint: Any, is_one: Callable[[Any], bool]) -> bool:
    """Whether it is, or something stands anywhere in it."""
    if get_origin(hint) is Literal:
        return False
    parts = hint if isinstance(hint, list) else get_args(hint)
    return is_one(hint) or any(within(part, is_one) for part in parts)


def quoted(hint: Any) -> bool:
    return isinstance(hint, str | ForwardRef)


def shaped(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
