"""What lies where in a tar: `X.idx.json` beside `X.tar`, and `shards.json`, the list of a folder's tars.

Made by one pass over the headers, which proves that the archive is whole. Both are JSON, checked when read; a list
lets a set of a hundred thousand tars be opened without opening each one's index. Standard library only.
"""

import errno
import hashlib
import json
import os
import shlex
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import add
from pathlib import Path
from typing import Any

from mmfm.config import UserError, modality_names
from mmfm.data.member_names import CODES as CODES
from mmfm.data.member_names import EXTENSIONS, How, Several, chosen, how_of, modality_of, numbered, split_name, turn
from mmfm.data.member_names import MODALITY as MODALITY
from mmfm.data.tar import BLOCK, members
from mmfm.preprocessing.media_headers import Measure, measure
from mmfm.runtime.files import checksum, replace_file

CAPTIONS = ("caption", "text")  # of a .json, where there is no .txt
FORMAT = 1
MAX_PART, MAX_JSON = 1 << 31, 1 << 28  # bytes of one part, of an index or a list
MAX_COUNT, MAX_CRC32 = 1 << 48, 1 << 32
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(kw_only=True)
class Index:
    """The samples of one tar, in the order of their first members. -1: the sample has no such part, or unknown."""

    shard: str
    bytes: int
    crc32: int | None  # of the whole tar; None where only the headers were read
    keys: list[str]
    offset: dict[str, array]  # of each extension, for every sample
    size: dict[str, array]
    texts: int  # samples that have a text, be it in their .json
    seconds: array  # of sound
    pixels: array  # of the picture
    scattered: int = 0  # samples whose parts were not side by side
    ignored: Counter[str] = field(default_factory=Counter)  # extensions that are none of ours, and how often
    how: How = field(default_factory=How)
    tokenizer: str = ""  # fingerprint of the one that counted `tokens`
    tokens: array = field(default_factory=partial(array, "q"))  # of each sample's texts; -1: it has none

    def __len__(self) -> int:
        return len(self.keys)

    def parts(self, sample: int) -> dict[str, tuple[int, int]]:
        """Offset and size by extension."""
        return {n: (self.offset[n][sample], sizes[sample]) for n, sizes in self.size.items() if sizes[sample] >= 0}

    def extensions(self, sample: int) -> tuple[str, ...]:
        return tuple(name for name, sizes in self.size.items() if sizes[sample] >= 0)

    def documents(self) -> tuple[int, str]:
        """How many samples have counted parts, and which has the most of them."""
        columns = [sizes for name, sizes in self.size.items() if numbered(name)[0] >= 0]
        parts = [sum(size >= 0 for size in row) for row in zip(*columns, strict=True)]
        return sum(map(bool, parts)), self.keys[parts.index(max(parts))] if any(parts) else ""

    def holds(self) -> dict[str, int]:
        """How many samples have each modality."""
        have = {name: [size >= 0 for size in sizes] for name, sizes in self.size.items()}
        kinds = {kind: [have[name] for name in have if modality_of(name) == kind] for kind in modality_names()}
        return {kind: sum(map(any, zip(*found, strict=True))) for kind, found in kinds.items()} | {"text": self.texts}


def again(folder: Path | str) -> str:
    """What there is to do about an index or a list that is not that of its tars."""
    if "://" in str(folder):
        return "make it again where the shards are, with: mmfm data index --again FOLDER, and upload it"
    return f"make it again with: mmfm data index --again {shlex.quote(str(folder))}"


def scan(path: Path, *, measured: bool = False, how: How = How()) -> Index:  # noqa: B008 (frozen)
    """One pass over the headers. Raises UserError where the tar is damaged, cut, or has two parts of one kind. A tar
    without any member, as downloaders write where nothing came, has no samples.

    `measured` looks into each sound and picture for its length and size.
    """
    found, ignored, scattered = _group(path, how)
    names = sorted({name for parts in found.values() for name in parts}, key=turn)
    parts = list(found.values())
    at, size = ({name: array("q", (p.get(name, (-1, -1))[i] for p in parts)) for name in names} for i in (0, 1))
    file = os.open(path, os.O_RDONLY)
    try:
        whole = os.fstat(file).st_size
        seen = [_look(file, p) if measured else (-1.0, -1) for p in parts]
        texts = sum(
            any(modality_of(name) == "text" for name in p)
            or ("json" in p and _captioned(os.pread(file, p["json"][1], p["json"][0])))
            for p in parts
        )
    finally:
        os.close(file)
    return Index(
        shard=path.name,
        bytes=whole,
        crc32=None,
        keys=list(found),
        offset=at,
        size=size,
        texts=texts,
        seconds=array("f", (seconds for seconds, _ in seen)),
        pixels=array("q", (pixels for _, pixels in seen)),
        scattered=scattered,
        ignored=ignored,
        how=how,
    )


Parts = dict[str, tuple[int, int]]


def _group(path: Path, how: How) -> tuple[dict[str, Parts], Counter[str], int]:
    """{key: {extension: (offset, size)}}, what is not read, and how many samples were not in one piece."""
    samples: dict[str, Parts] = {}
    ignored, scattered, last = Counter[str](), set[str](), ""
    for member in members(path):
        key, extension = split_name(member.name, how.last_dot)
        if key in samples and key != last:
            scattered.add(key)
        if not key or numbered(extension)[1] not in EXTENSIONS or not member.plain:
            ignored[extension if member.plain else "(no plain file)"] += 1
            continue
        last, parts = key, samples.setdefault(key, {})
        if extension in parts:
            raise UserError(f"{path}: {key} has .{extension} twice; write the archive again with one of them")
        if member.size > MAX_PART:
            raise UserError(f"{path}: {member.name} has {member.size} bytes, over {MAX_PART}; cut it into samples")
        parts[extension] = (member.offset, member.size)
    found = {key: kept for key, parts in samples.items() if (kept := _chosen(path, key, parts, how, ignored))}
    if not found and ignored:
        kinds = ", ".join(f".{name} ({count})" for name, count in ignored.most_common(5))
        remedy = f"check the names, or name the parts: mmfm data index {shlex.quote(str(path.parent))} --parts ..."
        told = f"{path} has no sample with a part that is read ({', '.join(EXTENSIONS)}), but {kinds}"
        raise UserError(f"{told}; {remedy}")
    return found, ignored, len(scattered)


def _chosen(path: Path, key: str, parts: Parts, how: How, ignored: Counter[str]) -> Parts:
    try:
        names = chosen(parts, how)
    except Several as why:
        one, other = why.args
        remedy = f"mmfm data index {shlex.quote(str(path.parent))} --parts {one}"
        told = f"{path}: {key} has both .{one} and .{other}, of which one is read"
        raise UserError(f"{told}; say which, such as with: {remedy}") from None
    if len(names) < len(parts):
        ignored.update(name for name in parts if name not in names)
    return {name: parts[name] for name in names}


def _look(file: int, parts: Parts) -> tuple[float, int]:
    """Seconds of sound and pixels of the last picture, by their headers; -1 where there is none or it is not said."""
    seconds, pixels = -1.0, -1
    for seen in measured(file, parts):
        seconds = max(seconds, 0.0) + seen.seconds if seen.seconds >= 0 else seconds
        pixels = seen.width * seen.height if seen.width > 0 else pixels
    return seconds, pixels


def measured(file: int, parts: Mapping[str, tuple[int, int]]) -> Iterator[Measure]:
    """What the headers of a sample's sounds and pictures say. parts: offset and size by extension."""
    for name, (offset, size) in parts.items():
        if modality_of(name) in ("image", "audio"):
            yield measure(numbered(name)[1], partial(_part, file, offset, size), size)


def _part(file: int, offset: int, size: int, at: int, count: int) -> bytes:
    return os.pread(file, max(min(count, size - at), 0), offset + at)


def _captioned(data: bytes) -> bool:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(tree, dict) and any(isinstance(tree.get(name), str) for name in CAPTIONS)


# On disk


def index_path(shard: Path) -> Path:
    return shard.with_suffix(".idx.json")


def aside(shard: Path) -> Path:
    """Where the index of a tar lies whose folder cannot be written: in this user's cache, by place, size and time."""
    about = shard.stat()
    told = f"{shard.resolve()} {about.st_size} {about.st_mtime_ns}"
    name = hashlib.blake2b(told.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return cache_folder() / f"{name}.idx.json"


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mmfm" / "indexes"


def found_path(shard: Path) -> Path | None:
    """The tar's index: that of a folder that could not be written, else the one beside; None where there is none."""
    return next((path for path in (aside(shard), index_path(shard)) if path.is_file()), None)


def write(shard: Path, how: How | None = None) -> Index:
    """Read the whole tar, and write its index beside it, or aside where its folder cannot be written. `how`: None: as
    the index was made that is there."""
    index = scan(shard, measured=True, how=how_before(shard) if how is None else how)
    index.crc32 = checksum(shard)
    parts = {name: {"offset": index.offset[name].tolist(), "size": index.size[name].tolist()} for name in index.size}
    tree = {
        "format": FORMAT,
        **{name: getattr(index, name) for name in ("shard", "bytes", "crc32", "texts", "scattered", "ignored", "keys")},
        "parts": parts,
        "seconds": [round(seconds, 3) for seconds in index.seconds] if max(index.seconds, default=-1) >= 0 else None,
        "pixels": index.pixels.tolist() if max(index.pixels, default=-1) >= 0 else None,
        **index.how.tree(),
    }
    put(shard, json.dumps(tree, separators=(",", ":")))
    return index


def put(shard: Path, text: str) -> None:
    """The text of an index where it will be looked for."""
    path = aside(shard)
    try:
        replace_file(index_path(shard), text)
    except OSError as why:
        if why.errno not in UNWRITABLE:
            raise
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)
    else:
        path.unlink(missing_ok=True)


def how_before(shard: Path) -> How:
    """How the index was made that is there, were it that of another tar: nobody should have to say it again."""
    try:
        path = found_path(shard)
        return How() if path is None else how_of(json.loads(path.read_bytes().decode("utf-8", "surrogateescape")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, AttributeError):
        return How()


def load(shard: Path, size: int) -> Index:
    """The index of a tar of `size` bytes. Raises UserError where it is damaged or belongs to another tar."""
    path = found_path(shard) or index_path(shard)
    if path.stat().st_size > MAX_JSON:
        raise UserError(f"{path} has over {MAX_JSON} bytes; {again(shard.parent)}")
    return parse(path.read_bytes(), str(path), shard.name, size, again(shard.parent))


def parse(data: bytes, where: str, shard: str, size: int, remedy: str = "") -> Index:
    """What `write` wrote. No value is trusted: a wrong one could only point outside the tar."""
    try:
        tree = json.loads(data.decode("utf-8", "surrogateescape"))
        index = _index(tree)
        index.how = how_of(tree)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, AttributeError) as why:
        reason = " ".join(str(why).split())[:80]
        raise UserError(f"{where} is no index ({type(why).__name__}: {reason}); {remedy or again(where)}") from None
    if (index.shard, index.bytes) != (shard, size):
        told = f"{index.shard[:80]!r} of {index.bytes} bytes, but the tar is {shard!r} of {size}"
        raise UserError(f"{where} is the index of {told}; {remedy or again(where)}")
    return index


def _index(tree: Any) -> Index:
    keys, count = list(tree["keys"]), len(tree["keys"])
    must(set(map(type, keys)) <= {str} and len(set(keys)) == count, "keys must be different strings")
    parts = {str(name): tree["parts"][name] for name in tree["parts"]}
    index = Index(
        shard=str(tree["shard"]),
        bytes=int(tree["bytes"]),
        crc32=int(tree["crc32"]),
        keys=keys,
        offset={name: array("q", part["offset"]) for name, part in parts.items()},
        size={name: array("q", part["size"]) for name, part in parts.items()},
        texts=int(tree["texts"]),
        seconds=_column("f", tree["seconds"], count),
        pixels=_column("q", tree["pixels"], count),
        scattered=int(tree["scattered"]),
        ignored=Counter({str(name): int(n) for name, n in tree["ignored"].items()}),
    )
    if counted := tree.get("tokens"):
        index.tokenizer, index.tokens = str(counted["tokenizer"]), _column("q", counted["counts"], count)
        must(len(index.tokens) == count and min(index.tokens, default=0) >= -1, "counts of tokens that are none")
    must(tree["format"] == FORMAT, f"format {tree['format']!r}, not {FORMAT}")
    must({numbered(name)[1] for name in parts} <= set(EXTENSIONS), "an extension that is not read")
    must(index.crc32 is not None and 0 <= index.crc32 < MAX_CRC32, "a CRC-32 that is none")
    columns = [*index.offset.values(), *index.size.values(), index.seconds, index.pixels]
    must(
        {len(column) for column in columns} == {count} and bool(parts) == bool(count) and 0 <= index.texts <= count,
        "columns of other lengths",
    )
    for name, sizes in index.size.items():
        offsets = index.offset[name]
        must(min(sizes) >= -1 and max(sizes) <= MAX_PART and min(offsets) >= -1, "a negative offset or size")
        must(max(map(add, offsets, sizes)) <= index.bytes, "a part that ends behind the tar")
        must(sum(map(BLOCK.__gt__, offsets)) == offsets.count(-1), "a part without room for its header")
    return index


def _column(kind: str, values: list | None, count: int) -> array:
    """A column that may be null: nothing in it is known."""
    return array(kind, [-1]) * count if values is None else array(kind, values)


def must(holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(rule)


# The list of a folder
