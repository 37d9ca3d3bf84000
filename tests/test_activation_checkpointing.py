"""Activations that are computed again in backward: equal gradients to the bit, and less memory."""

import pytest
import torch
from torch import Tensor
from toys import random_batch, toy_batch, toy_model, toy_run

from mmfm.config import Generative, Trunk
from mmfm.data.batch import Batch
from mmfm.models.layers import CheckpointedBlock
from mmfm.objectives.joint import Objectives

RUN = toy_run(generative=(Generative(task="image>text", condition_dropout=0.3), Generative(task="text~")))


def gradients(batch: Batch, recompute: bool) -> dict[str, Tensor]:
    owner = Objectives(toy_model(dropout=0.2).train(), RUN)
    owner.model.set_grad_checkpointing(recompute)
    torch.manual_seed(0)
    owner.total(owner(batch)).backward()
    return {name: p.grad for name, p in owner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "batch", [random_batch(24, 0), toy_batch(12)], ids=["drawn by place", "drawn by the generator"]
)
def test_gradients_are_equal_to_the_bit(batch: Batch) -> None:
    """At a dropout of a fifth, hashed or drawn; towers, conformer and trunk."""
    found, expected = gradients(batch, True), gradients(batch, False)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) for name, x in expected.items())


def test_every_block_forgets() -> None:
    model = toy_model()
    model.set_grad_checkpointing()
    assert (
        sum(part.grad_checkpointing for part in model.modules() if isinstance(part, CheckpointedBlock)) == 3 + 2
    )  # towers and trunk


def test_less_is_kept_for_backward() -> None:
    """Bytes that autograd holds after the forward, of a trunk of eight blocks: a third at the most."""
    held = []
    for recompute in (False, True):
        owner = Objectives(toy_model(trunk=Trunk(width=16, depth=8, heads=4, kv_heads=2)).train(), RUN)
        owner.model.set_grad_checkpointing(recompute)
        kept: dict[int, int] = {}

        def pack(x: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            read = owner.run_passes(random_batch(24, 0))
        assert read.embedded
        held.append(sum(kept.values()))
    assert held[1] < held[0] / 3
