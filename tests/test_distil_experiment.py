"""Experiment 010: its tables are those of its results, and what it counts is what it says."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parent.parent / "experiments" / "010-distil"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(FOLDER.parent.parent / "tools")
    return runpy.run_path(str(FOLDER / "compare.py"))


def test_its_tables_are_generated(tool: dict[str, Any]) -> None:
    page = (FOLDER / "README.md").read_text("utf-8")
    assert tool["render"](page) == page and "| BM25 | 0.860 (0.820 to 0.900) |" in page


def test_a_document_that_is_as_near_as_others_counts_by_its_share(tool: dict[str, Any]) -> None:
    """Two queries find theirs, one finds another's, and one cannot tell two apart."""
    documents = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    queries = torch.tensor([[1.0, 0.1, 0.0], [0.0, 1.0, 0.2], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert tool["first"](queries, documents).tolist() == [1.0, 1.0, 0.0, 0.5]
    found = tool["interval"](np.array([[1.0, 1.0, 0.0, 0.5], [0.0, 1.0, 0.0, 0.5]]))
    assert (found["value"], found["seeds"], found["n"]) == (0.5, 2, 4) and found["low"] < 0.5 < found["high"]


def test_pairs_are_beginnings_and_no_synopsis_comes_twice(
    tool: dict[str, Any], tmp_path: Path, write_shard: Callable[..., Path]
) -> None:
    said = [
        ("reads pictures", "It reads " + "pictures " * 40),
        ("plays sounds", "It plays."),
        ("plays sounds", "Again."),
    ]
    samples = {f"a{n}": {"json": json.dumps({"answer": a, "text": t}).encode()} for n, (a, t) in enumerate(said)}
    write_shard(tmp_path / "train" / "synopsis-000000.tar", samples)
    found = dict((b, a) for a, b in tool["pairs"](tmp_path, "train", 2))
    assert set(found) == {"reads pictures", "plays sounds"}
    assert len(found["reads pictures"]) <= tool["CHARACTERS"] and found["reads pictures"].endswith("pictures")
