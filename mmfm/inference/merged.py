"""A model without adapters, in whose weights they are, and how far its outputs are from what they were."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mmfm.config import MODALITIES, Run, require
from mmfm.inference.bundle import golden
from mmfm.inference.bundle.encoder import BundledEncoder
from mmfm.inference.interface import Interface
from mmfm.models import adapters
from mmfm.models.model import EmbeddedText

MOST = 1e-5  # difference of an output, as a part of its largest number


class Merged(NamedTuple):
    model: Interface
    layers: int  # that had adapters
    difference: float  # the largest, as a part of the largest number of that output

    def line(self) -> str:
        return (
            f"{self.layers} adapters are merged in fp32: the outputs of towers and trunk on fixed inputs differ by at "
            f"most {self.difference:.1e} of their largest number"
        )


@torch.no_grad()
def merged(model: Interface) -> Merged:
    """The same core, changed. UserError where an output differs by more than MOST from the one with adapters."""
    before, layers = outputs(model), sum(1 for _ in adapters.adapters_of(model.core))
    adapters.merge(model.core)
    plain = of_core(model, without(model.run))
    after = outputs(plain)
    difference = max((_apart(after[name], x) for name, x in before.items()), default=0.0)
    told = f"the merged model's outputs differ by {difference:.1e} of their largest from those with adapters"
    require(difference <= MOST, f"{told}, above {MOST}; merge them in float32, not {model.core.dtype}")
    return Merged(plain, layers, difference)


def without(run: Run) -> Run:
    return replace(run, model=replace(run.model, adapters=()))


def of_core(model: Interface, run: Run) -> Interface:
    """The same model as one of another run."""
    made = Interface(model.core, run, model.tokenizer).train(model.training)
    made.checkpoint = model.checkpoint
    return made


def plain(model: Interface) -> Interface:
    """The model itself where it has no adapters; else merged."""
    return merged(model).model if model.config.adapters else model


def outputs(model: Interface) -> dict[str, Tensor]:
    """On fixed inputs, as bundles keep them: of each tower its tokens and embeddings, of the trunk its states."""
    found = dict[str, Tensor]()
    for name in model.modalities if len(model.core.heads) else ():
        if name in MODALITIES and not isinstance(model.core.towers[name], EmbeddedText):  # which is the trunk's
            found |= golden.make(BundledEncoder(model.core, name, model.run, model.tokenizer))
    found |= golden.make_trunk(model.core.trunk)
    return {name: x for name, x in found.items() if x.is_floating_point()}


def _apart(found: Tensor, expected: Tensor) -> float:
    largest = expected.abs().max().clamp(min=1e-30)
    return float((found - expected).abs().max() / largest)
