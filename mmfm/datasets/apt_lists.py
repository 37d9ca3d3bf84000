"""What Debian says of its packages, from the lists that apt-get fetches: facts, and descriptions in several languages.

A description is a synopsis, and paragraphs below it. Translations name the English text that they are of by its md5, so
what stands beside each other here says the same.
"""

import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from mmfm.config import UserError, require
from mmfm.datasets import debian
from mmfm.datasets.debian import SPLITS

TEST, VAL = 10, 15  # of 100
REMEDY = "give a folder with apt's lists, such as Dir::State::lists of a Debian machine, as --lists FOLDER"
VERSION = re.compile(r"[-.]?\d+(?:\.\d+)*")
VERBATIM: Final = None  # in place of a paragraph: lines that are a list or a table
OPTIONS = ("Acquire::GzipIndexes=false", "APT::Update::Error-Mode=any")


class Package(NamedTuple):
    """A binary package; `texts` are its descriptions by language: a synopsis, and lines that `paragraphs` reads."""

    name: str
    source: str
    version: str
    section: str
    homepage: str
    texts: Mapping[str, str]

    @property
    def synopsis(self) -> str:
        return synopsis(self.texts["en"])


def synopsis(text: str) -> str:
    return " ".join(text.partition("\n")[0].split())


def paragraphs(text: str) -> list[str | None]:
    """Each paragraph as one line; VERBATIM for lines that are indented, which have an order of their own."""
    found: list[str | None] = []
    lines: list[str] = []
    for line in (*text.split("\n")[1:], "."):
        prose = line.strip() not in ("", ".") and not line[0].isspace()
        if prose:
            lines.append(line)
        elif lines:
            found.append(" ".join(" ".join(lines).split()))
            lines = []
        if not prose and line[:1].isspace() and line.strip() and found[-1:] != [VERBATIM]:
            found.append(VERBATIM)
    return found


def split_of(package: Package) -> str:
    """By its source package without numbers, so that gcc-11 and gcc-12, which say the same, are together."""
    return debian.split_of(VERSION.sub("", package.source) or package.source, TEST, VAL)


def by_split(packages: Sequence[Package]) -> Iterator[tuple[str, list[Package]]]:
    """The packages of test, of val and of train, each in the order of their names."""
    splits = [split_of(package) for package in packages]
    for split in SPLITS:
        yield split, [package for package, own in zip(packages, splits, strict=True) if own == split]


# apt's lists


def fetch_lists(cache: Path, languages: Sequence[str]) -> Path:
    """The folder of the lists in `cache`, where apt-get puts them unless they are there. What has its name is whole."""
    lists = cache / "-".join(("lists", *languages))
    if lists.is_dir():
        return lists
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as aside:
            print(f"fetching the lists of packages with apt-get, about 25 MB, into {cache}", flush=True)
            new = Path(aside) / "lists"
            for folder in ("lists/partial", "cache/archives/partial"):
                (Path(aside) / folder).mkdir(parents=True)
            where = (f"Dir::State::lists={new}", f"Dir::Cache={aside}/cache")
            options = (*where, f"Acquire::Languages={','.join(languages)}", *OPTIONS)
            words = ["apt-get", *(word for option in options for word in ("-o", option)), "update"]
            debian.output(words, aside, REMEDY, first="try again when the mirror answers, or ")
            read_lists(new, languages)
            return new.rename(lists)
    except OSError as why:
        told = f"cannot write {cache}: {why.strerror or why}; make room there, or {REMEDY}"
        raise UserError(told) from why


def read_lists(folder: Path, languages: Sequence[str]) -> list[Package]:
    """All packages that have an English description, by name. Of one in several lists, the first list counts."""
    require("en" in languages, f"languages {', '.join(languages)} lack en, which the others are translated from")
    texts = {language: _translations(folder, language) for language in languages}
    found: dict[str, Package] = {}
    for stanza in _stanzas(folder, "_Packages"):
        name, digest = stanza.get("Package", ""), stanza.get("Description-md5", "")
        own = {language: texts[language][digest] for language in languages if digest in texts[language]}
        if name and name not in found and "en" in own:
            source = stanza.get("Source", name).partition(" ")[0]
            version, section, homepage = (stanza.get(field, "") for field in ("Version", "Section", "Homepage"))
            found[name] = Package(name, source, version, section, homepage, own)
    require(bool(found), f"{folder} describes no package; {REMEDY}")
    return [found[name] for name in sorted(found)]


def hashes(folder: Path) -> dict[str, str]:
    """The hash of every list that is read, by its name."""
    files = [*folder.glob("*_Packages"), *folder.glob("*_Translation-*")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def _translations(folder: Path, language: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for stanza in _stanzas(folder, f"_Translation-{language}"):
        text = stanza.get(f"Description-{language}", "").strip()
        if text:
            found.setdefault(stanza.get("Description-md5", ""), text)
    return found


def _stanzas(folder: Path, ending: str) -> Iterator[dict[str, str]]:
    """The fields of each stanza of all lists with this ending; further lines of a field without their first space."""
    files = sorted(folder.glob(f"*{ending}"))
    require(bool(files), f"{folder} has no list that ends with {ending}; {REMEDY}")
    for file in files:
        fields: dict[str, str] = {}
        last = ""
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
            if line[:1] in (" ", "\t"):
                fields[last] = f"{fields.get(last, '')}\n{line[1:]}"
            elif line.strip():
                last, _, value = line.partition(":")
                fields[last] = value.strip()
            elif fields:
                yield fields
                fields = {}
        if fields:
            yield fields
