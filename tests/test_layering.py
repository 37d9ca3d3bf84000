"""The house keeps its order: which file may import which, and what no file may do."""

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Floors, lowest first; an import may only point up this list.
ORDER = [
    "compat", "config", "runtime",
    "preprocessing",
    "data",
    "pretrained",
    "models",
    "objectives", "generation", "inference",
    "datasets", "evals", "export",
    "training", "plan",
    "report", "doctor", "cli", "__main__",
]  # fmt: skip
LIGHT = (
    "mmfm.config",
    "mmfm.config.task",
    "mmfm.training.preflight",
    "mmfm.report.report",
    "mmfm.evals.suite",
)  # these, and all they import: stdlib alone
LIGHTNING = {f"mmfm.training.{name}" for name in ("module", "callbacks", "fit", "strategy")}
FORBIDDEN = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "importlib", "imp"}
CALLS = {"eval", "exec", "__import__", "os.system", "os.popen", "torch.load"}
BY_NAME = {"mmfm.config.extend"}  # may execute the files that people give: it alone imports importlib


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


TREES = {module_name(path): ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / "mmfm").rglob("*.py"))}


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in TREES else str(node.module) for name in names)


def ours(module: str) -> set[str]:
    return {name for name in imported(TREES[module]) if name.split(".")[0] == "mmfm"}


def rank(module: str) -> int:
    return ORDER.index(module.split(".")[1])


def test_imports_only_point_up() -> None:
    """No file imports one that stands after it; the package itself, which opens on everything, is for the last two."""
    edges = [(module, name) for module in TREES if module != "mmfm" for name in ours(module)]
    assert len(edges) > len(TREES)
    floor = {name: ORDER.index("cli") if name == "mmfm" else rank(name) for _, name in edges}
    assert [f"{module} imports {name}" for module, name in edges if floor[name] > rank(module)] == []


def test_no_cycles() -> None:
    """Files of one folder may import each other, but never in a circle."""
    graph = {module: ours(module) - {"mmfm"} for module in TREES if module != "mmfm"}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", LIGHT)
def test_light_files_stay_light(module: str) -> None:
    """What `--check` and `mmfm report` read needs nothing that pip installed."""
    waiting, seen = [module], set()
    while waiting:
        seen.add(name := waiting.pop())
        foreign = {other.split(".")[0] for other in imported(TREES[name])} - sys.stdlib_module_names - {"mmfm"}
        assert not foreign, f"{name}, which {module} needs, imports {foreign}"
        waiting += {other for other in ours(name) if other != "mmfm"} - seen


def test_lightning_has_four_files() -> None:
    """The Trainer can be replaced by changing four files."""
    users = {
        name for name, tree in TREES.items() if any("lightning" in other.split(".")[0] for other in imported(tree))
    }
    assert users <= LIGHTNING


def dangers(module: str, tree: ast.AST) -> Iterator[str]:
    """Pickle, import by name, a shell, evaluated strings, weights that can execute, and code beside a model: what
    transformers opens by a name has to say that this is not to be run, or it asks on standard input.
    """
    allowed = {"importlib"} if module in BY_NAME else set()
    yield from {name.split(".")[0] for name in imported(tree)} & FORBIDDEN - allowed
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name, keywords = ast.unparse(call.func), {one.arg: ast.unparse(one.value) for one in call.keywords}
        opens = re.fullmatch(r"(.*\.)?Auto\w+\.(from_pretrained|from_config)", name)
        trusts = keywords.get("trust_remote_code", "" if opens else "False") != "False"
        if name in CALLS or "shell" in keywords or trusts:
            yield ast.unparse(call)


def test_nothing_dangerous() -> None:
    assert {module: found for module, tree in TREES.items() if (found := list(dangers(module, tree)))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from importlib import metadata", "eval('1')", "torch.load('x')", "run('ls', shell=True)",
        "hf.AutoModel.from_pretrained('x')", "hf.AutoConfig.from_pretrained('x', trust_remote_code=True)",
        "load('x', trust_remote_code=asked)",
    ],
)  # fmt: skip
def test_danger_is_seen(line: str) -> None:
    """Planted."""
    assert len(list(dangers("mmfm.planted", ast.parse(line)))) == 1


def test_a_module_opens_with_its_idea() -> None:
    assert [module for module, tree in TREES.items() if not ast.get_docstring(tree)] == []


def texts() -> Iterator[Path]:
    """The files of the project that people read."""
    for folder in ("mmfm", "tests", "tools", "configs", "experiments", ".ci"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    yield from (ROOT / name for name in ("Makefile", "README.md", "pyproject.toml", ".pre-commit-config.yaml"))


def test_no_machine_and_no_registry() -> None:
    """The project runs anywhere: it names no folder of one machine and no host that packages come from."""
    place = re.compile(r"(?<![\w.])/(?:home|root|tmp|usr(?!/bin/env)|Users|work|mnt|opt|var)/")
    host = re.compile(r"pypi\.org|pythonhosted\.org|registry\.npmjs|download\.pytorch\.org|conda\.anaconda")
    for path in texts():
        content = path.read_bytes().decode("utf-8", "ignore")
        for found in (*place.findall(content), *host.findall(content)):
            raise AssertionError(f"{path.relative_to(ROOT)} names {found}")
