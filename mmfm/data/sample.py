"""One sample as it lies in a shard: its parts by extension, and what of them is its text. Standard library only."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from mmfm.config import Text
from mmfm.data.index import CAPTIONS, modality_of, numbered
from mmfm.preprocessing import BadSample

MAX_TEXT = 1 << 20  # characters


@dataclass(frozen=True)
class Sample:
    """One sample's parts by extension. `where` names shard and key, for messages."""

    key: str
    parts: dict[str, bytes]
    where: str


def modalities(extensions: Collection[str]) -> set[str]:
    """What files with these extensions are."""
    return {kind for extension in extensions if (kind := modality_of(extension)) is not None}


def last_part(sample: Sample, modality: str) -> tuple[str, bytes] | None:
    """The plain extension and the bytes of the sample's last part of this modality; None where it has none."""
    found = [(numbered(name), data) for name, data in sample.parts.items() if modality_of(name) == modality]
    (_, extension), data = max(found, default=((-1, ""), b""))
    return (extension, data) if found else None


def meta_of(sample: Sample) -> dict[str, Any]:
    """The object in the sample's .json; empty where there is none. Raises BadSample for anything but an object."""
    if "json" not in sample.parts:
        return {}
    try:
        tree = json.loads(sample.parts["json"])
    except (ValueError, RecursionError):
        raise BadSample("json_damaged", f"{sample.where}: the .json is no JSON; write it again") from None
    if not isinstance(tree, dict):
        raise BadSample("json_no_object", f"{sample.where}: the .json holds no object ({{...}}); write it again")
    return tree


def label_of(sample: Sample) -> Any:
    """The "label" of the .json; None where it has none, or where nothing can be read of it: who needs a class asks the
    .cls first, and all else of the sample is as good as before."""
    try:
        return meta_of(sample).get("label")
    except BadSample:
        return None


def why_no_text(sample: Sample) -> str:
    """What there is to do about a sample without a text, where its .json has what could be one; else nothing."""
    try:
        meta = meta_of(sample)
    except BadSample:
        return ""
    named = next((name for name in CAPTIONS if isinstance(meta.get(name), list | dict)), None)
    if named is None:
        return ""
    field = f"{named}.*" if isinstance(meta[named], dict) else named
    told = f'the "{named}" of its .json is {"an object" if isinstance(meta[named], dict) else "a list"} of texts'
    return f'; {told}, which is read by Source(texts=(Text(field="{field}"),))'


def text_of(sample: Sample, texts: Collection[Text] = (), draw: float = 0.0) -> str | None:
    """The sample's text, without white space around it; None where it has none.

    Of `texts` those that the sample has are drawn from by weight, with `draw` in [0, 1); without any it is the .txt, or
    else "caption" or "text" of the .json.
    """
    found = _drawn(sample, texts, draw) if texts else _plain_text(sample)
    if found is None:
        return None
    if len(found) > MAX_TEXT:
        told = f"the text has {len(found)} characters, over {MAX_TEXT}"
        raise BadSample("text_too_long", f"{sample.where}: {told}; cut it")
    if not found.strip():
        raise BadSample("text_empty", f"{sample.where}: the text is empty; write one or leave the file out")
    return found.strip()


def _plain_text(sample: Sample) -> str | None:
    if (told := _decoded(sample)) is not None:
        return told
    meta = meta_of(sample)
    return next((meta[name] for name in CAPTIONS if isinstance(meta.get(name), str)), None)


def _decoded(sample: Sample) -> str | None:
    """The .txt; of a document the last one."""
    part = last_part(sample, "text")
    try:
        return None if part is None else part[1].decode("utf-8-sig")
    except UnicodeDecodeError as why:
        told = f"the .txt is not UTF-8 (byte {why.start})"
        raise BadSample("text_not_utf8", f"{sample.where}: {told}; convert it") from None


def _drawn(sample: Sample, texts: Collection[Text], draw: float) -> str | None:
    """One of the candidates of one of the fields that the sample has; a field of many is one of them, evenly."""
    meta = meta_of(sample) if any(text.field != "txt" for text in texts) else {}
    have = [(text.weight, found) for text in texts if (found := _candidates(sample, meta, text.field))]
    left = draw * sum(weight for weight, _ in have)
    for weight, found in have:
        if left < weight or found is have[-1][1]:
            return found[min(int(max(left, 0.0) / weight * len(found)), len(found) - 1)]
        left -= weight
    return None


def texts_at(sample: Sample, field: str) -> list[str]:
    """All texts that the sample has at a field, as `Text.field` names it. Raises BadSample."""
    return _candidates(sample, {} if field == "txt" else meta_of(sample), field)


def _candidates(sample: Sample, meta: dict[str, Any], field: str) -> list[str]:
    """The texts at a field such as "txt", "caption", "captions.fr" or "captions.*"; of a list, all that it has."""
    if field == "txt":
        return [] if (told := _decoded(sample)) is None else [told]
    values: list[Any] = [meta]
    for step in field.split("."):
        maps = [value for value in values if isinstance(value, dict)]
        values = [v for m in maps for v in (m.values() if step == "*" else [m[step]] if step in m else [])]
        values = [v for value in values for v in (value if isinstance(value, list) else [value])]
    return [value for value in values if isinstance(value, str)]
