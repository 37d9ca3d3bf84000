"""How one family of another library is ours, and the way back: strictly, so that no tensor is lost and none made up."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

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
from mmfm.config.towers import Activation
from mmfm.models.conformer import AudioConformer
from mmfm.models.mappings.table import Table, Weights
from mmfm.models.text_transformer import TextTransformer
from mmfm.models.transformer import UnifiedTransformer
from mmfm.models.vit import VisionTransformer
from mmfm.pretrained import architecture_schema
from mmfm.pretrained.encoder import architecture

Part = Vit | Conformer | TextTower | Trunk
Shapes = Mapping[str, torch.Size]
HALF = (torch.float16, torch.bfloat16)
TOWER = {"image": "vision", "text": "text"}
ACTIVATIONS: dict[str, Activation] = {  # of transformers; of several names of one, the first is written
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
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
    the other towers. fit: the last changes of shape; unfit undoes them, for tensors of these shapes by our names.
    """

    library: str
    modality: str
    kinds: tuple[str, ...]
    part: Callable[[Foreign], Part]
    table: Table
    scopes: tuple[str, ...] = ()
    outside: str = "(?!)"
    beside: str = "(?!)"
    fit: Callable[[Part, Weights, Foreign], Weights] = lambda part, weights, foreign: weights
    unfit: Callable[[Part, Weights, Shapes], Weights] = lambda part, weights, shapes: weights


def renamed(layout: Layout, weights: Mapping[str, Tensor]) -> Weights:
    """The tensors that have a place, under our names."""
    wrapped = all(name.startswith("trunk.") for name in weights)  # the weights of one of `mmfm.pretrained`
    weights = {name.removeprefix("trunk.") if wrapped else name: tensor for name, tensor in weights.items()}
    scope = next((scope for scope in layout.scopes if any(name.startswith(scope) for name in weights)), "")
    held = {
        name.removeprefix(scope): tensor.float() if tensor.dtype in HALF else tensor
        for name, tensor in weights.items()
        if not re.match(layout.outside, name.removeprefix(scope))
        and (name.startswith(scope) or not re.match(layout.beside, name))
    }
    return layout.table.ours(held)


def returned(layout: Layout, part: Part, weights: Mapping[str, Tensor], shapes: Shapes) -> Weights:
    """The inverse: our tensors under the library's names. shapes: those of its module, of this tower alone.

    UserError: the module has a tensor that ours gives nothing for, or ours one that it has no place for.
    """
    own = {name: tensor for name, tensor in weights.items() if name not in constants(part)}
    known = {name: shape for name, shape in shapes.items() if not re.match(layout.outside, name)}
    once = [row.ours for row in layout.table.rows if "*" not in row.ours]  # of a shape of each library's own
    leaves = [name + leaf for name in once for leaf in ("", ".weight", ".bias")]
    ours = {name: known[names[0]] for name in leaves for names in layout.table.named(name) if names[0] in known}
    done = layout.table.theirs(layout.unfit(part, own, ours), known, lambda tensor, count: rows_of(part, tensor, count))
    lacking = sorted(known.keys() - done.keys())
    require(not lacking, f"the other library's model has {lacking[:1]}, which this {type(part).__name__} has not")
    return done


def rows_of(part: Part, tensor: Tensor, count: int) -> tuple[Tensor, ...]:
    """Queries, keys and values of a matrix of all, or a gate and what it opens."""
    if isinstance(part, Trunk) and count == 3:
        dim = part.head_dim or part.width // part.heads
        return tensor.split([part.heads * dim, part.kv_heads * dim, part.kv_heads * dim])
    return tensor.chunk(count)


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


def constants(part: Part) -> Weights:
    """What the part computes itself, and keeps with its weights."""
    return {name: tensor for name, tensor in skeleton(part).state_dict().items() if not tensor.is_meta}


def checked(part: Part, weights: Weights) -> Weights:
    """The weights of this part, whole, with its constants. UserError: one too many, too few or of another shape."""
    own = skeleton(part).state_dict()
    whole = weights | constants(part)
    kind = type(part).__name__
    extra, lacking = sorted(whole.keys() - own.keys()), sorted(own.keys() - whole.keys())
    require(not extra, f"{kind} has no place for {extra[:1]} of the source; import it wrapped, as a Tower")
    require(not lacking, f"the source has no tensor for {lacking[:1]} of {kind}; give all of its weights")
    for name, tensor in whole.items():
        told = f"{name} of the source is {list(tensor.shape)}, of {kind} {list(own[name].shape)}"
        require(tensor.shape == own[name].shape, f"{told}; give the weights of the architecture that was named")
    return {name: whole[name].contiguous() for name in own}


def foreign(blueprint: EncoderSpec) -> Foreign:
    """The module that a blueprint builds."""
    found = architecture(blueprint)
    if blueprint.library == "hf":
        found = found["config"]
    if blueprint.library == "open_clip":
        found |= {"vision_cfg" if blueprint.modality == "image" else "text_cfg": found["tower"]}
    return Foreign(
        library=blueprint.library,
        architecture=found,
        modality=blueprint.modality,
        contract=blueprint.pixels or blueprint.sound or blueprint.words,
    )


def allow(name: str, holds: bool, what: str) -> None:
    """UserError where ours has no such choice."""
    require(holds, f"{name} has {what}, which none of our parts has; import it wrapped, as a Tower")


def pair(size: Any) -> tuple[int, int]:
    """A side, or height and width."""
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(height), int(width)


def hf_kind(foreign: Foreign) -> str:
    """transformers' name of the model, or of that tower of it."""
    tower = TOWER.get(foreign.modality, "")
    kind = foreign.architecture.get("model_type", "")
    inner = foreign.architecture.get(f"{tower}_config")
    return inner.get("model_type", f"{kind}_{tower}_model") if isinstance(inner, Mapping) else kind


def hf_config(foreign: Foreign) -> dict[str, Any]:
    """transformers' configuration of the tower, with all its defaults, whatever version wrote it."""
    kind = hf_kind(foreign)
    inner = foreign.architecture.get(f"{TOWER.get(foreign.modality, '')}_config", foreign.architecture)
    return architecture_schema.hf_config({**inner, "model_type": kind}, "this configuration").to_dict()


def activation_of(what: str | nn.Module, name: str) -> Activation:
    """transformers' name of it, or timm's module."""
    if isinstance(what, nn.Module):
        known: dict[str, Activation] = {"GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}
        kind = type(what).__name__
        exact = kind == "GELU" and getattr(what, "approximate", "none") == "none"
        found = "gelu" if exact else known.get(kind, "gelu_tanh" if kind == "GELU" else None)
    else:
        found = ACTIVATIONS.get(what)
    allow(name, found is not None, f"the activation {what}")
    return cast(Activation, found)


CUSTOM = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")


def open_clip_style(model: Mapping[str, Any], cfg: Mapping[str, Any], name: str) -> tuple[Activation, float]:
    """The activation and the eps of the norms, of one of its towers."""
    for option in CUSTOM:
        allow(name, not cfg.get(option), f"{option}={cfg.get(option)}")
    allow(name, cfg.get("block_type") in (None, "default"), f"block_type={cfg.get('block_type')}")
    options, norm = dict(cfg.get("act_kwargs") or {}), dict(cfg.get("norm_kwargs") or {})
    tanh = options.pop("approximate", "none") == "tanh"
    eps = float(norm.pop("eps", 1e-5))
    allow(name, not options and not norm, f"settings {sorted(options | norm)}")
    return ("quick_gelu" if model.get("quick_gelu") else "gelu_tanh" if tanh else "gelu"), eps
