"""The benches measure what they say: both sides get the same work, and a median is one."""

import ast
import gc
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset
from torch import Tensor

TOOLS = Path(__file__).parent.parent / "tools"
sys.path.insert(0, str(TOOLS))
import bench_loader  # noqa: E402
import measure  # noqa: E402
from open_clip.tokenizer import SimpleTokenizer  # noqa: E402
from peer_open_clip import tokenizer_json  # noqa: E402

from mmfm.preprocessing.tokenizer import load_tokenizer  # noqa: E402

BATCH, SHARDS, OF_SHARD = 4, 2, 4


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    bench_loader.write_photos(folder, different=SHARDS * OF_SHARD, of_shard=OF_SHARD, shards=SHARDS)
    (folder / "clip.json").write_text(tokenizer_json())
    return folder


def epoch(batches: Iterator[tuple[Tensor, Any]]) -> list[tuple[Tensor, Any]]:
    return [next(batches) for _ in range(SHARDS * OF_SHARD // BATCH)]


@pytest.fixture(scope="module")
def theirs(photos: Path) -> dict[tuple[int, ...], Tensor]:
    """Ids without marks -> picture, of one epoch of open_clip's loader."""
    end, secure = SimpleTokenizer().eot_token_id, webdataset.utils.enforce_security
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves it to the garbage collector to close tars
        batches = epoch(bench_loader.theirs(photos, workers=0, batch=BATCH, shards=SHARDS))
        gc.collect()
    webdataset.utils.enforce_security = secure
    return {
        tuple(row[1 : row.index(end)]): image
        for images, ids in batches
        for image, row in zip(images, ids.tolist(), strict=True)
    }


def floats(images: Tensor) -> Tensor:
    return next(bench_loader.made_floats([(images, None)]))[0]


@pytest.mark.parametrize("exact", [True, False])
def test_both_loaders_give_the_same_pictures_with_the_same_ids(
    photos: Path, theirs: dict[tuple[int, ...], Tensor], exact: bool
) -> None:
    """In one epoch each caption comes once on both sides, as the same ids, and with the picture it was written with:
    of all pictures of the other side, the nearest is that of the same caption, and it is near."""
    tokenizer, seen = load_tokenizer(photos / "clip.json"), set()
    for images, text in epoch(bench_loader.ours(photos, tokenizer, workers=0, exact=exact, batch=BATCH)):
        for image, x, keep in zip(floats(images), text.x, text.keep, strict=True):
            ids = tuple(x[keep].tolist())
            apart = {other: (image - picture).square().mean().item() for other, picture in theirs.items()}
            assert min(apart, key=lambda other: apart[other]) == ids and apart[ids] < 0.5 * sorted(apart.values())[1]
            seen.add(ids)
    assert seen == set(theirs) and len(seen) == SHARDS * OF_SHARD


def test_ids_are_those_of_clips_own_tokenizer() -> None:
    """Without its marks, and for what its cleaning leaves alone."""
    ours, clip = load_tokenizer("bytes"), SimpleTokenizer()
    ours = bench_loader.Tokenizer(ours.inner.from_str(tokenizer_json()))
    for text in (*bench_loader.CAPTIONS, "It's 12 o'clock, isn't it?!", "naïve Œuvre 東京 🙂", "a-b_c (d) e/f"):
        assert ours.encode(text) == clip.encode(text), text


def test_a_median_has_an_interval_and_a_ratio_is_taken_in_its_round() -> None:
    """Planted: the median of 1 ... 9 is 5, inside its interval; a constant has none; rounds do not mix."""
    found = measure.median_interval([float(value) for value in range(1, 10)])
    assert found["value"] == 5 and 1 <= found["low"] < 5 < found["high"] <= 9
    assert measure.median_interval([2.0, 2.0, 2.0]) == {"value": 2.0, "low": 2.0, "high": 2.0}
    assert measure.ratios([2.0, 30.0], [1.0, 10.0]) == [2.0, 3.0]


def test_ways_take_turns_and_each_begins_a_round() -> None:
    """Three ways in three rounds: nine calls, and each was first once."""
    calls: list[str] = []
    ways = {name: (lambda name=name: calls.append(name) or float(len(calls))) for name in "abc"}
    found = measure.in_turns(ways, 3)
    assert "".join(calls) == "abcbcacab" and found["b"] == [2.0, 4.0, 9.0]


def test_goals_can_be_read_by_the_tool_that_makes_the_table() -> None:
    """Each goal is a direction and a number."""
    assert all(re.fullmatch(r"(>=|<=) [\d.]+|", goal) for goal in bench_loader.GOALS.values())


def test_a_rate_counts_samples_after_the_first_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that moves a second a batch: 4 samples a second, whatever the first, uncounted batch took."""
    now = [0.0]
    monkeypatch.setattr(bench_loader.time, "process_time", lambda: now[0])

    def batches() -> Iterator[tuple[Tensor, None]]:
        for number in range(99):
            now[0] += 1.0 if number else 50.0
            yield torch.zeros(4, 1), None

    assert bench_loader.rate(batches, workers=0) == 4.0


@pytest.mark.parametrize("tool", sorted(TOOLS.glob("*.py")), ids=lambda path: path.stem)
def test_every_option_that_a_tool_reads_is_one_that_it_takes(tool: Path) -> None:
    """argparse tells of another one when it is read, which in a bench is after minutes."""
    tree = ast.parse(tool.read_text("utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    takes = {
        str(call.args[0].value).lstrip("-").replace("-", "_")
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"
        if isinstance(call.args[0], ast.Constant)
    }
    reads = {
        node.attr
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
        for name in re.findall(r"^ *(\w+) = .*\.parse_args\(\)$", ast.unparse(function), re.MULTILINE)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    }
    assert reads <= takes, reads - takes
