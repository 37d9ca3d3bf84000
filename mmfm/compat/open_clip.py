"""open_clip: the builders of its towers and its transform, and the place where its loaders look up a model's class."""

from collections.abc import Callable
from typing import Any

import open_clip
from open_clip.model import (
    CLIPTextCfg,
    CLIPVisionCfg,
    _build_text_tower,
    _build_vision_tower,
    convert_to_custom_text_state_dict,
    get_model_preprocess_cfg,
)
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from torch import Tensor

__all__ = [
    "CLIPTextCfg",
    "CLIPVisionCfg",
    "ModifiedResNet",
    "PreprocessCfg",
    "TimmModel",
    "build_text_tower",
    "build_vision_tower",
    "choose_model_class",
    "convert_to_custom_text_state_dict",
    "embedded",
    "get_model_preprocess_cfg",
    "image_transform_v2",
    "merge_preprocess_dict",
    "model_class",
]

build_text_tower, build_vision_tower = _build_text_tower, _build_vision_tower


def embedded(tower: Any, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the blocks of its text tower read of these ids, and which places may see which."""
    return tower._embeds(ids)


def model_class() -> Any:
    """What `open_clip.create_model` makes of a configuration with "custom_text"."""
    return open_clip.factory.CustomTextCLIP


def choose_model_class(chooser: Callable[..., Any]) -> None:
    """From now on it makes what this gives."""
    open_clip.factory.CustomTextCLIP = chooser  # pyright: ignore[reportAttributeAccessIssue]
