"""Files that mean harm, made on the spot: each function writes one into a folder and returns its path, or gives bytes.

What would be executed, if anything were, is `PAYLOAD`: a pickle that makes a file called `marker` in its folder.
"""

import gzip
import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

PAYLOAD = b"cos\nsystem\n(S'touch marker'\ntR."
BLOCK = 512
Maker = Callable[[Path], Path]


# Archives


def header(
    name: bytes, size: bytes | int, kind: bytes = b"0", link: bytes = b"", magic: bytes = b"ustar\x0000"
) -> bytes:
    """A tar header with a checksum that is right."""
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + field + b"00000000000\0" + b" " * 8)
    block += kind + link.ljust(100, b"\0") + magic
    block = block.ljust(BLOCK, b"\0")
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, data: bytes, **fields: Any) -> bytes:
    return header(name, len(data), **fields) + data + bytes(-len(data) % BLOCK)


END = bytes(2 * BLOCK)
GOOD = b"".join(member(b"%d.txt" % n, b"text %d" % n) + member(b"%d.cls" % n, b"%d" % n) for n in range(3))


def tar(*parts: bytes, name: str = "x.tar", end: bytes = END) -> Maker:
    """A maker of an archive of these parts."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(b"".join(parts) + end)
        return folder / name

    return make


def with_good(*parts: bytes) -> Maker:
    return tar(GOOD, *parts)


def cut(length: int) -> Maker:
    return tar((GOOD + END)[:length], end=b"")


def flipped(byte: int) -> Maker:
    data = bytearray(GOOD)
    data[byte] ^= 1
    return tar(bytes(data))


def sparse(folder: Path) -> Path:
    """300 GB of zeros in one kilobyte, as GNU tar writes them."""
    return tar(GOOD, header(b"9.txt", 0, kind=b"S", magic=b"ustar  \0"))(folder)


def pax(*records: bytes, name: bytes = b"9.txt", size: int = 0) -> bytes:
    text = b"".join(records)
    return member(b"./PaxHeaders/9", text, kind=b"x") + header(name, size)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return b"%d %s=%s\n" % (length, key, value)


def gzipped(folder: Path) -> Path:
    path = folder / "x.tar"
    path.write_bytes(gzip.compress(GOOD + member(b"9.txt", bytes(50_000_000)) + END))
    return path


def giant(folder: Path) -> Path:
    """A part of 3 GB, in a file that takes no room on the disk."""
    path, size = folder / "x.tar", 3 << 30
    path.write_bytes(header(b"0.txt", size))
    os.truncate(path, BLOCK + size + 2 * BLOCK)
    return path


def fifo(folder: Path) -> Path:
    """Whoever opens it to read waits for ever."""
    os.mkfifo(folder / "x.tar")
    return folder


def loop(folder: Path) -> Path:
    (folder / "x.tar").symlink_to("x.tar")
    return folder


def hollow(folder: Path) -> Path:
    (folder / "x.tar").mkdir()
    return folder


# Indexes and lists: of an archive that is good


def indexed(change: Callable[[dict[str, Any]], object] = lambda _: None, raw: bytes | None = None) -> Maker:
    """A good archive with an index that was made for it, and then changed."""

    def make(folder: Path) -> Path:
        path = with_good()(folder)
        texts, labels = ([at + BLOCK for at in range(start, 6 * 2 * BLOCK, 4 * BLOCK)] for start in (0, 2 * BLOCK))
        tree = {
            "format": 1,
            "shard": "x.tar",
            "bytes": path.stat().st_size,
            "crc32": zlib.crc32(path.read_bytes()),
            "texts": 3,
            "scattered": 0,
            "ignored": {},
            "keys": ["0", "1", "2"],
            "parts": {"txt": {"offset": texts, "size": [6] * 3}, "cls": {"offset": labels, "size": [1] * 3}},
            "seconds": [-1.0] * 3,
            "pixels": [-1] * 3,
        }
        change(tree)
        path.with_suffix(".idx.json").write_bytes(json.dumps(tree).encode() if raw is None else raw)
        return path

    return make


def put(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    """A change: this value at tree[path[0]][path[1]]..."""

    def change(tree: Any) -> None:
        for step in path[:-1]:
            tree = tree[step]
        tree[path[-1]] = value

    return change


def listed(change: Callable[[dict[str, Any]], object] = lambda _: None, raw: bytes | None = None) -> Maker:
    """A folder of one good archive, with a list that was made for it, and then changed."""

    def make(folder: Path) -> Path:
        size = with_good()(folder).stat().st_size
        tree = {
            "format": 1,
            "shards": [{"name": "x.tar", "bytes": size, "crc32": 1, "samples": 3, "holds": {"text": 3}}],
        }
        change(tree)
        (folder / "shards.json").write_bytes(json.dumps(tree).encode() if raw is None else raw)
        return folder

    return make


DEEP = b"[" * 200_000
LONG_NUMBER = b"9" * 10_000


# Pictures and sounds


def picture_of(layout: str, keep: float = 1.0) -> bytes:
    """Noise, of which only a part is kept."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, layout)
    data = file.getvalue()
    return data[: int(len(data) * keep)]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes, rows: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@cache
def png_bomb() -> bytes:
    """432 MB of pixels, 12,000 by 12,000, of which the first rows are there."""
    return png(12_000, 12_000, rows=zlib.compress(bytes(1_000 * (1 + 3 * 12_000))))


@cache
def png_text_bomb() -> bytes:
    """A comment that unfolds to 200 MB, before the pixels."""
    return png(1, 1, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000))), rows=zlib.compress(bytes(4)))


@cache
def png_excess() -> bytes:
    """One pixel, and 200 MB more than it needs."""
    return png(1, 1, rows=zlib.compress(bytes(200_000_000)))


def jpeg_of(width: int, height: int) -> bytes:
    """A small JPEG whose header says another size."""
    data = bytearray(picture_of("JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@cache
def jpeg_of_scans() -> bytes:
    """A progressive JPEG, whose last scan comes a thousand times."""
    file = io.BytesIO()
    Image.new("RGB", (2_000, 2_000)).save(file, "JPEG", progressive=True)
    data = file.getvalue()[:-2]
    return data + data[data.rindex(b"\xff\xda") :] * 1_000 + b"\xff\xd9"


def webp_of(width: int, height: int) -> bytes:
    """An extended WebP whose canvas is said to be so large."""
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + picture_of("WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(touch marker) (w) file\n%%EOF\n"
SVG = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><svg>&b;</svg>'


def sound_of(
    layout: str, wave: Any = None, rate_hz: int = 16_000, keep: float = 1.0, subtype: str | None = None
) -> bytes:
    file = io.BytesIO()
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 8_000).astype(np.float32) if wave is None else np.asarray(wave)
    soundfile.write(file, wave, rate_hz, format=layout, subtype=subtype)
    data = file.getvalue()
    return data[: int(len(data) * keep)]


@cache
def flac_bomb() -> bytes:
    """An hour of silence: 219 MB of samples."""
    return sound_of("FLAC", np.zeros(16_000 * 3_600, np.float32))


def wav(
    *, rate_hz: int = 16_000, channels: int = 1, bits: int = 16, size: int | None = None, data: bytes = bytes(64)
) -> bytes:
    """A WAV with a header of one's choice."""
    width = channels * bits // 8
    about = struct.pack("<HHIIHH", 1, channels % 65_536, rate_hz, rate_hz * width % 2**32, width % 65_536, bits)
    length = len(data) if size is None else size
    body = b"WAVEfmt " + struct.pack("<I", 16) + about + b"data" + struct.pack("<I", length) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


# Runs and checkpoints


def safetensors(head: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def sealed(folder: Path, files: Mapping[str, bytes], manifest: bytes | None = None) -> Path:
    """In a checkpoint's folder, these files instead of its own, and a manifest that vouches for them."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    names = ("model.safetensors", "train.safetensors", "train.json", "run.json", "tokenizer.json")
    known = {name: (folder / name).read_bytes() for name in names}
    told = {name: {"bytes": len(data), "crc32": zlib.crc32(data)} for name, data in known.items()}
    (folder / "manifest.json").write_bytes(
        json.dumps({"step": 5, "files": told}).encode() if manifest is None else manifest
    )
    return folder


def pickled_checkpoint(folder: Path) -> Path:
    """What torch.save and Lightning write, as far as an unpickler reads."""
    (folder / "evil.ckpt").write_bytes(PAYLOAD)
    return folder / "evil.ckpt"


def distributed_checkpoint(folder: Path) -> Path:
    """A folder of torch.distributed.checkpoint: its .metadata is a pickle."""
    (folder / ".metadata").write_bytes(PAYLOAD)
    (folder / "__0_0.distcp").write_bytes(PAYLOAD)
    return folder


def links(kind: bytes, link: bytes = b"/etc/passwd") -> bytes:
    return header(b"9.txt", 0, kind=kind, link=link)


def tarred(name: str, data: bytes, layout: int = tarfile.PAX_FORMAT) -> bytes:
    """One member as Python's tarfile writes it, without the end mark."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=layout) as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return file.getvalue().rstrip(b"\0") + bytes(-len(file.getvalue().rstrip(b"\0")) % BLOCK)
