"""Tensors in files of safetensors, each whole or in parts over several files: written from where they lie, read by
slices.

A file is 8 bytes of length, JSON, and the numbers. Where it holds only a part of a tensor, as each of several ranks
does of a sharded one, its JSON says where that part begins and which shape the whole has:

    {"__metadata__": {"parts": "{\\"trunk.norm.weight\\": {\\"offset\\": [16], \\"shape\\": [32]}}"}, ...}
"""

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmfm.config import UserError, require
from mmfm.runtime.files import Sum, checksum

LENGTH_BYTES, ALIGNMENT = 8, 8
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}  # of safetensors
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ERRORS = (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError)
Result = TypeVar("Result")
Box = tuple[tuple[int, ...], tuple[int, ...]]  # where it begins in the whole, and its sizes


class Part(NamedTuple):
    """Of a tensor of this shape what one rank holds, which begins at `offset`."""

    tensor: Tensor
    offset: tuple[int, ...]
    shape: tuple[int, ...]


def pieces(tensors: Mapping[str, Tensor | Part]) -> Iterator[bytes | memoryview]:
    """The content of a file, for `write_file`: one tensor after the other, the widest types first, so that each is
    aligned. No more than one of them is copied at a time, and none that lies in the memory of the CPU."""
    parts = {name: t if isinstance(t, Part) else Part(t, (0,) * t.ndim, tuple(t.shape)) for name, t in tensors.items()}
    order = sorted(parts, key=lambda name: (-parts[name].tensor.element_size(), name))
    split = {n: {"offset": p.offset, "shape": p.shape} for n, p in parts.items() if tuple(p.tensor.shape) != p.shape}
    header, end = dict[str, object](), 0
    if split:
        header["__metadata__"] = {"parts": json.dumps(split)}
    for name in order:
        tensor = parts[name].tensor
        if tensor.dtype not in NAMES:
            raise TypeError(f"{name}: a tensor of {tensor.dtype} cannot be kept in a file of safetensors")
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    yield len(text).to_bytes(LENGTH_BYTES, "little") + text
    yield from (_bytes(parts[name].tensor.detach().cpu().contiguous()) for name in order)


def _bytes(tensor: Tensor) -> memoryview:
    """The numbers of a contiguous tensor where they lie."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(bytearray())


class Stored(NamedTuple):
    """A tensor in a file, or a part of one: where its numbers begin there, and where it begins in the whole."""

    path: Path
    dtype: torch.dtype
    start: int
    sizes: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]


def stored(path: Path) -> dict[str, Stored]:
    """What a file holds. Any of `ERRORS` where it is none, or its header says what cannot be."""
    with safe_open(path, "pt") as checked:  # refuses what its header says wrongly
        dtypes = {name: checked.get_slice(name).get_dtype() for name in checked.keys()}  # noqa: SIM118
        parts = json.loads((checked.metadata() or {}).get("parts", "{}"))
    with path.open("rb") as file:
        start = LENGTH_BYTES + int.from_bytes(file.read(LENGTH_BYTES), "little")
        header = json.loads(file.read(start - LENGTH_BYTES))
    found = {}
    for name, dtype in dtypes.items():
        sizes = tuple(header[name]["shape"])
        part = parts.get(name, {"offset": (0,) * len(sizes), "shape": sizes})
        offset, shape = tuple(part["offset"]), tuple(part["shape"])
        inside = all(type(n) is int for n in (*offset, *shape)) and len(offset) == len(shape) == len(sizes)
        inside = inside and all(a >= 0 and a + n <= whole for a, n, whole in zip(offset, sizes, shape, strict=True))
        if not inside:
            raise ValueError(f"of {name} a part of {sizes} cannot begin at {offset} in {shape}")
        begin = start + header[name]["data_offsets"][0]
        found[name] = Stored(path, DTYPES[dtype], begin, sizes, offset, shape)
    return found


def read_summed(path: Path) -> tuple[dict[str, Tensor], Sum]:
    """The tensors of a file and its sum, of one reading. No tensors where it is none of safetensors.

    Each lies in memory of its own: where a tensor begins in memory decides which kernels run, and so its last bits.
    """
    try:
        held = sorted(stored(path).items(), key=lambda item: item[1].start)
    except ERRORS:
        return {}, Sum(path.stat().st_size, checksum(path))
    tensors, value = {}, 0
    with path.open("rb") as file:
        value = zlib.crc32(file.read(held[0][1].start if held else -1))
        for name, one in held:
            tensors[name] = torch.empty(one.sizes, dtype=one.dtype)
            value = zlib.crc32(_fill(file, tensors[name]), value)
        value = zlib.crc32(file.read(), value)
        return tensors, Sum(file.tell(), value)


def _fill(file: BinaryIO, tensor: Tensor) -> memoryview:
    data = _bytes(tensor)
    if file.readinto(data) != len(data):  # pyright: ignore[reportAttributeAccessIssue]
        raise OSError(f"ends after {file.tell()} bytes")
    return data


class Saved(NamedTuple):
    """One of `SavedTensors`, not read yet."""

    tensors: "SavedTensors"
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensors.parts[self.name][0].shape

    def read(self, box: Box | None = None) -> Tensor:
        return self.tensors.read(self.name, box)


class SavedTensors:
    """The tensors of some files, to be read whole or by slices. UserError with `remedy` for what is no such file, or
    where the parts of a tensor do not make up the whole.

    `bytes_read` counts what was read of tensors, of those that `hold` was given, too.
    """

    def __init__(self, paths: Sequence[Path], remedy: str) -> None:
        self.paths, self.remedy, self.bytes_read = paths, remedy, 0
        self.held: dict[Path, dict[str, Tensor]] = {}
        self.parts: dict[str, list[Stored]] = {}
        for path in paths:
            for name, one in self._try(path, lambda path=path: stored(path)).items():
                self.parts.setdefault(name, []).append(one)
        for name, parts in self.parts.items():
            told = f"{parts[0].path.parent} holds of {name} parts that do not make up the whole; {remedy}"
            require(_tile(parts), told)

    def hold(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """These were read of a file; each is given away once."""
        self.held[path] = tensors
        self.bytes_read += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def __getitem__(self, name: str) -> Saved:
        if name not in self.parts:
            raise KeyError(name)
        return Saved(self, name)

    def read_all(self) -> dict[str, Tensor]:
        return {name: self.read(name) for name in self.parts}

    def read(self, name: str, box: Box | None = None) -> Tensor:
        """A tensor, or what this box holds of it, in memory of its own."""
        parts = self.parts[name]
        offset, sizes = box or ((0,) * len(parts[0].shape), parts[0].shape)
        for one in parts:
            if (offset, sizes) == (one.offset, one.sizes):
                return self._whole(name, one)
        made = torch.empty(sizes, dtype=parts[0].dtype)
        for one in parts:
            begin = tuple(map(max, offset, one.offset))
            end = (min(a + n, b + m) for a, n, b, m in zip(offset, sizes, one.offset, one.sizes, strict=True))
            common = tuple(b - a for a, b in zip(begin, end, strict=True))
            if all(n > 0 for n in common):
                into = tuple(slice(a - o, a - o + n) for a, o, n in zip(begin, offset, common, strict=True))
                here = tuple(a - o for a, o in zip(begin, one.offset, strict=True))
                made[into] = self._slice(name, one, here, common)
        return made

    def _whole(self, name: str, one: Stored) -> Tensor:
        held = self.held.get(one.path, {}).pop(name, None)
        return self._rows(one, 0, one.sizes[0] if one.sizes else 1).view(one.sizes) if held is None else held

    def _slice(self, name: str, one: Stored, begin: Sequence[int], sizes: Sequence[int]) -> Tensor:
        inside = tuple(slice(a, a + n) for a, n in zip(begin, sizes, strict=True))
        held = self.held.get(one.path, {}).get(name)
        if held is not None:
            return held[inside]
        return self._rows(one, begin[0], sizes[0])[(slice(None), *inside[1:])]

    def _rows(self, one: Stored, begin: int, count: int) -> Tensor:
        """So many of the part's rows; what has no dimension is one row."""
        row = one.sizes[1:]
        made = torch.empty((count, *row), dtype=one.dtype)

        def read() -> None:
            with one.path.open("rb") as file:
                file.seek(one.start + begin * math.prod(row) * one.dtype.itemsize)
                _fill(file, made)

        self._try(one.path, read)
        self.bytes_read += made.numel() * made.element_size()
        return made

    def _try(self, path: Path, read: Callable[[], Result]) -> Result:
        try:
            return read()
        except ERRORS as why:
            raise UserError(f"{path} cannot be read ({why}); {self.remedy}") from None


def _tile(parts: Sequence[Stored]) -> bool:
    """Whether these make up the whole, each place of which one of them holds: they are the boxes of a grid."""
    first = parts[0]
    if any((one.shape, one.dtype) != (first.shape, first.dtype) for one in parts):
        return False
    if len({one.offset for one in parts}) != len(parts):
        return False
    cuts = [sorted({(one.offset[d], one.sizes[d]) for one in parts}) for d in range(len(first.shape))]
    ends = [[a + n for a, n in cut] for cut in cuts]
    whole = all(
        [a for a, _ in cut] == [0, *end[:-1]] and end[-1] == size
        for cut, end, size in zip(cuts, ends, first.shape, strict=True)
    )
    return whole and math.prod(map(len, cuts)) == len(parts)
