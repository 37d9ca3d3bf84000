"""Recipes: the commands in the docstrings of configs/adapt, and the tool that runs them."""

import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmfm.__main__ import command

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "configs" / "adapt").glob("*.py"))
DOC = '''"""A recipe.

    pip install this
    (the bundle and data of first.py)
    mmfm train second.py
    mmfm eval runs/second suite.py --root data/x  # its score
    mmfm chat runs/second --image picture.png
"""

from mmfm.config import Model, Run


def config() -> Run:
    return Run(name="second", model=Model())
'''
FIRST = '"""Another.\n\n    mmfm import wheel:w bundles/w\n    mmfm data x data/x\n    mmfm train first.py\n"""\n'


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "first.py").write_text(FIRST)
    (tmp_path / "second.py").write_text(DOC)
    monkeypatch.chdir(tmp_path)
    return runpy.run_path(str(ROOT / "tools" / "recipe.py"))


def runner(asked: list[str], status: int = 0) -> Callable[[list[str]], int]:
    def run(words: list[str]) -> int:
        asked.append(shlex.join(words[2:]))
        return status

    return run


def test_commands_run_in_order_and_what_is_there_is_kept(tool: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    """Planted: the other recipe's bundle and data first, options to the training alone, the chat for the reader; then
    the bundle is there, and a checkpoint, which training goes on from."""
    asked: list[str] = []
    assert tool["main"](["second.py", "--optim.lr", "1"], runner(asked)) == 0
    trained = "mmfm train second.py --optim.lr 1"
    scored = "mmfm eval runs/second suite.py --root data/x"
    assert asked == ["mmfm import wheel:w bundles/w", "mmfm data x data/x", trained, scored]
    assert capsys.readouterr().out.endswith("now yours: mmfm chat runs/second --image picture.png\n")
    Path("bundles/w").mkdir(parents=True)
    Path("runs/second/checkpoints/step-00000001").mkdir(parents=True)
    asked.clear()
    assert tool["main"](["second.py"], runner(asked)) == 0
    assert asked == ["mmfm data x data/x", "mmfm train second.py --resume", scored]


def test_a_failure_ends_it(tool: dict[str, Any]) -> None:
    asked: list[str] = []
    assert tool["main"](["second.py"], runner(asked, 3)) == 3
    assert len(asked) == 1
    with pytest.raises(SystemExit, match=r"none\.py: give a configuration, such as"):
        tool["main"](["none.py"])
    Path("first.py").write_text('"""No recipe."""\n')
    with pytest.raises(SystemExit, match=r"first\.py shows no `mmfm train` in its docstring"):
        tool["main"](["first.py"])


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_is_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how its bundle, its data and itself are made and how it is scored, in words that the program knows."""
    monkeypatch.chdir(ROOT)
    found = runpy.run_path(str(ROOT / "tools" / "recipe.py"))["commands_of"](path.relative_to(ROOT))
    kinds = [words[1] for words in found]
    assert kinds.index("import") < kinds.index("data") < kinds.index("train")
    assert any(words[1:3] == ["train", str(path.relative_to(ROOT))] for words in found)
    for words in (words for words in found if words[1] != "train"):  # which reads bundles; see test_adapt_configs.py
        assert callable(command(words[1:])), words
