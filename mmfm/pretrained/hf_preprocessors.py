"""What encoders of transformers expect of pictures and sounds, by their image processors and feature extractors."""

import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from huggingface_hub import constants
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    FeatureExtractionMixin,
    PreTrainedConfig,
    ViTImageProcessor,
)
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME

from mmfm.compat.transformers import EXTRACTORS, PROCESSORS, extractor_class, image_processor_class
from mmfm.config import AudioPreprocess, ImagePreprocess, Tower, UserError, require
from mmfm.preprocessing.image import MODES
from mmfm.pretrained.preprocessing_parity import SHAPES, Process, Shapes, probes, settled, variants
from mmfm.pretrained.source import fetching, present, read_json

KALDI_FRAME_SECONDS = 0.01
BICUBIC = 3  # of Pillow's filters
LEVIT = 224 / 256  # of the sides that a processor keeps without saying it


def pixels_of(name: str, config: PreTrainedConfig, kind: str, tower: Tower, shapes: Shapes = SHAPES) -> ImagePreprocess:
    """What the image processor beside the weights does; where there truly is none, its class's at the model's size.

    config: of the part that reads pictures. kind: the whole model's type, which names the class. Which of our ways of
    preparing a picture is meant is measured, at the processor's own size.
    """
    channels = getattr(config, "num_channels", 3)
    found = _processor(name, config, kind, tower.source)
    require(getattr(found, "do_resize", True), f"{name}: its image processor keeps each picture's size; give another")

    def theirs(picture: Image.Image) -> Tensor:
        return torch.as_tensor(found(images=picture, return_tensors="pt")["pixel_values"])[0].float()

    pixels = settled(tower.source, _ways(found, theirs, channels, tower.source), theirs, type(found).__name__, shapes)
    return replace(pixels, height_px=tower.height_px or pixels.height_px, width_px=tower.width_px or pixels.width_px)


def _processor(name: str, config: PreTrainedConfig, kind: str, source: str) -> Any:
    """The library's own, from its file; a class that is not transformers' own, or a damaged file, is an error."""
    said = _said(name, IMAGE_PROCESSOR_NAME, "image_processor", source)
    if said is None:
        return _default_processor(kind, _pair(getattr(config, "image_size", None)) or (224, 224), source)
    kinds = {
        one for names in PROCESSORS.values() for one in (names.values() if isinstance(names, Mapping) else [names])
    }
    given = str(said.get("image_processor_type") or said.get("feature_extractor_type") or "")
    plain = given.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    require(
        not given or bool({plain, f"{plain}Fast"} & kinds),
        f"{source}: its image processor {given!r} is none of transformers' own, and no other is run; give a source "
        "whose processor transformers has",
    )
    with fetching(source, "its image processor", str(constants.HF_HUB_CACHE), False):
        return AutoImageProcessor.from_pretrained(name, trust_remote_code=False)


def _said(name: str, file: str, part: str, source: str) -> dict[str, Any] | None:
    """What a folder or repository says of its preprocessing; None where no file does."""
    path = present(name, file, source)
    if path is not None:
        return read_json(path)
    path = present(name, PROCESSOR_NAME, source)
    inner = None if path is None else read_json(path).get(part)
    return inner if isinstance(inner, dict) else None


def _ways(found: Any, theirs: Process, channels: int, source: str) -> list[ImagePreprocess]:
    """The ways in which the processor's settings can be meant, at the size that it gives."""
    (picture, *_) = probes(64, 64, channels if channels in MODES else 3)
    try:
        shape = theirs(picture).shape
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as why:
        told = " ".join(f"{type(why).__name__}: {why}".split())[:200]
        raise UserError(f"{source}: its {type(found).__name__} does not read a single picture ({told})") from None
    kind = type(found).__name__
    told = f"{source}: its {kind} makes {list(shape)} of a picture, not channels, rows and columns; give another"
    require(len(shape) == 3, told)
    height, width = int(shape[1]), int(shape[2])
    size, crop = _plain(getattr(found, "size", None)), _plain(getattr(found, "crop_size", None))
    edges = {value for value in (size.get("shortest_edge"), size.get("height")) if value}
    centrals = [min(1.0, min(height, width) / edge) for edge in edges]
    centrals += [float(value) for value in (getattr(found, "crop_pct", None), LEVIT) if value and value <= 1]
    first = _pixels(found, height, width, int(shape[0]))
    cropped = bool(getattr(found, "do_center_crop", False) and crop) or "shortest_edge" in size
    how: dict[str, Any] = {"resize_mode": "shortest" if cropped else "stretch", "odd": "down"}
    first = replace(first, crop_pct=centrals[0] if cropped and edges else 1.0, **how)
    return variants(first, centrals)


def _pixels(found: Any, height: int, width: int, channels: int) -> ImagePreprocess:
    scale = 255.0 * float(found.rescale_factor) if getattr(found, "do_rescale", True) else 255.0
    normal = getattr(found, "do_normalize", True)
    mean, std = (found.image_mean, found.image_std) if normal else (0.0, 1.0)
    return ImagePreprocess(
        height_px=height,
        width_px=width,
        channels=channels,
        interpolation="bicubic" if int(getattr(found, "resample", None) or 2) == BICUBIC else "bilinear",
        mean=tuple(value / scale for value in _many(mean)),
        std=tuple(value / scale for value in _many(std)),
    )


def _default_processor(kind: str, size: tuple[int, int], source: str) -> Any:
    """Of the class that transformers names for this kind of model, else ViT's, at the model's own size; it is said."""
    names = PROCESSORS.get(kind, {})
    name = names.get("torchvision") or names.get("pil") if isinstance(names, Mapping) else names
    made: Any = None if name is None else image_processor_class(name)
    made = made or ViTImageProcessor
    height, width = size
    own, kept = _plain(made().size), dict(zip(("height", "width"), size, strict=True))
    before = _plain(getattr(made(), "crop_size", None))
    if "shortest_edge" in own:
        ratio = own["shortest_edge"] / min(before.values()) if before and getattr(made(), "do_center_crop", 0) else 1.0
        given: dict[str, Any] = {"size": {"shortest_edge": round(min(height, width) * ratio)}}
    else:
        ratio = own.get("height", 1) / before["height"] if before and getattr(made(), "do_center_crop", 0) else 1.0
        given = {"size": {side: round(value * ratio) for side, value in kept.items()}}
    if before:
        given["crop_size"] = kept
    what = f"{source} has no preprocessor_config.json: pictures are prepared as {made.__name__} does by default"
    print(f"mmfm: {what}, at {height} x {width}", file=sys.stderr)
    return made(**given)


def extractor_of(name: str, config: PreTrainedConfig, kind: str, source: str) -> FeatureExtractionMixin:
    """From preprocessor_config.json beside the weights; where there truly is none, its class's for this model.

    UserError: a file that cannot be read, or a class that is not transformers' own.
    """
    said = _said(name, IMAGE_PROCESSOR_NAME, "feature_extractor", source)
    if said is None:
        made = default_extractor(config, kind)
        what = f"{source} has no preprocessor_config.json: sounds are prepared as {type(made).__name__} does by default"
        print(f"mmfm: {what}", file=sys.stderr)
        return made
    given = said.get("feature_extractor_type")
    require(
        not given or given in EXTRACTORS.values(),
        f"{source}: its feature extractor {given!r} is none of transformers' own, and no other is run; give a source "
        "whose extractor transformers has",
    )
    with fetching(source, "its feature extractor", str(constants.HF_HUB_CACHE), False):
        return AutoFeatureExtractor.from_pretrained(name, trust_remote_code=False)


def default_extractor(config: PreTrainedConfig, kind: str) -> FeatureExtractionMixin:
    """The class that transformers names for models of this kind, with as many mel bins as the model reads.

    A waveform model with layer norms in its first part reads a mask; one with a group norm there was trained without.
    """
    made = EXTRACTORS.get(kind)
    if made is None:
        raise UserError(
            f"transformers names no feature extractor for {kind}; add preprocessor_config.json to the folder"
        )
    cls: Any = extractor_class(made)
    given: dict[str, Any] = {}
    if (bins := getattr(config, "num_mel_bins", None)) and "feature_size" in inspect.signature(cls).parameters:
        given["feature_size"] = bins
    if getattr(config, "feat_extract_norm", None) == "layer":
        given["return_attention_mask"] = True
    if getattr(config, "enable_fusion", None) is False:
        given["truncation"] = "rand_trunc"
    return cls(**given)


def sound_of(extractor: Any, seconds: float = 0.0) -> AudioPreprocess:
    """seconds: of a window shorter than the extractor's own; 0: its own."""
    return AudioPreprocess(
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


def rebuild(sound: AudioPreprocess) -> FeatureExtractionMixin:
    """The extractor, by its class's name in transformers' own table; a name outside it is refused."""
    said = json.loads(sound.extractor)
    kind = said.get("feature_extractor_type")
    require(
        kind in EXTRACTORS.values(),
        f"feature extractor {kind!r} is not one of transformers' own; only those are made again",
    )
    cls: Any = extractor_class(kind)
    return cls.from_dict(said)


def extract(
    extractor: Any,
    sound: AudioPreprocess,
    waves: Float[Tensor, "batch samples"],
    keep: Bool[Tensor, "batch samples"],
    key: str,
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
