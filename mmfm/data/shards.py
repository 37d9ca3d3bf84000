"""WebDataset tars, addressed instead of iterated: each part of a sample is one `pread`, so any sample can come next.

What lies where is in the indexes. Those of the last few tars are kept; of the others only how many samples they have,
so that memory does not grow with the samples of a set. Standard library only: checking a run's data needs no torch.
"""

import itertools
import os
import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mmfm.config import MESSAGES, Source, UserError
from mmfm.data import index, shard_list
from mmfm.data.index import EXTENSIONS, Index, again, numbered
from mmfm.data.member_names import plain
from mmfm.data.open_files import OPEN
from mmfm.data.sample import Sample, modalities, text_of, why_no_text
from mmfm.data.shard_list import Entry
from mmfm.data.tar import BLOCK, header_says
from mmfm.data.urls import beside, folder_of, shown

ALONE = 1 << 14  # bytes: a longer part is read on its own, as copying it out of a longer read takes longer than a call
OWNERS = itertools.count()  # numbers of those who open files here
LIVE_SAMPLES = 1 << 18  # whose indexes are kept
WAITS_S = (0.1, 0.5, 2.0)  # before reading is tried again, where the machine and not the content fails
Span = tuple[int, int]  # offset and size
Read = Callable[[int, int], bytes]  # of (count, offset)


@runtime_checkable
class ShardStore(Protocol):
    """Where shards with a URL are fetched to; mmfm.data.remote_cache has one."""

    def open(self, url: str, *, size: int | None = None, crc32: int | None = None) -> int: ...
    def text(self, url: str, limit_bytes: int = ...) -> str: ...
    def prefetch(self, wanted: Sequence[Entry]) -> None: ...


class Shards:
    """The samples of several tars, tar by tar, each in the order of its samples' first members.

    Raises UserError unless all tars are whole: by their index, or by a scan of those that have none.
    """

    def __init__(self, shards: Iterable[Path | Entry], store: ShardStore | None = None) -> None:
        self._store = store
        self._scanned: dict[int, Index] = {}  # of tars without an index on disk: these stay
        self._live: dict[int, Index] = {}
        self._owner = next(OWNERS)
        self._soon: list[int] = []
        self.places: list[str] = []
        self.sizes, self._crc32 = array("Q"), array("q")
        self.ignored: Counter[str] = Counter()  # extensions that are none of ours, and how often
        self.held: Counter[str] = Counter()  # modality -> samples that have it
        self.scattered = 0
        self._tokenizers: list[str] = []
        counts = array("Q")
        for item in self._entries(shards):
            self.places.append(item.place)
            self.sizes.append(item.bytes)
            self._crc32.append(-1 if item.crc32 is None else item.crc32)
            counts.append(item.samples)
            self.ignored.update(item.ignored)
            self.held.update(item.holds)
            self.scattered += item.scattered
            self._tokenizers.append(item.tokenizer)
        self._ends = array("Q", accumulate(counts))

    def _entries(self, shards: Iterable[Path | Entry]) -> Iterator[Entry]:
        """Of each tar: from the list of its folder, else from its index, else by scanning it."""
        listed = cache(shard_list.read_list)
        for number, shard in enumerate(shards):
            if isinstance(shard, Entry):
                yield shard
                continue
            known, size = listed(shard.parent).get(shard.name), shard.stat().st_size
            if known is not None and known.bytes != size:
                told = f"it has {size} bytes, and {shard_list.LIST} says {known.bytes}"
                told = f"{shard} was changed after it was indexed: {told}; {again(shard.parent)}"
                if not index.aside(shard).is_file():
                    raise UserError(told)
                known = None  # of a folder that cannot be written
            if known is None and index.found_path(shard):
                known = shard_list.entry(str(shard), index.load(shard, size))
            if known is None:
                self._scanned[number] = index.scan(shard)
                known = shard_list.entry(str(shard), self._scanned[number])
            yield known

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, sample: int) -> Sample:
        return self.read(sample, EXTENSIONS)

    def read(self, sample: int, wanted: Collection[str]) -> Sample:
        """The parts with an extension in `wanted`, counted or not; the bytes of the others stay on disk."""
        shard, place = self.find(sample)
        lies = self._index(shard)
        spans = {name: span for name, span in lies.parts(place).items() if numbered(name)[1] in wanted}
        key = lies.keys[place]
        parts = {plain(name): data for name, data in self._parts(shard, key, spans).items()}
        return Sample(key=key, parts=parts, where=f"{self.label(shard)}: {key}")

    def find(self, sample: int) -> tuple[int, int]:
        """Number of the tar, and the sample's place in it."""
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        shard = bisect_right(self._ends, sample)
        return shard, sample - (self._ends[shard - 1] if shard else 0)

    def extensions(self, sample: int) -> tuple[str, ...]:
        shard, place = self.find(sample)
        return self._index(shard).extensions(place)

    def modalities(self, sample: int) -> set[str]:
        """What the sample has. A body is read only where the text, if any, must be in a .json."""
        names = self.extensions(sample)
        found = modalities(names)
        if "text" not in found and "json" in names and text_of(self.read(sample, ("json",))) is not None:
            found.add("text")
        return found

    def indexed(self, sample: int) -> tuple[Index, int]:
        """The index of its tar, and the sample's place in it."""
        shard, place = self.find(sample)
        return self._index(shard), place

    def tokenizer(self, shard: int) -> str:
        """Fingerprint of the one whose tokens its index counts; "": it counts none. By the list where that says it."""
        return self._tokenizers[shard] or self._index(shard).tokenizer

    def key(self, sample: int) -> str:
        shard, place = self.find(sample)
        return self._index(shard).keys[place]

    def where(self, sample: int) -> str:
        return f"{self.label(self.find(sample)[0])}: {self.key(sample)}"

    def label(self, shard: int) -> str:
        """The tar as it may be logged: of a URL not what holds credentials."""
        return self.places[shard] if self._store is None else shown(self.places[shard])

    def name(self, shard: int) -> str:
        """The tar's own name."""
        return self.places[shard].rpartition("/")[2] if self._store is None else folder_of(self.places[shard])[1]

    def counts(self) -> list[int]:
        """Samples in each shard."""
        return [after - before for before, after in pairwise([0, *self._ends])]

    def _index(self, shard: int) -> Index:
        """Where the parts of a tar's samples lie; those that were used last are kept."""
        known = self._scanned.get(shard) or self._live.pop(shard, None)
        if known is None:
            known = self._load(shard)
            room = LIVE_SAMPLES - len(known)
            while self._live and sum(map(len, self._live.values())) > room:
                del self._live[next(iter(self._live))]
        if shard not in self._scanned:
            self._live[shard] = known
        return known

    def _load(self, shard: int) -> Index:
        place, size = self.places[shard], self.sizes[shard]
        if self._store is None:
            if index.found_path(Path(place)) is None:  # its folder has a list, and only that
                self._scanned[shard] = index.scan(Path(place))
                return self._scanned[shard]
            return _patiently(lambda: index.load(Path(place), size), f"the index of {place}")
        folder, name = folder_of(place)
        url = beside(folder, name.removesuffix(".tar") + ".idx.json")
        return index.parse(self._store.text(url, index.MAX_JSON).encode(), shown(url), name, size)

    def _parts(self, shard: int, key: str, spans: Mapping[str, Span]) -> dict[str, bytes]:
        """The bytes of one sample's parts, each of which must lie behind the header that was indexed."""
        with self._reading(shard) as read:
            return self._checked(shard, key, spans, read)

    def _checked(self, shard: int, key: str, spans: Mapping[str, Span], read: Read) -> dict[str, bytes]:
        first, data = _near(read, [span for span in spans.values() if span[1] < ALONE])
        parts = {}
        for name, (offset, size) in spans.items():
            at = offset - first
            if at >= BLOCK and at + size <= len(data):
                header, parts[name] = data[at - BLOCK : at], data[at : at + size]
            else:
                header, parts[name] = read(BLOCK, offset - BLOCK), read(size, offset)
            if not header_says(header, f"{key}.{name}", size):
                told = f"is not the tar that was indexed: byte {offset} begins no {name}"
                remedy = again(self.places[shard] if self._store else Path(self.places[shard]).parent)
                raise UserError(f"{self.label(shard)} {told}; {remedy}")
        return parts

    @contextmanager
    def _reading(self, shard: int) -> Iterator[Read]:
        """What reads (count, offset) of a tar. One that was fetched is closed at the end: a file that is open keeps its
        room on the disk when the store removes it, and then no limit would hold."""
        fetched = None if self._store is None else self._open(shard)
        try:

            def read(count: int, offset: int) -> bytes:
                # Inside, a tar of this machine is opened again where its server has forgotten it.
                found = _patiently(lambda: self._read_at(shard, fetched, count, offset), self.label(shard))
                if len(found) != count:
                    raise UserError(
                        f"{self.label(shard)} became shorter while it was in use; restore it and start again"
                    )
                return found

            yield read
        finally:
            if fetched is not None:
                os.close(fetched)

    def _read_at(self, shard: int, fetched: int | None, count: int, offset: int) -> bytes:
        """Of a tar of this machine through a file that stays open. A forked worker inherits it: `pread` has no position
        that two could fight over."""
        if fetched is not None:
            return os.pread(fetched, count, offset)
        with OPEN.lent((self._owner, shard), lambda: self._open(shard)) as file:
            return os.pread(file, count, offset)

    def _open(self, shard: int) -> int:
        if self._store is None:
            return os.open(self.places[shard], os.O_RDONLY)
        return self._store.open(self.places[shard], size=self.sizes[shard], crc32=self._stated_crc32(shard))

    def _stated_crc32(self, shard: int) -> int | None:
        return None if self._crc32[shard] < 0 else self._crc32[shard]

    @property
    def remote(self) -> bool:
        return self._store is not None

    def prefetch(self, soon: Sequence[int]) -> None:
        """Fetch these tars in the background, the first ones first."""
        if self._store is None or list(soon) == self._soon:
            return
        self._soon = list(soon)
        self._store.prefetch(
            [
                Entry(
                    place=self.places[shard],
                    bytes=self.sizes[shard],
                    samples=0,
                    holds={},
                    crc32=self._stated_crc32(shard),
                )
                for shard in soon
            ]
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_owner"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _owner=next(OWNERS))

    def __del__(self, forget: Callable[[int], None] = OPEN.forget) -> None:  # at exit a module's names may be gone
        if "_owner" in self.__dict__:
            forget(self._owner)


def _near(read: Read, spans: Sequence[Span]) -> tuple[int, bytes]:
    """All of `spans` with their headers in one read, and where it begins; nothing where they lie apart."""
    if not spans:
        return 0, b""
    first, last = min(spans)[0] - BLOCK, sum(max(spans))
    return first, read(last - first, first) if last - first <= 2 * ALONE else b""


def _patiently(read: Any, what: str, wait: Any = time.sleep) -> Any:
    """What `read` gives. An error of the machine is tried again, then raised: a skip must depend on content alone."""
    for seconds in WAITS_S:
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError:
            wait(seconds)
    try:
        return read()
    except OSError as why:
        told = f"{what} cannot be read ({why.strerror or why}), after {len(WAITS_S) + 1} tries"
        raise OSError(why.errno, told) from why


def check_holds(source: Source, shards: Shards, max_bad_fraction: float) -> None:
    """Raises UserError where a larger fraction than `max_bad_fraction` of the samples lacks what the source provides.

    Fewer are read as they come: each is replaced by another, counted and listed.
    """
    for name in source.modalities:
        if name == MESSAGES:
            continue  # in the .json, of which an index does not tell
        lack = len(shards) - shards.held[name]
        if lack > max_bad_fraction * len(shards) and not (name == "text" and source.texts):
            first = next(sample for sample in range(len(shards)) if name not in shards.modalities(sample))
            told = f"{shards.where(first)} has no {name}, which its source provides; neither have {lack - 1} others"
            why = why_no_text(shards.read(first, ("json",))) if name == "text" else ""
            raise UserError(f"{told} of {len(shards)}{why or f'; add it or drop {name!r}'}")
