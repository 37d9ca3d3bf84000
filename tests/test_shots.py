"""What experiments/013-shots compares with: the nearest shot by features, planted."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from mmfm.data.sample import Sample

NEAREST = runpy.run_path(str(Path(__file__).parents[1] / "experiments" / "013-shots" / "nearest.py"))


def turns(*names: str) -> list[dict]:
    asked = {"role": "user", "content": [{"type": "image"}]}
    return [turn for name in names for turn in (asked, {"role": "assistant", "content": name})]


def test_a_conversation_is_read_in_order_of_mention() -> None:
    about = {"messages": turns("bapik", "fogul", "bapik"), "kind": "shots-2", "choices": ["bapik", "fogul"]}
    parts = {"2.jpg": b"c", "json": json.dumps(about).encode(), "0.jpg": b"a", "1.jpg": b"b"}
    found = NEAREST["shown"](Sample("k", parts, "here"))
    assert found == ("shots-2", (b"a", b"b", b"c"), ("bapik", "fogul"), "bapik")


@pytest.mark.parametrize(
    "names, answer, expected",
    [(("a", "b"), "b", 1.0), (("a", "b"), "a", 0.0), (("a", "a"), "a", 0.5), ((), "a", 0.5)],
)
def test_the_nearest_names(names: tuple[str, ...], answer: str, expected: float) -> None:
    """The last picture is like the second one; where one name or none is shown, nothing tells."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 0.9]])[3 - len(names) - 1 :]
    one = NEAREST["Shown"]("shots", (b"",) * (len(names) + 1), names, answer)
    assert NEAREST["accuracy"](one, x) == expected
