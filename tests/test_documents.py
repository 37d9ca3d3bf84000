"""Samples of several items: what a batch holds of them, that nothing but their position decides it, and what is off."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmfm.config import Conformer, Data, Mel, Model, Optim, Run, Source, Text, UserError, Vit
from mmfm.data import index, order
from mmfm.data.augment import DRAWS
from mmfm.data.batch import Batch
from mmfm.data.decode import Decode, Example, collate, read_example, text_hash
from mmfm.data.documents import items_of, joined
from mmfm.data.index import numbered
from mmfm.data.sample import last_part
from mmfm.data.shards import Shards
from mmfm.data.stream import TrainStream
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.tokenizer import load_tokenizer

BYTES = load_tokenizer("bytes")
MODEL = Model(
    image=Vit(height_px=8, width_px=8, patch_px=8, channels=1, width=32, heads=2),
    audio=Conformer(mel=Mel(rate_hz=16_000)),
)
PICTURES = 13


@pytest.fixture
def picture(encode_image: Callable[..., bytes]) -> Callable[[int], bytes]:
    return lambda level: encode_image(np.full((8, 8), level, np.uint8))


@pytest.fixture
def pictures(tmp_path: Path, write_shard: Callable[..., Path], picture: Callable[[int], bytes]) -> Path:
    """Thirteen pictures in two tars, whose text says how bright they are."""
    samples = {f"i{n}": {"png": picture(n), "txt": f"{n}".encode()} for n in range(PICTURES)}
    write_shard(tmp_path / "a.tar", dict(list(samples.items())[:5]))
    write_shard(tmp_path / "b.tar", dict(list(samples.items())[5:]))
    return tmp_path


def run_on(folder: Path, *, batch_size: int = 4, steps: int = 8, modalities: tuple[str, ...] = (), **how: Any) -> Run:
    told = {name: how.pop(name) for name in ("texts", "targets", "num_shots") if name in how}
    source = Source(shards=str(folder), modalities=modalities or ("image", "text"), **told)
    data = Data(train=(source,), batch_size=batch_size, **{"num_workers": 0, **how})
    return Run(name="t", model=MODEL, data=data, optim=Optim(steps=steps, warmup_steps=1))


def stream(run: Run, rank: int = 0, world: int = 1, start: int = 0) -> TrainStream:
    return TrainStream(run, BYTES, rank=rank, world=world, start=start)


def texts(batch: Batch) -> list[list[str]]:
    """All texts of each sample."""
    items = batch.items["text"]
    found: list[list[str]] = [[] for _ in range(batch.size)]
    for row, x, keep in zip(items.rows.tolist(), items.x, items.keep, strict=True):
        found[row].append(bytes(x[keep].tolist()).decode())
    return found


def levels(batch: Batch) -> list[list[int]]:
    """The brightness of all pictures of each sample."""
    items = batch.items["image"]
    return [items.x[items.rows == row, 0, 0, 0].tolist() for row in range(batch.size)]


def tensors(batch: Batch) -> list[torch.Tensor]:
    parts = [(i.x, i.keep, i.rows, i.draws) for _, i in sorted(batch.items.items())]
    return [batch.positive_ids, *(part for row in parts for part in row if part is not None)]


def equal(a: Batch, b: Batch) -> bool:
    named = (a.keys, a.texts, set(a.items)) == (b.keys, b.texts, set(b.items))
    return named and all(map(torch.equal, tensors(a), tensors(b)))


# Documents


def test_what_is_counted() -> None:
    """By hand: a number without a zero before it, and a known ending; all else is as it was."""
    found = {"2.png": (2, "png"), "0.txt": (0, "txt"), "999.flac": (999, "flac"), "7.imagecodes.npy": (7, CODES)}
    assert {name: numbered(name) for name in found} == found
    for name in ("png", "json", "02.png", "1000.png", "-1.png", "1.2.png", "1.json", "1.cls", "٣.png", "1.", ".png"):
        assert numbered(name) == (-1, name)
    assert numbered("input.jpg") == (-1, "jpg") and numbered("a.b.txt") == (-1, "txt")


CODES = "imagecodes.npy"


def test_a_document_gives_its_items_in_order(
    tmp_path: Path, write_shard: Callable[..., Path], picture: Callable[[int], bytes]
) -> None:
    """Numbers count, not the order in the tar, and 10 comes after 9; a plain part is the first; the last text names
    the sample; a row without pictures has none."""
    parts = {"10.png": picture(10), "0.png": picture(20), "1.txt": b"one", "9.png": picture(9), "3.txt": b"three"}
    more = {"txt": b"plain", "json": b'{"caption": "no", "n": 1}', "0.txt": b"nought"}
    write_shard(tmp_path / "t.tar", {"a": parts, "b": more, "c": {"png": picture(5), "txt": b"c"}})
    shards = Shards([tmp_path / "t.tar"])
    examples = [read_example(sample, MODEL, Decode()) for sample in shards]
    batch = collate(examples, BYTES)
    assert levels(batch) == [[20, 9, 10], [], [5]] and texts(batch) == [["one", "three"], ["plain", "nought"], ["c"]]
    assert batch.texts == ("three", "nought", "c") and batch.positive_ids.tolist() == list(map(text_hash, batch.texts))
    assert batch.items["image"].rows.tolist() == [0, 0, 0, 2]
    assert last_part(shards[0], "image") == ("png", picture(10)) and last_part(shards[1], "image") is None
    assert shards.held == {"image": 2, "audio": 0, "text": 3}


def test_documents_go_through_an_index(
    tmp_path: Path, write_shard: Callable[..., Path], picture: Callable[[int], bytes]
) -> None:
    """Written and read again, the index gives the same samples as the scan; a JSON's caption is the text of a document
    that has no other."""
    made = {"a": {"0.png": picture(1), "1.png": picture(2), "json": b'{"caption": "two"}'}, "b": {"0.txt": b"b"}}
    path = write_shard(tmp_path / "t.tar", made)
    scanned = [sample.parts for sample in Shards([path])]
    index.write(path)
    assert [sample.parts for sample in Shards([path])] == scanned == list(made.values())
    batch = collate([read_example(sample, MODEL, Decode()) for sample in Shards([path])], BYTES)
    assert levels(batch) == [[1, 2], []] and texts(batch) == [["two"], ["b"]]


def test_two_parts_of_one_number_are_refused(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    """What comes at 1 would be unclear."""
    write_shard(tmp_path / "t.tar", {"a": {"1.png": b"x", "1.txt": b"x"}})
    with pytest.raises(UserError, match=r"a has both \.1\.png and \.1\.txt, of which one is read; say which"):
        Shards([tmp_path / "t.tar"])


def test_a_damaged_part_is_named(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    write_shard(tmp_path / "t.tar", {"a": {"0.txt": b"fine", "1.png": b"rubbish"}})
    with pytest.raises(BadSample, match=r"t\.tar: a\.1: no readable PNG"):
        read_example(Shards([tmp_path / "t.tar"])[0], MODEL, Decode())


def test_items_come_apart_and_together() -> None:
    """Joined items are those of the parts, one by one, in order, with what belongs to each; a lone one is itself."""
    one = Example(key="a", text="a", image=torch.zeros(1, 2, 2, dtype=torch.uint8), raw={"image": torch.zeros(1)})
    two = Example(key="b", text="b", codes={"audio": torch.arange(2)}, audio=torch.zeros(3))
    both = joined([one, two, Example(key="c", text="c")])
    assert joined([one]) is one
    assert (both.key, both.text, both.before[0].text, both.before[1].text) == ("c", "c", "a", "b")
    assert set(both.raw) == {"image"} and set(both.codes) == {"audio"} and both.image is one.image
    assert [item.text for item in items_of(both) if item.text] == ["a", "b", "c"]
    assert [item.key for item in items_of(joined([two, one])) if item.codes] == ["a"]


# Questions and answers


def test_an_answer_follows_its_question(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    """Two texts a row, the answer last, and of two lists the same place; contrast tells samples apart by the answer."""
    tree = {"questions": ["q0", "q1", "q2"], "answers": ["a0", "a1", "a2"]}
    trees = {f"s{n}": {k: [f"{n}{t}" for t in v] for k, v in tree.items()} for n in range(3)}
    write_shard(tmp_path / "t.tar", {key: {"json": json.dumps(t).encode()} for key, t in trees.items()})
    asked, said = (Text(field="questions"),), (Text(field="answers"),)
    run = run_on(tmp_path, modalities=("text",), texts=asked, targets=said, batch_size=6)
    seen = set()
    for batch in stream(run):
        for key, (question, answer), text in zip(batch.keys, texts(batch), batch.texts, strict=True):
            assert question.replace("q", "a") == answer == text and question in trees[key]["questions"]
            seen.add(question)
        assert batch.items["text"].rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        assert batch.positive_ids.tolist() == list(map(text_hash, batch.texts))
    assert len(seen) == 9


def test_the_text_of_the_sample_is_the_question(
    tmp_path: Path, write_shard: Callable[..., Path], picture: Callable[[int], bytes]
) -> None:
    """Without `texts` the .txt asks; one without an answer is replaced, and counted under its name."""
    tree = {"answer": "yes"}
    samples = {f"s{n}": {"png": picture(n), "txt": b"%d?" % n, "json": json.dumps(tree).encode()} for n in range(9)}
    samples["s4"]["json"] = b"{}"
    write_shard(tmp_path / "t.tar", samples)
    ours = stream(run_on(tmp_path, targets=(Text(field="answer"),), max_bad_fraction=0.5))
    for batch in ours:
        assert texts(batch) == [[f"{level}?", "yes"] for (level,) in levels(batch)] and "s4" not in batch.keys
    reads, *bad = ours.health.drain()
    assert sum(bad) > 0 and reads == 8 * 4 + sum(bad)


# Shots


def test_shots_come_before_and_are_others(pictures: Path) -> None:
    """Each row has two pictures and texts before its own, three different samples; which ones changes each time."""
    plain, shot = (list(stream(run_on(pictures, num_shots=shots, steps=13))) for shots in (0, 2))
    sets = set()
    for one, many in zip(plain, shot, strict=True):
        assert many.keys == one.keys and many.texts == one.texts and torch.equal(many.positive_ids, one.positive_ids)
        for own, row, told in zip(levels(one), levels(many), texts(many), strict=True):
            assert row[-1:] == own and len(set(row)) == 3 and told == list(map(str, row))
            sets.add(tuple(row))
    assert len(sets) > 45
    assert {level for row in sets for level in row[:2]} == set(range(PICTURES))


def test_ranks_and_workers_share_shots(pictures: Path) -> None:
    """Two ranks give, side by side, the rows of one; two loader processes give those of none, to the bit."""
    run = run_on(pictures, num_shots=3)
    whole = list(stream(run))
    parts = [list(stream(run, rank, 2)) for rank in range(2)]
    for number, batch in enumerate(whole):
        sides = [part[number] for part in parts]
        assert levels(batch) == [row for side in sides for row in levels(side)]
        assert texts(batch) == [row for side in sides for row in texts(side)]
        joined_draws = torch.cat([side.items["image"].draws for side in sides])
        assert torch.equal(batch.items["image"].draws, joined_draws)
    assert all(map(equal, stream(run_on(pictures, num_shots=3, num_workers=2)), whole))


@pytest.mark.parametrize("start", [1, 5])
def test_resumed_shots_equal_uninterrupted(pictures: Path, start: int) -> None:
    """From a batch on, also where an epoch and a block end in between."""
    run = run_on(pictures, num_shots=2, shuffle_buffer=4)
    whole = list(stream(run))
    rest = list(stream(run, start=start))
    assert all(map(equal, rest, whole[start:])) and len(rest) == 8 - start


def test_draws_differ_within_a_row(pictures: Path) -> None:
    """Every item has its own; a row's last item has those that it has without shots."""
    plain, shot = (list(stream(run_on(pictures, num_shots=shots))) for shots in (0, 2))
    for one, many in zip(plain, shot, strict=True):
        for name, items in many.items.items():
            assert torch.equal(items.draws[2::3], one.items[name].draws)
    every = torch.cat([items.draws for batch in shot for items in batch.items.values()])
    assert len(torch.unique(every, dim=0)) == len(every) and every.shape[1] == DRAWS
    assert every.min() >= 0 and every.max() < 1 and abs(float(every.mean()) - 0.5) < 0.01


def test_a_bad_shot_is_replaced(pictures: Path, write_shard: Callable[..., Path]) -> None:
    """A sample that cannot be used is neither asked for nor shown, and is counted as often as it was met."""
    write_shard(pictures / "c.tar", {"bad": {"png": b"rubbish", "txt": b"bad"}})
    ours = stream(run_on(pictures, num_shots=4, steps=14, max_bad_fraction=0.5))
    for batch in ours:
        assert all("bad" not in row and len(set(row)) == 5 for row in texts(batch))
    reads, *bad = ours.health.drain()
    assert sum(bad) > 4, "more often than as a sample of its own"
    assert reads == 14 * 4 * 5 + sum(bad)


def test_others_are_of_the_block_where_it_has_enough() -> None:
    """By the order itself: never its own, each once, all of the block, no others; of the source where it is small."""
    plan = order.Order(1, [[29]], [1], block=8)
    for position in range(58):
        own = plan(position)[1]
        place = plan.place(position)
        block = [p for p in range(58) if plan.place(p).epoch == place.epoch and _slot(plan, p) == _slot(plan, position)]
        found = list(plan.others(position, 3))
        assert sorted([*found, own]) == sorted(plan(p)[1] for p in block)
        assert sorted([*plan.others(position, 8), own]) == list(range(29))
        assert list(plan.others(position, 3)) == found


def _slot(plan: order.Order, position: int) -> tuple[int, int]:
    return plan._bounds(plan.place(position))


def test_too_few_samples_for_the_shots(pictures: Path) -> None:
    with pytest.raises(UserError, match=r"Source\.num_shots=13 of .* needs more samples than its 13; lower it"):
        stream(run_on(pictures, num_shots=13))
    assert levels(next(iter(stream(run_on(pictures, num_shots=12)))))[0] != list(range(13))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"num_shots": -1}, "Source.num_shots=-1 must not be negative"),
        (
            {"targets": (Text(field="a"),), "modalities": ("image",)},
            "Source.targets are texts, which the source does not",
        ),
    ],
)
def test_settings_that_cannot_be(how: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Source(**{"shards": "x", "modalities": ("text",), **how})


# Off


def test_nothing_changes_where_all_is_off(pictures: Path) -> None:
    """The index, the fingerprint and two batches are what they were before documents, answers and shots were known."""
    ours = stream(run_on(pictures))
    digest = hashlib.sha256()
    for _, batch in zip(range(2), ours, strict=False):
        for part in tensors(batch):
            digest.update(part.numpy().tobytes())
        digest.update(repr((batch.keys, batch.texts)).encode())
    assert digest.hexdigest()[:16] == BEFORE["batches"]
    assert ours.fingerprint() == BEFORE["fingerprint"]
    index.write(pictures / "a.tar")
    tree = json.loads((pictures / "a.idx.json").read_text())
    told = json.dumps({k: v for k, v in tree.items() if k not in ("crc32", "bytes")}, separators=(",", ":"))
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == BEFORE["index"]


BEFORE = {"batches": "e81de8d689963875", "fingerprint": "69664ba01ca5456d82ed37bd3bb92f3c", "index": "aa1c76564d3e16e2"}


def test_what_is_on_has_a_fingerprint_of_its_own(pictures: Path) -> None:
    """Another number of shots or another answer is another plan."""
    runs = [run_on(pictures, num_shots=n) for n in (0, 1, 2)]
    runs += [run_on(pictures, targets=(Text(field=name),)) for name in ("a", "b")]
    assert len({stream(run).fingerprint() for run in runs}) == len(runs)
    assert replace(runs[0]) == run_on(pictures)
