"""What a table of names is, and how one is used: strictly, so that no tensor is lost and none is made up.

A layout renames another library's tensors, by patterns in their order, into those of our own modules. Queries, keys
and values then become one matrix, and what is left over or lacking is an error that names it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmfm.config import (
    AudioPreprocess,
    Conformer,
    EncoderSpec,
    ImagePreprocess,
    TextTower,
    TokenizerSpec,
    Trunk,
    Vit,
    require,
)
from mmfm.models.conformer import AudioConformer
from mmfm.models.text_transformer import TextTransformer
from mmfm.models.transformer import UnifiedTransformer
from mmfm.models.vit import VisionTransformer
from mmfm.pretrained.encoder import architecture

Part = Vit | Conformer | TextTower | Trunk
Weights = dict[str, Tensor]
FUSED = {
    ".attn.qkv.": (".attn.q.", ".attn.k.", ".attn.v."),
    ".mlp.gate_up.": (".mlp.gate.", ".mlp.up."),
}


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A module of another library, as that library would build it.

    architecture: timm: {"name": ..., and create_model's arguments}; open_clip: the model's configuration; hf: the
    configuration as a dict; torchaudio: the arguments of its Conformer. contract: what the tower expects of its input.
    """

    library: str
    architecture: Mapping[str, Any]
    modality: str
    contract: ImagePreprocess | AudioPreprocess | TokenizerSpec | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one family of another library is ours: which part, and which tensor is which.

    part: UserError where ours has no such choice. scopes: what a name begins with where the weights are of more than
    this tower; one of them is taken off. outside: patterns of tensors that have no place in ours; beside: of those of
    the other towers. fit: the last changes of shape.
    """

    library: str
    modality: str
    kinds: tuple[str, ...]
    part: Callable[[Foreign], Part]
    renames: tuple[tuple[str, str], ...]
    scopes: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    beside: str = "(?!)"
    fit: Callable[[Part, Weights, Foreign], Weights] = lambda part, weights, foreign: weights


def renamed(layout: Layout, weights: Mapping[str, Tensor]) -> Weights:
    """The tensors that have a place, under our names. UserError: two of them have the same."""
    outside = re.compile("|".join(layout.outside or ("(?!)",)))
    wrapped = all(name.startswith("trunk.") for name in weights)  # the weights of one of `mmfm.pretrained`
    weights = {name.removeprefix("trunk.") if wrapped else name: tensor for name, tensor in weights.items()}
    scope = next((scope for scope in layout.scopes if any(name.startswith(scope) for name in weights)), "")
    found: Weights = {}
    for name, tensor in weights.items():
        new = name.removeprefix(scope)
        if outside.match(new) or (not name.startswith(scope) and re.match(layout.beside, name)):
            continue
        for pattern, replacement in layout.renames:
            new = re.sub(pattern, replacement, new)
        require(new not in found, f"two tensors are {new!r} here, the second {name!r}; give the weights of one model")
        found[new] = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    return fused(found)


def fused(weights: Weights) -> Weights:
    """Queries, keys and values as the rows of one matrix; gates and what they open likewise."""
    done = dict(weights)
    for name in weights:
        for whole, parts in FUSED.items():
            own = next((part for part in parts if part in name), "")
            if own and name in done:
                names = [name.replace(own, part) for part in parts]
                missing = [other for other in names if other not in weights]
                require(not missing, f"the weights lack what is {missing[:1]} here, beside {name!r}; give all of them")
                done[name.replace(own, whole)] = torch.cat([done.pop(other) for other in names])
    return done


def skeleton(part: Part) -> nn.Module:
    """Our module without weights, on the meta device; constants that it computes itself are real."""
    with torch.device("meta"):
        match part:
            case Vit():
                return VisionTransformer(part)
            case Conformer():
                return AudioConformer(part)
            case TextTower():
                return TextTransformer(part, part.vocabulary)
            case Trunk():
                return UnifiedTransformer(part)


def checked(part: Part, weights: Weights) -> Weights:
    """The weights of this part, whole, with its constants. UserError: one too many, too few or of another shape."""
    own = skeleton(part).state_dict()
    whole = weights | {name: tensor for name, tensor in own.items() if not tensor.is_meta}
    kind = type(part).__name__
    extra, lacking = sorted(whole.keys() - own.keys()), sorted(own.keys() - whole.keys())
    require(not extra, f"{kind} has no place for {extra[:1]} of the source; import it wrapped, as a Tower")
    require(not lacking, f"the source has no tensor for {lacking[:1]} of {kind}; give all of its weights")
    for name, tensor in whole.items():
        require(
            tensor.shape == own[name].shape,
            f"{name} of the source is {list(tensor.shape)}, of {kind} {list(own[name].shape)}; give the weights of the "
            "architecture that was named",
        )
    return {name: whole[name].contiguous() for name in own}


def foreign(blueprint: EncoderSpec) -> Foreign:
    """The module that a blueprint builds."""
    made = architecture(blueprint)
    if blueprint.library == "hf":
        made = made["config"]
    if blueprint.library == "open_clip":
        made |= {"vision_cfg" if blueprint.modality == "image" else "text_cfg": made["tower"]}
    return Foreign(
        library=blueprint.library,
        architecture=made,
        modality=blueprint.modality,
        contract=blueprint.pixels or blueprint.sound or blueprint.words,
    )


def allow(name: str, holds: bool, what: str) -> None:
    """UserError where ours has no such choice."""
    require(holds, f"{name} has {what}, which none of our parts has; import it wrapped, as a Tower")
