"""A model's configuration without the places of one machine: where its parts once began is in their weights.

Whatever is handed on (bundles, folders of exports) asks this one function.
"""

import re
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from mmfm.config import MODALITIES, KnownCodec, Model, Tower

ELSEWHERE = re.compile(r"(timm|open_clip|hf|torchaudio|wheel):(?![/~.])")


def unplaced(model: Model) -> Model:
    """Sources keep their last name; folders to start from, and of kept tokens, go."""
    names = (*MODALITIES, "trunk", "image_codec", "audio_codec")
    return replace(model, **{name: _part(getattr(model, name)) for name in names})


def _part(part: Any) -> Any:
    if isinstance(part, Tower):
        return replace(part, feature_cache_dir="", source=unpinned(part.source))
    if isinstance(part, KnownCodec):
        return replace(part, source=unpinned(part.source))
    return None if part is None else replace(part, weights="")


def unpinned(source: str) -> str:
    """A source without the folders above it, where it is a folder and no name of a library's."""
    return source if ELSEWHERE.match(source) else PurePath(source).name
