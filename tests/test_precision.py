"""Precision: what losses read is fp32 or more whatever activations and weights are, and fp16 scales its loss."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import random_batch, toy_model, toy_run

from mmfm.config import Generative, Optim
from mmfm.models.layers import apply_rotary, rotary_cos_sin
from mmfm.objectives import joint
from mmfm.objectives.grad_cache import grad_cache_backward
from mmfm.objectives.joint import Objectives
from mmfm.runtime import devices
from mmfm.runtime.devices import autocast, inference_dtype, slow_products, tell_slow_products
from mmfm.training.module import JointModule, ScaledPrecision

RUN = toy_run(generative=(Generative(task="image>text"), Generative(task=">text")))
CPU = torch.device("cpu")
WEIGHTS = {"bf16 weights": torch.bfloat16, "float64 weights": torch.float64}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", *WEIGHTS])
def test_what_reaches_every_loss_is_single_precision_or_better(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings, scales, biases and losses; embeddings are unit vectors to what single precision can say, which those
    that were rounded to bf16 are not."""
    seen: dict[str, list[Tensor]] = {}

    def watched(name: str, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any) -> Tensor:
            out = loss(*args)
            seen[name] = [*(x for x in args[: 5 if name != "writing" else 0] if x.is_floating_point()), out]
            return out

        return call

    monkeypatch.setattr(joint, "CONTRAST", {name: watched(name, loss) for name, loss in joint.CONTRAST.items()})
    monkeypatch.setattr(joint, "linear_cross_entropy", watched("writing", joint.linear_cross_entropy))
    owner = Objectives(toy_model().to(WEIGHTS.get(precision, torch.float32)).train(), RUN)
    with autocast(precision, CPU):
        losses = owner(random_batch(24, 0))
    owner.total(losses).backward()
    assert len(seen) >= 2 and {x.dtype for found in seen.values() for x in found} <= {torch.float32, torch.float64}
    assert all(loss.dtype in (torch.float32, torch.float64) and loss.isfinite() for loss in losses.values())
    for name in seen.keys() & joint.CONTRAST.keys():
        torch.testing.assert_close(
            seen[name][0].norm(dim=1).double(), torch.ones(len(seen[name][0])).double(), rtol=0, atol=1e-6
        )


def test_rotary_is_rounded_once() -> None:
    """In bf16 a turned vector is that of single precision, rounded at the end."""
    turn = rotary_cos_sin(torch.arange(500)[None], 16)
    x = torch.randn(1, 2, 500, 16).bfloat16()
    assert torch.equal(apply_rotary(x, turn), apply_rotary(x.float(), turn).bfloat16())


def test_a_scaled_step_in_parts_is_that_step() -> None:
    """By a power of two: gradients are so many times larger, to the bit."""

    def gradients(scaled: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        owner = Objectives(toy_model().train(), RUN)
        grad_cache_backward(owner, random_batch(24, 0), 8, scaled)
        return {name: p.grad for name, p in owner.named_parameters() if p.grad is not None}

    plain, scaled = gradients(lambda x: x), gradients(lambda x: 1024 * x)
    assert len(plain) > 20 and all(torch.equal(1024 * plain[name], x) for name, x in scaled.items())


@pytest.fixture
def module() -> JointModule:
    torch.manual_seed(0)
    return JointModule(replace(RUN, optim=Optim(precision="fp16")), toy_model())


def steps(module: JointModule, gradients: Iterator[float]) -> list[dict[str, Tensor]]:
    """The weights after each step whose gradients, before they are scaled, are all this number."""
    plugin = ScaledPrecision("cpu")
    module.scaler = plugin.scaler
    made: Any = module.configure_optimizers()
    optimizer, found = made["optimizer"], []
    plugin._after_closure = lambda model, optimizer: module.configure_gradient_clipping(optimizer)  # type: ignore
    for gradient in gradients:

        def closure(gradient: float = gradient) -> None:
            assert plugin.scaler is not None
            scale = plugin.scaler.scale(torch.ones(()))
            for parameter in module.parameters():
                parameter.grad = torch.full_like(parameter, gradient) * scale

        plugin.optimizer_step(optimizer, module, closure)
        found.append({name: p.detach().clone() for name, p in module.named_parameters()})
    return found


def test_gradients_are_unscaled_before_they_are_clipped(module: JointModule) -> None:
    """Lightning leaves that to fused optimizers, and a norm 65,536 times too large would be clipped to nothing: three
    steps give the weights that they give without a scale, to the bit, as scales are powers of two."""
    other = JointModule(module.run, toy_model())
    other.load_state_dict(module.state_dict())
    made: Any = other.configure_optimizers()
    for gradient in (1e-3, -1e-4, 0.5):
        for parameter in other.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        other.configure_gradient_clipping(made["optimizer"])
        made["optimizer"].step()
    *_, after = steps(module, iter([1e-3, -1e-4, 0.5]))
    assert module.grad_norm == other.grad_norm and module.bad_steps == 0
    assert all(torch.equal(after[name], x) for name, x in other.named_parameters())


def test_an_overflow_lowers_the_scale_and_is_no_bad_step(module: JointModule) -> None:
    """Weights stay, the scale is halved, and what follows trains; only an overflow without a scale to lower counts."""
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    (after, *_), scale = steps(module, iter([float("inf")])), module.scaler
    assert scale is not None and scale.get_scale() == 2.0**15
    assert module.bad_steps == 0 and all(torch.equal(after[name], x) for name, x in before.items())
    module.scaler = SimpleNamespace(get_scale=lambda: 1.0)  # type: ignore[assignment]
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    module.configure_gradient_clipping(None)
    assert module.bad_steps == 1 and all(parameter.grad is None for parameter in module.parameters())


def test_products_of_a_run_are_as_exact_as_it_says() -> None:
    """And those of the next run again as that one says."""
    for asked in ("high", "highest"):
        module = JointModule(replace(RUN, optim=Optim(matmul_precision=asked)), toy_model())
        module._trainer = SimpleNamespace(precision_plugin=None)  # type: ignore[assignment]
        module.setup("fit")
        assert torch.get_float32_matmul_precision() == asked and module.scaler is None


def test_a_model_that_only_reads_is_in_its_runs_precision_on_a_gpu() -> None:
    gpu = torch.device("cuda")
    found = {name: inference_dtype(name, gpu) for name in ("fp32", "bf16", "fp16")}
    assert found == {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert inference_dtype("bf16", CPU) == torch.float32


PROCESSORS = {  # what torch tells of it, and which types have no products there
    "AVX2": ({"avx2": True, "avx512_bw": False, "avx512_bf16": False, "bf16": False}, {"bf16", "fp16"}),
    "AVX-512": ({"avx2": True, "avx512_bw": True, "avx512_bf16": False}, {"fp16"}),
    "AMX": ({"avx512_bw": True, "amx_bf16": True, "amx_fp16": False, "avx512_fp16": True}, set()),
    "ARM": ({"neon": True, "bf16": True, "fp16_arith": True}, set()),
    "not told": ({}, set()),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_slow_products_are_told_by_what_the_processor_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of no GPU, and of no type of whole precision."""
    found, slow = PROCESSORS[name]
    monkeypatch.setattr(devices, "processor", lambda: found)
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert {one for one, kind in kinds.items() if slow_products(kind, CPU)} == slow
    assert not any(slow_products(kind, torch.device("meta")) for kind in kinds.values())


def test_a_command_tells_slow_products_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where they are asked for, with what helps."""
    monkeypatch.setattr(devices, "processor", lambda: {"avx2": True})
    tell_slow_products("auto", "cpu")
    tell_slow_products("float32", "cpu")
    assert capsys.readouterr().err == ""
    tell_slow_products("bfloat16", "cpu")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mmfm: this processor has no instructions for products in bfloat16")
    assert line.endswith("leave out --dtype bfloat16")
