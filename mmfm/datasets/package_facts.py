"""`packages`: records of Debian's packages, and questions that one of them answers, for answers with retrieval.

`records` holds a text for each package. Of each split, `closed` shards ask without a record, and `open` ones ask the
same with one to three records before the question, the right one among them. A question's .json names the right record
by its key as "document".
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmfm.config import require
from mmfm.data import shard_list
from mmfm.data.writer import ShardWriter, as_json
from mmfm.datasets import apt_lists
from mmfm.datasets.apt_lists import TEST, VAL, Package, paragraphs, split_of
from mmfm.datasets.debian import SPLITS
from mmfm.datasets.folder import build_folder
from mmfm.runtime.files import replace_file

FORMAT, SHARD_SAMPLES = 1, 5_000
MOST_RECORDS = 3  # before a question
LONGEST = 300  # characters of a record's description

# The last wording of each is in test alone. "{synopsis}" is asked where one record alone has it.
ASKED: dict[str, tuple[str, ...]] = {
    "section": (
        "In which section of Debian is the package {name}?",
        "Which section does {name} belong to?",
        "What is the section of the Debian package {name}?",
    ),
    "version": (
        "Which version of {name} is in Debian?",
        "What is the version of the package {name}?",
        "{name}: which version is it?",
    ),
    "homepage": (
        "What is the homepage of the package {name}?",
        "Where is the website of {name}?",
        "At which address is the home page of {name}?",
    ),
    "name": (
        "Which package is described as: {synopsis}?",
        "What is the name of the package for this: {synopsis}?",
        "Name the package that is said to be: {synopsis}.",
    ),
}

README = """\
# packages

Records of packages, and questions that one record answers, for answers with retrieval. WebDataset shards of `.json`
alone. `records`: "text", "title" and "source" of {records:,} packages, one of each source package.

| questions | train | val | test |
|---|---|---|---|
{rows}

- A question has "messages" (the question; the answer), "kind", "answers", "question" and "answer" (as texts),
  "document" (the key of the right record) and "wording". `closed-*.tar` ask it alone. `open-*.tar` ask the same behind
  one to {most} records, in a random order, with an empty line after each.
- Splits are those of `mmfm data descriptions`: by source package, test where int(md5(name), 16) % 100 < {test}, val
  where below {val}, train else. Records are of all splits, as a library is, and may stand before a question of another
  split; what is asked of a package of test is asked in no other split.
- The last of the wordings of each kind is in test alone.

These are facts; the descriptions in the records are each under its package's own licence, and name their package.
"""


class Record(NamedTuple):
    """What is known of a package."""

    key: str
    package: Package

    @property
    def text(self) -> str:
        about = self.package
        first = next((one for one in paragraphs(about.texts["en"]) if one), "")
        facts = {"Package": about.name, "Version": about.version, "Section": about.section, "Homepage": about.homepage}
        lines = [f"{name}: {value}" for name, value in facts.items() if value]
        return "\n".join((*lines, f"Description: {about.synopsis}", first[:LONGEST])).strip()


class Question(NamedTuple):
    kind: str
    text: str
    answer: str
    wording: int
    record: Record


def build(folder: Path, *, packages: int = 5_000, lists: Path | None = None) -> None:
    """Write records and questions of so many packages into `folder`. `lists`: a folder of apt's lists; without it
    apt-get fetches them into FOLDER.lists, where they stay."""
    require(packages > MOST_RECORDS, f"--packages {packages} must be more than {MOST_RECORDS}, to choose records from")

    def write(partial: Path) -> tuple[dict[str, Any], str]:
        place = lists or apt_lists.fetch_lists(folder.resolve().with_name(f"{folder.resolve().name}.lists"), ("en",))
        records = chosen(apt_lists.read_lists(place, ("en",)), packages)
        told = f"{place} has {len(records)} source packages; ask for fewer packages, or {apt_lists.REMEDY}"
        require(len(records) > MOST_RECORDS, told)
        counts = _write(partial, records)
        replace_file(partial / "README.md", _page(len(records), counts))
        tree = {split: {kind: counts[split, kind] for kind in ASKED} for split in reversed(SPLITS)}
        line = f"{len(records):,} records, {sum(counts.values()):,} questions"
        return {"lists": apt_lists.hashes(place), "records": len(records), "questions": tree}, line

    build_folder(folder, "packages", {"packages": packages, "format": FORMAT}, write)


def chosen(packages: Sequence[Package], count: int) -> list[Record]:
    """One package of each source, that of its name where there is one; `count` of them in an order by hash."""
    of_source: dict[str, Package] = {}
    for package in packages:
        if package.source not in of_source or package.name == package.source:
            of_source[package.source] = package
    drawn = sorted(of_source.values(), key=lambda package: _number(package.name))[:count]
    return [Record(re.sub(r"[./]", "_", package.name), package) for package in sorted(drawn)]


def questions(record: Record, once: Counter[str], split: str) -> Iterator[Question]:
    """All that is asked of a record; `once`: how many records have a synopsis."""
    about = record.package
    facts: Mapping[str, str] = {
        "section": about.section.rpartition("/")[2],
        "version": about.version,
        "homepage": about.homepage,
        "name": about.name if once[about.synopsis.casefold()] == 1 else "",
    }
    for kind, answer in facts.items():
        if answer:
            wordings = len(ASKED[kind]) if split == "test" else len(ASKED[kind]) - 1
            number = _number(f"{kind} {about.name}") % wordings
            text = ASKED[kind][number].format(name=about.name, synopsis=about.synopsis)
            yield Question(kind, text, answer, number, record)


def _write(folder: Path, records: Sequence[Record]) -> Counter[tuple[str, str]]:
    once = Counter(record.package.synopsis.casefold() for record in records)
    counts: Counter[tuple[str, str]] = Counter()
    (folder / "records").mkdir()
    with ShardWriter(folder / "records", "record", samples=SHARD_SAMPLES) as writer:
        for record in records:
            about = {"text": record.text, "title": record.package.name, "source": record.package.source}
            writer.write(record.key, {"json": as_json(about)})
    shard_list.write_list(folder / "records")
    for split in SPLITS:
        own = [record for record in records if split_of(record.package) == split]
        asked = [one for record in own for one in questions(record, once, split)]
        counts.update((split, one.kind) for one in asked)
        (folder / split).mkdir()
        if asked:
            _write_questions(folder / split, asked, records)
    return counts


def _write_questions(folder: Path, asked: Sequence[Question], records: Sequence[Record]) -> None:
    for name in ("closed", "open"):
        with ShardWriter(folder, name, samples=SHARD_SAMPLES) as writer:
            for one in asked:
                texts = [*behind(one, records), one.text] if name == "open" else [one.text]
                writer.write(f"{name}-{one.kind}-{one.record.key}", {"json": as_json(sample(one, texts))})
    shard_list.write_list(folder)


def behind(question: Question, records: Sequence[Record]) -> list[str]:
    """One to MOST_RECORDS texts, the right one among them, as the hash of the question draws them."""
    number = _number(question.text)
    others = [records[(number // 7**at) % len(records)] for at in range(1, MOST_RECORDS)][: number % MOST_RECORDS]
    texts = [record.text for record in others if record.key != question.record.key]
    texts.insert(number // MOST_RECORDS % (len(texts) + 1), question.record.text)
    return texts


def sample(question: Question, texts: Sequence[str]) -> dict[str, Any]:
    """The .json of a question behind these texts."""
    asked = "\n\n".join(texts)
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": question.answer}]
    about = {"document": question.record.key, "wording": question.wording}
    right = dict.fromkeys((question.answer, question.answer.removesuffix("/")))  # an address is one with and without
    answers = {"answers": list(right), "question": asked, "answer": question.answer}
    return {"messages": turns, "kind": question.kind, **answers, **about}


def _number(text: str) -> int:
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), 16)


def _page(records: int, counts: Counter[tuple[str, str]]) -> str:
    rows = [f"| {kind} | {' | '.join(f'{counts[split, kind]:,}' for split in reversed(SPLITS))} |" for kind in ASKED]
    return README.format(records=records, rows="\n".join(rows), most=MOST_RECORDS, test=TEST, val=VAL)
