"""A step in parts is the step at once: losses and every gradient, with dropout, on any number of ranks."""

import pytest
import torch
from ranks import on_ranks
from test_dropout import drawn
from toys import PAIRS, pick, random_batch, toy_batch, toy_model, toy_run

from mmfm.config import Generative, Parallel, Run, UserError
from mmfm.data.batch import Batch
from mmfm.objectives.grad_cache import grad_cache_backward, reduce_gradients
from mmfm.objectives.joint import Objectives

WRITES = (
    Generative(task="image>text", condition_dropout=0.3),
    Generative(task="audio>text", weight=0.5, sample_fraction=0.7),
    Generative(task=">text"),
    Generative(task="text~"),
)
RUN = toy_run(generative=WRITES)


def gradients(owner: Objectives) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in owner.named_parameters() if p.grad is not None and p.grad.any()}


def at_once(batch: Batch, run: Run = RUN) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    owner = Objectives(toy_model(dropout=0.2).train(), run)
    losses = owner(batch)
    owner.total(losses).backward()
    return {name: loss.detach() for name, loss in losses.items()}, gradients(owner)


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, x in found.items():
        torch.testing.assert_close(x, expected[name], rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("size", [1, 5, 12, 24, 100])
@pytest.mark.parametrize("seed", [0, 3])
def test_parts_of_any_size_are_the_whole(size: int, seed: int) -> None:
    """24 samples, some without a modality; some parts hold none of one. In float64, at a dropout of a fifth."""
    batch = random_batch(24, seed)
    losses, expected = at_once(batch)
    owner = Objectives(toy_model(dropout=0.2).train(), RUN)
    found = grad_cache_backward(owner, batch, size)
    close(found, losses)
    close(gradients(owner), expected)


def test_plain_accumulation_where_nothing_is_contrasted() -> None:
    batch, run = random_batch(24, 1), toy_run(contrastive=(), generative=WRITES)
    losses, expected = at_once(batch, run)
    owner = Objectives(toy_model(dropout=0.2).train(), run)
    close(grad_cache_backward(owner, batch, 7), losses)
    close(gradients(owner), expected)


@pytest.mark.parametrize("shares", [(10, 14), (0, 24), (3, 9, 0, 12)])
def test_ranks_in_parts_are_one_process(shares: tuple[int, ...]) -> None:
    """Ranks of other numbers of parts, one of none: shares add up, reduced gradients are those of the whole batch."""
    whole, bounds = random_batch(24, 2), [sum(shares[:rank]) for rank in range(len(shares) + 1)]
    losses, expected = at_once(whole)
    models = [toy_model(dropout=0.2).train() for _ in shares]  # threads would draw them from one generator

    def work(joined):
        owner = Objectives(models[joined.rank], RUN, joined)
        mine = pick(random_batch(24, 2), list(range(bounds[joined.rank], bounds[joined.rank + 1])))
        found = grad_cache_backward(owner, mine, 4)
        reduce_gradients(owner, joined)
        return found, gradients(owner)

    found = on_ranks(len(shares), work)
    for one in found:
        if isinstance(one, Exception):
            raise one
    close({name: sum(own[0][name] for own in found) for name in losses}, losses)
    for _, own in found:
        close(own, expected)


def test_under_autocast_every_weight_learns() -> None:
    """In bf16, which casts a weight once and keeps that: one that was cast without a graph would have no gradient."""
    batch = random_batch(24, 0)

    def owner() -> Objectives:
        return Objectives(toy_model(dropout=0.2).float().train(), RUN)

    whole, parts = owner(), owner()
    with torch.autocast("cpu", torch.bfloat16):
        losses = whole(batch)
        found = grad_cache_backward(parts, batch, 7)
    whole.total(losses).backward()
    assert {name for name, p in parts.named_parameters() if p.grad is not None} >= {*gradients(whole)}
    for name, loss in found.items():
        torch.testing.assert_close(loss, losses[name].detach(), rtol=2e-2, atol=2e-2)
    ours, theirs = (torch.cat([x.flatten() for _, x in sorted(gradients(one).items())]) for one in (parts, whole))
    assert float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0)) > 0.99


def test_parts_hold_every_item_once() -> None:
    batch = drawn(toy_batch(7))
    parts = batch.micro_batches(3)
    assert [part.size for part in parts] == [3, 3, 1]
    assert torch.cat([part.positive_ids for part in parts]).tolist() == batch.positive_ids.tolist()
    for name, items in batch.items.items():
        rows = [
            3 * at + row
            for at, part in enumerate(parts)
            if name in part.items
            for row in part.items[name].rows.tolist()
        ]
        assert rows == items.rows.tolist()


def test_contrasts_need_the_whole_batch() -> None:
    """What would be wrong: parts that are contrasted each for itself give another loss."""
    batch, run = random_batch(24, 0), toy_run(contrastive=PAIRS, generative=())
    owner = Objectives(toy_model(dropout=0.2).train(), run)
    whole = grad_cache_backward(owner, batch, 6)
    alone = [Objectives(toy_model(dropout=0.2).train(), run)(part) for part in batch.micro_batches(6)]
    assert all(
        abs(sum(float(one[name].detach()) for one in alone) / 4 - float(loss)) > 0.1 for name, loss in whole.items()
    )


def test_a_part_size_that_cannot_be() -> None:
    with pytest.raises(UserError, match=r"Parallel\.micro_batch=-1 must not be negative"):
        Parallel(micro_batch=-1)
