"""Codes of pictures and sounds, stored beside them in shards: what is written, what is read, and whose they are.

A sample's `imagecodes.npy` or `audiocodes.npy` holds a codec's ids in its own order, one row of 16 or 32 bits each. The
folder's `codes.json` names the codec by its fingerprint: the codes of any other would be noise.
"""

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mmfm.config import UserError, require
from mmfm.data.index import CODES
from mmfm.data.remote_servers import Absent
from mmfm.data.sample import Sample
from mmfm.data.urls import beside, folder_of
from mmfm.data.vocabulary import CodeFormat
from mmfm.preprocessing import BadSample

MANIFEST, FORMAT = "codes.json", 1
KINDS = ("<i2", "<i4")
MOST_BYTES = 1 << 16  # of a manifest
AGAIN = "encode the shards again with: mmfm data encode RUN SHARDS OUT"


def packed(ids: Int[Tensor, " t"]) -> bytes:
    """As a .npy that `stored_codes` reads; equal codes are equal bytes."""
    values = ids.cpu().numpy()
    kind = KINDS[int(values.max(initial=0) >= 1 << 15)]
    file = io.BytesIO()
    np.save(file, values.astype(kind), allow_pickle=False)
    return file.getvalue()


def stored_codes(sample: Sample, modality: str, form: CodeFormat) -> Int[Tensor, " t"] | None:
    """The sample's codes for this modality, checked against the codec's form; None where none are stored."""
    data = sample.parts.get(CODES[modality])
    if data is None:
        return None
    where = f"{sample.where}: the .{CODES[modality]}"
    values = _row(data, where)
    books = len(form.sizes)
    whole = len(values) == form.length if form.length else len(values) and len(values) % books == 0
    if not whole:
        told = f"holds {len(values)} codes, and {form.length or f'a multiple of {books}'} make one {modality}"
        raise BadSample("codes_damaged", f"{where} {told}; {AGAIN}")
    ends = np.cumsum(form.sizes)
    book = np.arange(len(values)) % books
    wrong = np.flatnonzero((values < (ends - form.sizes)[book]) | (values >= ends[book]))
    if len(wrong):
        at = int(wrong[0])
        span = form.candidates(at)
        told = f"has {values[at]} at place {at}, outside {span.start}..{span.stop - 1}"
        raise BadSample("codes_outside", f"{where} {told}; {AGAIN}")
    return torch.from_numpy(values.astype(np.int64))


def _row(data: bytes, where: str) -> np.ndarray:
    """The array, without numpy's own reader: that makes room for as much as a header claims, and knows pickles."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        require(version == (1, 0), f"version {version}")
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
        left = len(data) - file.tell()
        require(len(shape) == 1 and kind.str in KINDS, f"{kind.str} of shape {shape}, no row of {' or '.join(KINDS)}")
        require(shape[0] * kind.itemsize == left, f"{shape[0]} codes of {kind.itemsize} bytes in {left}")
    except (ValueError, UserError) as why:
        told = " ".join(str(why).split())[:120]
        raise BadSample("codes_damaged", f"{where} holds no codes ({told}); {AGAIN}") from None
    return np.frombuffer(data, kind, offset=file.tell())


def codecs_said(folder: str, text: Callable[[str], str] | None = None) -> dict[str, str]:
    """Modality -> fingerprint, by the manifest of a folder or URL; empty where there is none.

    text: reads a URL, such as `ShardStore.text`.
    """
    found = _manifest(folder, text)
    if found is None:
        return {}
    where = f"{folder}/{MANIFEST}"
    try:
        tree: Any = json.loads(found)
        same, complete, codecs = tree["format"] == FORMAT, tree["complete"], tree["codecs"]
        prints = {str(name): str(codecs[name]["fingerprint"]) for name in codecs}
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UserError(f"{where} does not say whose codes these are; {AGAIN}") from None
    require(same and set(prints) <= set(CODES), f"{where} is of another version; {AGAIN}")
    require(complete is True, f"{where} is not complete: `mmfm data encode` was stopped; repeat its command")
    return prints


def require_own(
    places: Iterable[str], modality: str, fingerprint: str, text: Callable[[str], str] | None = None
) -> bool:
    """Whether the shards at these paths or URLs have codes for this modality; refuses another codec's."""
    said = {folder: codecs_said(folder, text).get(modality) for folder in sorted(set(map(_folder, places)))}
    for folder, found in said.items():
        require(
            found in (None, fingerprint),
            f"{folder} has {modality} codes of another codec ({found} in its {MANIFEST}; this run's is "
            f"{fingerprint}); {AGAIN}, or use shards without codes",
        )
    have = [found is not None for found in said.values()]
    require(
        all(have) or not any(have),
        f"{' and '.join(said)}: some have {modality} codes and some have not; encode all or none",
    )
    return any(have)


def _folder(place: str) -> str:
    return folder_of(place)[0] if "://" in place else str(Path(place).parent)


def _manifest(folder: str, text: Callable[[str], str] | None) -> str | None:
    if "://" in folder:
        try:
            return None if text is None else text(beside(folder, MANIFEST))
        except Absent:
            return None
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    require(path.stat().st_size <= MOST_BYTES, f"{path} has over {MOST_BYTES} bytes; {AGAIN}")
    return path.read_text("utf-8", errors="replace")
