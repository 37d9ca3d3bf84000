"""Blocks that are compiled: the same values, and few graphs whatever the batches look like."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from toys import random_batch, toy_model, toy_run

from mmfm.config import Generative, Trunk
from mmfm.models.dropout import Dropout, DropoutKey, number_dropouts
from mmfm.models.execution import Recompute
from mmfm.models.layers import decoder_block, rotary_cos_sin
from mmfm.objectives.joint import Objectives

RUN = toy_run(generative=(Generative(task="image>text"), Generative(task="text~")))
DEEP = Trunk(width=16, depth=12, heads=4, kv_heads=2)


pytestmark = pytest.mark.usefixtures("compiler")


def gradients(backend: str | Callable[..., Any] | None, recompute: Recompute) -> dict[str, Tensor]:
    torch.manual_seed(0)
    block = decoder_block(16, 4, 2, 32, dropout=0.2, qk_norm=True).double().train()
    block.recompute = recompute
    block.set_compile(backend)
    x, places = torch.randn(1, 9, 16, dtype=torch.float64, requires_grad=True), torch.arange(9)[None]
    turn = rotary_cos_sin(places, 4)
    block(x, None, turn, noise=DropoutKey(places // 3, places)).square().sum().backward()
    return {"x": x.grad} | {name: p.grad for name, p in block.named_parameters()}


def test_a_compiled_block_gives_what_it_gave() -> None:
    """Forward and backward as a compiler traces them, in float64, dropout and checkpointing included."""
    counter = CompileCounterWithBackend("aot_eager")
    found, expected = gradients(counter, "full"), gradients(None, "none")
    assert counter.frame_count
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-12, atol=1e-14)


def test_few_graphs_for_a_deep_trunk_over_many_shapes(recwarn: pytest.WarningsRecorder) -> None:
    """Two pieces of a block make five graphs, for 12 blocks, a dropout in each and 20 batches, no two alike: as each
    block's number is a tensor, and attention, whose groups differ from batch to batch, is left out. The first and the
    last block read views of tensors, of which compilers make graphs of their own."""
    owner = Objectives(toy_model(trunk=DEEP, dropout=0.1).train(), RUN)
    counter = CompileCounterWithBackend("eager")
    for block in owner.model.trunk.blocks:
        block.set_compile(counter)
    for number in range(20):
        owner(random_batch(8 + number, number))
    assert 2 <= counter.frame_count <= 5
    assert not [one for one in recwarn if "recompile_limit" in str(one.message)]


def test_compiled_in_training_alone() -> None:
    """Evaluation, whose sizes are many and whose passes are few, runs the methods as they are."""
    owner = Objectives(toy_model().train(), toy_run(contrastive=(), generative=(Generative(task=">text"),)))
    counter = CompileCounterWithBackend("eager")
    owner.model.set_compile(counter)
    with torch.no_grad():
        owner(random_batch(8, 0))
    assert counter.frame_count == 0
    names = set(owner.state_dict())
    owner(random_batch(8, 0))
    assert counter.frame_count > 0 and set(owner.state_dict()) == names


def test_numbers_of_dropouts_outlive_a_model_without_memory() -> None:
    """Built on the meta device they are real; `to_empty` forgets them until they are numbered again; none is saved."""
    with torch.device("meta"):
        model = toy_model(dropout=0.1)
    numbers = [part.layer for part in model.modules() if isinstance(part, Dropout)]
    assert [int(number) for number in numbers] == list(range(len(numbers)))
    assert not [name for name in model.state_dict() if name.endswith(".layer")]
    model.to_empty(device="cpu")
    number_dropouts(model)
    assert [int(p.layer) for p in model.modules() if isinstance(p, Dropout)] == list(range(len(numbers)))
