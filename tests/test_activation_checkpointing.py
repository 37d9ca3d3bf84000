"""Activations that are computed again in backward: equal gradients to the bit, and less memory."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from toys import random_batch, toy_batch, toy_model, toy_run

from mmfm.config import Generative, Trunk
from mmfm.data.batch import Batch
from mmfm.models.execution import Recompute, TrainedBlock
from mmfm.objectives.joint import Objectives

RUN = toy_run(generative=(Generative(task="image>text", condition_dropout=0.3), Generative(task="text~")))


def gradients(batch: Batch, recompute: Recompute) -> dict[str, Tensor]:
    owner = Objectives(toy_model(dropout=0.2).train(), RUN)
    owner.model.set_grad_checkpointing(recompute)
    torch.manual_seed(0)
    owner.total(owner(batch)).backward()
    return {name: p.grad for name, p in owner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize(
    "batch", [random_batch(24, 0), toy_batch(12)], ids=["drawn by place", "drawn by the generator"]
)
def test_gradients_are_equal_to_the_bit(batch: Batch, recompute: Recompute) -> None:
    """At a dropout of a fifth, hashed or drawn; towers, conformer and trunk."""
    found, expected = gradients(batch, recompute), gradients(batch, "none")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) for name, x in expected.items())


def test_every_block_forgets() -> None:
    model = toy_model()
    model.set_grad_checkpointing()
    assert [part.recompute for part in model.modules() if isinstance(part, TrainedBlock)] == ["full"] * (3 + 2)
    assert len(model.trained_blocks()) == 3 + 2  # towers and trunk


def held(recompute: Recompute) -> int:
    """Bytes that autograd holds after the forward, of a trunk of eight blocks, but for parameters."""
    owner = Objectives(toy_model(trunk=Trunk(width=16, depth=8, heads=4, kv_heads=2), dropout=0.1).train(), RUN)
    owner.model.set_grad_checkpointing(recompute)
    own = {parameter.untyped_storage().data_ptr() for parameter in owner.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x  # held, so that no other takes its place
        return x

    batch = random_batch(24, 0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        read = owner.run_passes(batch)
    assert read.embedded
    return sum(x.untyped_storage().nbytes() for place, x in kept.items() if place not in own)


def test_less_is_kept_for_backward() -> None:
    """A third at the most, if blocks compute all again. What "selective" keeps, no hook sees: it counts elsewhere."""
    assert held("full") < held("none") / 3


def test_selective_computes_no_product_again() -> None:
    """Products and attention of the backward are as many as without checkpointing, and fewer than with "full"; what is
    cheap, as GELU and the dropout's hash, is computed again by both."""

    def count(recompute: Recompute) -> tuple[int, int]:
        owner = Objectives(toy_model(dropout=0.1).train(), RUN)
        owner.model.set_grad_checkpointing(recompute)
        loss = owner.total(owner(random_batch(24, 0)))
        with Counting() as seen:
            loss.backward()
        names = [str(op) for op in seen.seen]
        products = sum(op.startswith(("aten.mm", "aten.addmm", "aten._scaled_dot")) for op in names)
        return products, sum("bitwise_xor" in op for op in names)

    none, selective, full = (count(way) for way in ("none", "selective", "full"))
    assert none[0] == selective[0] < full[0] and none[1] == 0 < selective[1] == full[1]


class Counting(TorchDispatchMode):
    """The operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))
