"""Image encoders of timm: the tokens are `forward_features`, a feature map's places in reading order.

architecture: {"name": timm's name of it, "kwargs": of create_model, "pretrained_cfg": timm's own, input size included}.
"""

import json
from typing import Any, cast

import timm
import timm.data
from huggingface_hub import constants
from jaxtyping import Float
from torch import Tensor, nn

from mmfm.batch import Tokens
from mmfm.config import Blueprint, Pixels, Tower, require
from mmfm.encoders.face import Encoder, Resolved, all_real, architecture, finish, flat, prefixed
from mmfm.encoders.source import Source, fetching, read_json, require_safetensors

HELD = ("architecture", "input_size", "fixed_input_size", "min_input_size", "mean", "std", "interpolation")
HELD += ("crop_pct", "crop_mode", "pool_size", "first_conv", "classifier")


class TimmEncoder(Encoder):
    def forward(self, x: Float[Tensor, "batch channels height width"], keep: Tensor | None = None) -> Tokens:
        return all_real(features(self.trunk, x))


def features(trunk: Any, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch time width"]:
    out = trunk.forward_features(x)
    return flat(out["patches"] if isinstance(out, dict) else out, trunk.num_features)


def resolve(source: Source, tower: Tower, modality: str) -> Resolved:
    require(modality == "image", f"{tower.source} encodes images; timm has no {modality} encoders")
    name, kwargs = source.name, {}
    if source.folder is not None:
        name, kwargs = (
            f"local-dir:{source.folder}",
            dict(read_json(source.folder / "config.json").get("model_args", {})),
        )
    pretrained = tower.weights == "pretrained"
    if pretrained and source.folder is not None:
        require_safetensors(source.folder)
    known = name.startswith(("hf-hub:", "local-dir:")) or timm.is_model(name.split(".")[0])
    require(known, f"timm has no model {name!r}; timm.list_models() lists the {len(timm.list_models())} that it has")
    kwargs |= {"num_classes": 0}
    with fetching(tower.source, f"the model {source.name} of timm's hub", str(constants.HF_HUB_CACHE)):
        model = timm.create_model(name, pretrained=pretrained, **(kwargs | _size(name, kwargs, tower)))
    kwargs |= _size(name, kwargs, tower)
    pixels = pixels_of(timm.data.resolve_model_data_config(model), tower)
    cfg = {key: value for key, value in cast(Any, model).pretrained_cfg.items() if key in HELD}
    shape = {"name": cfg["architecture"], "kwargs": kwargs, "pretrained_cfg": cfg}
    draft = Blueprint(library="timm", modality="image", architecture=json.dumps(shape), width=1, pixels=pixels)
    return finish(draft, build, prefixed(model.state_dict()) if pretrained else None)


def build(blueprint: Blueprint) -> Encoder:
    shape = architecture(blueprint)
    cfg = shape.get("pretrained_cfg")
    trunk: nn.Module = timm.create_model(shape["name"], pretrained=False, pretrained_cfg=cfg, **shape.get("kwargs", {}))
    return TimmEncoder(blueprint, trunk)


def _size(name: str, kwargs: dict[str, Any], tower: Tower) -> dict[str, Any]:
    """Another picture size, where it is asked for and the architecture is made for one size: else any will do."""
    if not tower.height_px and not tower.width_px:
        return {}
    import torch

    with torch.device("meta"):
        cfg = cast(Any, timm.create_model(name, pretrained=False, **kwargs)).pretrained_cfg
    size = tower.height_px or cfg["input_size"][1], tower.width_px or cfg["input_size"][2]
    return {"img_size": list(size)} if cfg.get("fixed_input_size") else {}


def pixels_of(data: dict[str, Any], tower: Tower) -> Pixels:
    """timm's data configuration: a picture is resized to size / crop_pct, then its middle is taken."""
    channels, height, width = data["input_size"]
    crop = data["crop_mode"] != "squash"
    return Pixels(
        height_px=tower.height_px or height,
        width_px=tower.width_px or width,
        channels=channels,
        fit="crop" if crop else "stretch",
        central=float(data["crop_pct"]) if crop else 1.0,
        interpolation="bicubic" if data["interpolation"] == "bicubic" else "bilinear",
        mean=tuple(float(value) for value in data["mean"]),
        std=tuple(float(value) for value in data["std"]),
    )
