"""What a batch of a split gave, and how it travels from the rank that asked to the others."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmfm.data.index import MODALITY
from mmfm.data.sample import Sample

MARK_BYTES = 8


class Vectors(NamedTuple):
    """Unit vectors of one modality and the samples that they belong to."""

    x: Float[Tensor, "n d"]
    rows: Int[np.ndarray, " n"]


class Written(NamedTuple):
    """What the model wrote for a sample that has a text of its own to compare with. asked: the last text that it was
    given, if any. cut: writing stopped at the limit, and not at its end."""

    row: int
    text: str
    asked: str | None = None
    cut: bool = False


class Known(NamedTuple):
    """What is kept of a sample besides what the model says about it. `labels`: its .cls and its json "label"."""

    key: str
    text: str | None
    labels: tuple[Any, Any]
    mark: str  # equal where all bytes of the sample are
    held: tuple[str, ...] = ()  # the modalities of its files
    plain: bool = False  # its text is none that a source of the run would find
    several: tuple[str, ...] = ()  # modalities that it holds several items of
    media: str = ""  # equal where all pictures and sounds of the sample are; "": it has none
    choices: int = 0  # texts at the fields of its source, of which one is read


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a batch gave; rows count from the batch's first sample."""

    known: list[Known]
    vectors: dict[str, Vectors]
    written: dict[str, list[Written]]
    nats: dict[str, Float[np.ndarray, " size"]]
    unread: int
    bad: dict[int, str]
    truncated: int = 0  # samples with a text of which only the beginning is read


def mark_of(sample: Sample) -> str:
    """A digest of the sample's key and bytes, by which two evaluations can tell that they saw the same."""
    digest = hashlib.blake2b(sample.key.encode("utf-8", "surrogateescape"), digest_size=MARK_BYTES)
    for name, data in sorted(sample.parts.items()):
        digest.update(f"/{name}/{len(data)}/".encode())
        digest.update(data)
    return digest.hexdigest()


def media_of(sample: Sample, kinds: Collection[str] = ("image", "audio")) -> str:
    """A digest of the sample's pictures and sounds, by which samples of one image with a caption each are told."""
    media = sorted((name, data) for name, data in sample.parts.items() if kind_of(name) in kinds)
    digest = hashlib.blake2b(digest_size=MARK_BYTES)
    for name, data in media:
        digest.update(f"/{name}/{len(data)}/".encode("utf-8", "surrogateescape"))
        digest.update(data)
    return digest.hexdigest() if media else ""


def kind_of(name: str) -> str | None:
    """The modality of a part, by the end of its name."""
    return MODALITY.get(name.rpartition(".")[2].lower())


def pack(part: Part) -> dict[str, Any]:
    """As what JSON and tensors can hold."""
    return {
        "known": [list(one) for one in part.known],
        "vectors": {name: [x, torch.from_numpy(rows)] for name, (x, rows) in part.vectors.items()},
        "written": {task: [list(item) for item in items] for task, items in part.written.items()},
        "nats": {task: torch.from_numpy(nats) for task, nats in part.nats.items()},
        "unread": part.unread,
        "bad": part.bad,
        "truncated": part.truncated,
    }


def unpack(tree: dict[str, Any]) -> Part:
    """The inverse of `pack`."""
    return Part(
        known=[_known(*one) for one in tree["known"]],
        vectors={name: Vectors(x, rows.numpy()) for name, (x, rows) in tree["vectors"].items()},
        written={task: [Written(*item) for item in items] for task, items in tree["written"].items()},
        nats={task: nats.numpy() for task, nats in tree["nats"].items()},
        unread=tree["unread"],
        bad=tree["bad"],
        truncated=tree["truncated"],
    )


def _known(
    key: str, text: str | None, labels: list, mark: str, held: list, plain: bool, several: list, *rest: Any
) -> Known:
    cls, label = labels
    return Known(key, text, (cls, label), mark, (*held,), plain, (*several,), *rest)
