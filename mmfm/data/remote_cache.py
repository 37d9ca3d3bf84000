"""Shards with a URL, fetched whole into a bounded folder of this machine, proved by size and CRC-32, and then named.

What fails on the way is tried again, from the byte where it stopped. What still fails then stops the run: a shard is
never skipped. Several processes may ask for one shard: one fetches it under a lock, and the others wait.
"""

import hashlib
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import SystemRandom
from typing import Any

from mmfm import config
from mmfm.config import UserError
from mmfm.data import index, shard_list
from mmfm.data.part_lock import flock, locked_part, remove_forsaken
from mmfm.data.remote_servers import Absent, Again, request
from mmfm.data.shard_list import Entry
from mmfm.data.shard_specs import patterns
from mmfm.data.urls import beside, check_scheme, folder_of, shown

CHUNK = 1 << 20  # bytes
PROGRESS = 1 << 20  # bytes that make a failure the first again: a link that breaks now and then still brings a shard
LONGEST_WAIT_S = 60.0
GIGABYTE = 10**9
REMEDY = "when the network and the server work, go on with --resume"


class FetchError(OSError):
    """The network, the server or this disk failed, and went on failing. One line; the samples are not at fault."""


def expand_remote(spec: str, store: "ShardCache") -> list[Entry]:
    """The shards that URLs name, joined by commas: folders, tars and patterns of tars, all in their folders' lists.

    Raises UserError for a scheme that is refused, a folder without a list, a shard that is not in it or is named twice.
    """
    lists: dict[str, dict[str, Entry]] = {}
    found: dict[str, Entry] = {}
    for url in patterns(spec):
        folder, name = folder_of(url)
        listed = lists[folder] if folder in lists else lists.setdefault(folder, _list(folder, store))
        if name and name not in listed:
            raise UserError(f"{shown(url)} is not in {shard_list.LIST} of its folder; {index.again(folder)}")
        for entry in [listed[name]] if name else listed.values():
            if entry.place in found:
                raise UserError(f"{shown(entry.place)} is named twice; name each shard once")
            found[entry.place] = entry
    return list(found.values())


def _list(folder: str, store: "ShardCache") -> dict[str, Entry]:
    """Name -> entry, of the list in a folder."""
    url = beside(folder, shard_list.LIST)
    try:
        text = store.text(url, index.MAX_JSON)
    except Absent as why:
        raise UserError(
            f"{why}: run `mmfm data index FOLDER` where the shards are, and upload what it writes"
        ) from None
    entries = {entry.place: entry for entry in shard_list.parse_list(text.encode(), shown(url), "")}
    return {name: replace(entry, place=beside(folder, name)) for name, entry in entries.items()}


class ShardCache:
    """Whole shards of other machines, in a folder of this one that never holds more than `limit_gb`.

    A file that was opened stays readable, and keeps its room, when it is removed for others: who reads closes it soon.
    `open` opens it before it can be removed.
    """

    def __init__(self, settings: config.RemoteCache, *, sleep: Callable[[float], object] = time.sleep) -> None:
        self.settings = settings
        self.folder = Path(settings.folder).expanduser()
        self.limit = round(settings.limit_gb * GIGABYTE)
        self._sleep = sleep
        self._kept: frozenset[str] = frozenset()  # stems of shards that are wanted soon: the last to be removed
        self._ahead: _Ahead | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ahead": None}

    def local(self, url: str, *, size: int | None = None, crc32: int | None = None) -> Path:
        """The path of the whole shard on this machine, fetched first where it is not there yet.

        Raises UserError where the URL, the credentials or the limit are wrong, FetchError where the machine fails.
        """
        check_scheme(url)
        if size is not None:
            self._check_limit(url, size)
        path = self.folder / (_stem(url, size, crc32) + ".tar")
        with self._disk():
            self.folder.mkdir(parents=True, exist_ok=True)
            while not _touch(path, size):
                self._fetch(url, path, size, crc32)
        return path

    def open(self, url: str, *, size: int | None = None, crc32: int | None = None) -> int:
        """A descriptor of the whole shard: readable for as long as it is open, whatever is removed meanwhile."""
        while True:
            with suppress(FileNotFoundError):
                return os.open(self.local(url, size=size, crc32=crc32), os.O_RDONLY)

    def text(self, url: str, limit_bytes: int = index.MAX_JSON) -> str:
        """A small file, which is not kept. Raises UserError where it has over `limit_bytes` or is not UTF-8."""
        data = bytearray()

        def read() -> None:
            data.clear()
            with request(url, 0, None, "", self.settings.timeout_s) as answer:
                while len(data) <= limit_bytes and (chunk := answer.read(min(CHUNK, limit_bytes + 1 - len(data)))):
                    data.extend(chunk)
            if len(data) < min(answer.size or 0, limit_bytes + 1):
                raise Again(f"the connection ended at byte {len(data)} of {answer.size}")

        self._try(url, read)
        if len(data) > limit_bytes:
            raise UserError(f"{shown(url)} has over {limit_bytes} bytes; check that it is the right file")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as why:
            raise UserError(f"{shown(url)} is not UTF-8 at byte {why.start}; check that it is the right file") from None

    def prefetch(self, wanted: Sequence[Entry]) -> None:
        """Fetch these next, in this order, in the background, instead of what was wished before; as many as have room.

        What fails there is left alone: `local` tries it again, and says what is wrong.
        """
        if self._ahead is None or self._ahead.process != os.getpid():  # a thread does not survive a fork
            self._ahead = _Ahead(self.local)
        room, fitting = self.limit, []
        for entry in wanted:
            room -= entry.bytes
            if room < 0:
                break
            fitting.append(entry)
        self._kept = frozenset(_stem(entry.place, entry.bytes, entry.crc32) for entry in fitting)
        self._ahead.wish(fitting)

    # Fetching

    def _fetch(self, url: str, path: Path, size: int | None, crc32: int | None) -> None:
        """Make `path`, unless another process does meanwhile."""
        with locked_part(path.with_suffix(".part")) as file:
            if file is None or path.exists():
                return
            part = _Part(file)
            self._try(url, lambda: self._stream(url, part, path.stem, size, crc32), lambda: part.at)
            os.fsync(file)
            with self._counting():
                os.replace(path.with_suffix(".part"), path)

    def _stream(self, url: str, part: "_Part", stem: str, size: int | None, crc32: int | None) -> None:
        """What one connection brings, from where the last one stopped. Returns when the shard is whole and right."""
        start = part.at if crc32 is not None or part.version else 0  # else two versions could be joined
        with request(url, start, size, part.version, self.settings.timeout_s) as answer:
            whole = answer.size if size is None else size
            if whole is None:
                raise UserError(f"{shown(url)}: the server does not say how long it is; {index.again(url)}")
            if answer.size not in (None, whole):
                raise Again(f"the server has {answer.size} bytes, and the list of the shards says {whole}")
            if answer.start != part.at or part.size not in (0, whole):
                part.restart()
            part.version = answer.version
            if part.size != whole:
                self._evict(url, stem, whole, part)
            while part.at < whole:
                chunk = answer.read(min(CHUNK, whole - part.at))
                if not chunk:
                    raise Again(f"the connection ended at byte {part.at} of {whole}")
                part.add(chunk[: whole - part.at])
        if crc32 is not None and part.crc32 != crc32:
            found = part.crc32
            part.restart()
            raise Again(f"its CRC-32 is {found}, and the list of the shards says {crc32}")

    def _try(self, url: str, attempt: Callable[[], None], at: Callable[[], int] = lambda: 0) -> None:
        """Until it succeeds, or fails `tries` times in a row without getting on."""
        failed, start = 0, at()
        while True:
            try:
                return attempt()
            except Again as caught:
                why, asked_s = str(caught), caught.after_s
            failed, start = (1 if at() - start >= PROGRESS else failed + 1), at()
            if failed >= self.settings.tries:
                raise FetchError(f"{shown(url)} could not be fetched, {failed} times in a row: {why}; {REMEDY}")
            pause_s = 0.5 * 2 ** (failed - 1) * SystemRandom().uniform(0.5, 1.0)
            self._sleep(min(max(pause_s, asked_s), LONGEST_WAIT_S))

    # Room

    def _check_limit(self, url: str, size: int) -> None:
        if size > self.limit:
            told = (
                f"{shown(url)} has {size / GIGABYTE:.3g} GB, over data.remote_cache.limit_gb={self.settings.limit_gb}"
            )
            raise UserError(f"{told}; raise the limit, or write smaller shards")

    def _evict(self, url: str, stem: str, size: int, part: "_Part") -> None:
        """Remove what was used least recently, then take `size` bytes, so that other processes count them too."""
        self._check_limit(url, size)
        while True:
            with self._counting():
                if self._freed(stem, size):
                    return part.reserve(size)
            self._sleep(0.1)  # others are fetching: their shards will be whole, and can be removed

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Alone with the folder: a file that is renamed while others are counted would be missed."""
        with flock(self.folder / "room.lock", os.O_RDWR | os.O_CREAT):
            yield

    def _freed(self, stem: str, size: int) -> bool:
        """Whether `size` bytes fit beside what others are fetching now, and the rest if need be without all else."""
        used, whole = 0, []
        for path in self.folder.iterdir():
            if path.suffix not in (".part", ".tar") or path.stem == stem:
                continue
            with suppress(FileNotFoundError):
                if path.suffix == ".part":
                    remove_forsaken(path)
                status = path.stat()
                used += status.st_size
                if path.suffix == ".tar":
                    whole.append((path.stem in self._kept, status.st_mtime_ns, path, status.st_size))
        for _, _, path, freed in sorted(whole):
            if used + size > self.limit:
                path.unlink(missing_ok=True)
                used -= freed
        return used + size <= self.limit

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Say in words what this machine's disk refuses."""
        try:
            yield
        except FetchError:
            raise
        except OSError as why:
            remedy = "make room, or set data.remote_cache.folder or a smaller data.remote_cache.limit_gb"
            raise FetchError(
                f"{self.folder} cannot be written ({why.strerror or type(why).__name__}); {remedy}"
            ) from None


class _Part:
    """A shard that is being written. It has its full size from the start, and is filled up to `at`."""

    def __init__(self, file: int) -> None:
        self._file = file
        self.at = self.crc32 = self.size = 0
        self.version = ""

    def reserve(self, size: int) -> None:
        os.ftruncate(self._file, size)
        self.size = size

    def add(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            written = os.pwrite(self._file, left, self.at)
            self.crc32 = zlib.crc32(left[:written], self.crc32)
            self.at += written
            left = left[written:]

    def restart(self) -> None:
        self.at = self.crc32 = 0


class _Ahead:
    """The thread of one process that fetches what will be wanted."""

    def __init__(self, fetch: Callable[..., Path]) -> None:
        self.process = os.getpid()
        self._fetch, self._wishes = fetch, list[Entry]()
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="shards ahead", daemon=True).start()

    def wish(self, wanted: Sequence[Entry]) -> None:
        with self._changed:
            self._wishes = list(wanted)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wishes)
                entry = self._wishes.pop(0)
            with suppress(OSError, UserError):
                self._fetch(entry.place, size=entry.bytes, crc32=entry.crc32)


# Files


def _stem(url: str, size: int | None, crc32: int | None) -> str:
    """The name of the local copy: a hash, so that nothing in a URL names a path; another version has another name."""
    before, slashes, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    plain = before + slashes + host.rpartition("@")[2] + slash + path
    return hashlib.sha256(f"{plain} {size} {crc32}".encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _touch(path: Path, size: int | None) -> bool:
    """Whether the whole shard is there; if so, it is the last used from now on."""
    try:
        if size is not None and path.stat().st_size != size:
            path.unlink()
            return False
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
