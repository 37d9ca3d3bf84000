"""Functions of a few lines in a folder of Python modules, and what is left of them where some lines are hidden."""

import ast
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LINES = (5, 12)  # of a function, with its decorators and its docstring
MOST_CHARACTERS = 700
SIMPLE = ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr | ast.Return | ast.Raise | ast.Delete | ast.Assert
NO_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "ensurepip",
              "pydoc_data", "lib-dynload", "encodings", "__pycache__"}  # fmt: skip
NO_MODULES = {"this", "antigravity", "__phello__", "__hello__"}


class Function(NamedTuple):
    """Of a module. place: its first line there. lines: of its source, without indentation. header: how many are its
    signature and docstring. whole: numbers of lines that are one statement each. parameters: how many values a call
    takes at least; None: it stands in no module itself, or cannot be called with values alone."""

    module: str
    name: str
    place: int
    lines: tuple[str, ...]
    header: int
    whole: frozenset[int]
    parameters: int | None

    @property
    def key(self) -> str:
        return f"{self.module.replace('.', '_')}-{self.place}"

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def gaps(self) -> list[int]:
        """Lines that may be hidden: between the header and the last one, and with something in them."""
        inner = range(self.header, len(self.lines) - 1)
        return [at for at in inner if sum(map(str.isalnum, self.lines[at])) >= 4 and self.lines[at].lstrip()[0] != "#"]


class Gap(NamedTuple):
    """A function in three parts."""

    before: str
    hidden: str
    after: str


def gap_of(function: Function, first: int, last: int | None = None) -> Gap:
    """Lines `first` to before `last` are hidden (None: this one), with the line break before them."""
    end = first + 1 if last is None else last
    parts = ["\n".join(part) for part in (function.lines[:first], function.lines[first:end], function.lines[end:])]
    return Gap(parts[0], "\n" * bool(first) + parts[1], "\n" * bool(parts[2]) + parts[2])


def functions_of(library: Path) -> Iterator[Function]:
    """All of all modules, in the order of their names and places. A file that is no Python is passed over."""
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if NO_LIBRARY.isdisjoint(parts) and parts[0] not in NO_MODULES and all(map(str.isidentifier, parts)):
            names = parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts
            yield from functions_in(path.read_text(encoding="utf-8", errors="replace"), ".".join(names))


def functions_in(source: str, module: str) -> Iterator[Function]:
    """Those of a module's source, methods and nested ones too, whose number of lines is in `LINES`."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of the strange source, such as an invalid escape
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    lines = source.splitlines()
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for node in sorted(nodes, key=lambda node: node.lineno):
        if found := _function(node, lines, module, tree):
            yield found


def _function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str], module: str, tree: ast.Module
) -> Function | None:
    start = min([node.lineno, *(one.lineno for one in node.decorator_list)]) - 1
    end = node.end_lineno or node.lineno
    text = textwrap.dedent("\n".join(line.rstrip() for line in lines[start:end]))
    own = tuple(text.split("\n"))
    told = ast.get_docstring(node, clean=False) is not None
    first = node.body[0]
    header = (first.end_lineno or first.lineno) - start if told else first.lineno - 1 - start
    fits = LINES[0] <= len(own) <= LINES[1] and len(text) <= MOST_CHARACTERS and "\t" not in text and text.isascii()
    if not fits or not 0 < header < len(own) or own[0][:1].isspace():
        return None
    whole = {one.lineno - 1 - start for one in ast.walk(node) if isinstance(one, SIMPLE) and _one_line(one)}
    parameters = _parameters(node.args) if node in tree.body and isinstance(node, ast.FunctionDef) else None
    return Function(module, node.name, start + 1, own, header, frozenset(whole), parameters)


def _parameters(of: ast.arguments) -> int | None:
    """Those without a default, and one of any number; one at least where there is one. None: some are by name alone."""
    if None in of.kw_defaults:
        return None
    own = [*of.posonlyargs, *of.args]
    least = len(own) - len(of.defaults) + (of.vararg is not None)
    return max(least, min(1, len(own)))


def _one_line(node: ast.stmt) -> bool:
    return node.lineno == node.end_lineno
