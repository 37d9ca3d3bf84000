"""Pictures of a score that look like one of training: encoded again, resized, brighter or darker.

Two looks. A difference hash (is each cell of a small grey picture brighter than its left neighbour: 64 bits) gives the
candidates: at most SEVEN bits apart, and so equal in one of eight bytes, by which they are found without comparing all
with all. Then the small pictures themselves must agree (correlation of 16 x 16 cells, grey and in colour): pictures
of one kind, such as two scans of a digit, can have the same hash, and so can a green and a purple square; these are not
told.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt64

from mmfm.doctor.duplicates import Files, contents, digest, files_of, name_of, picture_of
from mmfm.doctor.findings import SHOWN, Finding, finding, plural
from mmfm.doctor.shard_integrity import TRAIN, Set
from mmfm.evals.examples import picture_uri
from mmfm.evals.split import spread
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.image import picture

SIDE, ACROSS, FINE = 32, 9, 16  # px of the small picture; columns that are compared; cells of the second look
SEVEN = 7  # bits apart, one less than there are bytes
ALIKE = 0.98  # correlation. numbers: distinct pairs of digits reach 0.976; the same picture as a JPEG of 75, 0.997
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601: what a JPEG keeps best
COLOURED = 0.8  # correlation of cells of the three colours, of which a JPEG keeps less
TOGETHER = 1_024  # small pictures that are looked at together
FLAT = 2.0  # standard deviation of grey values, below which there is nothing to compare
MOST_ASKED, MOST_TRAINED = 20_000, 100_000  # pictures that are decoded, evenly spread
AT_ONCE, PAIRS = 1 << 22, 1 << 14  # hashes, and candidates, that are compared at once


class Looks(NamedTuple):
    """Of the pictures that can be decoded and are not flat: which file, its bytes' digest, its hash, its cells."""

    at: Int[np.ndarray, " n"]
    digest: UInt64[np.ndarray, " n"]
    hash: UInt64[np.ndarray, " n"]
    cells: Float[np.ndarray, "n cells"]
    colours: Float[np.ndarray, "n thrice"]


def near(sets: Sequence[Set]) -> list[Finding]:
    """A warning for each split that has pictures like some of training's, which are not the same bytes."""
    files = files_of(sets, "image")
    train = _chosen(files, [i for i, one in enumerate(sets) if one.split == TRAIN], MOST_TRAINED)
    if not len(train):
        return []
    findings, trained = list[Finding](), looks(sets, files, train)
    for split in dict.fromkeys(one.split for one in sets if one.split != TRAIN):
        own = _chosen(files, [i for i, one in enumerate(sets) if one.split == split], MOST_ASKED)
        if len(own):
            findings += _compare(sets, files, split, looks(sets, files, own), trained)
    if len(train) == MOST_TRAINED:
        told = f"near duplicates were looked for among {MOST_TRAINED:,} pictures of training, evenly spread"
        findings.append(finding("NOTE", "near_sampled", told, (), MOST_TRAINED))
    return findings


def _chosen(files: Files, owners: Sequence[int], most: int) -> Int[np.ndarray, " n"]:
    mine = np.flatnonzero(np.isin(files.owner, owners))
    return mine[np.array(spread(len(mine), most), np.int64)]


def _compare(sets: Sequence[Set], files: Files, split: str, own: Looks, trained: Looks) -> list[Finding]:
    best: dict[int, tuple[float, int]] = {}
    for a, b in candidates(own.hash, trained.hash):
        likeness = np.einsum("nc,nc->n", own.cells[a], trained.cells[b])
        coloured = np.einsum("nc,nc->n", own.colours[a], trained.colours[b])
        for i in np.flatnonzero((likeness >= ALIKE) & (coloured >= COLOURED)).tolist():
            best[int(a[i])] = max(best.get(int(a[i]), (0.0, 0)), (float(likeness[i]), int(b[i])))
    pairs = [
        (int(own.at[a]), int(trained.at[b]), likeness)
        for a, (likeness, b) in sorted(best.items())
        if own.digest[a] != trained.digest[b]  # equal bytes are told elsewhere
    ]
    return [_tell(sets, files, split, pairs)] if pairs else []


def _tell(sets: Sequence[Set], files: Files, split: str, pairs: Sequence[tuple[int, int, float]]) -> Finding:
    told = f"{plural(len(pairs), 'picture')} of {split} look{'s' if len(pairs) == 1 else ''} like one of training, "
    told += "perhaps encoded again or resized; compare them, and remove those that are the same"
    cases = [f"{name_of(sets, files, a)} ~ {name_of(sets, files, b)} ({like:.3f})" for a, b, like in pairs[:SHOWN]]
    shown = tuple(tuple(picture_uri(*picture_of(sets, files, at)) for at in pair[:2]) for pair in pairs[:SHOWN])
    return replace(finding("WARNING", "near_image", told, cases, len(pairs)), pictures=shown)


def looks(sets: Sequence[Set], files: Files, chosen: Int[np.ndarray, " m"]) -> Looks:
    """What cannot be decoded is left out here: decoding tells of it."""
    small, at, marks = list[UInt8[np.ndarray, "3 side side"]](), list[int](), list[int]()
    for place, data in zip(chosen.tolist(), contents(sets, Files(*(c[chosen] for c in files)), "image"), strict=True):
        try:
            tiny = picture(data, channels=3, height_px=SIDE, width_px=SIDE, exact=False).numpy()
        except BadSample:
            continue
        if tiny.std() >= FLAT:
            small.append(tiny)
            at.append(place)
            marks.append(digest(data))
    parts = [np.stack(small[first : first + TOGETHER]).astype(np.float32) for first in range(0, len(small), TOGETHER)]
    parts = parts or [np.zeros((0, 3, SIDE, SIDE), np.float32)]
    marked = np.array(at, np.int64), np.array(marks, np.uint64)
    greys = [np.einsum("nchw,c->nhw", part, LUMA) for part in parts]
    seen = [(difference_hash(grey), cells(grey[:, None]), cells(part)) for grey, part in zip(greys, parts, strict=True)]
    return Looks(*marked, *(np.concatenate(column) for column in zip(*seen, strict=True)))


def difference_hash(grey: Float[np.ndarray, "n side side"]) -> UInt64[np.ndarray, " n"]:
    """8 rows of 9 columns, each but the first compared with the one to its left."""
    rows = grey.reshape(len(grey), 8, SIDE // 8, SIDE).mean(2)
    edges = [column * SIDE // ACROSS for column in range(ACROSS + 1)]
    columns = np.stack([rows[:, :, a:b].mean(2) for a, b in pairwise(edges)], axis=2)
    bits = (columns[:, :, 1:] > columns[:, :, :-1]).reshape(len(grey), 64)
    return np.packbits(bits, axis=1).reshape(-1).view(np.uint64)


def cells(x: Float[np.ndarray, "n channels side side"]) -> Float[np.ndarray, "n cells"]:
    """Means of cells, without their mean, at length 1: brightness and contrast are gone, and colours stay."""
    fine = x.reshape(len(x), x.shape[1], FINE, SIDE // FINE, FINE, SIDE // FINE).mean((3, 5)).reshape(len(x), -1)
    fine = fine - fine.mean(1, keepdims=True)
    return fine / np.linalg.norm(fine, axis=1, keepdims=True).clip(1e-6)


def candidates(
    a: UInt64[np.ndarray, " n"], b: UInt64[np.ndarray, " m"], most: int = SEVEN
) -> Iterator[tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]]:
    """Places in `a` and in `b` of all pairs at most `most` < 8 bits apart, each pair once."""
    assert most < 8
    for byte in range(8):
        shift = np.uint64(8 * byte)
        of_a, of_b = (a >> shift) & np.uint64(255), (b >> shift) & np.uint64(255)
        for value in np.intersect1d(of_a, of_b):
            rows, columns = np.flatnonzero(of_a == value), np.flatnonzero(of_b == value)
            step = max(1, AT_ONCE // len(columns))
            for first in range(0, len(rows), step):
                part = rows[first : first + step]
                differ = a[part][:, None] ^ b[columns][None]
                i, j = np.nonzero(np.bitwise_count(differ) <= most)
                new = ~_equal_before(differ[i, j], byte)
                i, j = i[new], j[new]
                for start in range(0, len(i), PAIRS):
                    yield part[i[start : start + PAIRS]], columns[j[start : start + PAIRS]]


def _equal_before(differ: UInt64[np.ndarray, " n"], byte: int) -> Bool[np.ndarray, " n"]:
    """Whether one of the bytes before this one is equal too, so that the pair was met there."""
    bytes = differ.astype("<u8").view(np.uint8).reshape(-1, 8)
    return (bytes[:, :byte] == 0).any(axis=1)
