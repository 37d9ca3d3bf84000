"""The bound on a filled target's likelihood: planted answers, the exact value by enumeration, and who may change it."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import read
from torch import Tensor
from toys import padded, toy_batch, toy_config, toy_model

from mmfm.config import Data, Generative, ImageCodec, Optim, Run, Source, Trunk
from mmfm.config.task import parse
from mmfm.data.batch import Batch, Ids, Items
from mmfm.evals.config import EvalConfig
from mmfm.evals.masked_prediction import (
    PART,
    counts,
    fill_tasks,
    filling_nats,
    filling_right,
    filling_scores,
    given,
    log_likelihoods,
    masked,
)
from mmfm.inference.interface import Interface
from mmfm.models.model import UnifiedModel, build
from mmfm.preprocessing.tokenizer import load_tokenizer

ALONE = parse("text~")
CODEC = ImageCodec(height_px=8, width_px=16, channels=1, patch_px=4, levels=(3, 3), width=8, depth=1)


def texts(rows: Tensor) -> Batch:
    """A batch of texts alone, one a row."""
    items = padded(rows, torch.full((len(rows),), rows.shape[1]), torch.arange(len(rows)))
    return Batch(size=len(rows), items={"text": items}, positive_ids=torch.full((len(rows),), -1))


@torch.no_grad()
def order_nats(model: UnifiedModel, ids: Tensor, order: tuple[int, ...]) -> float:
    """-log p of writing these ids one by one in this order, each given those before it."""
    found = given(model, ALONE, texts(ids[None]))
    assert found is not None
    total, known = 0.0, torch.zeros_like(ids, dtype=torch.bool)
    for place in order:
        total -= float(log_likelihoods(model, ALONE, found, ~known[None])[0, place])
        known[place] = True
    return total


def test_a_uniform_model_needs_the_logarithm_of_the_vocabulary() -> None:
    """n places, n log V nats, whatever is drawn; the marks are part of the vocabulary."""
    model, batch = toy_model(), toy_batch()
    with torch.no_grad():
        model.embedding.weight.zero_()
    for draws, seed in ((1, 0), (3, 1), (8, 2)):
        nats = filling_nats(model, ALONE, batch, draws=draws, seeds=torch.arange(batch.size) + seed)
        lengths = batch.items["text"].keep.sum(1).double()
        torch.testing.assert_close(nats[:-1], lengths * math.log(model.vocabulary.size))
        assert nats[-1].isnan() and len(lengths) == batch.size - 1


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_the_mean_of_the_draws_is_the_mean_of_all_orders(draws: int) -> None:
    """Three tokens: thousands of draws have the mean of the six orders, each enumerated step by step."""
    model, ids = toy_model(), torch.tensor([3, 17, 3])
    exact = np.mean([order_nats(model, ids, order) for order in itertools.permutations(range(3))])
    size = 3_000
    nats = filling_nats(model, ALONE, texts(ids.repeat(size, 1)), draws=draws, seeds=torch.arange(size))
    error = float(nats.std()) / math.sqrt(size)
    assert abs(float(nats.mean()) - exact) < 4 * error < 0.15


def test_it_bounds_the_likelihood() -> None:
    """Of every text of two tokens out of five: no less than -log of the mean over both orders, which is a distribution
    but for the marks; and greater where the orders differ."""
    torch.manual_seed(0)
    model = build(toy_config(), 5).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    gaps, total = [], 0.0
    for pair in itertools.product(range(5), repeat=2):
        orders = [order_nats(model, torch.tensor(pair), order) for order in ((0, 1), (1, 0))]
        mixture = -math.log(np.mean(np.exp(-np.array(orders))))
        gaps.append(float(np.mean(orders)) - mixture)
        total += math.exp(-mixture)
    assert min(gaps) >= -1e-9 and max(gaps) > 1e-3 and 0.0 < total <= 1.0


def test_every_set_is_drawn_alike() -> None:
    """Of four real places and two of padding: all 15 sets, each as often as its size asks; padding never."""
    size, keep = 12_000, torch.tensor([True] * 4 + [False] * 2)
    seeds = torch.arange(size)
    seen: dict[tuple[bool, ...], int] = {}
    for draw in range(2):
        many = counts(torch.full((size,), 4), seeds, draw, 2)
        drawn = masked(keep.expand(size, -1), many, seeds, draw)
        assert torch.equal(drawn.sum(1), many) and not drawn[:, 4:].any()
        for row in drawn.tolist():
            seen[tuple(row)] = seen.get(tuple(row), 0) + 1
    assert len(seen) == 15
    for one, count in seen.items():
        share = 1 / 4 / math.comb(4, sum(one))
        assert abs(count / (2 * size) - share) < 5 * math.sqrt(share / (2 * size))
    twice = [torch.cat([counts(torch.full((1,), 8), torch.tensor([s]), d, 8) for d in range(8)]) for s in (0, 1)]
    assert all(one.tolist() == list(range(1, 9)) for one in twice), "as many draws as places: each number once"


def test_other_rows_change_nothing() -> None:
    """A text alone, without the batch's padding, has the nats and the right ids that it has among others."""
    model, batch, task = toy_model(), toy_batch(), parse("image>text~")
    seeds = torch.arange(batch.size) + 7
    whole, (right, asked) = (
        filling_nats(model, task, batch, seeds=seeds),
        filling_right(model, task, batch, seeds=seeds),
    )
    lone = batch.items["text"].take(torch.tensor([2]))
    picture = batch.items["image"].take(torch.tensor([1]))
    items = {"text": replace(lone, rows=torch.tensor([0])), "image": replace(picture, rows=torch.tensor([0]))}
    alone = Batch(size=1, items=items, positive_ids=torch.tensor([0]))
    assert batch.items["image"].rows[1] == 2
    torch.testing.assert_close(filling_nats(model, task, alone, seeds=seeds[2:3]), whole[2:3])
    assert [part.tolist() for part in filling_right(model, task, alone, seeds=seeds[2:3])] == [[right[2]], [asked[2]]]
    assert whole.isnan().tolist() == [row % 3 == 1 or row == 5 for row in range(6)] and asked[1] == 0


def test_sources_are_read() -> None:
    """Another picture, another bound; without the task's source it is the bound of the text alone only by accident."""
    model, batch, task = toy_model(), toy_batch(), parse("image>text~")
    image = batch.items["image"]
    other = replace(batch, items={**batch.items, "image": replace(image, x=255 - image.x)})
    seeds = torch.arange(batch.size)
    one, two = (filling_nats(model, task, which, seeds=seeds)[[0, 2, 3]] for which in (batch, other))
    assert bool((one != two).all()) and bool((one != filling_nats(model, ALONE, batch, seeds=seeds)[[0, 2, 3]]).all())


def test_right_ids_are_counted() -> None:
    """A model that always says 4: of the masked places just those that are 4 are right, and marks never win."""
    model = toy_model()
    hidden, start = model.vocabulary.hidden, model.vocabulary.span("text").start
    with torch.no_grad():
        for parameter in model.trunk.blocks.parameters():
            parameter.zero_()  # a place's state is its own embedding, normed
        model.trunk.norm.weight.fill_(1.0)
        model.embedding.weight.zero_()
        direction = torch.zeros(model.trunk.width, dtype=torch.float64)
        direction[0] = 1.0
        model.embedding.weight[hidden] = direction
        model.embedding.weight[model.vocabulary.end] = 9 * direction
        model.embedding.weight[start + 4] = 5 * direction
    rows = torch.tensor([[4, 4, 4, 4], [1, 2, 3, 5], [4, 1, 4, 1]])
    right, asked = filling_right(model, ALONE, texts(rows), part=1.0, seeds=torch.arange(3))
    assert right.tolist() == [4, 0, 2] and asked.tolist() == [4, 4, 4]
    _, few = filling_right(model, ALONE, texts(torch.full((1, 20), 4)), seeds=torch.arange(1))
    assert few.tolist() == [round(PART * 20)]


def test_codes_of_books_are_filled_in_their_turns() -> None:
    """Pictures of two books: what is likeliest of all does not count where only the other book may stand."""
    model = toy_model(image_codec=CODEC)
    form = replace(model.forms["image"], sizes=(4, 5), length=0)
    model.forms["image"] = form
    ids = torch.tensor([[1, 6, 3, 8]])
    image = Items(
        x=torch.zeros(1, 1, 8, 16, dtype=torch.uint8),
        keep=torch.ones(1, 1, dtype=torch.bool),
        rows=torch.tensor([0]),
        written=Ids(ids, torch.ones_like(ids, dtype=torch.bool)),
    )
    batch = Batch(size=1, items={"image": image}, positive_ids=torch.tensor([-1]))
    task = parse("image~")
    found = given(model, task, batch)
    assert found is not None
    hidden = torch.ones(1, 4, dtype=torch.bool)
    states = model.trunk([model.filled("image", ids, hidden, hidden)])[0][:, 1:]
    scores = model.logits(states)[0, :, model.vocabulary.span("image").start :]
    best = [int(scores[at, 4 * (at % 2) : 4 + 5 * (at % 2)].argmax()) + 4 * (at % 2) for at in range(4)]
    right, asked = filling_right(model, task, batch, part=1.0, seeds=torch.tensor([0]))
    assert asked.tolist() == [4] and right.tolist() == [sum(a == b for a, b in zip(best, ids[0].tolist(), strict=True))]


# A split


@pytest.fixture
def split(tmp_path: Path, write_shard: Callable[..., Path]) -> Path:
    samples = {f"t{n}": {"txt": f"the number {n * 37}".encode()} for n in range(9)}
    samples["t3"] = {"json": b"{}"}
    write_shard(tmp_path / "t.tar", samples)
    return tmp_path


def run_on(folder: Path) -> Run:
    return Run(
        name="toy",
        model=toy_config(image=None, audio=None, text=None, trunk=Trunk(width=16, depth=1, heads=2, kv_heads=2)),
        data=Data(train=(Source(shards=str(folder), modalities=("text",)),)),
        generative=(Generative(task="text~"), Generative(task=">text")),
        optim=Optim(steps=2, warmup_steps=1),
    )


def filled(run: Run, folder: Path, batch_size: int) -> tuple[dict[str, list[Any]], list[Any]]:
    tokenizer = load_tokenizer("bytes")
    torch.manual_seed(0)
    model = Interface(build(run.model, tokenizer.size), run, tokenizer)
    split = read(model, str(folder), EvalConfig(batch_size=batch_size, max_tokens=4), fill=fill_tasks(model))
    return split.filled, filling_scores(model, split)


def test_a_split_has_a_bound_and_a_share(split: Path) -> None:
    """Figures are sums over sums, by hand; a sample without text is not among them; batches change next to nothing."""
    found, figures = filled(run_on(split), split, 4)
    items = found["text~"]
    assert set(found) == {"text~"} and [item.row for item in items] == [0, 1, 2, 4, 5, 6, 7, 8]
    told = {figure.metric: figure for figure in figures}
    sizes = [len(f"the number {n * 37}") for n in range(9) if n != 3]
    assert [item.places for item in items] == sizes
    bits = sum(item.nats for item in items) / math.log(2) / sum(sizes)
    assert told["nelbo_bits_per_byte"].value == pytest.approx(bits) and told["nelbo_bits_per_byte"].chance == 8.0
    share = sum(item.right for item in items) / sum(item.asked for item in items)
    assert told["masked_acc@15"].value == pytest.approx(share) and told["masked_acc@15"].chance == 1 / 256
    assert told["masked_acc@15"].n == 8 and told["masked_acc@15"].items[3] == "t4"
    again, _ = filled(run_on(split), split, 9)
    for one, other in zip(items, again["text~"], strict=True):
        assert one.nats == pytest.approx(other.nats, rel=1e-4) and one[2:] == other[2:]


def test_what_fills_nothing_has_no_figures(split: Path) -> None:
    found, figures = filled(replace(run_on(split), generative=(Generative(task=">text"),)), split, 4)
    assert found == {} and figures == []
