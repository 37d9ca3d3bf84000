"""What the name of a tar's member says: whose sample it is of, and what. And which of a sample's members are read.

By WebDataset's rule a key ends at the first dot. Parts of a document are counted ("k.2.png"); other people's fields
have names ("k.input.jpg"): one of them is the sample's picture, sound or text where nothing else is. Where there are
several, none is guessed: `EvalConfig` says which, and an index keeps it. Standard library only.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from mmfm.config.modalities import CODES as CODES
from mmfm.config.modalities import EXTENSIONS as EXTENSIONS
from mmfm.config.modalities import FILES as MODALITY

MOST_PARTS = 1_000  # of a document


class Several(Exception):
    """Two parts of one kind, of which an index could not say which is meant."""


@dataclass(frozen=True, kw_only=True)
class How:
    """How names are read. `parts`: of the kinds of these extensions only these. `last_dot`: there the key ends."""

    parts: tuple[str, ...] = ()
    last_dot: bool = False

    def tree(self) -> dict[str, Any]:
        """As JSON; nothing where it is the usual way."""
        return {"read": {"parts": list(self.parts), "last_dot": self.last_dot}} if self != How() else {}


def how_of(tree: Mapping[str, Any]) -> How:
    """Of an index's JSON. Raises TypeError, KeyError or ValueError for what `EvalConfig.tree` did not write."""
    given = tree.get("read")
    if given is None:
        return How()
    found = How(parts=tuple(map(str, given["parts"])), last_dot=given["last_dot"] is True)
    if not {numbered(part)[1] for part in found.parts} <= set(EXTENSIONS):
        raise ValueError("a part that is not read")
    return found


def split_name(name: str, last_dot: bool = False) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot after the last slash; lower-case extension."""
    folder, slash, file = name.rpartition("/")
    if last_dot:
        stem, _, extension = file.rpartition(".")
    else:
        stem, _, extension = file.partition(".")
    return (folder + slash + stem if stem else ""), extension.lower()


@cache
def numbered(extension: str) -> tuple[int, str]:
    """The parts of a document are counted: "2.png" is the picture that comes at 2. Of a part without a number: -1, and
    what it is: "png" for "png" and "input.png" alike."""
    number, _, plain = extension.partition(".")
    counted = number.isascii() and number.isdecimal() and str(int(number[:4])) == number and int(number) < MOST_PARTS
    if counted and plain in (*MODALITY, *CODES.values()):
        return int(number), plain
    last = extension.rpartition(".")[2]
    word = number[:1].isascii() and number[:1].isalpha()
    named = word and extension not in EXTENSIONS and last in (*MODALITY, "json", "cls")
    return -1, last if named else extension


@cache
def plain(extension: str) -> str:
    """The name under which a part is read: "jpg" for "input.jpg"; that of a counted part stays."""
    number, kind = numbered(extension)
    return extension if number >= 0 else kind


def modality_of(extension: str) -> str | None:
    """Of "png", "2.png" and "input.png" alike; None where the part is none of a modality."""
    return MODALITY.get(numbered(extension)[1])


@cache
def kind_of(extension: str) -> str:
    """What a sample can have one of."""
    number, kind = numbered(extension)
    if number < 0:
        return MODALITY.get(kind, kind)
    return f"part {number}" if kind in MODALITY else extension


def is_named(extension: str) -> bool:
    return plain(extension) != extension


def chosen(found: Mapping[str, Any], how: How) -> list[str]:
    """Of the extensions of a sample's members, those that are read. Raises Several, with the two, where it is not said
    which of them."""
    asked = {kind_of(part) for part in how.parts}
    names = [name for name in found if kind_of(name) not in asked or name in how.parts]
    count = Counter(kind_of(name) for name in names)
    if len(count) == len(names) and not any(map(is_named, names)):
        return names
    kept: dict[str, str] = {}
    for name in names:
        kind = kind_of(name)
        alone = count[kind] == 1 and modality_of(name) is not None
        if is_named(name) and not (alone or name in how.parts):
            continue
        if kind in kept:
            raise Several(kept[kind], name)
        kept[kind] = name
    return list(kept.values())


def turn(extension: str) -> tuple[int, int, str]:
    """By which the parts of a sample are sorted."""
    number, kind = numbered(extension)
    return number, EXTENSIONS.index(kind), extension
