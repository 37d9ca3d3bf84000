"""timm: the classes of its vision transformers, and its registry, which writes into the module that calls it."""

import sys
from collections.abc import Callable
from typing import Any

import timm
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.layers.attention import Attention
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from timm.layers.patch_embed import PatchEmbed
from timm.models import group_parameters, load_model_config_from_hf, load_state_dict, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer

__all__ = [
    "Attention",
    "Block",
    "LayerScale",
    "Mlp",
    "PatchEmbed",
    "VisionTransformer",
    "VisionTransformerDistilled",
    "create_transform",
    "group_parameters",
    "load_model_config_from_hf",
    "load_state_dict",
    "register_entry",
    "resolve_model_data_config",
]


def register_entry(entry: Callable[..., Any]) -> None:
    """`timm.create_model` knows this function's name from now on; twice is as once."""
    if timm.is_model(entry.__name__):
        return
    own = sys.modules[entry.__module__]
    names = getattr(own, "__all__", None)
    register_model(entry)
    if names is None:
        vars(own).pop("__all__", None)  # timm notes the name there, which would hide the others
