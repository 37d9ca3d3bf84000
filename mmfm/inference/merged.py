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
from mmfm.models.towers import EmbeddedText

MOST = 1e-5  # difference of what a layer gives, as a part of its largest number
THROUGH = 1e-3  # of what all layers give: through the 30 blocks of SmolLM2 rounding grew to 1.4e-4


class Merged(NamedTuple):
    model: Interface
    layers: int  # that had adapters
    of_a_layer: float  # the largest difference, as a part of the largest number
    difference: float  # the same of the outputs of towers and trunk

    def line(self) -> str:
        return (
            f"{self.layers} adapters are merged in fp32: on fixed inputs a layer differs by at most "
            f"{self.of_a_layer:.1e} of its largest number, and towers and trunk by {self.difference:.1e}"
        )


@torch.no_grad()
def merged(model: Interface) -> Merged:
    """The same core, changed. UserError where a layer differs by more than MOST, or the model by more than THROUGH,
    from what they were with adapters."""
    before, each = outputs(model), [_of_layer(part) for _, part in adapters.adapters_of(model.core)]
    adapters.merge(model.core)
    plain = of_core(model, without(model.run))
    after = outputs(plain)
    difference = max((_apart(after[name], x) for name, x in before.items()), default=0.0)
    found = Merged(plain, len(each), max(each, default=0.0), difference)
    half = model.core.dtype not in (torch.float32, torch.float64)
    remedy = f"load the run in float32, not {model.core.dtype}" if half else "the run stays as it is; ask it unmerged"
    told = f"{found.line()}, above {MOST} and {THROUGH}; {remedy}"
    require(found.of_a_layer <= MOST and difference <= THROUGH, told)
    return found


def _of_layer(part: adapters.LoraLinear) -> float:
    given = torch.randn(8, part.in_features, generator=torch.Generator().manual_seed(0)).to(part.lora_a)
    return _apart(part.merged()(given), part(given))


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
