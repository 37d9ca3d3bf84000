"""Pictures and sounds to tensors, as transformers' processors do it and with exactly the numbers of `mmfm.load`."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, ProcessorMixin

from mmfm.compat.transformers import BaseImageProcessor, BatchFeature, SequenceFeatureExtractor, processor_keywords
from mmfm.config import AudioPreprocess, Data, ImagePreprocess, require
from mmfm.config.serialization import parse
from mmfm.export.hf.arguments import PICTURES, SOUNDS, check_arguments, check_kind
from mmfm.export.hf.stub import Foreign, auto_map
from mmfm.inference.processing import Sound
from mmfm.inference.processor import read_thing
from mmfm.preprocessing.validation import padded

PROCESSOR = {"processor_class": "MMFMProcessor", "auto_map": auto_map(AutoProcessor="MMFMProcessor")}
PARTS = {"image_processor": "image", "feature_extractor": "audio"}
INPUTS = {"images": "image_processor", "audio": "feature_extractor"}


class MMFMImageProcessor(Foreign, BaseImageProcessor):
    """Pictures to `pixel_values`, uint8 [n, channels, height, width]; the model itself normalises them."""

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(self, pixels: Mapping[str, Any] | None = None, exact_decode: bool = False, **kwargs: Any) -> None:
        """`pixels`: the fields of `mmfm.config.ImagePreprocess`."""
        super().__init__(**kwargs)
        self.pixels, self.exact_decode = dict(pixels or {}), exact_decode

    def __call__(self, images: Any, return_tensors: Any = None, **kwargs: Any) -> BatchFeature:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.preprocess(images, return_tensors, **kwargs)

    def preprocess(self, images: Any, return_tensors: Any = None, **kwargs: Any) -> BatchFeature:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One picture or many: of Pillow, or uint8 [height, width, channels] (numpy), or uint8 [c, h, w] (torch)."""
        check_arguments(kwargs, self.preprocess, "this image processor", PICTURES)
        check_kind(return_tensors)
        contract, data = self.contract, Data(exact_decode=self.exact_decode)
        made = [read_thing(contract, _picture(image), data) for image in _flat(images)]
        size = contract.channels, contract.height_px, contract.width_px
        x = torch.stack(made) if made else torch.zeros(0, *size, dtype=torch.uint8)
        return BatchFeature({"pixel_values": x if return_tensors in (None, "pt") else x.numpy()})

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"auto_map": auto_map(AutoImageProcessor="MMFMImageProcessor")}

    @property
    def contract(self) -> ImagePreprocess:
        return parse(ImagePreprocess, json.dumps(self.pixels), "processor_config.json: pixels")

    @property
    def size(self) -> dict[str, int]:
        return {"height": self.contract.height_px, "width": self.contract.width_px}


class MMFMFeatureExtractor(Foreign, SequenceFeatureExtractor):
    """Sounds to `input_features`, float32 [n, samples] padded to the longest, and `input_features_mask`, 1 where real.

    It never speaks of an attention_mask: the text has one, and clients give both to one call.
    """

    model_input_names = ["input_features", "input_features_mask"]  # noqa: RUF012

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        max_seconds: float = 30.0,
        crop_seconds: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """`max_seconds` and `crop_seconds`: as in `mmfm.config.Data`, since a longer clip is to be the same here."""
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.max_seconds, self.crop_seconds = max_seconds, crop_seconds

    def __call__(
        self, raw_speech: Any, sampling_rate: int | None = None, return_tensors: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """One clip or many, mono: arrays at `sampling_rate`, or {"array": .., "sampling_rate": ..}. Resampled here."""
        check_arguments(kwargs, self.__call__, "this feature extractor", SOUNDS)
        check_kind(return_tensors)
        given = raw_speech if _many(raw_speech) else [raw_speech]
        clips = [self._wave(clip, sampling_rate) for clip in given]
        x, keep = padded(clips)
        keep = keep.long()
        data = {"input_features": x, "input_features_mask": keep}
        as_torch = return_tensors in (None, "pt")
        return BatchFeature(data if as_torch else {name: value.numpy() for name, value in data.items()})

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"auto_map": auto_map(AutoFeatureExtractor="MMFMFeatureExtractor")}

    def _wave(self, clip: Any, sampling_rate: int | None) -> Tensor:
        if isinstance(clip, Mapping):
            clip, sampling_rate = clip["array"], clip["sampling_rate"]
        data = Data(max_seconds=self.max_seconds, crop_seconds=self.crop_seconds)
        wave: Any = np.asarray(clip, np.float32) if isinstance(clip, list | tuple) else clip
        sound = Sound(wave, int(sampling_rate or self.sampling_rate))
        return read_thing(AudioPreprocess(rate_hz=self.sampling_rate), sound, data)


class MMFMProcessor(Foreign, ProcessorMixin):
    """What a model reads: pictures, texts and sounds. A model without one of them has one of the classes below."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, feature_extractor: Any = None) -> None:
        super().__init__(image_processor, tokenizer, feature_extractor)

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> Any:
        """As transformers', but what this model does not read, and a name that no part knows, is an error."""
        has = {"text", *(name for name, part in INPUTS.items() if hasattr(self, part))}
        for name, given in {"images": images, "videos": videos, "audio": audio}.items():
            told = f"this model's processor takes {', '.join(sorted(has))}; leave {name} out"
            require(given is None or name in has, told)
        unknown = {name: value for name, value in kwargs.items() if name not in processor_keywords(has)}
        reads = (*sorted(has), "return_tensors", *(f"{name}_kwargs" for name in sorted(has)))
        check_arguments(unknown, reads, "this processor", {})
        return super().__call__(images, text, videos, audio, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The processor that has just the parts of this folder; of a model that only reads text, the tokenizer."""
        found, _ = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        has = [modality for part, modality in PARTS.items() if part in found]
        if not has:
            kwargs.pop("trust_remote_code", None)
            return AutoTokenizer.from_pretrained(pretrained_model_name_or_path, trust_remote_code=False, **kwargs)
        return super(MMFMProcessor, KINDS[tuple(has)]).from_pretrained(pretrained_model_name_or_path, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Under the one name that transformers knows."""
        return super().to_dict() | PROCESSOR


class MMFMImageTextProcessor(MMFMProcessor):
    def __init__(self, image_processor: Any = None, tokenizer: Any = None) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer)


class MMFMAudioTextProcessor(MMFMProcessor):
    def __init__(self, feature_extractor: Any = None, tokenizer: Any = None) -> None:
        ProcessorMixin.__init__(self, feature_extractor, tokenizer)


KINDS: dict[tuple[str, ...], type[MMFMProcessor]] = {
    ("image", "audio"): MMFMProcessor,
    ("image",): MMFMImageTextProcessor,
    ("audio",): MMFMAudioTextProcessor,
}


def _many(sounds: Any) -> bool:
    if isinstance(sounds, list | tuple) and not sounds:
        return True
    return not isinstance(sounds, Mapping) and (isinstance(sounds[0], Mapping) or np.ndim(sounds[0]) > 0)


def _flat(images: Any) -> list[Any]:
    if isinstance(images, list | tuple):
        return [image for part in images for image in _flat(part)]
    return list(images) if isinstance(images, np.ndarray | Tensor) and images.ndim == 4 else [images]


def _picture(image: Any) -> Any:
    """torch's pictures have their channels first here."""
    return image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) else image
