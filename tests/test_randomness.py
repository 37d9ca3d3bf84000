"""What is drawn inside a model: every place, row, task and part on its own; what is hidden moves nothing that stays."""

from dataclasses import replace

import pytest
import torch
from test_augment import correlations
from toys import toy_batch, toy_model

from mmfm.config import Augment, Generative, Run, UserError
from mmfm.config.task import parse
from mmfm.data.augment import DRAWS
from mmfm.generation.sampling import drawn_seeds, waits
from mmfm.inference.infill import scattered
from mmfm.models.dropout import Dropout, DropoutKey
from mmfm.models.token_dropout import keep_mask
from mmfm.objectives.task_rows import masked_places, task_seeds
from mmfm.runtime.randomness import hash_uniform, splitmix64

ROWS, PLACES = 256, 1_200
KEEP = torch.ones(ROWS, PLACES, dtype=torch.bool)
SEEDS = {"of positions": splitmix64(torch.arange(ROWS)), "one after the other": torch.arange(ROWS)}


def dropped(seeds: torch.Tensor) -> torch.Tensor:
    """What a dropout zeroes of the first channel of every place."""
    layer = Dropout(0.5).train()
    return (
        layer(torch.ones(ROWS, PLACES, 1), DropoutKey(seeds[:, None], torch.arange(PLACES).expand(ROWS, -1)))[..., 0]
        == 0
    )


DRAWN = {
    "hidden from all": lambda seeds: ~keep_mask(seeds, KEEP, 0.5),
    "masked of a target": lambda seeds: masked_places(KEEP, seeds, Generative(task="text~", mask_ratio=(0.5, 0.5))),
    "masked by people": lambda seeds: scattered(KEEP, 0.5, seeds),
    "dropped": dropped,
    "waits": lambda seeds: waits(seeds, 3, torch.arange(PLACES)) < 0.693,
    "draws of one row": lambda seeds: hash_uniform(drawn_seeds(seeds, PLACES).view(ROWS, PLACES), 0) < 0.5,
}


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("what", DRAWN)
def test_no_place_and_no_row_says_what_another_is(what: str, seeds: str) -> None:
    """No lag among 1,200 places or 256 rows stands out, and half of each are drawn."""
    found = DRAWN[what](SEEDS[seeds])
    assert correlations(found).abs().max() < 5.5 and correlations(found.T).abs().max() < 5.5
    for sums in (found.sum(0), found.sum(1)):
        size = found.numel() / len(sums)
        assert ((sums / size - 0.5).abs() < 5.5 * 0.5 / size**0.5).all()


def test_what_is_drawn_for_one_thing_says_nothing_of_another() -> None:
    """Every two of them agree in half of the places, and so do two tasks."""
    found = {what: draw(SEEDS["of positions"]) for what, draw in DRAWN.items()}
    batch = drawn_batch(ROWS)
    for task in ("text~", "image>text~", "text>text", ">text"):
        seeds = task_seeds(batch, parse(task), torch.arange(ROWS))
        assert seeds is not None
        found[task] = masked_places(KEEP, seeds, Generative(task="text~", mask_ratio=(0.5, 0.5)))
    names = list(found)
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            agree = (found[one] == found[other]).double().mean().item()
            assert abs(agree - 0.5) < 5.5 * 0.5 / KEEP.numel() ** 0.5, (one, other)


def drawn_batch(size: int):
    """Every row has an image, a sound and a text, with draws of its own."""
    batch = toy_batch(6)
    generator = torch.Generator().manual_seed(0)
    held = {}
    for name, items in batch.items.items():
        taken = items.take(torch.zeros(size, dtype=torch.int64))
        draws = torch.rand(size, DRAWS, generator=generator)
        held[name] = replace(taken, rows=torch.arange(size), draws=draws)
    return replace(batch, size=size, items=held, positive_ids=torch.arange(size))


def test_runs_of_books_and_spans_are_masked_whole() -> None:
    """With two books a turn is hidden whole; spans of three are hidden together wherever they begin."""
    turns = scattered(KEEP, 0.5, SEEDS["of positions"], books=2).view(ROWS, -1, 2)
    assert (turns[..., 0] == turns[..., 1]).all() and correlations(turns[..., 0]).abs().max() < 5.5
    spans = masked_places(KEEP, SEEDS["of positions"], Generative(task="text~", mask_ratio=(0.5, 0.5), mask_span=3))
    first = [int(row.long().diff().nonzero()[0]) % 3 for row in spans[:60]]
    assert len(set(first)) == 3


def test_what_is_hidden_of_a_tower_moves_nothing() -> None:
    """The trunk reads what stays at its own positions: as a pass by hand does, with all positions and fewer keys."""
    model = toy_model()
    model.augment = Augment(tower_token_dropout=0.5)
    items = drawn_batch(5).items["text"]
    segment = model.source("text", items)
    assert segment.shown is not None and segment.tokens.keep.all() and 0 < int((~segment.shown).sum()) < 25
    (states,) = model.trunk([segment])
    time = segment.tokens.keep.shape[1]
    positions = torch.arange(time).expand(5, -1)
    by_hand = model.trunk.run(segment.tokens.x, segment.shown[:, None, None], positions)
    torch.testing.assert_close(states, by_hand)
    without = model.trunk.run(segment.tokens.x, torch.ones(5, 1, 1, time, dtype=torch.bool), positions)
    assert not torch.allclose(states, without)


def test_no_one_sees_what_is_hidden_of_a_tower() -> None:
    """Its pixels have no gradient of the target, nor of the embedding, in the pass that learns."""
    model = toy_model()
    model.augment = Augment(tower_token_dropout=0.5)
    items = drawn_batch(5).items["text"]
    segment = model.source("text", items)
    x = segment.tokens.x.detach().requires_grad_()
    segment = segment._replace(tokens=segment.tokens._replace(x=x))
    target = model.target(torch.zeros(5, 3, dtype=torch.int64), torch.ones(5, 3, dtype=torch.bool))
    source, written = model.trunk([segment, target])
    (gradient,) = torch.autograd.grad(source[:, -1].square().sum() + written.square().sum(), x)
    assert segment.shown is not None
    assert torch.equal(gradient.abs().sum(2) > 0, segment.shown)


def test_two_names_of_one_task_are_one() -> None:
    """ ">image~" and "image~" ask for the same: two of them are refused, and one of either is learned."""
    with pytest.raises(UserError, match="image~"):
        Run(name="twice", generative=(Generative(task="image~"), Generative(task=">image~", weight=2.0)))
    assert (
        Generative(task=">text~").name == Generative(task="text~").name == str(parse(">text~")) == str(parse("text~"))
    )
    for task in ("image>text", ">text", "text>image~", "image,text>text"):
        assert Generative(task=task).name == str(parse(task)) == task
