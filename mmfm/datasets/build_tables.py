"""Tables as rows: CSV, TSV and JSONL files, and what a cell may hold, wherever it comes from.

A cell is what people have: a path, several captions in a list, a value that is missing (nothing, null or NaN), or an
object of which one field is meant. What has no meaning here is refused by its row; nothing is written as Python has it.
"""

import csv
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmfm.config import UserError, require
from mmfm.data.index import MODALITY
from mmfm.data.writer import as_json
from mmfm.datasets.build_messages import MESSAGES, is_talk, media_columns, talk_of, used_columns
from mmfm.datasets.build_rows import Columns, Part, Row, Rows, key_of, row_number, unnamed
from mmfm.preprocessing import BadSample

GENERIC = ("path", "file", "filename", "file_name", "filepath", "file_path", "filename_or_path")
NAMES = {
    "image": ("image", "image_path", "image_file", "img", "img_path", "picture", "jpg", "png"),
    "audio": ("audio", "audio_path", "audio_file", "audio_filepath", "sound", "wav", "speech", "clip_path"),
    "text": (
        *("text", "caption", "sentence", "transcript", "transcription", "txt", "title", "description"),
        *("texts", "captions", "sentences", "transcripts"),
    ),
}
USUAL = {*GENERIC, *(name for names in NAMES.values() for name in names)}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MAX_FIELD = 1 << 24  # characters of a cell


def from_table(path: Path, columns: Columns) -> Rows:
    """A CSV, TSV, JSONL or JSON file; paths are relative to its folder."""
    kind, said = path.suffix.lower(), ()
    try:
        if kind in (".jsonl", ".ndjson"):
            records = list(_json_lines(path))
        elif kind == ".json":
            records = _json_list(path)
        else:
            separator, told = _separator(path, columns)
            records, said = list(_separated(path, separator)), (told,) if told else ()
    except UnicodeDecodeError as why:
        raise UserError(f"{path} is not UTF-8 (byte {why.start}); convert it") from None
    return from_records(records, path, columns, hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest(), said)


def from_records(
    records: Sequence[Mapping[str, Any]], path: Path, columns: Columns, told: str, said: tuple[str, ...] = ()
) -> Rows:
    """Rows of a table that was read; `path` is where it came from."""
    require(bool(records), f"{path} has no rows; give a table with a header and at least one row")
    names = list(dict.fromkeys(name for record in records for name in record))
    chosen = choose(columns, names, records, str(path))
    rows = [row_of(number, record, chosen, path.parent) for number, record in enumerate(records)]
    several = bool(chosen.text) and any(isinstance(_at(record, chosen.text), list | tuple) for record in records)
    print = f"{told} {chosen}{' of several captions' if several else ''}{chosen.messages and f' {chosen.messages}'}"
    return Rows(rows=rows, print=print, said=(*said, told_columns(chosen), *told_captions(chosen, several)))


def from_metadata(table: Path, rows: Rows) -> Rows:
    """The rows of a folder's own table, and what is said of the folder's other files."""
    named = [part.content for row in rows.rows for part in row.parts if isinstance(part.content, Path)]
    left = unnamed(table.parent, named)
    said = (f"what the files are is said by {table}", *rows.said, *((f"not named in it: {left}",) if left else ()))
    return Rows(rows=rows.rows, print=rows.print, said=said)


def choose(columns: Columns, names: Sequence[str], records: Iterable[Mapping[str, Any]], where: str) -> Columns:
    """The columns that were asked for, or else those whose names are usual. Raises UserError where there is none."""
    for option in ("messages", "image", "audio", "text", "key"):
        name = getattr(columns, option)
        there = not name or name in names or (option == "text" and name.partition(".")[0] in names)
        require(there, f"{where} has no column {name!r} (--{option}); it has {', '.join(names)}")
    records = list(records)
    talk = columns.messages or ("" if columns.chosen() else is_talk(names, records))
    if talk:
        guessed = {kind: name for kind, name in media_columns(names).items() if not getattr(columns, kind)}
        return replace(columns, messages=talk, **guessed)
    if columns.chosen():
        return columns
    lower = {name.lower(): name for name in reversed(names)}
    found = {role: next((lower[name] for name in usual if name in lower), "") for role, usual in NAMES.items()}
    generic = next((lower[name] for name in GENERIC if name in lower), "")
    path = next((value for record in records if not missing(value := record.get(generic))), "") if generic else ""
    kind = MODALITY.get(Path(str(path)).suffix[1:].lower(), "")
    if kind in ("image", "audio") and not found[kind]:
        found[kind] = generic
    guessed = Columns(**found, key=columns.key)
    known = f"{where} has the columns {', '.join(names)}"
    require(bool(guessed.chosen()), f"{known}, none with a usual name; say which is --image, --audio or --text")
    return guessed


def told_columns(columns: Columns) -> str:
    named = [f"{role} from the column {name!r}" for role, name in columns.chosen().items()]
    return f"{', '.join(named)}; the key is {f'the column {columns.key!r}' if columns.key else 'the number of the row'}"


def told_captions(columns: Columns, several: bool) -> tuple[str, ...]:
    field = f'Source(texts=(Text(field="{columns.text}"),))'
    told = f"the column {columns.text!r} has several captions: the .txt is the first, and the .json has all"
    return (f"{told}, among which {field} draws",) if several else ()


def missing(value: Any) -> bool:
    """Nothing, null, or what stands for it in a column of numbers."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def row_of(number: int, record: Mapping[str, Any], columns: Columns, folder: Path) -> Row:
    """What is neither picture, sound, text nor key goes into the .json."""
    if columns.messages:
        return _talk_row(number, record, columns, folder)
    chosen, where = columns.chosen(), f"row {number}"
    parts = [
        file_part(role, record[name], folder, f"{where}: the column {name!r}")
        for role, name in chosen.items()
        if role != "text" and not missing(record.get(name))
    ]
    about = {name: plain(value) for name, value in record.items() if name not in {*chosen.values(), columns.key}}
    if columns.text:
        value = _at(record, columns.text)
        captions = captions_of(value, columns.text, where)
        parts += [Part("txt", captions[0])] if captions else []
        if isinstance(value, list | tuple) and captions and columns.text in record:
            about[columns.text] = [caption.decode("utf-8", "replace") for caption in captions]
    parts += [Part("json", as_json(about))] if about else []
    return Row(_key(number, record, columns), tuple(parts))


def _key(number: int, record: Mapping[str, Any], columns: Columns) -> str:
    key = record.get(columns.key) if columns.key else row_number(number)
    told = f"row {number} has no key in the column {columns.key!r}; fill it in, or leave out --key"
    require(not missing(key), told)
    return key_of(str(key))


def _talk_row(number: int, record: Mapping[str, Any], columns: Columns, folder: Path) -> Row:
    """A conversation, its pictures and sounds counted in the order in which it mentions them."""
    key, where = _key(number, record, columns), f"row {number}"
    media = {"image": columns.image, "audio": columns.audio}
    try:
        talk = talk_of(record, columns.messages, media, where)
    except BadSample as why:
        return Row(key, (), (why.code, str(why)))
    used = {*used_columns(columns.messages), *media.values(), columns.key}
    about = {name: plain(value) for name, value in record.items() if name not in used and value is not None}
    tree = {MESSAGES: plain(talk.messages)} | about
    files = [
        file_part(f"{at}.{one.kind}", one.value, folder, f"{where}: {one.kind} {at} of its conversation")
        for at, one in enumerate(talk.media)
    ]
    return Row(key, (*files, Part("json", as_json(tree))))


def _at(record: Mapping[str, Any], name: str) -> Any:
    """The column, or "captions.en": a field of the objects in one; of a list of objects each one's."""
    if name in record:
        return record[name]
    first, _, rest = name.partition(".")
    values = record.get(first)
    for step in rest.split("."):
        objects = values if isinstance(values, list | tuple) else [values]
        found = [value.get(step) for value in objects if isinstance(value, Mapping)]
        values = found if objects is values else next(iter(found), None)
    return values


def captions_of(value: Any, column: str, where: str) -> list[bytes]:
    """The captions in a cell, as UTF-8: none, one, or those of a list that are not empty."""
    if isinstance(value, list | tuple):
        told = f"{where}: the column {column!r} holds a list of lists; make it a list of texts"
        require(not any(isinstance(one, list | tuple) for one in value), told)
        found = [caption for one in value for caption in captions_of(one, column, where)]
        return [caption for caption in found if caption.strip()]
    if isinstance(value, Mapping):
        fields = ", ".join(map(str, value))
        told = f"{where}: the column {column!r} holds an object with {fields or 'no field'}, and no text"
        remedy = f"name one of its fields: --text {column}.{next(iter(value), 'FIELD')}"
        raise UserError(f"{told}; {remedy}")
    if missing(value):
        return []
    return [value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")]


def file_part(role: str, value: Any, folder: Path, where: str) -> Part:
    """A picture or a sound in a cell: its bytes, an object of them, a `data:` URL, or a path."""
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes) or (isinstance(value, str) and value[:5].lower() == "data:"):
        return Part(role, value)
    require(isinstance(value, str), f"{where} holds a {type(value).__name__}, no path; choose another")
    told = f"{where} holds a URL ({value[:80]}); fetch the files first, and give their paths"
    require(re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", value) is None, told)
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


# Files


def _separator(path: Path, columns: Columns) -> tuple[str, str]:
    """By what the header is separated, and what there is to say of it: the first that gives a column that is asked for
    or has a usual name; else the first that parts it."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        line = file.readline(MAX_FIELD)
    names = {*columns.chosen().values(), columns.key} - {""} or USUAL
    split = {mark: _names(line, mark) for mark in (usual, *SEPARATORS)}
    known = (mark for mark, found in split.items() if names & {*found, *map(str.lower, found)})
    parted = (mark for mark, found in split.items() if len(found) > 1)
    chosen = next(known, next(parted, usual))
    return chosen, "" if chosen == usual else f"{path.name} is separated by {SEPARATORS[chosen]}"


def _names(line: str, separator: str) -> list[str]:
    csv.field_size_limit(MAX_FIELD)
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        return []


def _separated(path: Path, separator: str) -> Iterator[dict[str, str]]:
    csv.field_size_limit(MAX_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        spaced = f"{separator} " in file.readline(MAX_FIELD) and separator != "\t"
        file.seek(0)
        reader = csv.reader(file, delimiter=separator, strict=True, skipinitialspace=spaced)
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


def _json_list(path: Path) -> list[dict[str, Any]]:
    """A file that is one list of objects; or, under this name too, an object on each line."""
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        return list(_json_lines(path))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as why:
        place = f" (line {why.lineno})" if isinstance(why, json.JSONDecodeError) else ""
        raise UserError(f"{path} is no JSON{place}; write one list of objects") from None
    wrong = next((number for number, one in enumerate(found) if not isinstance(one, dict)), None)
    require(wrong is None, f"row {wrong} of {path} is no object ({{...}}); write one list of objects")
    return found


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
