"""pass@1 of code: a function whose gap is filled with what was written gives what the right one gives.

As Chen et al. have it (arXiv 2107.03374, 2.1), with one answer to each question.

A sample's .json says by "program" what stands around the gap, and what the function gives for some arguments; see
`mmfm.datasets.function_checks`. What was written runs in a process with limits, which is not told the right outcomes.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from mmfm.datasets.function_checks import Program
from mmfm.preprocessing import BadSample
from mmfm.runtime.python_calls import outcomes

UNTIL = ("line", "function")
TEXTS, LISTS = ("module", "function", "before", "after", "until"), ("arguments", "outcomes")


def program_of(tree: Any, where: str) -> Program | None:
    """What "program" of a .json holds; None: there is none. Raises BadSample for what is no program."""
    if tree is None:
        return None
    given = tree if isinstance(tree, Mapping) else {}
    texts: list[Any] = [given.get(name) for name in TEXTS]
    lists: list[Any] = [given.get(name) for name in LISTS]
    good = all(isinstance(text, str) for text in texts) and all(map(_is_list, lists))
    told = f'{where}: its "program" must have the texts {", ".join(TEXTS)}, and as many {" as ".join(LISTS)}'
    if not good or not len(lists[0]) == len(lists[1]) > 0:
        raise BadSample("messages_program", f"{told}, one at least, all of them texts")
    module, function, *_, until = texts
    if until not in UNTIL or not all(map(str.isidentifier, [*module.split("."), function])):
        raise BadSample("messages_program", f"{told}; names of Python, and until {' or '.join(UNTIL)}")
    return Program(*texts, *map(tuple, lists))


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


@lru_cache(maxsize=4_096)
def passes(written: str, program: Program) -> float:
    """1 where the filled function gives every outcome. Raises UserError where programs cannot be confined."""
    source = program.before + in_gap(written, program.until) + program.after
    return float(outcomes(program.module, source, program.function, program.arguments) == list(program.outcomes))


def in_gap(written: str, until: str) -> str:
    """What of an answer stands in a gap behind a line: one line, or the lines that are blank or indented."""
    lines = written.split("\n")
    first = next((at for at, line in enumerate(lines) if line.strip()), len(lines))
    if until == "line":
        return "\n" * bool(first) + "".join(lines[first : first + 1])
    outside = (at for at in range(max(first, 1), len(lines)) if lines[at].strip() and not lines[at][0].isspace())
    return "\n".join(lines[: next(outside, None)])
