"""WebDataset tars, addressed instead of iterated: one pass over the headers, then each part of a sample is one `pread`.

So any sample can come at any position of a stream. Standard library only: checking a run's data needs no torch.
"""

import glob
import json
import os
import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmfm.config import UserError
from mmfm.data.tar import members
from mmfm.inputs import BadSample

MODALITY = {
    **dict.fromkeys(("png", "jpg", "jpeg", "webp"), "image"),
    **dict.fromkeys(("wav", "flac", "ogg", "mp3"), "audio"),
    "txt": "text",
}
EXTENSIONS = (*MODALITY, "json", "cls")  # all that is ever read; what else a shard holds is counted, not opened
MAX_TEXT = 1 << 20  # bytes
OPEN_FILES = 128
FORMS = "give a folder of .tar shards, a .tar, a glob, or a pattern such as image-{000000..000007}.tar"


@dataclass(frozen=True)
class Sample:
    """One sample's parts by extension. `where` names shard and key, for messages."""

    key: str
    parts: dict[str, bytes]
    where: str


class Shards:
    """The samples of several tars, in the order of their first members. Raises UserError unless all tars are whole."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = tuple(paths)
        self.sizes = tuple(path.stat().st_size for path in self.paths)
        self.ignored: Counter[str] = Counter()  # extensions that are none of ours, and how often
        self._keys, self._key_ends = bytearray(), array("Q", [0])
        self._part_ends, self._shard_ends = array("Q", [0]), array("Q")
        self._extension, self._offset, self._size = array("B"), array("Q"), array("Q")
        self._files: dict[int, int] = {}
        for path in self.paths:
            self._add(path)

    def _add(self, path: Path) -> None:
        for key, parts in index(path, self.ignored).items():
            self._keys += key.encode("utf-8", "surrogateescape")
            self._key_ends.append(len(self._keys))
            for extension, (offset, size) in parts.items():
                self._extension.append(EXTENSIONS.index(extension))
                self._offset.append(offset)
                self._size.append(size)
            self._part_ends.append(len(self._extension))
        self._shard_ends.append(len(self))

    def __len__(self) -> int:
        return len(self._part_ends) - 1

    def __getitem__(self, sample: int) -> Sample:
        return self.read(sample, EXTENSIONS)

    def read(self, sample: int, wanted: Collection[str]) -> Sample:
        """The parts with an extension in `wanted`; the bytes of the others stay on disk."""
        shard = self._shard(sample)
        names = {part: EXTENSIONS[self._extension[part]] for part in self._parts(sample)}
        parts = {name: self._bytes(shard, part) for part, name in names.items() if name in wanted}
        return Sample(key=self.key(sample), parts=parts, where=self.where(sample))

    def extensions(self, sample: int) -> tuple[str, ...]:
        return tuple(EXTENSIONS[self._extension[part]] for part in self._parts(sample))

    def modalities(self, sample: int) -> set[str]:
        """What the sample has. A body is read only where the text, if any, must be in a .json."""
        names = self.extensions(sample)
        found = modalities(names)
        if "text" not in found and "json" in names and text_of(self.read(sample, ("json",))) is not None:
            found.add("text")
        return found

    def key(self, sample: int) -> str:
        start, end = self._key_ends[sample], self._key_ends[sample + 1]
        return self._keys[start:end].decode("utf-8", "surrogateescape")

    def where(self, sample: int) -> str:
        return f"{self.paths[self._shard(sample)]}: {self.key(sample)}"

    def counts(self) -> list[int]:
        """Samples in each shard."""
        ends = [0, *self._shard_ends]
        return [after - before for before, after in pairwise(ends)]

    def _shard(self, sample: int) -> int:
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        return bisect_right(self._shard_ends, sample)

    def _parts(self, sample: int) -> range:
        return range(self._part_ends[sample], self._part_ends[sample + 1])

    def _bytes(self, shard: int, part: int) -> bytes:
        data = os.pread(self._file(shard), self._size[part], self._offset[part])
        if len(data) != self._size[part]:
            raise UserError(f"{self.paths[shard]} became shorter while it was in use; restore it and start again")
        return data

    def _file(self, shard: int) -> int:
        """An open descriptor. A forked worker inherits them: `pread` has no position that two could fight over."""
        if shard not in self._files:
            if len(self._files) >= OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = os.open(self.paths[shard], os.O_RDONLY)
        return self._files[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        for file in self.__dict__.get("_files", {}).values():
            os.close(file)


def modalities(extensions: Collection[str]) -> set[str]:
    return {MODALITY[extension] for extension in extensions if extension in MODALITY}


def meta_of(sample: Sample) -> dict[str, Any]:
    """The object in the sample's .json; empty where there is none. Raises BadSample for anything but an object."""
    if "json" not in sample.parts:
        return {}
    try:
        tree = json.loads(sample.parts["json"])
    except (ValueError, RecursionError):
        raise BadSample("json_damaged", f"{sample.where}: the .json is no JSON; write it again") from None
    if not isinstance(tree, dict):
        raise BadSample("json_no_object", f"{sample.where}: the .json holds no object ({{...}}); write it again")
    return tree


def text_of(sample: Sample) -> str | None:
    """The .txt, or else "caption" or "text" of the .json, without white space around it. None where there is none."""
    if "txt" in sample.parts:
        try:
            text = sample.parts["txt"].decode("utf-8-sig")
        except UnicodeDecodeError as why:
            raise BadSample(
                "text_not_utf8", f"{sample.where}: the .txt is not UTF-8 (byte {why.start}); convert it"
            ) from None
    else:
        meta = meta_of(sample)
        text = next((meta[name] for name in ("caption", "text") if isinstance(meta.get(name), str)), None)
        if text is None:
            return None
    if len(text) > MAX_TEXT:
        raise BadSample(
            "text_too_long", f"{sample.where}: the text has {len(text)} characters, over {MAX_TEXT}; cut it"
        )
    if not text.strip():
        raise BadSample("text_empty", f"{sample.where}: the text is empty; write one or leave the file out")
    return text.strip()


def index(path: Path, ignored: Counter[str]) -> dict[str, dict[str, tuple[int, int]]]:
    """{key: {extension: (offset, size)}} of one tar; what is not read is counted in `ignored`."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    for member in members(path):
        key, extension = split_name(member.name)
        if not key or extension not in EXTENSIONS or not member.plain:
            ignored[extension if member.plain else "(no plain file)"] += 1
            continue
        parts = samples.setdefault(key, {})
        kind = MODALITY.get(extension, extension)
        rival = next((name for name in parts if MODALITY.get(name, name) == kind), None)
        if rival is not None:
            raise UserError(f"{path}: {key} has both .{rival} and .{extension}; one {kind} per sample, remove one")
        parts[extension] = (member.offset, member.size)
    if not samples:
        raise UserError(f"{path} has no sample with a part that can be read ({', '.join(EXTENSIONS)}); check the names")
    return samples


def split_name(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot after the last slash; lower-case extension."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return (folder + slash + stem if stem else ""), extension.lower()


def expand(spec: str) -> list[Path]:
    """The tars that a specification names, parts joined by commas. Raises UserError where a part names nothing."""
    patterns = [pattern for part in re.split(r",(?![^{]*\})", spec) for pattern in _braces(part.strip())]
    paths = [path for pattern in patterns for path in _found(pattern)]
    twice = [str(path) for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise UserError(f"{spec!r} names {twice[0]} twice; name each shard once")
    return paths


def _braces(pattern: str) -> list[str]:
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not match:
        return [pattern]
    first, last, listed = match.groups()
    middles = listed.split(",") if listed else [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return [
        whole for middle in middles for whole in _braces(pattern[: match.start()] + middle + pattern[match.end() :])
    ]


def _found(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if pattern and path.is_file():
        return [path]
    named = path / "*.tar" if pattern and path.is_dir() else path
    found = sorted(map(Path, glob.glob(str(named)))) if glob.has_magic(str(named)) else []
    if found:
        return found
    if pattern and path.is_dir():
        raise UserError(f"the folder {pattern!r} holds no .tar; {_remedy(path)}")
    raise UserError(f"there is no {pattern!r}; {_remedy(path)}")


def _remedy(path: Path) -> str:
    if "numbers" not in path.parts:
        return FORMS
    root = Path(*path.parts[: path.parts.index("numbers") + 1])
    return f"make it with: mmfm data numbers {root}"
