"""The tars of a run, set by set, each proven whole and compared with its index; what is not whole is left out.

A set is a source of training, or a split beside the validation data. All that follows reads through `read`, which
trusts an index only if it says what the tar's own headers say, and is else the reader of training.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from mmfm.config import Run, Source, UserError
from mmfm.data import index, shard_list
from mmfm.data.index import Index, again
from mmfm.data.remote_cache import ShardCache, expand_remote
from mmfm.data.sample import Sample
from mmfm.data.shard_specs import expand, patterns
from mmfm.data.shards import Shards
from mmfm.data.splits import asked_and_more, is_remote, splits_of
from mmfm.data.urls import beside, folder_of, shown
from mmfm.doctor.findings import Finding, Section, finding, plural, table
from mmfm.runtime.files import checksum

TRAIN = "train"


@dataclass(frozen=True)
class Tar:
    """A tar that is whole. `indexed`: its index says what its headers say. `name`: as the run calls it."""

    path: Path
    name: str
    samples: int
    indexed: bool


@dataclass(frozen=True, kw_only=True)
class Set:
    """Samples that are used alike. `source` is that of a training set; other sets promise nothing."""

    split: str
    label: str
    spec: str
    source: Source | None = None
    tars: tuple[Tar, ...] = ()
    unseen: int = 0  # shards behind URLs into which nobody has looked

    def __len__(self) -> int:
        return sum(tar.samples for tar in self.tars)


def sets_of(run: Run) -> list[Set]:
    """Without their tars yet: every source, and every split that the run names, with what its galleries hold too."""
    labels = [source.name or label for source, label in zip(run.data.train, _short(run.data.train), strict=True)]
    named = zip(run.data.train, labels, strict=True)
    found = [Set(split=TRAIN, label=f"train {label}", spec=s.shards, source=s) for s, label in named]
    try:
        specs = {name: asked_and_more(spec) for name, spec in splits_of(run).items()}
    except UserError:  # that the run would be refused is told first
        return found
    asked = {spec for spec, _ in specs.values()}
    specs |= {f"{name}+": (more, "") for name, (_, more) in specs.items() if more and more not in asked}
    calls = {name: f"{name} (scored)" if name == TRAIN else name for name in specs}
    return found + [Set(split=calls[name], label=calls[name], spec=spec) for name, (spec, _) in specs.items()]


def _short(sources: Sequence[Source]) -> list[str]:
    """The shards without the folder that all of the sources lie in."""
    folders = [source.shards.rpartition("/")[0].split("/") for source in sources]
    together = next((i for i, names in enumerate(zip(*folders, strict=False)) if len(set(names)) > 1), None)
    depth = min(map(len, folders), default=0) if together is None else together
    return ["/".join(source.shards.split("/")[depth:]) for source in sources]


def but_for(sets: Sequence[Set]) -> str:
    """What a sentence about all sets ends with where there are some that nobody has looked into."""
    unseen = [one.label for one in sets if one.unseen]
    return f"; nothing is known of {', '.join(unseen)}, not looked at" if unseen else ""


@lru_cache(maxsize=4)
def index_of(tar: Tar) -> Index:
    return index.load(tar.path, tar.path.stat().st_size) if tar.indexed else index.scan(tar.path, measured=True)


class Proven(Shards):
    """The shards of training, of tars that were proven whole: read by what their headers say."""

    def __init__(self, tars: Sequence[Tar]) -> None:
        self._tars = tuple(tars)
        super().__init__(tar.path for tar in tars)

    def _entries(self, shards: Iterable[Path | shard_list.Entry]) -> Iterator[shard_list.Entry]:
        for tar in self._tars:
            yield shard_list.Entry(place=str(tar.path), bytes=tar.path.stat().st_size, samples=tar.samples, holds={})

    def _load(self, shard: int) -> Index:
        return index_of(self._tars[shard])

    def label(self, shard: int) -> str:
        return self._tars[shard].name


def read(tar: Tar, wanted: Collection[str], places: Sequence[int] | None = None) -> Iterator[tuple[int, Sample]]:
    """(place, sample) of these places or of all, with the parts whose extension, counted or not, is in `wanted`."""
    shards = Proven([tar])
    for place in range(len(shards)) if places is None else places:
        yield place, shards.read(place, wanted)


@dataclass
class _Seen:
    """What was noticed while the tars of one set were looked at."""

    tars: list[Tar] = field(default_factory=list)
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    unseen: int = 0
    bare: list[str] = field(default_factory=list)  # without an index
    ignored: Counter[str] = field(default_factory=Counter)
    scattered: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)


def look(sets: Sequence[Set], store: ShardCache, *, sums: bool, fetch: bool) -> tuple[list[Set], Section]:
    """The sets with their whole tars. `sums`: the bytes of each tar are compared with the CRC-32 of its index."""
    seen = [_look(one, store, sums, fetch) for one in sets]
    known = [replace(one, tars=tuple(each.tars), unseen=each.unseen) for one, each in zip(sets, seen, strict=True)]
    findings = [item for each in seen for item in each.findings] + _shared(known)
    tars = sum(len(each.tars) for each in seen)
    if tars and not any(item.level == "ERROR" for item in findings):
        proof = "their headers" + (" and, where an index has a sum, their bytes" if sums else "")
        findings.insert(0, finding("OK", "whole", f"{plural(tars, 'tar')} proven whole by {proof}", count=tars))
    rows = [
        (one.label, len(one.tars), len(one), round(each.bytes / 1e6, 1)) for one, each in zip(known, seen, strict=True)
    ]
    head = ("set", "shards", "samples", "MB")
    return known, Section(name="Shards", findings=tuple(findings), tables=(table("", head, rows),))


def _look(one: Set, store: ShardCache, sums: bool, fetch: bool) -> _Seen:
    seen = _Seen()
    if is_remote(one.spec):
        _remote(one, store, fetch, seen)
    else:
        lists: dict[Path, dict[str, shard_list.Entry] | None] = {}
        for path in _paths(one, seen):
            _prove(path, str(path), seen, sums, _listed(path, lists, seen))
    _sum_up(one, seen)
    return seen


def _paths(one: Set, seen: _Seen) -> list[Path]:
    """What the specification names; each pattern that names nothing is told, not only the first."""
    found, missing = list[Path](), list[str]()
    for pattern in patterns(one.spec):
        try:
            found += expand(pattern)
        except UserError:
            missing.append(pattern)
    if missing:
        told = f"{one.label}: {plural(len(missing), 'shard')} named but not there; make or copy them, or name fewer"
        seen.findings.append(finding("ERROR", "shard_missing", told, missing))
    twice = [str(path) for path, count in Counter(found).items() if count > 1]
    if twice:
        told = f"{one.label}: a shard is named twice; name it once"
        seen.findings.append(finding("ERROR", "shard_twice", told, twice))
    if gaps := _gaps(found):
        told = f"{one.label}: numbers are left out between the first shard and the last; check that all were copied"
        seen.findings.append(finding("NOTE", "shard_gap", told, gaps))
    return list(dict.fromkeys(found))


def _gaps(paths: Sequence[Path]) -> list[str]:
    """Names that are missing in a row such as a-000.tar, a-002.tar."""
    rows: dict[tuple[Path, str, int], set[int]] = {}
    for path in paths:
        if match := re.fullmatch(r"(.*?)(\d{3,12})", path.stem):
            rows.setdefault((path.parent, match[1], len(match[2])), set()).add(int(match[2]))
    return [
        str(folder / f"{stem}{number:0{width}d}.tar")
        for (folder, stem, width), numbers in rows.items()
        if max(numbers) - min(numbers) < 2 * len(numbers) + 8
        for number in sorted(set(range(min(numbers), max(numbers))) - numbers)
    ]


def _listed(path: Path, lists: dict[Path, dict[str, shard_list.Entry] | None], seen: _Seen) -> shard_list.Entry | None:
    """The tar's entry in the list of its folder, if it has one that can be read."""
    folder = path.parent
    if folder not in lists:
        try:
            lists[folder] = shard_list.read_list(folder) or None
        except UserError as why:
            lists[folder] = None
            seen.findings.append(finding("ERROR", "list_damaged", str(why), [str(folder / shard_list.LIST)]))
        gone = [name for name in lists[folder] or () if not (folder / name).is_file()]
        if gone:
            told = f"{folder / shard_list.LIST} lists shards that are not there; copy them, or {again(folder)}"
            seen.findings.append(finding("WARNING", "list_missing_shard", told, gone))
    return (lists[folder] or {}).get(path.name)


def _prove(
    path: Path, name: str, seen: _Seen, sums: bool, entry: shard_list.Entry | None, store: ShardCache | None = None
) -> None:
    """Adds the tar if it is whole; says what it or its index lacks. With a store, `path` is a copy of a URL, `name`."""
    url, name = name, name if store is None else shown(name)
    try:
        headers = index.scan(path, how=index.how_before(path))
    except UserError as why:
        seen.findings.append(finding("ERROR", "shard_damaged", str(why), [name]))
        return
    except OSError as why:
        told = f"{name} cannot be read ({why.strerror or why}); check the disk and the file's rights"
        seen.findings.append(finding("ERROR", "shard_unreadable", told, [name]))
        return
    indexed = (
        _compare(path, name, headers, seen, sums) if store is None else _compare_remote(url, path, headers, seen, store)
    )
    if entry is not None and (entry.bytes, entry.samples) != (headers.bytes, len(headers)):
        told = f"the list of shards gives {name} {entry.samples} samples in {entry.bytes} bytes, but it has "
        told += f"{len(headers)} in {headers.bytes}; {again(name.rpartition('/')[0])}"
        seen.findings.append(finding("ERROR", "list_stale", told, [name]))
    seen.tars.append(Tar(path, name, len(headers), indexed))
    seen.bytes += headers.bytes
    seen.ignored.update(headers.ignored)
    seen.scattered.update({name: headers.scattered} if headers.scattered else {})
    documents, most = headers.documents()
    seen.documents.update({f"{name}: {most}": documents} if documents else {})


def _compare(path: Path, name: str, headers: Index, seen: _Seen, sums: bool) -> bool:
    """Whether there is an index that can be trusted."""
    if index.found_path(path) is None:
        seen.bare.append(name)
        return False
    try:
        said = index.load(path, headers.bytes)
    except UserError as why:
        seen.findings.append(finding("ERROR", "index_stale", str(why), [name]))
        return False
    if not _agree(name, headers, said, seen):
        return False
    if sums and said.crc32 is not None and checksum(path) != said.crc32:
        told = f"the bytes of {name} are not those that were indexed; copy it again, or if it was changed, "
        told += again(path.parent)
        seen.findings.append(finding("ERROR", "shard_changed", told, [name]))
    return True


def _compare_remote(place: str, path: Path, headers: Index, seen: _Seen, store: ShardCache) -> bool:
    """The same of the index beside a URL. It is not on this machine, and so never what is read here."""
    folder, tar = folder_of(place)
    url = beside(folder, tar.removesuffix(".tar") + ".idx.json")
    try:
        said = index.parse(store.text(url, index.MAX_JSON).encode(), shown(url), tar, headers.bytes)
        headers = headers if headers.how == said.how else index.scan(path, how=said.how)
        _agree(shown(place), headers, said, seen)
    except (UserError, OSError) as why:
        seen.findings.append(finding("ERROR", "index_stale", str(why), [shown(place)]))
    return False


def _agree(name: str, headers: Index, said: Index, seen: _Seen) -> bool:
    if (said.keys, said.offset, said.size) != (headers.keys, headers.offset, headers.size):
        key = next((a for a, b in zip(headers.keys, said.keys, strict=False) if a != b), headers.keys[0])
        told = f"the index of {name} names other samples than the tar holds, or at other places; "
        told += again(name.rpartition("/")[0])
        seen.findings.append(finding("ERROR", "index_stale", told, [f"{name}: {key}"]))
        return False
    return True


def _sum_up(one: Set, seen: _Seen) -> None:
    if seen.bare:
        told = f"{one.label}: {len(seen.bare)} of {plural(len(seen.tars), 'tar')} have no index, so that every start"
        told += " reads their headers; index them with: mmfm data index FOLDER"
        seen.findings.append(finding("NOTE", "index_missing", told, seen.bare))
    if seen.documents:
        told = f"{one.label}: {plural(sum(seen.documents.values()), 'sample')} of counted parts, as of names such as "
        told += "22.1.png; if each part is a sample of its own, say: mmfm data index --again --last-dot FOLDER"
        seen.findings.append(finding("NOTE", "documents", told, seen.documents, sum(seen.documents.values())))
    if seen.scattered:
        told = (
            f"{one.label}: {plural(sum(seen.scattered.values()), 'sample')} not in one piece, which other readers of "
        )
        told += "WebDataset tear apart; write each sample's parts side by side"
        seen.findings.append(finding("NOTE", "scattered", told, seen.scattered, sum(seen.scattered.values())))
    if seen.ignored:
        kinds = [f".{kind} ({count})" for kind, count in seen.ignored.most_common()]
        told = f"{one.label}: {plural(sum(seen.ignored.values()), 'file')} of kinds that are not read"
        seen.findings.append(finding("NOTE", "ignored", told, kinds, sum(seen.ignored.values())))


def _shared(sets: Sequence[Set]) -> list[Finding]:
    """A tar that training reads and a score is taken from."""
    train = {tar.path.resolve() for one in sets if one.split == TRAIN for tar in one.tars}
    scored = [(one.split, tar) for one in sets if one.split != TRAIN for tar in one.tars]
    both = [f"{split}: {tar.name}" for split, tar in scored if tar.path.resolve() in train]
    told = "a shard is read for training and for scores, which will be too good; name other shards for one of them"
    return [finding("ERROR", "shard_shared", told, both)] if both else []


def _remote(one: Set, store: ShardCache, fetch: bool, seen: _Seen) -> None:
    """Shards behind URLs: fetched and looked at, if that is asked for and they have room; else what their lists say."""
    try:
        entries = expand_remote(one.spec, store)
        size = sum(entry.bytes for entry in entries)
        if fetch and size <= store.limit:
            for entry in entries:  # the store compares sizes and sums
                path = store.local(entry.place, size=entry.bytes, crc32=entry.crc32)
                _prove(path, entry.place, seen, False, entry, store)
            return
    except (UserError, OSError) as why:
        seen.findings.append(finding("ERROR", "remote_refused", f"{one.label}: {why}", [one.spec]))
        return
    samples = sum(entry.samples for entry in entries)
    told = f"{one.label}: {plural(len(entries), 'remote shard')} with {plural(samples, 'sample')}"
    held = Counter[str]()
    for entry in entries:
        held.update(entry.holds)
    why = "more than data.remote_cache.limit_gb holds, so" if fetch else "add --fetch to look inside;"
    told += (
        f" ({', '.join(f'{kind} {count}' for kind, count in sorted(held.items()))}), {size / 1e9:.3g} GB: {why} only"
    )
    seen.unseen = len(entries)
    told = f"{told} their lists were read, and nothing is known of what they hold"
    seen.findings.append(finding("WARNING", "not_looked_at", told, [one.spec], samples))
    for name in one.source.modalities if one.source is not None and not one.source.texts else ():
        if lack := samples - held[name]:
            told = f"{one.label}: {plural(lack, 'sample')} without {name}, which the source provides, by the lists"
            seen.findings.append(finding("WARNING", f"missing_{name}", told, [one.spec], lack))
