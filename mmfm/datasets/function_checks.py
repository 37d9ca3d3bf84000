"""Checks of a function: what it gives for arguments that a fixed list makes, as the function itself says.

Nothing is known of its parameters, so that each is tried with plain values of every kind, and what raises an error is
left out. Two runs must agree, and with `pass` in the gap some outcome must be another one: else nothing is checked.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from mmfm.datasets.function_source import Function, Gap, gap_of
from mmfm.runtime.python_calls import outcomes

MOST_PARAMETERS, MOST_CHECKS, FEWEST_CHECKS = 3, 12, 3
# By how much they tell: of two parameters the first twenty are tried with each other, of three the first seven.
VALUES: tuple[Any, ...] = (
    "a,b.c", 3, [3, 1, 2], b"ab12", "Hello, World", 7, (2, 5), {"a": 1, "b": 2}, 0, "", ["x y", "a"], 2.5, None,
    "x = 1; y='2'", -4, "/a/b.txt", [("a", 1), ("b", 2)], True, "12", b"", 1, 10, 255, 1.0, -0.75, 1000, [], [1],
    [2, 2, 5, 1], [0.5, 1.5], ["b", "a", "b"], [[1, 2], [3]], (), ("a", "b"), {}, {"k": [1]}, {1, 2}, "a", "A b  c",
    "../c/d.tar.gz", "C:\\x\\y", "one\n  two\n\nthree\n", "<a href='b'>c</a> & d", "http://u@a.b:80/c;d?e=f#g",
    "u@example.com (Name)", "2020-01-02", "12:30:59", "%41%20", "en_US.UTF-8", "__init__", "key: value", "text/html",
    "0x1f", "1.2.3.4", "::1", b"Hello\r\nWorld\n", b"\x00\x01\xff\xfe", b"=41=\n",
)  # fmt: skip
# What gives another value at another time or place, though two runs at once may agree.
CHANGING = re.compile(r"\b(time|localtime|gmtime|mktime|today|now|random|environ|getpid|getcwd|gethostname|id)\b")
AT_ONCE = {1: len(VALUES), 2: 20, 3: 7}


class Program(NamedTuple):
    """What is around a gap of a module's function, and what the function gives. until: what of an answer stands in the
    gap, its first "line" that says something, or all to the end of the "function". arguments: literals of tuples;
    outcomes: of each, as `mmfm.runtime.python_calls` has them."""

    module: str
    function: str
    before: str
    after: str
    until: str
    arguments: tuple[str, ...]
    outcomes: tuple[str, ...]


def arguments_for(parameters: int) -> list[str]:
    """Literals of tuples of so many values."""
    return [repr(each) for each in itertools.product(VALUES[: AT_ONCE[parameters]], repeat=parameters)]


class Known(NamedTuple):
    """A function whose outcomes are known: of each of `arguments`."""

    function: Function
    arguments: list[str]
    outcomes: list[str]


def known(function: Function) -> Known | None:
    """What a function gives, where it takes plain values and gives at least two kinds of outcomes, twice the same."""
    if function.parameters not in AT_ONCE or CHANGING.search(function.text):
        return None
    given = arguments_for(function.parameters)
    first = outcomes(function.module, function.text, function.name, given)
    second = outcomes(function.module, function.text, function.name, given[::-1]) if first and any(first) else None
    if first is None or second is None:
        return None
    both = zip(given, first, second[::-1], strict=True)
    same = [(text, one) for text, one, other in both if one is not None and one == other]
    if len(same) < FEWEST_CHECKS or len({one for _, one in same}) < 2:
        return None
    return Known(function, [text for text, _ in same], [one for _, one in same])


def checked_line(of: Known, start: int) -> tuple[int, Program] | None:
    """A line that may be hidden, the first behind `start` in a circle that is missed, and how; None: none is."""
    gaps = [at for at in of.function.gaps() if at in of.function.whole]
    turn = start % len(gaps) if gaps else 0
    for at in gaps[turn:] + gaps[:turn]:
        if program := checked(of, gap_of(of.function, at), "line"):
            return at, program
    return None


def checked_body(of: Known) -> Program | None:
    """All behind the header, where it is missed."""
    lines = of.function.lines
    return checked(of, gap_of(of.function, of.function.header, len(lines)), "function")


def checked(of: Known, gap: Gap, until: str) -> Program | None:
    """The checks of a gap: up to half tell it from `pass`, the others differ where they can. None: with
    `pass` in it nothing changes."""
    indent = gap.hidden[: len(gap.hidden) - len(gap.hidden.lstrip())]
    empty = gap.before + indent + "pass" + gap.after
    without = outcomes(of.function.module, empty, of.function.name, of.arguments) or [None] * len(of.arguments)
    missed = [at for at, one in enumerate(without) if one != of.outcomes[at]]
    if not missed:
        return None
    first = various(missed, of.outcomes)[: MOST_CHECKS // 2]
    rest = various([at for at in range(len(without)) if at not in first], of.outcomes)[: MOST_CHECKS - len(first)]
    chosen = sorted({*first, *rest})
    arguments, wanted = (tuple(column[at] for at in chosen) for column in (of.arguments, of.outcomes))
    return Program(of.function.module, of.function.name, gap.before, gap.after, until, arguments, wanted)


def various(places: Sequence[int], told: Sequence[str]) -> list[int]:
    """These places, those that tell something new first."""
    new = list({told[at]: at for at in reversed(places)}.values())[::-1]
    return new + [at for at in places if at not in set(new)]
