"""Samples into tars: the same samples give the same bytes, and a shard is there whole, with its index, or not at all.

A header is plain ustar; only a name or a size that does not fit there takes a pax header before it. All WebDataset
tools read both. Standard library only.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from mmfm.config import UserError, require
from mmfm.data import index

MODE = 0o444
END = bytes(2 * tarfile.BLOCKSIZE)
KEY, EXTENSION = re.compile(r"[^./\x00-\x1f\x7f]+"), re.compile(r"[a-z0-9]+(?:\.[a-z0-9]+)*")


class Item(NamedTuple):
    """A sample to be written: `parts` are bytes by extension, without its dot."""

    key: str
    parts: Mapping[str, bytes]


class ShardWriter:
    """FOLDER/PREFIX-000000.tar and so on: a new one after `samples` samples or before `bytes` bytes are exceeded.

    Used in a `with`. At its end the last shard is closed and `paths` names all; after an error the shard that was
    being written is removed, and those before it stay. Refuses a key that came before.
    """

    def __init__(self, folder: Path, prefix: str, *, samples: int = 1_000, bytes: int = 1 << 30) -> None:
        require(samples > 0, f"a shard of {samples} samples holds nothing; ask for at least 1")
        self.folder, self.prefix, self.samples, self.bytes = folder, prefix, samples, bytes
        self.paths: list[Path] = []
        self._keys: set[str] = set()
        self._shard: _Shard | None = None

    def write(self, key: str, parts: Mapping[str, bytes]) -> None:
        require(key not in self._keys, f"the key {key!r} comes twice; give each sample a key of its own")
        shard = self._shard
        if shard and (shard.samples >= self.samples or shard.size + _room(parts) > self.bytes):
            self._close()
        if self._shard is None:
            self._shard = _Shard(self.folder / f"{self.prefix}-{len(self.paths):06d}.tar")
        self._shard.add(Item(key, parts))
        self._keys.add(key)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self._close()
        elif self._shard:
            self._shard.abandon()

    def _close(self) -> None:
        if self._shard:
            self.paths.append(self._shard.path)
            self._shard.finish()
        self._shard = None


def write_shard(path: Path, items: Iterable[Item]) -> int:
    """One shard of all `items`, and its index; returns how many they were. Of none, no file is made."""
    shard = _Shard(path)
    try:
        for item in items:
            shard.add(item)
    except BaseException:
        shard.abandon()
        raise
    if shard.samples:
        shard.finish()
    else:
        shard.abandon()
    return shard.samples


def as_json(tree: Any) -> bytes:
    """The .json of a sample: UTF-8 as it is, keys in the order given; a lone surrogate stays escaped."""
    text = json.dumps(tree, ensure_ascii=False)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(tree).encode("ascii")


class _Shard:
    def __init__(self, path: Path) -> None:
        self.path, self._part = path, path.with_name(f".{path.name}.tmp")
        self.samples = self.size = 0
        self._file: BinaryIO = self._part.open("wb")

    def add(self, item: Item) -> None:
        _check(item)
        for extension, data in item.parts.items():
            header = _header(f"{item.key}.{extension}", len(data))
            self._file.write(header)
            self._file.write(data)
            self._file.write(_padding(len(data), tarfile.BLOCKSIZE))
        self.samples, self.size = self.samples + 1, self._file.tell()

    def finish(self) -> None:
        """End mark, disk, name, index: in this order, so that what has a name is whole."""
        try:
            self._file.write(END)
            self._file.write(_padding(self._file.tell(), tarfile.RECORDSIZE))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self.path)
        except BaseException:
            self.abandon()
            raise
        index.write(self.path)

    def abandon(self) -> None:
        try:
            self._file.close()  # on a full disk what is still in memory fails once more here
        finally:
            self._part.unlink(missing_ok=True)


def _check(item: Item) -> None:
    if not KEY.fullmatch(item.key):
        raise UserError(f"the key {item.key[:80]!r} has a dot, a slash or a control character; use none, and not ''")
    for extension in item.parts:
        if not EXTENSION.fullmatch(extension):
            told = f"the extension {extension[:40]!r} is not of a-z and 0-9 alone, parted by dots"
            raise UserError(f"{item.key}: {told}; name it so")
    require(bool(item.parts), f"{item.key}: the sample has no parts; give at least one, such as txt")


def _header(name: str, size: int) -> bytes:
    """Neither time nor user: equal samples are equal bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, MODE, 0
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padding(size: int, multiple: int) -> bytes:
    return bytes(-size % multiple)


def _room(parts: Mapping[str, bytes]) -> int:
    """Bytes that a sample takes, with its end mark."""
    return sum(tarfile.BLOCKSIZE + len(data) + -len(data) % tarfile.BLOCKSIZE for data in parts.values()) + len(END)
