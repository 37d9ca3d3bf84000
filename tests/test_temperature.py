"""The learned temperature: its bounds hold after every step, and what lies at or beyond one comes back."""

import math
from pathlib import Path

import open_clip.loss
import pytest
import torch
from torch import Tensor, nn
from toys import PAIRS, toy_model, toy_run

from mmfm.models.checkpoint import save, verified
from mmfm.models.weights import adopt
from mmfm.objectives.contrastive_loss import softmax_contrast
from mmfm.objectives.joint import Objectives
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.training.module import JointModule


def pairs(alike: bool) -> tuple[Tensor, Tensor]:
    """Eight unit vectors and their partners: the same ones, which pulls the scale up; or those of others, down.

    In three dimensions some are so near that even at the bound there is a pull.
    """
    x = torch.nn.functional.normalize(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    return x, x if alike else x.roll(1, 0)


@pytest.mark.parametrize("start", [1 / 0.07, 99.0, 100.0])
def test_it_goes_as_in_open_clip_over_many_steps(start: float) -> None:
    """Up to the bound for fifty steps, down for seventy and up again: the same number after each, by their loss
    and rule (`logit_scale.clamp_(0, ln 100)` behind each step of training)."""
    module = JointModule(toy_run(), toy_model().float())
    ours, name = module.objectives.model, PAIRS[0].name
    theirs = nn.Parameter(torch.tensor(math.log(start)))
    with torch.no_grad():
        ours.log_scales[name].fill_(math.log(start))
    optimisers = [torch.optim.AdamW([p], lr=0.1, weight_decay=0.0) for p in (ours.log_scales[name], theirs)]
    reached = []
    for step in range(130):
        a, b = pairs(alike=step < 50 or step >= 120)

        def closure(a: Tensor = a, b: Tensor = b) -> Tensor:
            optimisers[0].zero_grad()
            loss = softmax_contrast(a, b, torch.arange(8), ours.scale(name))
            loss.backward()
            return loss

        module.optimizer_step(0, step, optimisers[0], closure)
        optimisers[1].zero_grad()
        open_clip.loss.ClipLoss()(a, b, theirs.exp()).backward()
        optimisers[1].step()
        with torch.no_grad():
            theirs.clamp_(0, math.log(100))
        reached.append(float(ours.scale(name).detach()))
        assert reached[-1] == pytest.approx(float(theirs.detach().exp()), rel=3e-4), (
            step
        )  # Adam divides what rounding leaves of gradients near zero
    assert max(reached[:50]) == pytest.approx(100, rel=1e-3) and min(reached[50:]) < 5


@pytest.mark.parametrize("beyond", [101.0, 1e6, 0.2])
def test_what_lies_beyond_a_bound_comes_back(beyond: float) -> None:
    """As an older checkpoint, or another trainer, may have left it: what is said stays within, and the gradient is not
    zero, so that it returns by any optimiser, with no one to clamp it."""
    model = toy_model().float()
    name = PAIRS[0].name
    with torch.no_grad():
        model.log_scales[name].fill_(math.log(beyond))
    bound = 100.0 if beyond > 1 else 1.0
    assert float(model.scale(name).detach()) == pytest.approx(bound, rel=1e-5)
    a, b = pairs(alike=beyond < 1)
    softmax_contrast(a, b, torch.arange(8), model.scale(name)).backward()
    gradient = model.log_scales[name].grad
    assert gradient is not None and (gradient > 0) == (beyond > 1) and gradient != 0
    model.clamp_scales()
    assert float(model.log_scales[name].detach().exp()) == pytest.approx(bound, rel=1e-5)


def test_what_is_locked_is_not_clamped() -> None:
    model, name = toy_model(), PAIRS[0].name
    with torch.no_grad():
        model.log_scales[name].fill_(5.0)
    model.lock([f"log_scales.{name}"])
    Objectives(model, toy_run()).model.clamp_scales()
    assert float(model.log_scales[name].detach()) == 5.0


def test_scalars_of_older_checkpoints_are_vectors_now() -> None:
    """A vector can be sharded over ranks and a scalar cannot; what was saved as one is read as the other."""
    model, name = toy_model(), PAIRS[1].name
    assert model.log_scales[name].shape == model.biases[name].shape == (1,)
    older = {
        key: x.reshape(()) if key.startswith(("log_scales.", "biases.")) else x for key, x in model.state_dict().items()
    }
    newer = toy_model(seed=1)
    with torch.no_grad():
        newer.biases[name].fill_(3.0)
    adopt(newer, older, "an older checkpoint")
    assert newer.biases[name].shape == (1,) and torch.equal(newer.biases[name], model.biases[name])
    assert newer.scale(name).shape == newer.bias(name).shape == ()


def test_moments_of_older_checkpoints_are_vectors_too(tmp_path: Path) -> None:
    """Those that count parameters by number, as they once did, not by name."""
    module = JointModule(toy_run(), toy_model().float())
    optimizer = module.configure_optimizers()["optimizer"]
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = optimizer.state_dict()
    for moments in state["state"].values():
        moments |= {key: x.reshape(()) for key, x in moments.items() if key != "step" and x.shape == (1,)}
    assert any(moments["exp_avg"].ndim == 0 for moments in state["state"].values())
    older = {"optimizer_states": [state]}
    folder = save(tmp_path, 1, toy_run(), load_tokenizer("bytes"), {}, older)
    saved = verified(folder).tree(handles="/optimizer_states/")
    opened = saved["opened"] = verified(folder)
    module.on_load_checkpoint(saved)
    assert "opened" not in saved and not any(one.held for one in opened.tensors.values())
    optimizer.load_state_dict(saved["optimizer_states"][0])
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in module.parameters())
