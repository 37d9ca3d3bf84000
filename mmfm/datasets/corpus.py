"""`corpus`: passages of English prose and verse, as shards of texts alone: the King James Bible of a package of Debian.

A passage is a few verses of one chapter. What is in one split is in no other: a chapter has one split, and a passage
half of whose runs of five words stood in one before it is left out, where "before" is test, then val, then train.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfm.data import index
from mmfm.data.writer import ShardWriter, as_json
from mmfm.datasets import debian
from mmfm.datasets.corpus_read import (
    COPYRIGHT,
    LONGEST,
    PACKAGE,
    SHORTEST,
    TEXT,
    Chapter,
    Passage,
    passages,
    read_chapters,
)
from mmfm.datasets.folder import PARTIAL, complete, prints
from mmfm.preprocessing.tokenizer import train_tokenizer
from mmfm.runtime.files import output_folder, replace_file

FORMAT = 1  # raised when the same package gives other bytes
SPLITS = ("test", "val", "train")  # in this order
TEST, VAL = 10, 15  # of 100
VOCABULARY, SHARD_SAMPLES = 2_048, 2_000
RUN, MOST_KNOWN = 5, 0.5  # words of a run; of a passage's runs, the part that may have stood before
WORD = re.compile(r"[a-z']+")


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


def build(folder: Path, *, deb: Path | None = None) -> None:
    """Write the data set into `folder`, which must be new or empty, or hold just this data set: then nothing is done.

    `deb` is the package; without it apt-get downloads it into FOLDER.deb, where it stays. UserError if that fails.
    """
    wanted = {"shortest": SHORTEST, "longest": LONGEST, "vocabulary": VOCABULARY, "format": FORMAT}
    if complete(folder, "corpus", wanted):
        print(f"{folder} is complete already; nothing to do")
        return
    package = deb or debian.fetch(PACKAGE, folder.resolve().with_name(f"{folder.resolve().name}.deb"))
    with output_folder(folder, PARTIAL) as partial:
        with debian.unpacked(PACKAGE, package, partial) as root:
            chapters = read_chapters(root / TEXT)
            licence = (root / COPYRIGHT).read_text(encoding="utf-8")
        made, origin = _write(partial, chapters), debian.origin(PACKAGE, package)
        replace_file(partial / "LICENSE", licence)
        replace_file(partial / "README.md", page(made, origin, licence))
        manifest = {"arguments": wanted, "package": {"name": PACKAGE.name, **origin}, **made.tree()}
        replace_file(partial / "corpus.json", as_json({**manifest, "files": prints(partial)}))
    print(f"{folder} is complete: {made.line()}")


def split_of(chapter: Chapter) -> str:
    """By the chapter's name alone."""
    number = int(hashlib.md5(chapter.name.encode(), usedforsecurity=False).hexdigest(), 16) % 100
    return "test" if number < TEST else "val" if number < VAL else "train"


def _write(folder: Path, chapters: Sequence[Chapter]) -> Made:
    """All splits, and the tokenizer of what train holds."""
    made, seen, texts = Made(), set[tuple[str, ...]](), list[str]()
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
            index.write_list(folder / split)
    replace_file(folder / "tokenizer.json", train_tokenizer(texts, VOCABULARY).to_json())
    return made


def _new(
    chapters: Sequence[Chapter], seen: set[tuple[str, ...]], left_out: Counter[str], split: str
) -> Iterator[Passage]:
    """The passages that did not stand before; what they say is seen from then on."""
    for passage in (passage for chapter in chapters for passage in passages(chapter)):
        runs = runs_of(passage.text)
        if runs and len(runs & seen) >= MOST_KNOWN * len(runs):
            left_out[split] += 1
            continue
        seen |= runs
        yield passage


def runs_of(text: str) -> set[tuple[str, ...]]:
    """Every five words that follow each other, without case and marks."""
    words = WORD.findall(text.lower())
    return {tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)}


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


def page(made: Made, origin: dict[str, str], licence: str) -> str:
    """The README."""
    columns = (made.chapters, made.passages, made.bytes, made.left_out)
    return README.format(
        name=PACKAGE.name,
        version=origin["version"],
        shortest=SHORTEST,
        longest=LONGEST,
        rows="\n".join(f"| {split} | {' | '.join(f'{c[split]:,}' for c in columns)} |" for split in reversed(SPLITS)),
        test=TEST,
        val_last=VAL - 1,
        vocabulary=VOCABULARY,
        licence=licence.strip(),
    )
