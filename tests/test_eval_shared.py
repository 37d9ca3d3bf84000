"""Nothing is computed twice for a sample: the heads of an evaluation share what is decoded, and the towers' tokens."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import QUICK, evaluate, image_bytes, numbers, saved_run, shard, value

from mmfm.config import RemoteCache
from mmfm.config.task import parse
from mmfm.data.sources import open_shards
from mmfm.evals import reading, run
from mmfm.evals.predict import SplitReader
from mmfm.evals.reading import Reader
from mmfm.evals.suite import default_suite
from mmfm.inference.interface import Interface
from mmfm.inference.load import load_model

WORDS = ("one", "two", "three")
TASKS = ("image>text", "audio>text", ">text", "image>text~")


def counted(model: Interface) -> Counter[str]:
    """By tower, how many items it has been asked for."""
    counts: Counter[str] = Counter()

    def hook(name: str) -> Any:
        return lambda module, given, output: counts.update({name: len(output.x)})

    for name, tower in model.core.towers.items():
        tower.register_forward_hook(hook(name))
    return counts


def test_each_sample_is_decoded_once_and_passes_its_tower_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedding, writing, likelihood and filling in of six pictures and six sounds; texts are the captions and the
    prompts of classes, which are encoded once for each word."""
    spec = numbers(tmp_path / "data", WORDS)
    model, read = load_model(saved_run(tmp_path, tasks=TASKS).folder), Counter[str]()
    counts, decode = counted(model), reading.read_example

    def once(sample: Any, *more: Any) -> Any:
        read[sample.key] += 1
        return decode(sample, *more)

    monkeypatch.setattr(reading, "read_example", once)
    scores = evaluate(model, spec)
    assert {row.task for row in scores.rows} >= {"image->text", "audio->text", *TASKS}
    assert counts == {"image": 6, "audio": 6, "text": 2 * len(WORDS)}
    assert len(read) == 12 and set(read.values()) == {1}


def test_what_widens_a_gallery_is_not_read_again(tmp_path: Path) -> None:
    """A split and another one that searches among it too: every sample passes its tower once, and every score is that
    of the second split alone, where all of it is read."""
    first, second = numbers(tmp_path / "a", WORDS), numbers(tmp_path / "b", WORDS[1:])
    model = load_model(saved_run(tmp_path).folder)
    alone = evaluate(model, f"{second}+{first}", split="b")
    counts, suite = counted(model), default_suite({"a": first, "b": f"{second}+{first}"})
    both = run.evaluate(model, suite, QUICK)
    assert counts["image"] == counts["audio"] == 6 + 4
    assert both["b"] == alone
    limited = run.evaluate(model, suite, replace(QUICK, limit=4))["b"]  # of the first not all is read then
    assert limited.details.counts["samples"] == 4 and value(limited, "text->image", "R@1", "n") == 2


@pytest.mark.parametrize("task", ["image>text", "image,image>text", "text>text"])
def test_shared_tokens_change_no_bit(tmp_path: Path, task: str) -> None:
    """Also where a sample has several pictures, and where a text is cut in two: the tower reads its half anew."""
    document = {"0.png": image_bytes(1), "1.png": image_bytes(2), "2.txt": "a long text"}
    samples = [document, {"0.png": image_bytes(3), "1.txt": "short one"}]
    spec = shard(tmp_path / "data" / "0.tar", dict(zip("ab", samples, strict=True)))
    model = load_model(saved_run(tmp_path, tasks=(task,)).folder)
    shards = open_shards([spec], RemoteCache())
    reader = Reader(model=model.config, decode=QUICK.decode)
    source = SplitReader(reader=reader, tokenizer=model.tokenizer, samples=shards, places=(0, 1), own=2)
    batch = source.load([0, 1]).batch
    known = model.encoded(batch, {"image", *parse(task).sources})
    assert known.items["image"].tokens is not None and batch.items["image"].tokens is None
    for name, x in model.embed(batch).items():
        assert torch.equal(model.embed(known)[name], x)
    torch.testing.assert_close(model.nats(task, known), model.nats(task, batch), rtol=0, atol=0, equal_nan=True)
    assert model.write(task, known, 8) == model.write(task, batch, 8) and model.write(task, known, 8)[0]


def test_what_is_taken_of_items_takes_their_tokens(tmp_path: Path) -> None:
    """Rows of the batch keep the tokens of their own items."""
    spec = numbers(tmp_path / "data", WORDS)
    model = load_model(saved_run(tmp_path).folder)
    shards = open_shards([spec], RemoteCache())
    reader = Reader(model=model.config, decode=QUICK.decode)
    source = SplitReader(reader=reader, tokenizer=model.tokenizer, samples=shards, places=tuple(range(12)), own=12)
    items = model.encoded(source.load(list(range(12))).batch, {"image"}).items["image"]
    index = torch.tensor([4, 1])
    own = model.core.tokens("image", replace(items.take(index), tokens=None))
    found = items.take(index).tokens
    assert found is not None
    torch.testing.assert_close(found.x, own.x)
    assert torch.equal(found.keep, own.keep)
