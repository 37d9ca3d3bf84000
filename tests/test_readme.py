"""The pages say what is so: figures are generated, commands parse, code builds, links lead somewhere."""

import ast
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

from mmfm.__main__ import command
from mmfm.config import Run
from mmfm.inference.interface import Interface

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
MAP = (ROOT / "mmfm" / "README.md").read_text("utf-8")
TOOL = runpy.run_path(str(ROOT / "tools" / "readme.py"))


PAGES = [
    ROOT / "README.md",
    *(ROOT / name / "README.md" for name in ("mmfm", "configs", "experiments", "tools", "tests")),
]
PAGES += sorted((ROOT / "mmfm").glob("*/README.md"))


def blocks(language: str) -> list[str]:
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (page.parent / link).exists(), link


def test_figures_are_generated() -> None:
    """The tables of every page are what tools/readme.py makes of the committed results; if not, run it."""
    pages = TOOL["pages"]()
    assert len(pages) >= 4
    for page in pages:
        assert TOOL["render"](page.read_text("utf-8")) == page.read_text("utf-8"), page


def test_every_experiment_has_its_line() -> None:
    index = (ROOT / "experiments" / "README.md").read_text("utf-8")
    folders = [
        path.name for path in sorted((ROOT / "experiments").iterdir()) if path.is_dir() and path.name[0].isdigit()
    ]
    assert re.findall(r"^\| \[([\w-]+)\]", index, re.MULTILINE) == folders


def test_the_table_of_encoders_is_generated() -> None:
    """tools/PARITY.md is what tools/readme.py makes of tools/parity.json."""
    assert TOOL["parity_page"]() == TOOL["PARITY_PAGE"].read_text("utf-8")


def test_planted_rows_stand_in_the_summary() -> None:
    """Differences are of the largest number; what was not measured has a dash; what sees its padding is named."""
    plain = {"library": "a", "modality": "text", "way": "wrapped", "size": 4.0, "padded": 0.0, "invariant": True}
    plain["preprocessing"] = None
    rows = [
        {**plain, "model": "x", "difference": 4e-6},
        {**plain, "model": "y", "difference": 0.0, "padded": 0.5, "invariant": False},
        {**plain, "model": "y", "difference": 8e-6, "way": "native"},
        {**plain, "model": "z", "difference": 3e-7, "library": "b", "size": 0.1, "preprocessing": 0.25},
        {**plain, "model": "w", "difference": 0.0, "library": "b", "preprocessing": 1.5},
    ]
    table = TOOL["parity_summary"]({"rows": rows, "hardware": {"cpu": "c"}, "date": "2026-01-01"})
    assert "| a | - | 2 | 1e-06 | 1 | 2e-06 | y |" in table
    assert "| b | 1.5 | 2 | 3e-06 | 0 | - | none |" in table
    assert table.endswith("4 encoders. Measured on c, 2026-01-01.")


def test_the_table_of_any_to_any_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in experiments/006-any-to-any is what its measure.py makes of its results."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    folder = ROOT / "experiments" / "006-any-to-any"
    tool = runpy.run_path(str(folder / "measure.py"))
    readme, results = ((folder / name).read_text("utf-8") for name in ("README.md", "results.json"))
    assert tool["render"](readme, results) == readme


@pytest.mark.parametrize(("name", "least"), [("experiment", 2), ("gather", 1)])
def test_the_tables_of_experiments_are_generated(name: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in an experiment's README is what the tool that it names makes of its results."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    tool = runpy.run_path(str(ROOT / "tools" / f"{name}.py"))
    pages = [page for page in sorted((ROOT / "experiments").glob("*/README.md")) if tool["BEGIN"] in page.read_text()]
    assert len(pages) >= least
    for page in pages:
        text = page.read_text("utf-8")
        assert tool["render"](text, page.with_name("results.json").read_text("utf-8")) == text


def row(split: str, task: str, metric: str, value: float) -> dict[str, Any]:
    row = {"split": split, "task": task, "metric": metric, "value": value, "low": value - 0.01, "high": value + 0.01}
    return {**row, "chance": 0.01, "n": 640}


def test_a_planted_figure_stands_in_its_place() -> None:
    """A value appears in the line of its task and metric, under its split, and other splits and metrics do not."""
    rows = [
        row("test", "audio>text", "wer", 0.125),
        row("val", "audio>text", "wer", 0.5),
        row("test", ">text", "x", 0.7),
    ]
    text = TOOL["table"](rows)
    (line,) = [line for line in text.splitlines() if "0.125" in line]
    assert [cell.strip() for cell in line.split("|")][2:6] == [
        "`audio>text`",
        "wer",
        "0.125 (0.115 to 0.135), chance 0.01",
        "-",
    ]
    assert "0.500" not in text and "0.700" not in text


@pytest.mark.parametrize("broken", [("<!-- end of few -->", ""), ("<!-- few:", "<!-- phew:")])
def test_a_lost_marker_is_said(broken: tuple[str, str]) -> None:
    """Without its markers a table would silently stay as it is."""
    with pytest.raises(ValueError, match="a table"):
        TOOL["render"](README.replace(*broken))


def test_the_engines_table_has_what_has_a_goal() -> None:
    """Planted: a row with a goal and its interval, a part decoded and a resume stand there; what explains does not."""
    found = {"value": 3.456, "low": 3.1, "high": 3.8}
    rows = [
        {"name": "loader over theirs", **found, "goal": ">= 3", "unit": "x"},
        {"name": "loader alone", **found, "goal": "", "unit": "samples/s"},
        {"what": "3 s of 180 s, wav", "way": "seek", "against": "slice", "ratio": found},
        {"case": "kill -9", "ranks": 2, "wrong_positions": 0, "seconds": 9},
    ]
    table = TOOL["engine_table"]([{"hardware": {"cpu": "a"}, "date": "2026-01-01", "rows": rows}])
    assert "| loader over theirs | 3.46x (3.1 to 3.8) | >= 3x |" in table
    assert "| 3 s of 180 s, wav: seek over slice | 3.46x (3.1 to 3.8) | >= 10x |" in table
    assert "| kill -9 | ranks 2, wrong positions 0 | 0 different |" in table
    assert "alone" not in table and table.endswith("Measured on a, 2026-01-01.")


LINES = [line.split("#")[0] for block in blocks("sh") for line in block.splitlines() if line.startswith("mmfm ")]
# recipes read bundles, which tests/test_adapt_configs.py has
COMMANDS = [line for line in LINES if not line.startswith("mmfm train configs/adapt/")]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command shown is one that the program understands, with those options and that configuration."""
    monkeypatch.chdir(ROOT)
    assert callable(command(shlex.split(line)[1:]))


def test_the_configuration_builds() -> None:
    """The example for one's own shards is a whole configuration."""
    (code,) = [block for block in blocks("python") if block.startswith('"""sounds.py')]
    space: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), space)
    assert isinstance(space["config"](), Run)


def test_the_python_example_uses_what_there_is() -> None:
    """Every method that the example calls on the model exists."""
    (code,) = [block for block in blocks("python") if "model.generate(" in block and "encode_image" in block]
    calls = [node.func for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    methods = {f.attr for f in calls if isinstance(f, ast.Attribute) and ast.unparse(f.value) == "model"}
    assert len(methods) >= 4
    assert all(hasattr(Interface, name) for name in methods), methods


def test_the_map_is_complete() -> None:
    """Each file or folder of the package stands in the map, and nothing else does."""
    named = set(re.findall(r"^    (mmfm/[\w/.]*)  ", MAP, re.MULTILINE))
    there = {f"mmfm/{path.name}" for path in (ROOT / "mmfm").glob("[!_]*.py")}
    there |= {f"mmfm/{path.parent.name}/" for path in (ROOT / "mmfm").glob("*/__init__.py")}
    assert named == there
