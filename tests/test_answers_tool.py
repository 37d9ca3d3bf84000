"""Scores of answers over seeds: what stands in which cell of an experiment's table."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return runpy.run_path(str(ROOT / "tools" / "answers.py"))


def row(task: str, value: float, metric: str = "exact_match", split: str = "scenes") -> dict[str, Any]:
    about = {"split": split, "task": f"messages>text{task}", "metric": metric}
    return {**about, "value": value, "low": value - 0.1, "high": value + 0.1, "n": 160}


def test_kinds_and_controls_have_cells_of_their_own(tool: dict[str, Any]) -> None:
    """A mean over seeds, each seed and the widest interval; a control beside its arm, said once where seeds agree; what
    was not scored is a dash; other metrics are left out."""
    seeds = [
        [row("", 0.5), row(":count", 0.7), row(":count (blind)", 0.25), row(":count", 0.9, "f1"), row("", 0.9, "f1")],
        [row("", 0.7), row(":count", 0.8), row(":count (blind)", 0.25)],
    ]
    runs = [{"arm": "heard", "rows": rows} for rows in seeds] + [{"arm": "seen", "rows": [row(":count", 0.6)]}]
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in tool["table"](runs, ["exact_match", "count:f1"]).splitlines()
    ]
    assert lines[0] == ["asked", "of", "score", "n", "heard", "heard, blind", "seen"]
    assert lines[2] == ["scenes", "all", "exact_match", "160", "0.600 (.500 .700) [0.400, 0.800]", "-", "-"]
    count = ["0.750 (.700 .800) [0.600, 0.900]", "0.250 [0.150, 0.350]", "0.600 [0.500, 0.700]"]
    assert lines[3] == ["scenes", "count", "exact_match", "160", *count]
    assert lines[4][:5] == ["scenes", "count", "f1", "160", "0.900 [0.800, 1.000]"]
    assert len(lines) == 5


def test_arms_that_are_kept_say_of_which_commit_they_are(tool: dict[str, Any]) -> None:
    """The first that they had; those that are scored anew are not among them."""
    runs = [{"arm": "a", "run": "a-0"}, {"arm": "b", "run": "b-0"}, {"arm": "c", "run": "c-0", "commit": "old"}]
    kept = tool["others"]({"commit": "new", "runs": runs}, ["a"])
    assert [(run["run"], run["commit"]) for run in kept] == [("b-0", "new"), ("c-0", "old")]


def test_a_run_without_scores_is_said(tool: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has no results.scenes.json; score it with mmfm eval"):
        tool["fresh"](tmp_path, "results.scenes.json")


def test_tables_of_experiments_are_generated(tool: dict[str, Any]) -> None:
    """What stands in an experiment's README is what the tool makes of its results."""
    pages = [page for page in sorted((ROOT / "experiments").glob("*/README.md")) if tool["BEGIN"] in page.read_text()]
    for page in pages:
        text, results = (page.with_name(name).read_text("utf-8") for name in ("README.md", "results.json"))
        assert json.loads(results)["runs"] and tool["render"](text, results) == text


def test_first_runs_are_lines_of_their_own_results(tool: dict[str, Any]) -> None:
    """Of the first recipes of the chat experiment the README shows some lines."""
    folder = ROOT / "experiments" / "009-chat"
    first = json.loads((folder / "first.json").read_text("utf-8"))
    shown = (folder / "README.md").read_text("utf-8").partition("<!-- first: ")[2].partition("<!-- end of first")[0]
    lines = [line for line in shown.splitlines() if line.startswith("|")]
    assert len(lines) > 2 and {*lines} <= {*tool["table"](first["runs"], first["metrics"]).splitlines()}
