"""The members of a tar, and proof that these are all. Formats: ustar, GNU and POSIX pax (IEEE 1003.1, "pax").

`tarfile` takes a damaged header for the end of the archive, so that a damaged shard only looks shorter. Here an archive
is whole when every header's checksum holds, every body fits, and two blocks of zeros end it.
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmfm.config import UserError

BLOCK = 512
FILES, FOLDER, EMPTY = b"0\x007", b"5", b"123456"  # types that hold a plain file; a folder; types without a body
LONG_NAME, LONG_LINK, PAX, PAX_ALL, SPARSE = b"L", b"K", b"x", b"g", b"S"
MAX_NAME = 1 << 20  # bytes of a header that only names the next one
MAX_DIGITS = 20  # of a number in such a header


class Member(NamedTuple):
    """`size` bytes from `offset` on. Links and devices are not `plain`."""

    name: str
    offset: int
    size: int
    plain: bool


class _Header(NamedTuple):
    name: str
    kind: bytes
    size: int


def members(path: Path) -> Iterator[Member]:
    """All members but folders. Raises UserError, with the byte, where the archive is damaged or cut."""
    file = os.open(path, os.O_RDONLY)
    try:
        yield from _members(path, file)
    finally:
        os.close(file)


def _members(path: Path, file: int) -> Iterator[Member]:
    at, end, named = 0, os.fstat(file).st_size, {}
    while block := os.pread(file, BLOCK, at):
        if not block.strip(b"\0"):
            break
        header = _header(path, block, at)
        size = int(named.pop("size", header.size))
        body, at = at + BLOCK, at + BLOCK + (0 if header.kind in EMPTY else -(-size // BLOCK) * BLOCK)
        if body + (at > body) * size > end:
            raise UserError(f"{path} is cut at byte {end}: {header.name} should end at {body + size}; copy it again")
        if header.kind in (LONG_NAME, LONG_LINK, PAX, PAX_ALL):
            named.update(_extra(path, file, header, body))
            continue
        name = named.pop("path", header.name)
        if header.kind == SPARSE or any(key.startswith("GNU.sparse") for key in named):
            raise UserError(f"{path} holds {name} as a sparse file; write the archive again with plain files")
        named.clear()
        if header.kind != FOLDER and not name.endswith("/"):
            yield Member(name, body, size, header.kind in FILES)
    _check_end(path, file, at)


def _header(path: Path, block: bytes, at: int) -> _Header:
    try:
        whole = len(block) == BLOCK and _sums_up(block)
        size = _number(block[124:136]) if whole else 0
    except ValueError:
        size, whole = 0, False
    if not whole:
        what = "no member begins there" if at else "that is no header of a .tar (a compressed one must be unpacked)"
        raise UserError(f"{path} is damaged at byte {at}: {what}; copy or write it again")
    name = _string(block[:100])
    folder = _string(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return _Header(f"{folder}/{name}" if folder else name, block[156:157], size)


def header_says(block: bytes, name: str, size: int) -> bool:
    """Whether this header can be that of a member of this name and size. Names that do not fit are not compared."""
    digits = block[124:135]
    try:
        if block.startswith(name.encode("utf-8", "surrogateescape") + b"\0") and digits.isdigit():
            return int(digits, 8) == size and block[156] in FILES  # a reader needs no other field, nor their sum
        if not _sums_up(block) or _number(block[124:136]) != size or block[156:157] not in FILES:
            return False
    except ValueError:
        return False
    own, wanted = _string(block[:100]).lower(), name.lower()
    return own == wanted or len(own) > 98 or bool(block[345]) or not wanted.isascii()


def _sums_up(block: bytes) -> bool:
    """The stated sum of all bytes, its own field read as eight spaces. Adler-32's low half is 1 + sum, and quick."""
    adler = zlib.adler32(block[156:], zlib.adler32(block[:148]))
    return (_number(block[148:156]) - 8 * ord(" ") + 1) % 65_521 == adler & 0xFFFF


def _extra(path: Path, file: int, header: _Header, body: int) -> dict[str, str]:
    """What a GNU or pax header says of the next member: its name or size, where these do not fit."""
    if header.size > MAX_NAME:
        raise UserError(f"{path} is damaged at byte {body}: a name of {header.size} bytes; copy or write it again")
    text = os.pread(file, header.size, body)
    if header.kind == LONG_NAME:
        return {"path": _string(text)}
    return dict(_records(path, text, body)) if header.kind == PAX else {}


def _records(path: Path, text: bytes, body: int) -> Iterator[tuple[str, str]]:
    """Pax records, each `length key=value newline`."""
    while text.strip(b"\0"):
        digits, _, _ = text.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < MAX_DIGITS else 0
        key, equals, value = text[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or text[length - 1 : length] != b"\n" or (key == b"size" and not _is_size(value)):
            raise UserError(f"{path} is damaged at byte {body}: no pax record; copy or write it again")
        yield key.decode("utf-8", "replace"), value.decode("utf-8", "surrogateescape")
        text = text[length:]


def _is_size(value: bytes) -> bool:
    return value.isdigit() and len(value) < MAX_DIGITS


def _number(field: bytes) -> int:
    """Octal digits, or (GNU) a big-endian number after a first byte of 0x80. Raises ValueError for a sign."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    return int(digits if digits.isdigit() else b"-", 8)


def _string(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _check_end(path: Path, file: int, at: int) -> None:
    """Nothing but zeros from `at` on, at least two blocks of them."""
    zeros = 0
    while chunk := os.pread(file, 1 << 20, at + zeros):
        if chunk.strip(b"\0"):
            byte = at + zeros + len(chunk) - len(chunk.lstrip(b"\0"))
            raise UserError(f"{path} is damaged: members end at byte {at}, but byte {byte} is not zero; copy it again")
        zeros += len(chunk)
    if zeros < 2 * BLOCK:
        raise UserError(f"{path} is cut at byte {at + zeros}: its end mark is missing; copy or write it again")
