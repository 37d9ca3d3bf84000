"""`descriptions`: to sum up and to translate, from what Debian says of its packages.

Of each package: its first paragraph, to be summed up as its synopsis (`kind` "synopsis"), and its synopsis and its
paragraphs, to be translated from English ("en>fr", "en>fr paragraph"). A sample is a conversation of one turn; the same
.json has "question" and "answer" for the task text>text, and "text", the English alone, which is what copying would
write. No text of one split is in another one.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmfm.config import require
from mmfm.data import shard_list
from mmfm.data.writer import ShardWriter, as_json
from mmfm.datasets import apt_lists
from mmfm.datasets.apt_lists import TEST, VAL, VERBATIM, Package, paragraphs, synopsis
from mmfm.datasets.debian import SPLITS
from mmfm.datasets.folder import build_folder
from mmfm.datasets.near_duplicates import Seen
from mmfm.runtime.files import replace_file

FORMAT, SHARD_SAMPLES = 1, 5_000
LANGUAGES = {"fr": "French", "de": "German", "it": "Italian", "da": "Danish", "es": "Spanish", "ja": "Japanese",
             "pl": "Polish", "pt_BR": "Brazilian Portuguese", "ru": "Russian", "uk": "Ukrainian"}  # fmt: skip
SUM_UP = (80, 420)  # characters of a paragraph that is summed up
TRANSLATED = (20, 420)  # and of one that is translated

# The last wording of each is in test alone.
SYNOPSIS_ASKED = (
    "Summarise this description of a software package in a few words.\n\n{text}",
    "{text}\n\nWhat is this, in one short phrase?",
    "Write the one-line synopsis of this package.\n\n{text}",
    "Give a short title for the following text.\n\n{text}",
)
TRANSLATION_ASKED = (
    "Translate into {language}: {text}",
    "{text}\n\nSay this in {language}.",
    "What is the following in {language}?\n\n{text}",
    "Please put this English text into {language}.\n\n{text}",
)

README = """\
# descriptions

To sum up and to translate: what Debian says of its packages, as conversations. WebDataset shards; a sample is a `.json`
with "messages" (an instruction with the text; the answer), its "kind", "question" and "answer" (the same two as texts),
"text" (the English alone), "wording" (the number of the instruction), "package" and "source".

| kind | train | val | test |
|---|---|---|---|
{rows}

- "synopsis": a first paragraph of {sum_up} characters, and the synopsis. "en>fr" and the like: a synopsis and its
  translation; "en>fr paragraph": a paragraph of {translated} characters, where both descriptions have as many.
- A split is a function of the source package's name without its numbers: with n = int(md5(name), 16) % 100, it is test
  where n < {test}, val where n is {test} to {val_last}, and train else. No English text and no answer of a split is in
  another.
- The last of the {wordings} wordings of each instruction is in test alone.
- `descriptions.json`: hashes of the lists, these counts, and the size and hash of every file.

Left out: {left_out}.

## Licence

Debian's descriptions are free text of its packages, each under its package's own licence; each sample names its
package as credit. There is no licence for them all together: make them with this command rather than pass them on.
"""


class Pair(NamedTuple):
    """English text, and its answer."""

    kind: str
    text: str
    answer: str
    package: Package


@dataclass(kw_only=True)
class Made:
    """Samples by (split, kind), and what was left out, by why."""

    samples: Counter[tuple[str, str]] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def rows(self) -> list[str]:
        kinds = sorted({kind for _, kind in self.samples}, key=lambda kind: (kind != "synopsis", kind))
        counts = {kind: [f"{self.samples[split, kind]:,}" for split in reversed(SPLITS)] for kind in kinds}
        return [f"| {kind} | {' | '.join(counts[kind])} |" for kind in kinds]

    def left(self) -> str:
        return ", ".join(f"{count:,} {why}" for why, count in sorted(self.left_out.items())) or "nothing"

    def tree(self) -> dict[str, Any]:
        samples: dict[str, dict[str, int]] = defaultdict(dict)
        for (split, kind), count in sorted(self.samples.items()):
            samples[split][kind] = count
        return {"samples": samples, "left_out": dict(sorted(self.left_out.items()))}

    def line(self) -> str:
        kinds: Counter[str] = Counter()
        for (_, kind), count in self.samples.items():
            kinds[kind] += count
        return f"{', '.join(f'{count:,} {kind}' for kind, count in sorted(kinds.items()))}; left out: {self.left()}"


def build(folder: Path, *, languages: Sequence[str] = ("fr", "de", "it"), lists: Path | None = None) -> None:
    """Write the data set into `folder`. `lists`: a folder of apt's lists; without it apt-get fetches them into
    FOLDER.lists, where they stay."""
    unknown = [name for name in languages if name not in LANGUAGES]
    told = f"--languages {', '.join(unknown)}: there are {', '.join(LANGUAGES)}"
    require(not unknown, f"{told}; name some of these")

    def write(partial: Path) -> tuple[dict[str, Any], str]:
        wanted = ("en", *languages)
        place = lists or apt_lists.fetch_lists(folder.resolve().with_name(f"{folder.resolve().name}.lists"), wanted)
        made = _write(partial, apt_lists.read_lists(place, wanted), languages)
        require(bool(made.samples), f"{place} gives no pair of texts; {apt_lists.REMEDY}")
        replace_file(partial / "README.md", _page(made))
        return {"lists": apt_lists.hashes(place), **made.tree()}, made.line()

    build_folder(folder, "descriptions", {"languages": list(languages), "format": FORMAT}, write)


def _page(made: Made) -> str:
    return README.format(
        rows="\n".join(made.rows()),
        sum_up=" to ".join(map(str, SUM_UP)),
        translated=" to ".join(map(str, TRANSLATED)),
        test=TEST,
        val_last=VAL - 1,
        wordings=len(SYNOPSIS_ASKED),
        left_out=made.left(),
    )


def _write(folder: Path, packages: Sequence[Package], languages: Sequence[str]) -> Made:
    """Test first: what it says is left out of val and train."""
    made, texts = Made(), Texts()
    for split, own in apt_lists.by_split(packages):
        pairs: dict[str, list[Pair]] = defaultdict(list)
        for pair in (pair for package in own for pair in pairs_of(package, languages)):
            why = texts.refused(pair, split)
            made.left_out.update([why] if why else [])
            pairs[pair.kind] += [] if why else [pair]
        (folder / split).mkdir()
        for kind, found in pairs.items():
            slug = re.sub(r"[^a-z]+", "-", kind.lower())
            with ShardWriter(folder / split, slug, samples=SHARD_SAMPLES) as writer:
                for number, pair in enumerate(found):
                    writer.write(f"{slug}-{number:06d}", {"json": as_json(sample(pair, split))})
            made.samples[split, kind] = len(found)
        if any(pairs.values()):
            shard_list.write_list(folder / split)
    return made


class Texts:
    """What was written so far: which split has a text, and what says the same again."""

    def __init__(self) -> None:
        self._home: dict[str, str] = {}
        self._asked: set[tuple[str, str]] = set()
        self._seen: defaultdict[str, Seen] = defaultdict(Seen)

    def refused(self, pair: Pair, split: str) -> str:
        """Why the pair is left out; "" for one that is taken."""
        text, answer = _plain(pair.text), _plain(pair.answer)
        if text == answer:
            return "with an answer that is the text"
        if any(self._home.get(one, split) != split for one in (text, answer)):
            return "in another split"
        if (pair.kind, text) in self._asked:
            return "repeated"
        if not self._seen[pair.kind].is_new(pair.text):
            return "nearly repeated"
        self._asked.add((pair.kind, text))
        self._home.update({text: split, answer: split})
        return ""


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def pairs_of(package: Package, languages: Sequence[str]) -> Iterator[Pair]:
    """All that this package can ask."""
    english = paragraphs(package.texts["en"])
    first = english[0] if english else VERBATIM
    if first is not None and SUM_UP[0] <= len(first) <= SUM_UP[1]:
        yield Pair("synopsis", first, package.synopsis, package)
    for language in languages:
        if language in package.texts:
            yield from _translations(package, english, language)


def _translations(package: Package, english: Sequence[str | None], language: str) -> Iterator[Pair]:
    text = package.texts[language]
    yield Pair(f"en>{language}", package.synopsis, synopsis(text), package)
    theirs = paragraphs(text)
    if [one is VERBATIM for one in english] != [one is VERBATIM for one in theirs]:
        return
    for own, other in zip(english, theirs, strict=True):
        if own is not None and other is not None and TRANSLATED[0] <= len(own) <= TRANSLATED[1]:
            yield Pair(f"en>{language} paragraph", own, other, package)


def sample(pair: Pair, split: str) -> dict[str, Any]:
    """The .json of a pair; which wording it has follows from its text."""
    asked = SYNOPSIS_ASKED if pair.kind == "synopsis" else TRANSLATION_ASKED
    wordings = len(asked) if split == "test" else len(asked) - 1
    digest = hashlib.md5(f"{pair.kind} {pair.text}".encode(), usedforsecurity=False).hexdigest()
    number = int(digest, 16) % wordings
    language = LANGUAGES.get(pair.kind.removeprefix("en>").removesuffix(" paragraph"), "")
    question = asked[number].format(text=pair.text, language=language)
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": pair.answer}]
    about = {"wording": number, "package": pair.package.name, "source": pair.package.source}
    return {
        "messages": turns,
        "kind": pair.kind,
        "question": question,
        "answer": pair.answer,
        "text": pair.text,
        **about,
    }
