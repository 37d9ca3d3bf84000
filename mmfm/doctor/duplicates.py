"""The same picture or sound twice, byte for byte; captions that splits share, which is normal for names of classes.

Equal files have equal sizes, which the indexes know: only those of a size that occurs again are read and hashed.
Digests have 64 bits: that any two among ten million different files are taken for equal has a chance of 1 in 370,000.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt64

from mmfm.config import MODALITIES
from mmfm.data.decode import text_hash
from mmfm.data.index import EXTENSIONS, MODALITY, modality_of, numbered
from mmfm.doctor.findings import Finding, finding, plural
from mmfm.doctor.scan import ScanStats
from mmfm.doctor.shard_integrity import TRAIN, Proven, Set, index_of

MOST_CASES = 50  # of a kind, whose names are kept
THINGS = {"image": "picture", "audio": "sound"}


class Files(NamedTuple):
    """All pictures or sounds of all sets, in order; `number` counts the samples of a set, tar by tar; `part` stands for
    the extension, as a document has several pictures (`code_of`)."""

    owner: Int[np.ndarray, " n"]  # the set
    number: Int[np.ndarray, " n"]
    size: Int[np.ndarray, " n"]
    part: Int[np.ndarray, " n"]


def code_of(extension: str) -> int:
    """A number for "png" and for "2.png"."""
    number, plain = numbered(extension)
    return (1 + number) * len(EXTENSIONS) + EXTENSIONS.index(plain)


def extension_of(code: int) -> str:
    """The inverse."""
    number, place = divmod(code, len(EXTENSIONS))
    return f"{number - 1}.{EXTENSIONS[place]}" if number else EXTENSIONS[place]


def files_of(sets: Sequence[Set], kind: str) -> Files:
    """Those that hold anything; of a tar that two sources of one split name, once."""
    met = set[tuple[str, Path]]()
    columns = list[Files]()
    for owner, one in enumerate(sets):
        first = 0
        for tar in one.tars:
            if (name := (one.split, tar.path.resolve())) in met:
                first += tar.samples
                continue
            met.add(name)
            lies = index_of(tar)
            names = [name for name in lies.size if modality_of(name) == kind]
            sizes = np.array([lies.size[name] for name in names], np.int64).reshape(len(names), len(lies))
            places, which = np.nonzero(sizes.T > 0)
            codes = np.array([code_of(name) for name in names], np.int64)[which]
            columns.append(Files(np.full(len(places), owner), first + places, sizes.T[places, which], codes))
            first += tar.samples
    empty = Files(*(np.zeros(0, np.int64),) * 4)
    return Files(*(np.concatenate(parts) for parts in zip(*(columns or [empty]), strict=True)))


def of_repeated_size(files: Files) -> Files:
    _, which, counts = np.unique(files.size, return_inverse=True, return_counts=True)
    return Files(*(column[counts[which] > 1] for column in files))


def contents(sets: Sequence[Set], files: Files, kind: str) -> Iterator[bytes]:
    """The bytes of each of the files, in their order."""
    wanted = tuple(name for name, modality in MODALITY.items() if modality == kind)
    for owner, one in enumerate(sets):
        mine = files.owner == owner
        shards, numbers = Proven(one.tars), zip(files.number[mine].tolist(), files.part[mine].tolist(), strict=True)
        for number, parts in groupby(numbers, key=itemgetter(0)):
            held = shards.read(number, wanted).parts
            yield from (held[extension_of(part)] for _, part in parts)


def picture_of(sets: Sequence[Set], files: Files, at: int) -> tuple[str, bytes]:
    """Plain extension and bytes of one of the pictures."""
    name = extension_of(int(files.part[at]))
    plain = numbered(name)[1] if numbered(name)[0] >= 0 else name
    return plain, Proven(sets[files.owner[at]].tars).read(int(files.number[at]), (plain,)).parts[name]


def digests(sets: Sequence[Set], files: Files, kind: str) -> UInt64[np.ndarray, " n"]:
    return np.fromiter(map(digest, contents(sets, files, kind)), np.uint64, len(files.size))


def digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def name_of(sets: Sequence[Set], files: Files, at: int) -> str:
    """Shard and key; of a document with the number of the part."""
    counted, _ = numbered(extension_of(int(files.part[at])))
    where = Proven(sets[files.owner[at]].tars).where(int(files.number[at]))
    return where if counted < 0 else f"{where}.{counted}"


def exact(sets: Sequence[Set], kind: str) -> list[Finding]:
    """Leaks from training into a score are errors; what two scores share, a warning; within a split, a note."""
    files = of_repeated_size(files_of(sets, kind))
    marks = digests(sets, files, kind)
    order = np.argsort(marks, kind="stable")
    cuts = np.flatnonzero(np.diff(marks[order])) + 1
    pairs: dict[tuple[str, str], list[tuple[int, int]]] = {}  # of splits: a member, and another that it equals
    for group in np.split(order, cuts):
        if len(group) > 1:
            _pair_up(sets, files, group.tolist(), pairs)
    return [_tell(sets, files, kind, *splits, found) for splits, found in sorted(pairs.items())]


def _pair_up(sets: Sequence[Set], files: Files, group: list[int], pairs: dict) -> None:
    """Each member of a split with the first one of each split before it, and with the first of its own."""
    by_split: dict[str, list[int]] = {}
    for at in sorted(group):
        by_split.setdefault(sets[files.owner[at]].split, []).append(at)
    splits = list(by_split)
    for i, later in enumerate(splits):
        first, *rest = by_split[later]
        if rest:
            pairs.setdefault((later, later), []).extend((at, first) for at in rest)
        for earlier in splits[:i]:
            pairs.setdefault((earlier, later), []).extend((at, by_split[earlier][0]) for at in by_split[later])


def _tell(
    sets: Sequence[Set], files: Files, kind: str, earlier: str, later: str, found: Sequence[tuple[int, int]]
) -> Finding:
    thing, count = THINGS[kind], len(found)
    cases = [f"{name_of(sets, files, a)} = {name_of(sets, files, b)}" for a, b in sorted(found)[:MOST_CASES]]
    if earlier == later:
        told = f"{plural(count, thing)} of {later} occur{'s' if count == 1 else ''} there before, byte for byte"
        return finding("NOTE", f"repeated_{kind}", told, cases, count)
    told = f"{plural(count, thing)} of {later} lie{'s' if count == 1 else ''} in {earlier} too, byte for byte"
    if earlier == TRAIN:
        told += ": its scores would be too good; remove them from one"
        return finding("ERROR", f"leak_{kind}", told, cases, count)
    return finding("WARNING", f"shared_{kind}", f"{told}: their scores are not independent", cases, count)


def captions(sets: Sequence[Set], swept: Sequence[ScanStats]) -> list[Finding]:
    """How many different texts of a split training has too: as they are, and but for case, accents' form and marks."""
    train = _texts(sets, swept, TRAIN)
    plain_train = {plain_hash(text) for text in _spelled(sets, swept, TRAIN)}
    findings = []
    for split in dict.fromkeys(one.split for one in sets if one.split != TRAIN):
        own = _texts(sets, swept, split)
        shared = own.keys() & train.keys()
        alike = [
            text
            for text in _spelled(sets, swept, split)
            if text_hash(text) not in train and plain_hash(text) in plain_train
        ]
        if shared:
            told = f"{len(shared):,} of {plural(len(own), 'different text')} of {split} are texts of training too, as "
            told += "names of classes are; if they should be new, remove them"
            findings.append(finding("NOTE", "shared_captions", told, [own[mark] for mark in sorted(shared)]))
        if alike:
            differ = "differs" if len(alike) == 1 else "differ"
            told = f"{plural(len(alike), 'text')} of {split} {differ} from texts of training in case or marks alone"
            findings.append(finding("NOTE", "near_captions", told, sorted(alike)))
    return findings


def text_leaks(sets: Sequence[Set], swept: Sequence[ScanStats]) -> list[Finding]:
    """Texts alone in a sample, as of a language model's shards: there the text is all that could leak."""
    only = [i for i, one in enumerate(sets) if not any(swept[i].have[name] for name in MODALITIES if name != "text")]
    train = {mark for i in only if sets[i].split == TRAIN for mark in swept[i].hashes}
    findings = []
    for i in only:
        if sets[i].split != TRAIN and (shared := swept[i].hashes.keys() & train):
            told = f"{len(shared):,} of {plural(len(swept[i].hashes), 'different text')} of {sets[i].label}, whose "
            told += "samples are text alone, lie in training too; remove them if they should be new"
            cases = [swept[i].hashes[mark] for mark in sorted(shared)]
            findings.append(finding("WARNING", "leak_text", told, cases))
    return findings


def _texts(sets: Sequence[Set], swept: Sequence[ScanStats], split: str) -> dict[int, str]:
    """Hash of each different text -> the first sample that has it."""
    found: dict[int, str] = {}
    for one, each in zip(sets, swept, strict=True):
        if one.split == split:
            found = {**each.hashes, **found}
    return found


def _spelled(sets: Sequence[Set], swept: Sequence[ScanStats], split: str) -> set[str]:
    return {text for one, each in zip(sets, swept, strict=True) if one.split == split for text in each.texts}


def plain_hash(text: str) -> int:
    return text_hash(plain(text))


def plain(text: str) -> str:
    """Letters and digits of any script, folded (Unicode NFKC and case), single spaces between words."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in folded)
    return " ".join(kept.split())
