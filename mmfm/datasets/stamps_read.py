"""The stamps of Tux Paint as Debian packs them: what a folder of theirs holds, and the split that each belongs to.

NAME.txt has the English caption on its first line, then lines `fr.utf8=...`. Beside it lie NAME.png (or .jpg, or a
drawing NAME.svg), a sound effect NAME.ogg, and descriptions that people spoke, NAME_desc.ogg (English) and
NAME_desc_fr.ogg.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mmfm.config import require
from mmfm.datasets import debian

PICTURES, SOUNDS, DRAWING = ("png", "jpg", "jpeg"), ("ogg", "wav"), "svg"
LANGUAGE = r"[a-z]{2,3}(?:_[A-Za-z]{2})?(?:@[a-z]+)?"  # fr, pt_BR, ca@valencia
CAPTION = re.compile(rf"({LANGUAGE})(?:\.[\w-]+)?=(.*)")
SPOKEN = re.compile(rf"(.+?)_desc(?:_({LANGUAGE}))?")
LOCAL = re.compile(rf"(.+?)_({LANGUAGE})")
VARIANT = re.compile(r"(.+?)(?:_mirror|_flip)+")
TEST, VAL = 15, 20  # of 100


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """`name` is its path in the tree without an ending; `captions` and `spoken` are by language, English as "en"."""

    name: str
    captions: dict[str, str]
    picture: Path | None
    effect: Path | None
    spoken: dict[str, Path]

    @property
    def caption(self) -> str:
        return self.captions["en"]


class Tree(NamedTuple):
    """All stamps by name, and the reasons why files are no part of one, counted."""

    stamps: list[Stamp]
    left_out: Counter[str]


def split_of(caption: str) -> str:
    """train, val or test by the English caption alone: stamps that are called the same share their fate."""
    return debian.split_of(caption.lower().removesuffix("."), TEST, VAL)


def read_tree(root: Path) -> Tree:
    """The stamps below `root`. What a file is, its name says; a file that is no part of a stamp is counted."""
    texts = {_name(path, root): _captions(path) for path in sorted(root.rglob("*.txt"))}
    captions = {name: found for name, found in texts.items() if found}
    left_out = Counter({"text without a caption": len(texts) - len(captions)})
    pictures, effects, spoken = {}, {}, {}
    for path in sorted(root.rglob("*")):
        kind, name = path.suffix[1:].lower(), _name(path, root)
        if kind in PICTURES and name in captions:
            _put(pictures, name, path, left_out)
        elif kind in (*PICTURES, DRAWING):
            left_out.update(_no_picture(path, name, captions))
        elif kind in SOUNDS and name in captions:
            _put(effects, name, path, left_out)
        elif kind in SOUNDS:
            _put_spoken(spoken, name, path, captions, left_out)
    require(
        bool(captions), f"{root} holds no stamps (NAME.txt with a caption); give the package tuxpaint-stamps-default"
    )
    stamps = [
        Stamp(
            name=name,
            captions=found,
            picture=pictures.get(name),
            effect=effects.get(name),
            spoken=spoken.get(name, {}),
        )
        for name, found in captions.items()
    ]
    return Tree(stamps, +left_out)


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _captions(path: Path) -> dict[str, str]:
    """Captions by language, English first; empty where the English one is."""
    first, *others = path.read_text(encoding="utf-8-sig", errors="replace").splitlines() or [""]
    found = {"en": first.strip()}
    for language, caption in _pairs(others):
        found.setdefault(language, caption)
    return found if found["en"] else {}


def _pairs(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        match = CAPTION.fullmatch(line)
        if match and match[2].strip():
            yield match[1], match[2].strip()


def _put(found: dict[str, Path], name: str, path: Path, left_out: Counter[str]) -> None:
    if name in found:
        left_out["second file of the same kind"] += 1
    else:
        found[name] = path


def _no_picture(path: Path, name: str, captions: dict[str, dict[str, str]]) -> Iterator[str]:
    """Why a picture is left out; nothing for a drawing of which the picture is taken."""
    variant = VARIANT.fullmatch(name)
    if path.suffix.lower() != f".{DRAWING}":
        yield "mirrored picture" if variant and variant[1] in captions else "picture without a caption"
    elif not any(path.with_suffix(f".{kind}").is_file() for kind in PICTURES):
        yield "drawing (SVG) without a picture beside it"


def _put_spoken(
    spoken: dict[str, dict[str, Path]],
    name: str,
    path: Path,
    captions: dict[str, dict[str, str]],
    left_out: Counter[str],
) -> None:
    match, local = SPOKEN.fullmatch(name), LOCAL.fullmatch(name)
    if match and match[1] in captions:
        language = match[2] or "en"
        if language in captions[match[1]]:
            _put(spoken.setdefault(match[1], {}), language, path, left_out)
        else:
            left_out["description in a language without a caption"] += 1
    elif not match and local and local[1] in captions:
        left_out["sound effect of one language"] += 1
    else:
        left_out["sound without a stamp"] += 1
