"""What several layouts read off another library's configuration, and the names that its towers share."""

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from mmfm.config.towers import Activation
from mmfm.models.mappings.mapping import Foreign, allow
from mmfm.pretrained import architecture_schema

TOWER = {"image": "vision", "text": "text"}
HF_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}
CLIP_NAMES = (  # transformers' CLIP and SigLIP, both towers
    (r"^encoder\.layers\.", "blocks."),
    (r"\.self_attn\.(q|k|v)_proj\.", r".attn.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^(post_layernorm|final_layer_norm)\.", "norm."),
    (r"^embeddings\.patch_embedding\.", "stem."),
    (r"^embeddings\.class_embedding$", "class"),
    (r"^embeddings\.position_embedding\.weight$", "position"),
    (r"^embeddings\.token_embedding\.", "embedding."),
)
OPEN_CLIP_NAMES = (  # both towers
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.ls_([12])\.", r".scale\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^class_embedding$", "class"),
    (r"^positional_embedding$", "position"),
    (r"^conv1\.", "stem."),
    (r"^token_embedding\.", "embedding."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^(ln_post|ln_final)\.", "norm."),
)


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
        found = HF_ACTIVATIONS.get(what)
    allow(name, found is not None, f"the activation {what}")
    return cast(Activation, found)


CUSTOM = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")


def open_clip_style(model: Mapping[str, Any], cfg: Mapping[str, Any], name: str) -> tuple[Activation, float]:
    """The activation and the eps of the norms, of one of its towers."""
    for option in CUSTOM:
        allow(name, not cfg.get(option), f"{option}={cfg.get(option)}")
    allow(name, cfg.get("block_type") in (None, "default"), f"block_type={cfg.get('block_type')}")
    how, eps = dict(cfg.get("act_kwargs") or {}), dict(cfg.get("norm_kwargs") or {})
    tanh = how.pop("approximate", "none") == "tanh"
    eps_value = float(eps.pop("eps", 1e-5))
    allow(name, not how and not eps, f"settings {sorted(how | eps)}")
    return ("quick_gelu" if model.get("quick_gelu") else "gelu_tanh" if tanh else "gelu"), eps_value
