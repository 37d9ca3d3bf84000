"""What a set of shards is built from, as rows: a key, and parts that are files or bytes.

A row is cheap: files are opened by the process that writes its shard. Here are folders and tables; `build_hf` has what
needs the optional packages pyarrow and datasets.
"""

import csv
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmfm.config import UserError, require
from mmfm.data.index import EXTENSIONS, MODALITY
from mmfm.data.writer import Item, as_json

GENERIC = ("path", "file", "filename", "file_name", "filepath", "file_path", "filename_or_path")
NAMES = {
    "image": ("image", "image_path", "image_file", "img", "img_path", "picture", "jpg", "png"),
    "audio": ("audio", "audio_path", "audio_file", "audio_filepath", "sound", "wav", "speech", "clip_path"),
    "text": ("text", "caption", "sentence", "transcript", "transcription", "txt", "title", "description"),
}
ROLES = ("image", "audio", "text")
UNFIT = re.compile(r"[.\x00-\x1f\x7f\\]")
MAX_FIELD = 1 << 24  # characters of a cell


class Part(NamedTuple):
    """`role` is "image" or "audio", of which the bytes or the file's name say the format, or an extension."""

    role: str
    content: Path | bytes


class Row(NamedTuple):
    """One sample to be."""

    key: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column of a table is what; empty: guessed from its name. `key` empty: the row's number."""

    image: str = ""
    audio: str = ""
    text: str = ""
    key: str = ""

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
        kind = MODALITY.get(extension, extension)
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
    """Files that share a stem make a sample. `classes`: the first folder below `root` is its class, .cls and .txt."""
    found: dict[str, dict[str, Path]] = {}
    told, ignored = hashlib.blake2b(digest_size=16), Counter[str]()
    for path, size in _files(root):
        name, extension = path.relative_to(root).with_suffix("").as_posix(), path.suffix[1:].lower()
        if extension not in EXTENSIONS:
            ignored[f".{extension}"] += 1
            continue
        found.setdefault(name, {})[extension] = path
        told.update(repr((name, extension, size)).encode())
    require(bool(found), f"{str(root)!r} holds no file of a known kind ({', '.join(EXTENSIONS)}); check the path")
    for name, parts in found.items():
        _one_of_each(parts, str(root / name))
    names = tuple(sorted({_class_of(name, root) for name in found})) if classes else ()
    rows = [Row(key_of(name), _file_parts(name, parts, names)) for name, parts in sorted(found.items())]
    told.update(repr(names).encode())
    left = ", ".join(f"{count} {extension}" for extension, count in sorted(ignored.items()))
    said = (f"not read: {left}",) if ignored else ()
    return Rows(rows=rows, print=told.hexdigest(), said=said, classes=names)


def _files(root: Path) -> Iterator[tuple[Path, int]]:
    """Files and sizes below, in order; neither hidden ones nor what linked folders hold."""
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(root / entry.name)
            elif entry.is_file():
                yield root / entry.name, entry.stat().st_size


def _class_of(name: str, root: Path) -> str:
    first, slash, _ = name.partition("/")
    require(bool(slash), f"{root / first} lies in no folder that could be its class; move it, or leave out --classes")
    return first


def _file_parts(name: str, files: Mapping[str, Path], classes: Sequence[str]) -> tuple[Part, ...]:
    order = sorted(files, key=EXTENSIONS.index)
    parts = [Part(extension, files[extension]) for extension in order]
    if classes:
        own = name.partition("/")[0]
        given = {"txt": own.replace("_", " ").encode("utf-8", "replace"), "cls": str(classes.index(own)).encode()}
        parts += [Part(extension, data) for extension, data in given.items() if extension not in files]
    return tuple(parts)


# A table


def from_table(path: Path, columns: Columns) -> Rows:
    """A CSV, TSV or JSONL file; paths are relative to its folder."""
    reader = _json_lines if path.suffix.lower() in (".jsonl", ".ndjson") else _separated
    try:
        records = list(reader(path))
    except UnicodeDecodeError as why:
        raise UserError(f"{path} is not UTF-8 (byte {why.start}); convert it") from None
    return from_records(records, path, columns, hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest())


def from_records(records: Sequence[Mapping[str, Any]], path: Path, columns: Columns, told: str) -> Rows:
    """Rows of a table that was read; `path` is where it came from."""
    require(bool(records), f"{path} has no rows; give a table with a header and at least one row")
    names = list(dict.fromkeys(name for record in records for name in record))
    chosen = choose(columns, names, records[0], str(path))
    rows = [row_of(number, record, chosen, path.parent) for number, record in enumerate(records)]
    return Rows(rows=rows, print=f"{told} {chosen}", said=(told_columns(chosen),))


def choose(columns: Columns, names: Sequence[str], first: Mapping[str, Any], where: str) -> Columns:
    """The columns that were asked for, or else those whose names are usual. Raises UserError where there is none."""
    for option in ("image", "audio", "text", "key"):
        name = getattr(columns, option)
        require(not name or name in names, f"{where} has no column {name!r} (--{option}); it has {', '.join(names)}")
    if columns.chosen():
        return columns
    lower = {name.lower(): name for name in reversed(names)}
    found = {role: next((lower[name] for name in usual if name in lower), "") for role, usual in NAMES.items()}
    generic = next((lower[name] for name in GENERIC if name in lower), "")
    kind = MODALITY.get(Path(str(first.get(generic, ""))).suffix[1:].lower(), "") if generic else ""
    if kind in ("image", "audio") and not found[kind]:
        found[kind] = generic
    guessed = Columns(**found, key=columns.key)
    known = f"{where} has the columns {', '.join(names)}"
    require(bool(guessed.chosen()), f"{known}, none with a usual name; say which is --image, --audio or --text")
    return guessed


def told_columns(columns: Columns) -> str:
    named = [f"{role} from the column {name!r}" for role, name in columns.chosen().items()]
    return f"{', '.join(named)}; the key is {f'the column {columns.key!r}' if columns.key else 'the number of the row'}"


def row_of(number: int, record: Mapping[str, Any], columns: Columns, folder: Path) -> Row:
    """What is neither picture, sound, text nor key goes into the .json."""
    chosen = columns.chosen()
    parts = []
    for role, name in chosen.items():
        value = record.get(name)
        if value is not None and value != "":
            parts.append(_part(role, value, folder, name))
    about = {name: plain(value) for name, value in record.items() if name not in {*chosen.values(), columns.key}}
    parts += [Part("json", as_json(about))] if about else []
    key = str(record.get(columns.key) or "") if columns.key else row_number(number)
    require(bool(key), f"row {number} has no key in the column {columns.key!r}; fill it in, or leave out --key")
    return Row(key_of(key), tuple(parts))


def _part(role: str, value: Any, folder: Path, column: str) -> Part:
    if role == "text":
        return Part("txt", str(value).encode("utf-8", "replace"))
    if isinstance(value, Mapping) and value.get("bytes") is None:
        value = value.get("path")
    elif isinstance(value, Mapping):
        value = value["bytes"]
    if isinstance(value, bytes):
        return Part(role, value)
    require(isinstance(value, str), f"the column {column!r} holds a {type(value).__name__}, no path; choose another")
    return Part(role, folder / value)


def plain(value: Any) -> Any:
    """What JSON can hold: no NaN, and what it has no form for as text."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    require(
        not isinstance(value, bytes),
        "bytes have no form in JSON; drop their column, or choose it as --image or --audio",
    )
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def _separated(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(MAX_FIELD)
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            header = next(reader, [])
            twice = [name for name, count in Counter(header).items() if count > 1]
            require(not twice, f"{path} has two columns called {twice[:1]}; rename one")
            for fields in reader:
                told = f"line {reader.line_num} of {path} has {len(fields)} fields, not {len(header)}"
                require(len(fields) in (0, len(header)), f"{told}; quote fields that hold the separator")
                if fields:
                    yield dict(zip(header, fields, strict=True))
        except csv.Error as why:
            raise UserError(f"line {reader.line_num} of {path} is no CSV ({why}); correct its quotes") from None


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                raise UserError(f"line {number} of {path} is no JSON; write one object on each line") from None
            require(isinstance(record, dict), f"line {number} of {path} holds no object ({{...}}); write one")
            yield record
