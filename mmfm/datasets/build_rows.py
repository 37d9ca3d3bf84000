"""What a set of shards is built from, as rows: a key, and parts that are files or bytes.

A row is cheap: files are opened by the process that writes its shard. Here are samples in memory and folders;
`build_tables` has tables, and `build_hf` what needs the optional packages pyarrow and datasets.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mmfm.config import MESSAGES, require
from mmfm.data.index import EXTENSIONS
from mmfm.data.member_names import kind_of, turn
from mmfm.data.writer import Item
from mmfm.preprocessing.file_formats import READ

ROLES = ("messages", "image", "audio", "text")
UNFIT = re.compile(r"[.\x00-\x1f\x7f\\]")
ALIASES = {"jpe": "jpg", "jfif": "jpg", "oga": "ogg", "wave": "wav"}  # other names of what is read
OTHERS = {  # extensions of what is not, and what there is to do
    **dict.fromkeys(
        ("heic", "heif", "avif", "tif", "tiff", "gif", "bmp", "svg", "jxl", "jp2", "ppm", "ico", "dng", "cr2", "nef"),
        f"convert them to {READ['picture']}",
    ),
    **dict.fromkeys(
        ("m4a", "aac", "wma", "amr", "aif", "aiff", "caf", "au", "w64", "webm", "mp4", "mov", "mkv", "avi"),
        f"convert them to {READ['sound']}",
    ),
    **dict.fromkeys(("csv", "tsv", "jsonl", "ndjson", "parquet"), "a table is built by its own path"),
    "tar": "shards are indexed: mmfm data index",
    "npy": "codes are made by: mmfm data encode",
}
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
METADATA = tuple(f"metadata{ending}" for ending in (*TABLES, ".parquet"))  # of a folder's files, by usage


class Part(NamedTuple):
    """`role` is "image" or "audio", of which the bytes or the file's name say the format, or an extension; of a counted
    part "0.image". A text is a `data:` URL of base64."""

    role: str
    content: Path | bytes | str


class Row(NamedTuple):
    """One sample to be. `bad`: why it is none, as the code and the message of a BadSample."""

    key: str
    parts: tuple[Part, ...]
    bad: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column of a table is what; empty: guessed from its name. `key` empty: the row's number. `messages`:
    conversations, of which `image` and `audio` hold the files."""

    image: str = ""
    audio: str = ""
    text: str = ""
    key: str = ""
    messages: str = field(default="", repr=False)  # not in the fingerprints of tables without conversations

    def chosen(self) -> dict[str, str]:
        """Role -> column."""
        return {role: getattr(self, role) for role in ROLES if getattr(self, role)}


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows that are known. `print` changes when they do; `said` is what people should know of how they were read."""

    rows: Sequence[Row]
    print: str
    said: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self) -> Iterable[str]:
        return (row.key for row in self.rows)

    def part(self, start: int, stop: int) -> Iterable[Row]:
        """What a process needs to write the shard of these rows."""
        return self.rows[start:stop]


def key_of(name: str) -> str:
    """A key that all tools read alike: folders joined by "-", no dot (WebDataset ends the key there), no control."""
    return UNFIT.sub("_", name.replace("/", "-"))


def row_number(row: int) -> str:
    return f"{row:09d}"


def _one_of_each(extensions: Iterable[str], where: str) -> None:
    """An index could not say which of two pictures is meant."""
    seen: dict[str, str] = {}
    for extension in extensions:
        kind = kind_of(extension)
        rival = seen.setdefault(kind, extension)
        told = f"{where} has both .{rival} and .{extension}"
        require(rival == extension, f"{told}; one {kind} per sample, remove one")


# Samples in memory


def from_items(items: Iterable[Item]) -> Rows:
    rows = [Row(key_of(key), tuple(Part(name, bytes(data)) for name, data in parts.items())) for key, parts in items]
    told = hashlib.blake2b(digest_size=16)
    for row in rows:
        _one_of_each([part.role for part in row.parts], row.key)
        for part in row.parts:
            assert isinstance(part.content, bytes)
            told.update(repr((row.key, part.role)).encode() + hashlib.blake2b(part.content).digest())
    return Rows(rows=rows, print=told.hexdigest())


# A folder


def from_folder(root: Path, *, classes: bool = False) -> Rows:
    """Files that share a stem make a sample; a conversation has the counted ones too, a.json with a.0.png and a.1.wav.
    `classes`: the first folder below `root` is its class, .cls and .txt."""
    found: dict[str, dict[str, Path]] = {}
    told, ignored = hashlib.blake2b(digest_size=16), Counter[str]()
    for path, size in _files(root, ignored):
        name, extension = path.relative_to(root).with_suffix("").as_posix(), path.suffix[1:].lower()
        extension = ALIASES.get(extension, extension)
        if extension not in EXTENSIONS:
            ignored[f".{extension}"] += 1
            continue
        rival = found.setdefault(name, {}).setdefault(extension, path)
        require(rival == path, f"{root / name} has both {rival.suffix} and {path.suffix}; one of each kind, remove one")
        told.update(repr((name, extension, size)).encode())
    left = ", ".join(map(_left, sorted(ignored.items())))
    known = f"{str(root)!r} holds no file of a known kind ({', '.join(EXTENSIONS)})"
    require(bool(found), f"{known}; {f'it holds {left}' if left else 'check the path'}")
    words = f"{str(root)!r} holds shards already ({ignored['.tar']} .tar), which are read as they are"
    made = ignored[".tar"] and all(set(parts) == {"json"} for parts in found.values())
    require(not made, f"{words}; give that folder to a run, or the folder of the files themselves")
    _join_counted(found)
    for name, parts in found.items():
        _one_of_each(parts, str(root / name))
    names = tuple(sorted({_class_of(name, root) for name in found})) if classes else ()
    rows = [Row(key_of(name), _file_parts(name, parts, names)) for name, parts in sorted(found.items())]
    told.update(repr(names).encode())
    said = (f"not read: {left}",) if ignored else ()
    return Rows(rows=rows, print=told.hexdigest(), said=said, classes=names)


def _join_counted(found: dict[str, dict[str, Path]]) -> None:
    """Puts the files a.0.png of a conversation a.json to it; elsewhere they are samples of their own."""
    for name in list(found):
        stem, _, number = name.rpartition(".")
        about = found.get(stem, {}).get("json")
        if about is not None and number.isdecimal() and f'"{MESSAGES}"'.encode() in about.read_bytes():
            found[stem] |= {f"{number}.{extension}": path for extension, path in found.pop(name).items()}


def metadata_of(root: Path) -> Path | None:
    """The table that says what a folder's files are, if there is one; UserError where a folder below has one."""
    found = [path for path, _ in _files(root, Counter()) if path.name.lower() in METADATA]
    told = f"{', '.join(map(str, found[:2]))}: more than one table says what is in {root}"
    require(len(found) < 2, f"{told}; build each of their folders on its own")
    own = next(iter(found), None)
    if own is not None:
        told = f"{own} says what the files beside it are, and not those elsewhere in {root}"
        require(own.parent == root, f"{told}; build {own.parent}, or take the table away")
    return own


def unnamed(root: Path, named: Iterable[Path]) -> str:
    """The files below `root` that a table does not name, in words; empty: none."""
    known = {os.path.normpath(path) for path in named}
    rest = (path for path, _ in _files(root, Counter()) if path.name.lower() not in METADATA)
    left = Counter(path.suffix.lower() for path in rest if os.path.normpath(path) not in known)
    return ", ".join(f"{count} {extension}" for extension, count in sorted(left.items()))


def _left(kind: tuple[str, int]) -> str:
    extension, count = kind
    remedy = OTHERS.get(extension[1:], "")
    return f"{count} {extension}{f' ({remedy})' if remedy else ''}"


def _files(root: Path, ignored: Counter[str], above: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[Path, int]]:
    """Files and sizes below, in order, linked folders among them. Hidden ones are not read, and but for those that
    every system makes, counted; so is a link to a folder that it lies in, which would never end."""
    about = root.stat()
    inside = (*above, (about.st_dev, about.st_ino))
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                ignored["hidden"] += Path(entry.name).suffix[1:].lower() in EXTENSIONS
            elif entry.is_dir():
                status = entry.stat()
                if (status.st_dev, status.st_ino) in inside:
                    ignored["link to a folder around it"] += 1
                else:
                    yield from _files(root / entry.name, ignored, inside)
            elif entry.is_file():
                yield root / entry.name, entry.stat().st_size
            else:
                ignored["link to nothing, or pipe"] += 1
    ignored += Counter()  # without what was counted zero times


def _class_of(name: str, root: Path) -> str:
    first, slash, _ = name.partition("/")
    require(bool(slash), f"{root / first} lies in no folder that could be its class; move it, or leave out --classes")
    return first


def _file_parts(name: str, files: Mapping[str, Path], classes: Sequence[str]) -> tuple[Part, ...]:
    order = sorted(files, key=turn)
    parts = [Part(extension, files[extension]) for extension in order]
    if classes:
        own = name.partition("/")[0]
        given = {"txt": own.replace("_", " ").encode("utf-8", "replace"), "cls": str(classes.index(own)).encode()}
        parts += [Part(extension, data) for extension, data in given.items() if extension not in files]
    return tuple(parts)
