"""The whole model compiled: towers, conformer and trunk, traced and as machine code."""

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import random_batch, toy_model, toy_run

from mmfm.config import Generative, Run
from mmfm.data.batch import Batch
from mmfm.models.execution import Recompute
from mmfm.objectives.joint import Objectives

RUN = toy_run(generative=(Generative(task="image>text"), Generative(task="text~")))
ALONE = toy_run(contrastive=(), generative=(Generative(task=">text"),))
COMPILER = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler"
)
pytestmark = pytest.mark.usefixtures("compiler")


def gradients(
    run: Run, batch: Batch, backend: str | Callable[..., Any] | None, recompute: Recompute
) -> dict[str, Tensor]:
    owner = Objectives(toy_model(dropout=0.2).double().train(), run)
    owner.model.set_grad_checkpointing(recompute)
    owner.model.set_compile(backend)
    owner.total(owner(batch)).backward()
    return {name: p.grad for name, p in owner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("run", "backend", "recompute"),
    [(RUN, "aot_eager", "full"), pytest.param(ALONE, "inductor", "selective", marks=COMPILER)],
)
def test_compiled_gradients_are_those_of_eager(run: Run, backend: str, recompute: Recompute) -> None:
    """Forward and backward in float64, dropout and checkpointing included: of all, or as machine code of the trunk."""
    found, expected = (gradients(run, random_batch(24, 0), *how) for how in ((backend, recompute), (None, "none")))
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12)
