"""What a Python function gives for some arguments, where its code is strange: called by a program with limits.

The function stands in the names of a module of the standard library, so that what that module imports and defines is
there. What it gives is compared outside: the program that runs strange code is not told what is right.
"""

import json
import sys
from collections.abc import Sequence

from mmfm.runtime.limited import run_limited

SECONDS, MEMORY_MB = 2, 512  # of CPU, for all calls of a function
WALL_SECONDS = 60  # a busy machine is not to change what comes out
LONGEST = 300  # characters of an outcome
PYTHON = (sys.executable, "-P", "-s", "-S", "-B", "-")  # not -I, which would not let run_limited fix the hash seed

BEFORE = """\
import sys, {module}
globals().update({{name: value for name, value in vars(sys.modules[{module!r}]).items() if name[:2] != "__"}})
"""
# Names of builtins are asked by their module, as the function's may hide them.
AFTER = """

def calls_of_strange_function(function, texts, longest):
    import ast, builtins as b, io, itertools, json, sys, types
    def plain(value):
        kind = b.type(value)
        if kind in (b.set, b.frozenset):
            return kind.__name__ + "(" + ", ".join(b.sorted(b.map(plain, value))) + ")"
        if kind in (b.list, b.tuple):
            return kind.__name__ + "(" + ", ".join(b.map(plain, value)) + ")"
        if kind is b.dict:
            return "dict(" + ", ".join(plain(key) + ": " + plain(one) for key, one in value.items()) + ")"
        if value is None or kind in (b.bool, b.int, b.float, b.complex, b.str, b.bytes):
            return b.repr(value)
        raise b.TypeError(kind.__name__)
    def outcome(text):
        given = ast.literal_eval(text)
        try:
            value = function(*given)
            if b.isinstance(value, types.GeneratorType):
                value = b.list(itertools.islice(value, 100))
            found, after, before = plain(value), plain(given), plain(ast.literal_eval(text))
        except b.Exception:
            return None
        found += "" if after == before else " and changes its arguments to " + after
        return found if b.len(found) <= longest else None
    own, sys.stdout = sys.stdout, io.StringIO()
    found = [outcome(text) for text in texts]
    sys.stdout = own
    b.print("\\n" + json.dumps(found))
"""


def outcomes(module: str, source: str, function: str, arguments: Sequence[str]) -> list[str | None] | None:
    """What the function of this source gives for each of `arguments`, which are literals of tuples: its value as text,
    and its arguments where it changes them. None for one: an error, or a value that is no plain data. None for all: the
    program did not come to its end.

    Raises UserError where programs cannot be confined.
    """
    end = f"\ncalls_of_strange_function({function}, {list(arguments)!r}, {LONGEST})\n"
    script = BEFORE.format(module=module) + source + AFTER + end
    given = script.encode("utf-8", "replace")
    done = run_limited(PYTHON, stdin=given, seconds=SECONDS, memory_mb=MEMORY_MB, wall_seconds=WALL_SECONDS)
    if done.code:
        return None
    try:
        found = json.loads(done.stdout.rstrip().rpartition(b"\n")[2])
    except ValueError:
        return None
    good = isinstance(found, list) and len(found) == len(arguments)
    return [one if isinstance(one, str) else None for one in found] if good else None
