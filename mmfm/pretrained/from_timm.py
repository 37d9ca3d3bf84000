"""Image encoders of timm: the tokens are `forward_features`, a feature map's places in reading order.

architecture: {"name": timm's name of it, "kwargs": of create_model, "pretrained_cfg": timm's own, input size included}.
"""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import timm
from huggingface_hub import constants
from jaxtyping import Float
from torch import Tensor, nn

from mmfm.compat.timm import create_transform, load_model_config_from_hf, resolve_model_data_config
from mmfm.config import EncoderSpec, ImagePreprocess, Tower, require
from mmfm.data.batch import Tokens
from mmfm.pretrained import architecture_schema
from mmfm.pretrained.encoder import Encoder, Resolved, all_real, architecture, finish, flat, prefixed
from mmfm.pretrained.preprocessing_parity import settled, variants
from mmfm.pretrained.source import Source, fetching, read_json, require_safetensors


class TimmEncoder(Encoder):
    def forward(self, x: Float[Tensor, "batch channels height width"], keep: Tensor | None = None) -> Tokens:
        return all_real(features(self.trunk, x))


def features(trunk: Any, x: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch time width"]:
    out = trunk.forward_features(x)
    return flat(out["patches"] if isinstance(out, dict) else out, trunk.num_features)


def resolve(source: Source, tower: Tower, modality: str) -> Resolved:
    require(modality == "image", f"{tower.source} encodes images; timm has no {modality} encoders")
    name, arguments = (source.name, _arguments(source)) if source.folder is None else _of_folder(source.folder)
    pretrained = tower.weights == "pretrained"
    if pretrained and source.folder is not None:
        require_safetensors(source.folder)
    known = name.startswith("hf-hub:") or timm.is_model(name.split(".")[0])
    require(known, f"timm has no model {name!r}; timm.list_models() lists the {len(timm.list_models())} that it has")
    with fetching(tower.source, f"the repository {_repository(name)}", str(constants.HF_HUB_CACHE)):
        model, kwargs = _create(name, pretrained, arguments | {"num_classes": 0}, tower)
    pixels = pixels_of(resolve_model_data_config(model), tower)
    cfg = {key: value for key, value in cast(Any, model).pretrained_cfg.items() if key in architecture_schema.TIMM_CFG}
    kwargs = {key: value for key, value in kwargs.items() if key != "pretrained_cfg"}
    shape = {"name": cfg["architecture"], "kwargs": kwargs, "pretrained_cfg": cfg}
    draft = EncoderSpec(library="timm", modality="image", architecture=json.dumps(shape), width=1, pixels=pixels)
    weights = prefixed(model.state_dict()) if pretrained else None
    return finish(draft, build, weights, trunk=model if pretrained else None)


def build(blueprint: EncoderSpec) -> Encoder:
    shape = architecture_schema.timm_shape(architecture(blueprint))
    how: dict[str, Any] = {"pretrained": False, "pretrained_cfg": shape["pretrained_cfg"], **shape.get("kwargs", {})}
    trunk: nn.Module = timm.create_model(shape["name"], **how)
    return TimmEncoder(blueprint, trunk)


def _create(name: str, pretrained: bool, kwargs: dict[str, Any], tower: Tower) -> tuple[nn.Module, dict[str, Any]]:
    """An architecture made for one size of picture takes another as `img_size`; one that takes any knows no such word.

    timm then resizes the positions as it loads the weights.
    """
    if tower.height_px or tower.width_px:
        height, width = _own_size(name, kwargs)
        sized: dict[str, Any] = kwargs | {"img_size": [tower.height_px or height, tower.width_px or width]}
        with contextlib.suppress(TypeError):
            return timm.create_model(name, pretrained=pretrained, **sized), sized
    return timm.create_model(name, pretrained=pretrained, **kwargs), kwargs


def _own_size(name: str, kwargs: dict[str, Any]) -> tuple[int, int]:
    model: Any = timm.create_model(name, pretrained=False, **kwargs)
    _, height, width = model.pretrained_cfg["input_size"]
    return height, width


def _arguments(source: Source) -> dict[str, Any]:
    """Arguments of create_model that a repository adds to its architecture's."""
    if not source.name.startswith("hf-hub:"):
        return {}
    with fetching(f"timm:{source.name}", "the repository's config.json", str(constants.HF_HUB_CACHE)):
        given = load_model_config_from_hf(source.name.removeprefix("hf-hub:"))[2]
    return architecture_schema.timm_arguments(given or {}, f"timm:{source.name}")


def _of_folder(folder: Path) -> tuple[str, dict[str, Any]]:
    """The architecture that a folder's config.json names, and the arguments that make it so, its own file among them.

    Of pretrained_cfg only what describes the input is read: timm would follow an address there.
    """
    said = read_json(folder / "config.json")
    where, name = str(folder / "config.json"), str(said.get("architecture"))
    require(timm.is_model(name.split(".")[0]), f"{where} names {name[:60]!r}, which timm does not have; write it again")
    whole = said.get("pretrained_cfg") or said
    require(isinstance(whole, dict), f"{where}: pretrained_cfg should be a JSON object; write it again")
    cfg = {key: whole[key] for key in architecture_schema.TIMM_CFG if key in whole} | {"architecture": name}
    architecture_schema.require_values(cfg, where)
    given = architecture_schema.timm_arguments(said.get("model_args") or {}, where)
    return name, given | {"pretrained_cfg": cfg | {"source": "local-dir", "file": str(folder)}}


def _repository(name: str) -> str:
    """Where timm downloads a model's weights from."""
    cfg: Any = None if ":" in name else timm.get_pretrained_cfg(name, allow_unregistered=True)
    return f"{cfg.hf_hub_id} (model.safetensors)" if cfg is not None and cfg.hf_hub_id else name


def pixels_of(data: dict[str, Any], tower: Tower) -> ImagePreprocess:
    """timm's data configuration: a picture is resized to size / crop_pct, then its middle is taken.

    Compared with timm's own transform, at the size that the configuration says.
    """
    channels, height, width = data["input_size"]
    pixels = ImagePreprocess(
        height_px=height,
        width_px=width,
        channels=channels,
        resizer="pillow",
        resize_mode="stretch" if data["crop_mode"] == "squash" else "shortest",
        crop_pct=float(data["crop_pct"]),
        interpolation="bicubic" if data["interpolation"] == "bicubic" else "bilinear",
        mean=tuple(float(value) for value in data["mean"]),
        std=tuple(float(value) for value in data["std"]),
    )
    pixels = settled(tower.source, variants(pixels), cast(Any, create_transform(**data, is_training=False)), "timm")
    return replace(pixels, height_px=tower.height_px or height, width_px=tower.width_px or width)
