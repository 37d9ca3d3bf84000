"""A whole model of another library whose halves share a space: CLIP, SigLIP, CLAP and their like.

A half is an encoder with the source's own pool and projection. Which loss it learned by is read from what it learned
beside its halves: an inverse temperature, and for a sigmoid a bias.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from mmfm.config import MODALITIES, Contrastive, Tower, require
from mmfm.pretrained import resolve
from mmfm.pretrained.encoder import SAME, Resolved

SCALES = ("logit_scale", "logit_scale_a")  # the logarithm of it; "_a": of CLAP's sounds, beside one of its texts
BIAS = "logit_bias"
MOST = 1.001 * math.log(100)  # of a softmax: CLIP's bound, as it was rounded


@dataclass(frozen=True, kw_only=True)
class WholeModel:
    """halves: by modality, texts last. contrastive: the pair and its loss; none where the source has no inverse
    temperature that explains its own scores, or one beyond CLIP's bound. log_scale, bias: of the pair."""

    halves: Mapping[str, Resolved]
    contrastive: tuple[Contrastive, ...] = ()
    log_scale: float = 0.0
    bias: float = 0.0

    @property
    def width(self) -> int:
        """Of the shared space."""
        return next(iter(self.halves.values())).blueprint.width


def embedded(model: Any) -> tuple[str, ...]:
    """Those of which a class of transformers makes embeddings in a space shared with texts."""
    found = tuple(name for name in MODALITIES if hasattr(model, f"get_{name}_features"))
    return found if len(found) > 1 and "text" in found else ()


def resolve_whole(source: str, modalities: Sequence[str]) -> WholeModel:
    """Each half with its weights. UserError: one cannot be had, or they do not share a space."""
    names = [name for name in MODALITIES if name in modalities]
    halves = {name: resolve(Tower(source=source, pool="source"), name) for name in names}
    widths = {name: half.blueprint.width for name, half in halves.items()}
    told = ", ".join(f"{name} of {width} numbers" for name, width in widths.items())
    require(len(set(widths.values())) == 1, f"{source} has no shared space ({told}); say --modality {'|'.join(names)}")
    scalars = halves[names[0]].scalars
    scale = next((scalars[name] for name in SCALES if name in scalars), None)
    loss, bias = "sigmoid" if BIAS in scalars else "softmax", scalars.get(BIAS, 0.0)
    scored = _checked(source, halves, scale, bias) if halves["text"].blueprint.library == "hf" else True
    if scale is None or not scored or (loss == "softmax" and not 0 <= scale <= MOST):
        return WholeModel(halves=halves)
    pairs = tuple(Contrastive(pair=(name, "text"), loss=loss) for name in names if name != "text")
    return WholeModel(halves=halves, contrastive=pairs, log_scale=scale, bias=bias)


@torch.no_grad()
def _checked(source: str, halves: Mapping[str, Resolved], scale: float | None, bias: float) -> bool:
    """Whether the scores of the model's own forward are those of this scale and bias. UserError: its embeddings there
    are not those of its halves."""
    from mmfm.pretrained.hf_whole import examples, own_outputs

    given = examples(halves)
    own = own_outputs(halves, given)
    ours = {name: F.normalize(encoder(*inputs).x[:, 0], dim=-1) for name, (encoder, inputs) in given.items()}
    for name, x in own.embeds.items():
        apart = float((F.normalize(x, dim=-1) - ours[name]).abs().max()) if x.shape == ours[name].shape else math.inf
        told = f"{source}: the embedding of {name} that it scores by is another than its get_{name}_features gives"
        require(apart <= SAME, f"{told} (by {apart:.2g}); say --modality {'|'.join(halves)} for its encoder alone")
    other = next(name for name in ours if name != "text")
    score = math.exp(scale or 0.0) * float((ours[other] * ours["text"]).sum()) + bias
    return own.logits is not None and abs(score - own.logits) <= SAME * max(1.0, abs(own.logits))
