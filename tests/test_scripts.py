"""Scripts of tools and experiments, most of which no test runs: what they use of mmfm is there, as they use it.

Read, not run: names that are imported, attributes of modules, and calls of what was imported with arguments that all
are written out.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted([*(ROOT / "tools").glob("*.py"), *(ROOT / "experiments").glob("*/*.py")])


def imported(tree: ast.AST) -> dict[str, Any]:
    """What `from mmfm... import ...` binds. AttributeError or ImportError where it is not there."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mmfm":
            module = importlib.import_module(node.module or "")
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")
                found[name.asname or name.name] = getattr(module, name.name)
    return found


def faults(text: str) -> Iterator[str]:
    """In one line each."""
    tree = ast.parse(text)
    known = imported(tree)
    modules = {name: value for name, value in known.items() if isinstance(value, ModuleType)}
    used = [(at, node.value, node.attr) for at, node in enumerated(tree, ast.Attribute)]
    calls = list(enumerated(tree, ast.Call))
    used += [(at, *node.args[:2]) for at, node in calls if ast.unparse(node.func) == "patch.object"]
    for at, owner, name in used:
        word = name.value if isinstance(name, ast.Constant) else name
        module = modules.get(owner.id) if isinstance(owner, ast.Name) else None
        if module is not None and isinstance(word, str) and not hasattr(module, word):
            yield f"line {at}: {ast.unparse(owner)}.{word}"
    for at, node in calls:
        called = known.get(node.func.id) if isinstance(node.func, ast.Name) else None
        named = {one.arg: one.value for one in node.keywords if one.arg}
        written_out = len(named) == len(node.keywords) and not any(isinstance(one, ast.Starred) for one in node.args)
        if (inspect.isfunction(called) or is_dataclass(called)) and written_out:
            try:
                inspect.signature(called).bind(*node.args, **named)
            except TypeError as why:
                yield f"line {at}: {ast.unparse(node.func)}: {why}"


def enumerated(tree: ast.AST, kind: type[ast.Attribute] | type[ast.Call]) -> Iterator[tuple[int, Any]]:
    """Nodes of a kind with their lines."""
    return ((node.lineno, node) for node in ast.walk(tree) if isinstance(node, kind))


@pytest.mark.parametrize("path", SCRIPTS, ids=[f"{path.parent.name}/{path.stem}" for path in SCRIPTS])
def test_what_it_uses_is_there(path: Path) -> None:
    assert list(faults(path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("stream.NoSuchPlan", "stream.NoSuchPlan"),
        ("patch.object(stream, '_gone', 1)", "_gone"),
        ("Run()", "missing a required"),
        ("Run(name='x', modell=1)", "unexpected keyword|missing"),
    ],
)
def test_a_planted_fault_is_found(line: str, fault: str) -> None:
    (told,) = faults(f"from mmfm.config import Run\nfrom mmfm.data import stream\n{line}\n")
    assert any(part in told for part in fault.split("|"))


def test_a_name_that_is_gone_is_found() -> None:
    with pytest.raises(ImportError):
        list(faults("from mmfm.config import no_such_name\n"))
