"""Patches that the image tower leaves out (FLIP): what it reads is what it would read of them alone, and costs less."""

from dataclasses import replace

import pytest
import torch
from test_dropout import drawn
from toys import pick, toy_batch, toy_model, toy_run

from mmfm.config import Augment, UserError
from mmfm.config.task import parse
from mmfm.models.dropout import DropoutKey
from mmfm.models.layers import key_mask
from mmfm.models.token_dropout import patch_subset
from mmfm.models.vit import normalise
from mmfm.objectives.joint import Objectives
from mmfm.objectives.task_pass import forward_task
from mmfm.training.initialize import check_augment


def test_of_each_picture_as_many_patches_evenly_and_its_own() -> None:
    """Half of 196, rising, each patch equally often; a row alone keeps what it keeps in its batch; seeds differ."""
    seeds = torch.arange(2_000)
    kept = patch_subset(seeds, 196, 0.5)
    assert kept.shape == (2_000, 98) and (kept.diff(dim=1) > 0).all()
    counts = torch.bincount(kept.flatten(), minlength=196)
    assert (counts - 1_000).abs().max() < 5.5 * (2_000 * 0.25) ** 0.5
    assert torch.equal(patch_subset(seeds[7:8], 196, 0.5)[0], kept[7]) and not torch.equal(kept[0], kept[1])
    assert patch_subset(seeds[:1], 4, 0.99).shape == (1, 1)


@pytest.mark.parametrize("prefix", [0, 2])
def test_dropping_is_reading_what_is_kept(prefix: int) -> None:
    """In float64, dropout of a fifth on: tokens and gradients of the tower are those of all its places where no one
    sees the others, by a mask; the tokens of what is left out are zero."""
    image = replace(toy_run().model.image, prefix=prefix)
    model = toy_model(dropout=0.2, image=image).double().train()
    tower, items = model.towers["image"], drawn(toy_batch(6)).items["image"]
    pixels, seeds = normalise(items.x, torch.float64), items.seeds()
    patches = pixels.shape[2] // tower.patch_px * (pixels.shape[3] // tower.patch_px)
    read = patch_subset(items.facts.seeds(), patches, 0.5)
    places = torch.cat([torch.arange(prefix).expand(len(read), -1), read + prefix], 1)
    shown = torch.zeros(len(read), prefix + patches, dtype=torch.bool).scatter(1, places, value=True)

    def whole() -> torch.Tensor:
        found = tower.stem(tower.renormalise(pixels))
        x = found.flatten(2).transpose(1, 2) + tower._positions(found.shape[2], found.shape[3])
        if tower.prefix is not None:
            x = torch.cat([tower.prefix.expand(len(x), -1, -1), x], dim=1)
        x, noise = tower.norm_pre(x), DropoutKey(seeds[:, None], torch.arange(x.shape[1]).expand(len(x), -1))
        for block in tower.blocks:
            x = block(x, key_mask(shown), noise=noise)
        return tower.norm(x)[shown]

    gradients = []
    tokens = tower(pixels, seeds, read)
    for x in (tokens.x[shown], whole()):
        tower.zero_grad()
        x.square().sum().backward()
        gradients.append([p.grad for p in tower.parameters()])
    torch.testing.assert_close(tokens.x[shown], whole(), rtol=0, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)
    assert not tokens.x[~shown].any() and tokens.x.shape[1] == prefix + patches


def test_blocks_and_trunk_read_fewer_tokens_in_training_alone() -> None:
    """With three quarters left out a block of the tower reads a quarter of the patches, the trunk sees no others, and
    counts say so; a batch without draws, as in evaluation, is read whole."""
    model, batch = toy_model(), toy_batch()
    model.augment = Augment(patch_dropout=0.75)
    plain = forward_task(toy_model(), parse("image"), batch)
    seen: list[int] = []
    hook = model.towers["image"].blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    assert plain is not None
    forward_task(model, parse("image"), batch)
    model.read_counts.drain(torch.device("cpu"))
    forward_task(model, parse("image"), drawn(batch))
    hook.remove()
    assert seen[1] == max(1, round(seen[0] / 4)) < seen[0]
    rows, named = len(batch.items["image"].rows), model.read_counts.host
    assert named["image", "places"] == rows * seen[1] and named["trunk", "tokens"] == rows * (seen[1] + 1)


def test_a_row_alone_is_the_row_in_its_batch_and_gradients_flow() -> None:
    model, batch = toy_model(dropout=0.3).train(), drawn(toy_batch())
    model.augment = Augment(patch_dropout=0.5, tower_token_dropout=0.2)
    whole = forward_task(model, parse("image>text"), batch)
    for at, row in enumerate(whole.rows.tolist()):
        alone = forward_task(model, parse("image>text"), pick(batch, [row]))
        torch.testing.assert_close(alone.embedding, whole.embedding[at : at + 1])
    owner = Objectives(model, toy_run())
    owner.total(owner(batch)).backward()
    assert model.towers["image"].position.grad.abs().sum() > 0


def test_wrong_choices_are_refused() -> None:
    with pytest.raises(UserError, match=r"Augment.patch_dropout=1.0 must be below 1"):
        Augment(patch_dropout=1.0)
    run = toy_run()
    run = replace(run, data=replace(run.data, augment=Augment(patch_dropout=0.5)))
    check_augment(run)
    with pytest.raises(UserError, match=r"augment.patch_dropout is of our own image tower"):
        check_augment(replace(run, model=replace(run.model, image=None)))
