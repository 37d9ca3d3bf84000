"""`corpus`: passages of English prose and verse, as shards of texts alone: the King James Bible of a package of Debian.

A passage is a few verses of one chapter. What is in one split is in no other: a chapter has one split, and a passage
half of whose runs of five words stood in one before it is left out, where "before" is test, then val, then train.
"""

import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mmfm.config import UserError, require
from mmfm.data import shard_list
from mmfm.data.writer import ShardWriter, as_json
from mmfm.datasets import debian
from mmfm.datasets.debian import SPLITS
from mmfm.datasets.near_duplicates import Seen
from mmfm.preprocessing.tokenizer import train_tokenizer
from mmfm.runtime.files import replace_file

PACKAGE = debian.Package(name="bible-kjv-text", size_mb=3, data="usr/lib/bible.data")
FORMAT = 1  # raised when the same package gives other bytes
SHORTEST, LONGEST = 200, 600  # bytes of a passage
TEST, VAL = 10, 15  # of 100
VOCABULARY, SHARD_SAMPLES = 2_048, 2_000
MAGIC, COUNTS_AT = b"EC02", 84  # there: bytes of a window, number of windows, and where each of them begins and ends
MOST_WINDOWS = 1 << 12
COMPRESSED = b"\x1f\x9d"  # compress(1); its three bytes stand once, before the first window, and hold for all
VERSE = re.compile(r"([1-3]?[A-Za-z]+)(\d+):(\d+) (.*\S) *")
SENTENCE_ENDS = (".", "?", "!")


README = """\
# corpus

English text for models that read and write text alone: the King James Version of the Bible, from Debian's package
`{name}` {version}. WebDataset shards; a sample is a passage of {shortest} to {longest} bytes, a few verses of
one chapter, that ends with a sentence where there is one in time: `.txt`, and `.json` with its book, chapter, first and
last verse. A chapter shorter than that is one passage.

| split | chapters | passages | bytes | near duplicates left out |
|---|---|---|---|---|
{rows}

- The split is a function of the chapter's name ("Ge 1"): with n = int(md5(name), 16) % 100, it is test where
  n < {test}, val where n is {test} to {val_last}, and train else.
- Chronicles repeats Kings, a psalm another one: a passage is left out where half or more of its runs of five words
  (without case and marks) stood before, in test, then val, then train, in the order of the text.
- `tokenizer.json`: byte-level BPE of {vocabulary} ids, trained on train alone.
- `corpus.json`: the package's version and hash, these counts, and the size and hash of every file.

## Licence

The text is in the public domain: its copyright has expired, as the package's copyright file says (in the United Kingdom
the Crown's letters patent, which are no copyright, still rule its printing). That file, also in `LICENSE`:

```
{licence}
```
"""


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


@dataclass(kw_only=True)
class Made:
    """What was written, by split: chapters, passages, bytes and tokens of text; and what was left out."""

    chapters: Counter[str] = field(default_factory=Counter)
    passages: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def tree(self) -> dict[str, Any]:
        return {name: {split: count[split] for split in SPLITS} for name, count in vars(self).items()}

    def line(self) -> str:
        told = f"{sum(self.passages.values()):,} passages of {sum(self.chapters.values()):,} chapters"
        return f"{told}, {sum(self.bytes.values()):,} bytes; {sum(self.left_out.values()):,} near duplicates left out"

    def page(self, version: str, licence: str) -> str:
        """The README."""
        columns = (self.chapters, self.passages, self.bytes, self.left_out)
        return README.format(
            name=PACKAGE.name,
            version=version,
            shortest=SHORTEST,
            longest=LONGEST,
            rows="\n".join(f"| {name} | {' | '.join(f'{c[name]:,}' for c in columns)} |" for name in reversed(SPLITS)),
            test=TEST,
            val_last=VAL - 1,
            vocabulary=VOCABULARY,
            licence=licence,
        )


def build(folder: Path, *, deb: Path | None = None) -> None:
    """Write the data set into `folder`, by `debian.build`."""
    arguments = {"shortest": SHORTEST, "longest": LONGEST, "vocabulary": VOCABULARY, "format": FORMAT}
    debian.build(folder, "corpus", arguments, PACKAGE, deb, lambda out, data: _write(out, read_chapters(data)))


def split_of(chapter: Chapter) -> str:
    """By the chapter's name alone."""
    return debian.split_of(chapter.name, TEST, VAL)


def _write(folder: Path, chapters: Sequence[Chapter]) -> Made:
    """All splits, and the tokenizer of what train holds."""
    made, seen, texts = Made(), Seen(), list[str]()
    for split in SPLITS:
        mine = [chapter for chapter in chapters if split_of(chapter) == split]
        made.chapters[split] = len(mine)
        (folder / split).mkdir()
        with ShardWriter(folder / split, "text", samples=SHARD_SAMPLES) as writer:
            for passage in _new(mine, seen, made.left_out, split):
                book, number = passage.chapter.book, passage.chapter.number
                about = {"book": book, "chapter": number, "verses": [passage.first, passage.last]}
                writer.write(f"{book}-{number}-{passage.first}", {"txt": passage.text.encode(), "json": as_json(about)})
                made.passages[split] += 1
                made.bytes[split] += len(passage.text.encode())
                texts += [passage.text] if split == "train" else []
        if made.passages[split]:
            shard_list.write_list(folder / split)
    replace_file(folder / "tokenizer.json", train_tokenizer(texts, VOCABULARY).to_json())
    return made


def _new(chapters: Sequence[Chapter], seen: Seen, left_out: Counter[str], split: str) -> Iterator[Passage]:
    """The passages that did not stand before; what they say is seen from then on."""
    for passage in (passage for chapter in chapters for passage in passages(chapter)):
        if seen.is_new(passage.text):
            yield passage
        else:
            left_out[split] += 1


# The package's text


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
    return b"".join(debian.output(["gzip", "-dc"], path.parent, PACKAGE.remedy, given=window) for window in windows)


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
