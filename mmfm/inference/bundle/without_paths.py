"""A run without the places of one machine: where its parts once began is in their weights, its data is its owner's.

Whatever is handed on asks this one module.
"""

import re
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from mmfm.config import MODALITIES, Data, KnownCodec, Model, Run, Tower

ELSEWHERE = re.compile(r"(timm|open_clip|hf|torchaudio|wheel):(?![/~.])")
TOKENIZER = "mmfm_tokenizer.json"  # in the folder


def public(run: Run) -> Run:
    """What the model is, what it was trained to do and how its input is read."""
    data = Data(
        max_seconds=run.data.max_seconds,
        crop_seconds=run.data.crop_seconds,
        max_text_tokens=run.data.max_text_tokens,
        long_text=run.data.long_text,
        exact_decode=run.data.exact_decode,
    )
    model = unplaced(run.model)
    return Run(name=run.name, model=model, data=data, contrastive=run.contrastive, generative=run.generative)


def unplaced(model: Model) -> Model:
    """Sources keep their last name; folders to start from, and of kept tokens, go; the tokenizer is beside it."""
    names = (*MODALITIES, "trunk", "image_codec", "audio_codec")
    parts = {name: _part(getattr(model, name)) for name in names}
    return replace(model, **parts, tokenizer="bytes" if model.tokenizer == "bytes" else TOKENIZER)


def _part(part: Any) -> Any:
    if isinstance(part, Tower):
        return replace(part, feature_cache_dir="", source=unpinned(part.source))
    if isinstance(part, KnownCodec):
        return replace(part, source=unpinned(part.source))
    return replace(part, weights="") if getattr(part, "weights", "") else part  # text of the trunk's own table has none


def unpinned(source: str) -> str:
    """A source without the folders above it, where it is a folder and no name of a library's."""
    return source if ELSEWHERE.match(source) else PurePath(source).name
