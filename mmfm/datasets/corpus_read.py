"""The King James Bible as Debian's bible-kjv-text packs it: compressed windows, verses, passages of a chapter."""

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from mmfm.config import UserError, require
from mmfm.datasets.debian import Package, output

TEXT, COPYRIGHT = "usr/lib/bible.data", "usr/share/doc/bible-kjv-text/copyright"
PACKAGE = Package(name="bible-kjv-text", size_mb=3, holds=(TEXT, COPYRIGHT))

MAGIC, COUNTS_AT = b"EC02", 84  # there: bytes of a window, number of windows, and where each of them begins and ends
MOST_WINDOWS = 1 << 12
COMPRESSED = b"\x1f\x9d"  # compress(1); its three bytes stand once, before the first window, and hold for all
VERSE = re.compile(r"([1-3]?[A-Za-z]+)(\d+):(\d+) (.*\S) *")
SHORTEST, LONGEST = 200, 600  # bytes of a passage
SENTENCE_ENDS = (".", "?", "!")


class Chapter(NamedTuple):
    """A chapter of a book, as in "Ge 1", and its verses by number."""

    book: str
    number: int
    verses: dict[int, str]

    @property
    def name(self) -> str:
        return f"{self.book} {self.number}"


class Passage(NamedTuple):
    chapter: Chapter
    first: int
    last: int
    text: str


def read_chapters(path: Path) -> list[Chapter]:
    """All chapters in the order of the text. Raises UserError where the file is not what this reads."""
    lines = decompressed(path).decode("utf-8", "replace").splitlines()
    found: dict[tuple[str, int], Chapter] = {}
    for line in lines[1:]:  # the first one is the edition
        match = VERSE.fullmatch(line)
        if match is None:
            raise UserError(f"{path}: {line[:60]!r} is no verse, such as 'Ge1:1 In the beginning'; {PACKAGE.remedy}")
        book, chapter, verse = match[1], int(match[2]), int(match[3])
        verses = found.setdefault((book, chapter), Chapter(book, chapter, {})).verses
        require(verse not in verses, f"{path}: {book} {chapter}:{verse} comes twice; {PACKAGE.remedy}")
        verses[verse] = match[4]
    require(bool(found), f"{path} holds no verses; {PACKAGE.remedy}")
    return list(found.values())


def decompressed(path: Path) -> bytes:
    """The whole text; `gzip` knows the format of each window."""
    data = path.read_bytes()
    windows = list(_windows(data, path))
    return b"".join(output(["gzip", "-dc"], path.parent, PACKAGE.remedy, given=window) for window in windows)


def _windows(data: bytes, path: Path) -> Iterator[bytes]:
    """Each compressed window, as a file of its own."""
    told = f"{path} is no text that this version reads; {PACKAGE.remedy}"
    require(data.startswith(MAGIC) and len(data) > COUNTS_AT + 12, told)
    _, count = struct.unpack_from(">2I", data, COUNTS_AT)
    table = COUNTS_AT + 8
    require(0 < count <= MOST_WINDOWS and table + 4 * (count + 1) <= len(data), told)
    ends = struct.unpack_from(f">{count + 1}I", data, table)
    head = data[ends[0] - 3 : ends[0]]
    require(list(ends) == sorted(ends) and ends[-1] == len(data) and head.startswith(COMPRESSED), told)
    yield from (head + data[start:stop] for start, stop in pairwise(ends))


def passages(chapter: Chapter) -> Iterator[Passage]:
    """Runs of verses of SHORTEST to LONGEST bytes, each ended by the end of a sentence where there is one in time.

    A chapter that is shorter than SHORTEST is one passage; what is left at a chapter's end goes to the passage before,
    or where that would be too long, the two are cut anew in the middle.
    """
    numbers = list(chapter.verses)
    runs = _joined_tail(list(_runs(chapter.verses, numbers)), chapter.verses)
    for run in runs:
        yield Passage(chapter, run[0], run[-1], _text(chapter.verses, run))


def _runs(verses: Mapping[int, str], numbers: Sequence[int]) -> Iterator[list[int]]:
    run: list[int] = []
    for number in numbers:
        if run and _size(verses, [*run, number]) > LONGEST:
            yield run
            run = []
        run = [*run, number]
        if _size(verses, run) >= SHORTEST and verses[number].endswith(SENTENCE_ENDS):
            yield run
            run = []
    if run:
        yield run


def _joined_tail(runs: list[list[int]], verses: Mapping[int, str]) -> list[list[int]]:
    if len(runs) < 2 or _size(verses, runs[-1]) >= SHORTEST:
        return runs
    *before, last, tail = runs
    both = [*last, *tail]
    if _size(verses, both) <= LONGEST:
        return [*before, both]
    cut = min(range(1, len(both)), key=lambda at: abs(_size(verses, both[:at]) - _size(verses, both[at:])))
    return [*before, both[:cut], both[cut:]]


def _text(verses: Mapping[int, str], run: Sequence[int]) -> str:
    return " ".join(verses[number] for number in run)


def _size(verses: Mapping[int, str], run: Sequence[int]) -> int:
    return len(_text(verses, run).encode())
