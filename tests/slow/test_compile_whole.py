"""The whole model compiled: towers, conformer and trunk, traced and as machine code."""

from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor
from toys import random_batch, toy_model, toy_run

from mmfm.config import Generative
from mmfm.data.batch import Batch
from mmfm.models.execution import Recompute
from mmfm.objectives.joint import Objectives

RUN = toy_run(generative=(Generative(task="image>text"), Generative(task="text~")))
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No graph of before, and no checks of annotations, which would be traced too."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(
    batch: Batch, backend: str | Callable[..., Any] | None, recompute: Recompute = "none"
) -> dict[str, Tensor]:
    owner = Objectives(toy_model(dropout=0.2).double().train(), RUN)
    owner.model.set_grad_checkpointing(recompute)
    owner.model.set_compile(backend)
    owner.total(owner(batch)).backward()
    return {name: p.grad for name, p in owner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("backend", "recompute"), [("aot_eager", "full"), ("inductor", "selective")])
def test_compiled_gradients_are_those_of_eager(backend: str, recompute: Recompute) -> None:
    """Forward and backward in float64, dropout and checkpointing included."""
    found, expected = gradients(random_batch(24, 0), backend, recompute), gradients(random_batch(24, 0), None)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12)
