"""What is dropped belongs to the sample, the place and the layer: no rank, neighbour or padding changes it."""

from dataclasses import replace

import pytest
import torch
from test_augment import correlations
from toys import pick, toy_batch, toy_model

from mmfm.config import Augment
from mmfm.config.task import parse
from mmfm.data.augment import DRAWS
from mmfm.data.batch import Batch
from mmfm.models.dropout import Dropout, DropoutKey, keep_channels, number_dropouts
from mmfm.models.token_dropout import keep_mask
from mmfm.objectives.task_pass import forward_task
from mmfm.runtime.randomness import hash_int32, splitmix64


def drawn(batch: Batch, seed: int = 0) -> Batch:
    """The batch as training sees it: every item with draws of its own."""
    draw = torch.Generator().manual_seed(seed)
    items = {
        name: replace(item, draws=torch.rand(len(item.rows), DRAWS, generator=draw))
        for name, item in batch.items.items()
    }
    return replace(batch, items=items)


@pytest.mark.parametrize("task", ["image>text", "audio>text", ">text", "image,audio>text", "text"])
def test_a_row_alone_is_the_row_in_its_batch(task):
    """In training, at a dropout of a half: each sample's embedding and states are those that it has without others."""
    model, batch = toy_model(dropout=0.5).train(), drawn(toy_batch())
    whole = forward_task(model, parse(task), batch)
    for at, row in enumerate(whole.rows.tolist()):
        alone = forward_task(model, parse(task), pick(batch, [row]))
        if parse(task).sources:
            torch.testing.assert_close(alone.embedding, whole.embedding[at : at + 1])
        torch.testing.assert_close(alone.states, whole.states[whole.sample_ids == row])


def test_another_position_another_mask_and_the_same_again():
    """Other draws change what is dropped; the same draws do not, whatever the global generator did in between."""
    model, task = toy_model(dropout=0.5).train(), parse("image>text")
    first = forward_task(model, task, drawn(toy_batch())).states
    torch.manual_seed(77)
    assert torch.equal(first, forward_task(model, task, drawn(toy_batch())).states)
    assert not torch.allclose(first, forward_task(model, task, drawn(toy_batch(), seed=1)).states)
    assert torch.equal(
        forward_task(model.eval(), task, drawn(toy_batch())).states, forward_task(model, task, toy_batch()).states
    )


def masks(chance: float, layer: int = 0, rows: int = 64) -> torch.Tensor:
    dropout = Dropout(chance).train()
    dropout.layer.fill_(layer)
    noise = DropoutKey(torch.arange(rows)[:, None], torch.arange(32).expand(rows, -1))
    return dropout(torch.ones(rows, 32, 24), noise)


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
def test_the_share_that_is_dropped(chance):
    """Of 49,152 values the given share is zero, evenly over rows, places and channels; the mean stays one."""
    kept = masks(chance)
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(1 / (1 - chance)).item()}
    assert abs(kept.mean() - 1) < 4 * (chance / (1 - chance) / kept.numel()) ** 0.5
    for dims in ((1, 2), (0, 2), (0, 1)):
        counts = (kept == 0).float().mean(dims)
        spread = (chance * (1 - chance) / (kept.numel() / len(counts))) ** 0.5
        assert (counts - chance).abs().max() < 5 * spread and 0.6 * spread < counts.std() < 1.5 * spread


def test_masks_of_neighbours_are_strangers():
    """Rows, places, channels and layers next to each other do not drop together."""
    kept, other = (masks(0.5, layer) - 1 for layer in (0, 1))
    pairs = {
        "rows": (kept[1:], kept[:-1]),
        "places": (kept[:, 1:], kept[:, :-1]),
        "channels": (kept[..., 1:], kept[..., :-1]),
        "layers": (kept, other),
    }
    for name, (a, b) in pairs.items():
        assert abs((a * b).mean()) < 4 / a.numel() ** 0.5, name


def test_every_bit_of_a_key_moves_every_bit_of_its_numbers():
    """Each of 64 flips each of 32 about half of the time, where keys are hashed as dropout does it; of those that are
    counted, each of the lower 32; and the upper ones are not lost."""
    plain = torch.arange(2_000)
    bits = [1 << bit if bit < 63 else -(2**63) for bit in range(64)]
    for bit in bits:
        assert_even(hash_int32(splitmix64(plain), 3) ^ hash_int32(splitmix64(plain ^ bit), 3))
        changed = hash_int32(plain, 3) ^ hash_int32(plain ^ bit, 3)
        assert (changed != 0).all()
        if bit in bits[:32]:
            assert_even(changed)


def assert_even(changed: torch.Tensor) -> None:
    flipped = torch.stack([(changed >> at & 1).double().mean() for at in range(32)])
    assert abs(flipped.mean() - 0.5) < 0.02 and (flipped - 0.5).abs().max() < 0.15


def test_channels_say_nothing_of_each_other():
    """Of 769 channels, an odd number, no two lie together at any distance, and all are dropped equally often; which
    ones, the width does not decide."""
    places = torch.arange(512)[None]
    kept = keep_channels(splitmix64(torch.tensor([[3]])), places, 769, 0.5)[0]
    assert correlations(kept).abs().max() < 5.5 and correlations(kept.T).abs().max() < 5.5
    assert ((kept.double().mean(0) - 0.5).abs() < 5.5 * 0.5 / 512**0.5).all()
    assert torch.equal(keep_channels(splitmix64(torch.tensor([[3]])), places, 32, 0.5)[0], kept[:, :32])


@pytest.mark.parametrize("chance", [1e-4, 1 - 1e-9])
def test_the_ends_of_what_16_bits_can_say(chance):
    """Some of a million are dropped by the smallest chances, and nearly all by the largest."""
    kept = keep_channels(torch.zeros(1, 1, dtype=torch.int64), torch.arange(1_000)[None], 1_000, chance)
    assert abs((~kept).double().mean() - chance) < 6 * 2**-16 + 6 * (chance * (1 - chance) / kept.numel()) ** 0.5


def test_only_what_is_kept_has_a_gradient():
    dropout, x = Dropout(0.5).train(), torch.ones(2, 3, 4, requires_grad=True)
    out = dropout(x, DropoutKey(torch.arange(2)[:, None], torch.arange(3).expand(2, -1)))
    out.sum().backward()
    assert torch.equal(x.grad == 0, out == 0) and (out == 0).any() and (out == 2).any()


def test_layers_are_told_apart_and_mixing_loses_nothing():
    """Every dropout of a model has another number; the hash is a bijection, so that rows never share one by chance."""
    model = toy_model(dropout=0.5)
    number_dropouts(model)
    numbers = [int(part.layer) for part in model.modules() if isinstance(part, Dropout)]
    assert len(numbers) > 6 and sorted(numbers) == list(range(len(numbers)))
    assert len(splitmix64(torch.arange(-50_000, 50_000)).unique()) == 100_000


def test_hidden_tokens_belong_to_rows_and_places():
    """A fifth of the real tokens is hidden; padding and neighbours change nothing, and another seed hides others."""
    keep = torch.arange(400) < torch.tensor([400, 300, 350])[:, None]
    seeds = torch.tensor([5, 6, 5])
    seen = keep_mask(seeds, keep, 0.2)
    assert not (seen & ~keep).any() and abs(seen.sum() / keep.sum() - 0.8) < 0.04
    assert torch.equal(seen[0, :350], seen[2, :350]) and not torch.equal(seen[0, :300], seen[1, :300])
    assert torch.equal(keep_mask(seeds[1:2], keep[1:2, :300], 0.2), seen[1:2, :300])


def test_hidden_tokens_change_the_trunks_view_in_training_alone():
    """The pool token's embedding moves with draws, and with none it is that of all tokens."""
    model, batch = toy_model(), toy_batch()
    plain = forward_task(model, parse("image"), batch).embedding
    model.augment = Augment(tower_token_dropout=0.5)
    assert torch.equal(forward_task(model, parse("image"), batch).embedding, plain)
    assert not torch.allclose(forward_task(model, parse("image"), drawn(batch)).embedding, plain)


def test_connector_dropout_is_the_rows_own():
    """In training a row alone is the row in its batch; at rest it does nothing."""
    model, batch = toy_model(connector_dropout=0.5), drawn(toy_batch())
    plain = toy_model()
    plain.load_state_dict(model.state_dict())
    for task in ("image", "audio", "text"):
        assert torch.equal(
            forward_task(model, parse(task), batch).embedding, forward_task(plain, parse(task), batch).embedding
        )
    whole = forward_task(model.train(), parse("audio"), batch)
    row = int(whole.rows[1])
    alone = forward_task(model, parse("audio"), pick(batch, [row])).embedding
    assert torch.allclose(alone[0], whole.embedding[1])
    assert not torch.allclose(whole.embedding, forward_task(plain, parse("audio"), batch).embedding)
