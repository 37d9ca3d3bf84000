"""A folder's list of its shards, shards.json: name, size and checksum of each, for who cannot list the folder."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfm.config import UserError, modality_names
from mmfm.data.index import FORMAT, MAX_COUNT, MAX_CRC32, MAX_JSON, UNWRITABLE, Index, again, load, must
from mmfm.runtime.files import replace_file

LIST = "shards.json"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tar as the list of its folder knows it. `place`: its path, or its URL."""

    place: str
    bytes: int
    samples: int
    holds: Mapping[str, int]
    crc32: int | None = None
    scattered: int = 0
    ignored: Mapping[str, int] = field(default_factory=dict)
    tokenizer: str = ""  # fingerprint of the one whose tokens the index counts


def entry(place: str, index: Index) -> Entry:
    return Entry(
        place=place,
        bytes=index.bytes,
        samples=len(index),
        holds=index.holds(),
        crc32=index.crc32,
        scattered=index.scattered,
        ignored=dict(index.ignored),
        tokenizer=index.tokenizer,
    )


def write_list(folder: Path) -> Path | None:
    """shards.json from the indexes of the folder's tars, which all must have one. None where it cannot be written."""
    entries = []
    for shard in sorted(folder.glob("*.tar")):
        one = vars(entry(shard.name, load(shard, shard.stat().st_size)))
        entries.append({"name": one.pop("place"), **one})
    try:
        replace_file(folder / LIST, json.dumps({"format": FORMAT, "shards": entries}, indent=1))
    except OSError as why:
        if why.errno not in UNWRITABLE:
            raise
        return None
    return folder / LIST


def read_list(folder: Path) -> dict[str, Entry]:
    """Name -> entry; empty where the folder has no list."""
    path = folder / LIST
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_JSON:
        raise UserError(f"{path} has over {MAX_JSON} bytes; {again(folder)}")
    return {item.place.rpartition("/")[2]: item for item in parse_list(path.read_bytes(), str(path), f"{folder}/")}


def parse_list(data: bytes, where: str, before: str) -> Iterator[Entry]:
    """The entries of a shards.json; `before` is put before each name, which must be a plain one."""
    try:
        tree = json.loads(data)
        must(tree["format"] == FORMAT, f"format {tree['format']!r}, not {FORMAT}")
        entries = [_entry(item, before) for item in tree["shards"]]
        must(len({item.place for item in entries}) == len(entries), "a name twice")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, AttributeError) as why:
        reason = " ".join(str(why).split())[:80]
        raise UserError(
            f"{where} is no list of shards ({type(why).__name__}: {reason}); {again(before or where)}"
        ) from None
    return iter(entries)


def _entry(item: Any, before: str) -> Entry:
    name = item["name"]
    must(isinstance(name, str) and name.endswith(".tar"), "a name that is no .tar")
    must(not set("/\\\0") & set(name) and not name.startswith("."), f"{name[:40]!r} is no plain file name")
    counts = {"bytes": item["bytes"], "samples": item["samples"]}
    must(all(type(n) is int and 0 <= n < MAX_COUNT for n in counts.values()), "counts must be whole numbers")
    holds = {kind: int(item["holds"].get(kind, 0)) for kind in modality_names()}
    crc32 = item.get("crc32")
    must(crc32 is None or (type(crc32) is int and 0 <= crc32 < MAX_CRC32), "a CRC-32 that is none")
    ignored = {str(kind): int(n) for kind, n in item.get("ignored", {}).items()}
    return Entry(
        place=before + name,
        **counts,
        holds=holds,
        crc32=crc32,
        scattered=int(item.get("scattered", 0)),
        ignored=ignored,
        tokenizer=str(item.get("tokenizer", "")),
    )
