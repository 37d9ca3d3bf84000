"""Parameter groups, the schedule at its corners, and AdamW against its definition."""

from dataclasses import replace

import pytest
import torch
from toys import toy_model

from mmfm.config import Optim, UserError
from mmfm.training.lr_schedule import rate_factor
from mmfm.training.optimizer import adamw, parameter_groups


def test_every_parameter_is_in_one_group_and_only_matrices_decay():
    """A partition; temperatures, pools, norms, biases, tables and positions do not decay, other weights do."""
    model = toy_model()
    decays, rest = ({id(p) for p in group["params"]} for group in parameter_groups(model, Optim(weight_decay=0.1)))
    names = {id(p): name for name, p in model.named_parameters()}
    assert decays | rest == set(names) and not decays & rest
    assert all(name.endswith("weight") for name in map(names.get, decays))
    still = {names[i] for i in rest}
    for name in (
        "log_scales.image-text",
        "pools.image",
        "embedding.weight",
        "towers.image.position",
        "trunk.norm.weight",
    ):
        assert name in still
    assert {"heads.text.weight", "towers.image.stem.0.weight"} <= {names[i] for i in decays}


def test_what_is_frozen_is_in_no_group():
    model = toy_model()
    model.towers["image"].requires_grad_(False)
    chosen = {id(p) for group in parameter_groups(model, Optim(weight_decay=0.1)) for p in group["params"]}
    assert not chosen & {id(p) for p in model.towers["image"].parameters()}


CORNERS = {
    "cosine": {0: 1 / 11, 9: 10 / 11, 10: 1.0, 55: 0.55, 100: 0.1, 500: 0.1},
    "wsd": {0: 1 / 11, 10: 1.0, 82: 1.0, 84: 1 - 0.9 / 3, 100: 0.1, 500: 0.1},
    "constant": {0: 1 / 11, 9: 10 / 11, 10: 1.0, 100: 1.0},
    "inverse_sqrt": {9: 10 / 11, 10: 1.0, 40: 0.1 + 0.9 * 0.5, 90: 0.1 + 0.9 / 3},
}


@pytest.mark.parametrize("schedule", CORNERS)
def test_a_schedule_at_its_corners(schedule):
    """A peak of 1 after ten steps of a hundred and a floor of a tenth; "wsd" falls over the last 18 of 90 steps, by a
    third after a ninth of them."""
    optim = Optim(steps=100, warmup_steps=10, min_lr_ratio=0.1, schedule=schedule, decay_fraction=0.2)
    for step, factor in CORNERS[schedule].items():
        assert rate_factor(step, optim) == pytest.approx(factor), step


def test_a_schedule_goes_on_from_where_the_one_before_ended():
    optim = Optim(steps=300, extends=(100,), warmup_steps=10, schedule="constant")
    assert [rate_factor(step, optim) for step in (99, 100, 105, 110, 299)] == [1.0] * 5


def test_a_schedule_that_follows_rises_from_the_floor_and_falls_again():
    """Until its first end a run that was lengthened has the rates that it had; ends and peaks are where stated."""
    short, long = Optim(steps=100, warmup_steps=10, min_lr_ratio=0.1), Optim(steps=300, extends=(100,), warmup_steps=10)
    long = replace(long, min_lr_ratio=0.1)
    assert [rate_factor(step, long) for step in range(100)] == [rate_factor(step, short) for step in range(100)]
    found = [rate_factor(step, long) for step in (100, 105, 110, 205, 299, 300)]
    assert found == pytest.approx([0.1, 0.55, 1.0, 0.55, 0.1, 0.1], abs=1e-3)
    twice = replace(long, steps=400, extends=(100, 300))
    assert [rate_factor(step, twice) for step in range(300)] == [rate_factor(step, long) for step in range(300)]
    assert rate_factor(300, twice) == pytest.approx(0.1) and rate_factor(310, twice) == 1.0


@pytest.mark.parametrize("wrong", [{"extends": (100, 90)}, {"extends": (300,)}, {"extends": (295,)}, {"extends": (5,)}])
def test_schedules_that_do_not_follow_each_other_are_refused(wrong):
    with pytest.raises(UserError, match=r"Optim.extends=.* must rise"):
        Optim(steps=300, warmup_steps=10, **wrong)


def test_adamw_follows_algorithm_2():
    """Three steps on one matrix and one vector equal AdamW as published (arXiv 1711.05101), written out here."""
    layer = torch.nn.Linear(3, 2).double()
    optim = Optim(steps=10, warmup_steps=0, lr=0.01, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-3)
    optimizer = adamw(layer, optim)
    values = {"weight": layer.weight.detach().clone(), "bias": layer.bias.detach().clone()}
    first, second = ({name: torch.zeros_like(value) for name, value in values.items()} for _ in range(2))
    for step in range(1, 4):
        x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        for name, parameter in layer.named_parameters():
            gradient = parameter.grad
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.98 * second[name] + 0.02 * gradient**2
            decay = 0.1 if name == "weight" else 0.0
            moment = first[name] / (1 - 0.9**step) / ((second[name] / (1 - 0.98**step)).sqrt() + 1e-3)
            values[name] = values[name] * (1 - 0.01 * decay) - 0.01 * moment
        optimizer.step()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.detach(), values[name])
