"""transformers: the names that it has moved or keeps to itself.

`CACHE`: what `generate` calls the keys and values that it hands to `forward` and takes from its output. It is
"past_key_values" up to 5.23 and "cache" after. Where a model takes the wrong name all that it has read is lost.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import transformers
from transformers import Cache
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.auto import feature_extraction_auto, image_processing_auto
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer
from transformers.processing_utils import AudioKwargs, ImagesKwargs, ProcessingKwargs, TextKwargs
from transformers.utils.generic import ModelOutput

__all__ = [
    "CACHE",
    "CACHE_NAMES",
    "EXTRACTORS",
    "PROCESSORS",
    "BaseImageProcessor",
    "BaseModelOutputWithPooling",
    "BasicTextNormalizer",
    "BatchFeature",
    "CausalLMOutputWithPast",
    "EnglishTextNormalizer",
    "ModelOutput",
    "SequenceFeatureExtractor",
    "cache_of",
    "extractor_class",
    "image_processor_class",
    "looks_like_a_cache",
    "output_lengths",
    "processor_keywords",
    "transformers_version",
]

CACHE_NAMES = ("cache", "past_key_values")
KEYWORDS = {"text": TextKwargs, "images": ImagesKwargs, "audio": AudioKwargs}
EXTRACTORS: Mapping[str, Any] = vars(feature_extraction_auto)["FEATURE_EXTRACTOR_MAPPING_NAMES"]
PROCESSORS: Mapping[str, Any] = vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"]
extractor_class = feature_extraction_auto.feature_extractor_class_from_name
image_processor_class = image_processing_auto.get_image_processor_class_from_name
CACHE = next(name for name in CACHE_NAMES if name in {field.name for field in fields(CausalLMOutputWithPast)})


def cache_of(output: Mapping[str, Any]) -> Any:
    """The cache in what a model of transformers gave, whatever this version calls it; None where there is none."""
    return output.get(CACHE)


def looks_like_a_cache(name: str, value: object) -> bool:
    """Whether an argument that no one knows holds what was read before: by its kind, or by its name."""
    return isinstance(value, Cache) or (value is not None and any(part in name for part in ("cache", "past", "mems")))


def output_lengths(model: object) -> Callable[..., Any] | None:
    """A sound model's function from how many inputs to how many states it makes of them; None where it has none."""
    names = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")
    return next((getattr(model, name) for name in names if hasattr(model, name)), None)


def processor_keywords(inputs: Iterable[str]) -> set[str]:
    """What a call of a processor takes beside these inputs, of "text", "images" and "audio", flat and by part."""
    return {"common_kwargs", *ProcessingKwargs.__annotations__}.union(
        *(KEYWORDS[name].__annotations__ for name in inputs)
    )


def transformers_version() -> str:
    return str(transformers.__version__)
