"""What encoders of transformers expect of pictures and sounds, by their image processors and feature extractors."""

import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoImageProcessor, FeatureExtractionMixin, PreTrainedConfig
from transformers.models.auto import feature_extraction_auto, image_processing_auto

from mmfm.config import Pixels, Sound, Tower, UserError, require

KALDI_FRAME_SECONDS = 0.01
BICUBIC = 3  # of Pillow's filters
EXTRACTORS: Mapping[str, Any] = vars(feature_extraction_auto)["FEATURE_EXTRACTOR_MAPPING_NAMES"]
PROCESSORS: Mapping[str, Any] = vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"]


def pixels_of(name: str, config: PreTrainedConfig, kind: str, tower: Tower) -> Pixels:
    """From preprocessor_config.json beside the weights; without one, by its class's defaults at the model's size.

    config: of the part that reads pictures. kind: the whole model's type, which names the class.
    """
    try:
        found: Any = AutoImageProcessor.from_pretrained(name)
        size = _size(found)
    except (OSError, ValueError):
        found, size = _default_processor(kind), None
    own = _pair(getattr(config, "image_size", None))
    height, width = size or own or (224, 224)
    require(getattr(found, "do_resize", True), f"{name}: its image processor keeps each picture's size; give another")
    return _pixels(found, tower.height_px or height, tower.width_px or width, getattr(config, "num_channels", 3))


def _pixels(found: Any, height: int, width: int, channels: int) -> Pixels:
    edge = _plain(getattr(found, "size", None)).get("shortest_edge")
    crop = bool(getattr(found, "do_center_crop", False)) or edge is not None
    scale = 255.0 * float(found.rescale_factor) if getattr(found, "do_rescale", True) else 255.0
    normal = getattr(found, "do_normalize", True)
    mean, std = (found.image_mean, found.image_std) if normal else (0.0, 1.0)
    return Pixels(
        height_px=height,
        width_px=width,
        channels=channels,
        fit="crop" if crop else "stretch",
        central=_central(found, edge) if crop else 1.0,
        interpolation="bicubic" if int(getattr(found, "resample", None) or 2) == BICUBIC else "bilinear",
        mean=tuple(value / scale for value in _many(mean)),
        std=tuple(value / scale for value in _many(std)),
    )


def _central(found: Any, edge: int | None) -> float:
    crop = _plain(getattr(found, "crop_size", None)) if getattr(found, "do_center_crop", False) else {}
    return min(1.0, min(crop.values()) / edge) if crop and edge else 1.0


def _size(found: Any) -> tuple[int, int] | None:
    if getattr(found, "do_center_crop", False):
        crop = _plain(found.crop_size)
        return crop["height"], crop["width"]
    size = _plain(getattr(found, "size", None))
    if "height" in size:
        return size["height"], size["width"]
    return _pair(size.get("shortest_edge"))


def _default_processor(kind: str) -> Any:
    names = PROCESSORS.get(kind, {})
    name = names.get("torchvision") or names.get("pil") if isinstance(names, Mapping) else names
    made: Any = None if name is None else image_processing_auto.get_image_processor_class_from_name(name)
    return _Plain() if made is None else made()


class _Plain:
    """Where transformers names no image processor either."""

    rescale_factor = 1 / 255
    image_mean = image_std = (0.5, 0.5, 0.5)


def extractor_of(name: str, config: PreTrainedConfig, kind: str) -> FeatureExtractionMixin:
    """From preprocessor_config.json beside the weights; without one, by its class's defaults for this model."""
    try:
        return AutoFeatureExtractor.from_pretrained(name)
    except (OSError, ValueError):
        return default_extractor(config, kind)


def default_extractor(config: PreTrainedConfig, kind: str) -> FeatureExtractionMixin:
    """The class that transformers names for models of this kind, with as many mel bins as the model reads.

    A waveform model with layer norms in its first part reads a mask; one with a group norm there was trained without.
    """
    made = EXTRACTORS.get(kind)
    if made is None:
        raise UserError(
            f"transformers names no feature extractor for {kind}; add preprocessor_config.json to the folder"
        )
    cls: Any = feature_extraction_auto.feature_extractor_class_from_name(made)
    given: dict[str, Any] = {}
    if (bins := getattr(config, "num_mel_bins", None)) and "feature_size" in inspect.signature(cls).parameters:
        given["feature_size"] = bins
    if getattr(config, "feat_extract_norm", None) == "layer":
        given["return_attention_mask"] = True
    if getattr(config, "enable_fusion", None) is False:
        given["truncation"] = "rand_trunc"
    return cls(**given)


def sound_of(extractor: Any, seconds: float = 0.0) -> Sound:
    """seconds: of a window shorter than the extractor's own; 0: its own."""
    return Sound(
        rate_hz=int(extractor.sampling_rate),
        extractor=json.dumps(json.loads(extractor.to_json_string())),
        window_seconds=seconds or window_seconds(extractor),
    )


def window_seconds(extractor: Any) -> float:
    """How long every clip is made: 0 where it may have any length. A Kaldi front end says it in frames."""
    for name in ("chunk_length", "max_length_s"):
        if getattr(extractor, name, None):
            return float(getattr(extractor, name))
    if "padding" not in inspect.signature(extractor.__call__).parameters and getattr(extractor, "max_length", None):
        return extractor.max_length * KALDI_FRAME_SECONDS
    return 0.0


def rebuild(sound: Sound) -> FeatureExtractionMixin:
    """The extractor, by its class's name in transformers' own table; a name outside it is refused."""
    said = json.loads(sound.extractor)
    kind = said.get("feature_extractor_type")
    require(
        kind in EXTRACTORS.values(),
        f"feature extractor {kind!r} is not one of transformers' own; only those are made again",
    )
    cls: Any = feature_extraction_auto.feature_extractor_class_from_name(kind)
    return cls.from_dict(said)


def extract(
    extractor: Any, sound: Sound, waves: Float[Tensor, "batch samples"], keep: Bool[Tensor, "batch samples"], key: str
) -> tuple[Tensor, Bool[Tensor, "batch time"]]:
    """The extractor on each clip's real samples. Where it knows no padding, one place per clip is kept: all is real."""
    window = round(sound.window_seconds * sound.rate_hz)
    clips = [wave[real][: window or None].cpu().numpy() for wave, real in zip(waves.float(), keep, strict=True)]
    takes = inspect.signature(extractor.__call__).parameters
    options: dict[str, Any] = {"return_attention_mask": True} if "return_attention_mask" in takes else {}
    if "return_attention_mask" in takes:
        fixed = (
            {"padding": "max_length", "max_length": window, "truncation": True} if window else {"padding": "longest"}
        )
        options |= fixed
    made = extractor(clips, sampling_rate=sound.rate_hz, return_tensors="pt", **options)
    require(
        key in made,
        f"{type(extractor).__name__} gives {', '.join(made)}, but the model reads {key}; "
        "add the preprocessor_config.json of the model to its folder",
    )
    x = made[key]
    mask = next((value for name, value in made.items() if "mask" in name), torch.ones(len(x), 1))
    return x.to(waves.device), mask.bool().to(waves.device)


def _plain(size: Any) -> dict[str, int]:
    """transformers 5 holds sizes as objects that are nearly dictionaries."""
    if isinstance(size, int):
        return {"shortest_edge": size}
    return {} if size is None else {name: int(value) for name, value in dict(size).items() if value is not None}


def _pair(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _many(value: Any) -> tuple[float, ...]:
    return tuple(float(item) for item in value) if isinstance(value, (list, tuple)) else (float(value),)
