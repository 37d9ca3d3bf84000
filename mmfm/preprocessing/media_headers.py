"""How long is a sound and how large a picture, from a few hundred bytes of it: nothing is decoded.

An index asks this of every sample, so each answer costs microseconds. What a file does not say stays unknown (-1), and
no byte of it is believed: an answer is for balancing, and the decoder checks everything again. Sources: RIFF (1991),
RFC 9639 (FLAC), RFC 3533, 7845 and the Vorbis I specification (Ogg), ISO 11172-3 with the tags of Xing and LAME (MP3),
ISO 15948 (PNG), ISO 10918-1 (JPEG), CIPA DC-008 (EXIF), RFC 9649 (WebP). Standard library only.
"""

import struct
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

HEAD = 1024  # bytes that are read first; nearly all headers lie within
TAILS = (8_192, 65_536)  # of an Ogg file, whose last page states its length; no page is longer; of a FLAC alike
SEGMENTS = 256  # of a JPEG or chunks of a WAV that are looked at before giving up
STREAMED = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # sizes that programs write which cannot go back to correct them
LINEAR = (1, 3, 6, 7, 0xFFFE)  # WAV codes whose blocks hold one sample of each channel
KBPS = {  # layer III, by the header's two version bits; version 3 is MPEG 1
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    0: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MP3_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
SIZE_MARKS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG's start of frame, of any coding
PICTURES = ("png", "jpg", "jpeg", "webp")
SOUNDS = ("wav", "flac", "ogg", "opus", "mp3")

Read = Callable[[int, int], bytes]


class Measure(NamedTuple):
    """Seconds of a sound; pixels of a picture as it is stored, before it is turned upright. -1: unknown."""

    seconds: float = -1.0
    width: int = -1
    height: int = -1


def measure(extension: str, read: Read, size: int) -> Measure:
    """`read(offset, count)` gives bytes of the file, which has `size`. Raises nothing but what `read` raises.

    The extension says only whether it is a sound or a picture; which of them, the first bytes do.
    """
    if extension not in PICTURES + SOUNDS:
        return Measure()
    head = read(0, min(size, HEAD))
    try:
        if extension in PICTURES:
            width, height = _picture(head, read, size)
            return Measure(width=width, height=height) if width > 0 and height > 0 else Measure()
        seconds = _sound(head, read, size)
        return Measure(seconds=seconds) if seconds >= 0 else Measure()
    except (struct.error, IndexError, ZeroDivisionError, KeyError):  # it ends too early, or holds nonsense
        return Measure()


def _picture(head: bytes, read: Read, size: int) -> tuple[int, int]:
    if head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR":
        return struct.unpack_from(">II", head, 16)
    if head[:2] == b"\xff\xd8":
        return _jpeg(head, read, size)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp(head)
    return -1, -1


def _jpeg(head: bytes, read: Read, size: int) -> tuple[int, int]:
    at = 2
    for _ in range(SEGMENTS):
        part = head[at : at + 9] if at + 9 <= len(head) else read(at, min(9, max(0, size - at)))
        while part[:2] == b"\xff\xff":  # fill bytes
            at += 1
            part = part[1:] + read(at + 8, 1 if at + 8 < size else 0)
        mark = part[1] if part[0] == 0xFF else 0xD9
        if mark in SIZE_MARKS:
            height, width = struct.unpack_from(">HH", part, 5)
            return width, height
        if mark in (0xD9, 0xDA):
            break
        alone = mark == 0x01 or 0xD0 <= mark <= 0xD7
        at += 2 if alone else 2 + max(2, struct.unpack_from(">H", part, 2)[0])
    return -1, -1


def _webp(head: bytes) -> tuple[int, int]:
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L" and head[20] == 0x2F:
        bits = struct.unpack_from("<I", head, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return -1, -1


class JpegHead(NamedTuple):
    """What libjpeg does not tell: how to turn the picture, 1 to 8 as EXIF has it, and whether it comes in layers."""

    orientation: int
    layered: bool

    @property
    def turned(self) -> bool:
        """Whether upright rows are stored columns."""
        return self.orientation >= 5


def jpeg_head(data: bytes) -> JpegHead:
    """Of a whole JPEG; (1, True) for what is not stated. Layers: progressive, or one scan for each colour."""
    at, turn, parts = 2, 1, 0
    try:
        for _ in range(SEGMENTS):
            mark, length = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
            if data[at] != 0xFF or mark == 0xD9:
                break
            if mark in SIZE_MARKS:
                parts = data[at + 9] if mark in (0xC0, 0xC1) else -1
            if mark == 0xDA:
                return JpegHead(turn, data[at + 4] != parts)
            if mark == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
                turn = _exif_orientation(data[at + 10 : at + 2 + length])
            at += 2 + length
    except (struct.error, IndexError):
        pass
    return JpegHead(turn, True)


def _exif_orientation(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    start = struct.unpack_from(order + "I", tiff, 4)[0]
    for i in range(struct.unpack_from(order + "H", tiff, start)[0]):
        tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * i)
        if tag == 0x0112 and kind == 3 and count == 1:
            return value if 1 <= value <= 8 else 1
    return 1


def _sound(head: bytes, read: Read, size: int) -> float:
    start = after_id3(head)
    if start:
        head = read(start, min(HEAD, max(0, size - start)))
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return _wav(head, read, size)
    if head[:4] == b"fLaC":
        return _flac(head, read, size)
    if head[:4] == b"OggS":
        return _ogg(head, read, size)
    return _mp3(head, start, read, size)


def after_id3(head: bytes) -> int:
    """Where the sound begins, behind an ID3v2 tag if there is one."""
    if head[:3] != b"ID3":
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))


def _wav(head: bytes, read: Read, size: int) -> float:
    order, at, rate, align, per_second, code = (">" if head[:4] == b"RIFX" else "<"), 12, 0, 0, 0, 0
    for _ in range(SEGMENTS):
        part = head[at : at + 24] if at + 24 <= len(head) else read(at, min(24, max(0, size - at)))
        name, length = part[:4], struct.unpack_from(order + "I", part, 4)[0]
        if name == b"fmt ":
            code, _, rate, per_second, align = struct.unpack_from(order + "HHIIH", part, 8)
        if name == b"data":
            there = size - at - 8
            length = there if length in STREAMED and there > 0 else min(length, there)
            return length // align / rate if code in LINEAR else length / per_second
        at += 8 + length + length % 2
    return -1.0


def _flac(head: bytes, read: Read, size: int) -> float:
    packed = int.from_bytes(head[18:26], "big")  # 20 bits of rate, 3 of channels, 5 of depth, 36 of length
    if len(head) < 26:
        return -1.0
    tails = (read(max(0, size - count), min(size, count)) for count in TAILS)
    frames = packed & (1 << 36) - 1 or next((found for tail in tails if (found := flac_frames(head, tail)) > 0), -1)
    return frames / (packed >> 44) if frames > 0 else -1.0


def flac_frames(head: bytes, tail: bytes, *, proven: bool = True) -> int:
    """Samples of each channel, by the last frame of `tail`; -1 where none is. `proven`: it is whole to the end."""
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        end = _flac_frame(head, tail[at : at + 16]) if tail[at + 1 : at + 2] in (b"\xf8", b"\xf9") else -1
        if end > 0 and (not proven or _crc(tail[at:], 16, 0x8005) == 0):
            return end
    return -1


def _flac_frame(head: bytes, frame: bytes) -> int:
    """The number of the sample behind this frame, if what begins here is one (RFC 9639, 9.1); else -1."""
    if len(frame) < 6:
        return -1
    sizes, rates, extra = frame[2] >> 4, frame[2] & 15, 0
    lead = 8 - (frame[4] ^ 0xFF).bit_length()  # ones, as in UTF-8: bytes of the number, 0 for a single one
    at = 4 + max(1, lead)
    if lead == 1 or lead > 7 or sizes == 0 or rates == 15 or frame[3] & 1:
        return -1
    number = frame[4] & (0x7F >> lead if lead else 0x7F)
    for byte in frame[5:at]:
        number = number << 6 | byte & 0x3F
    if sizes in (6, 7):
        extra = sizes - 5
        block = 1 + int.from_bytes(frame[at : at + extra], "big")
    else:
        block = 192 if sizes == 1 else 144 << sizes if sizes < 6 else 1 << sizes
    at += extra + (0 if rates < 12 else 1 if rates == 12 else 2)
    if at >= len(frame) or _crc(frame[: at + 1], 8, 0x07) != 0:
        return -1
    return (number if frame[1] & 1 else number * int.from_bytes(head[8:10], "big")) + block


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    """0 where the sum that ends `data` is right."""
    table, mask, value = _crc_table(bits, polynomial), (1 << bits) - 1, 0
    for byte in data:
        value = (value << 8 & mask) ^ table[value >> bits - 8 ^ byte]
    return value


@cache
def _crc_table(bits: int, polynomial: int) -> tuple[int, ...]:
    table = []
    for value in (byte << bits - 8 for byte in range(256)):
        for _ in range(8):
            value = (value << 1) ^ (polynomial | 1 << bits if value >> bits - 1 else 0)
        table.append(value)
    return tuple(table)


def _ogg(head: bytes, read: Read, size: int) -> float:
    body = 27 + head[26]
    skip, rate = 0, 0
    if head[body : body + 7] == b"\x01vorbis":
        rate = struct.unpack_from("<I", head, body + 12)[0]
    elif head[body : body + 8] == b"OpusHead":
        skip, rate = struct.unpack_from("<H", head, body + 10)[0], 48_000
    for count in TAILS:
        tail = read(max(0, size - count), min(size, count))
        at = tail.rfind(b"OggS")
        if at >= 0 and tail[at + 14 : at + 18] == head[14:18]:  # a page of the same stream
            frames = struct.unpack_from("<q", tail, at + 6)[0] - skip
            return frames / rate if frames >= 0 else -1.0
    return -1.0


def _mp3(head: bytes, start: int, read: Read, size: int) -> float:
    at = next((i for i in range(len(head) - 3) if head[i] == 0xFF and _is_layer_3(head, i)), -1)
    if at < 0:
        return -1.0
    version, kbps_at, hz_at = head[at + 1] >> 3 & 3, head[at + 2] >> 4, head[at + 2] >> 2 & 3
    kbps, rate, frame = KBPS[version][kbps_at], MP3_HZ[version][hz_at], 1152 if version == 3 else 576
    mono = head[at + 3] >> 6 == 3
    side = {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}[version == 3, mono]
    tag, vbri = at + 4 + side, at + 36
    if head[tag : tag + 4] in (b"Xing", b"Info") and head[tag + 7] & 1:
        return (struct.unpack_from(">I", head, tag + 8)[0] * frame - _unheard(head, tag)) / rate
    if head[vbri : vbri + 4] == b"VBRI":
        return struct.unpack_from(">I", head, vbri + 14)[0] * frame / rate
    after = at + (144_000 if version == 3 else 72_000) * kbps // rate + (head[at + 2] >> 1 & 1)
    if after + 3 < len(head) and head[after + 2] >> 4 != kbps_at:
        return -1.0  # of a variable rate, and the length is stated nowhere
    tail = read(size - 128, 3) if size >= 128 else b""
    return (size - start - at - (128 if tail == b"TAG" else 0)) / (125 * kbps)


def _is_layer_3(head: bytes, at: int) -> bool:
    version, kbps_at, hz_at = head[at + 1] >> 3 & 3, head[at + 2] >> 4, head[at + 2] >> 2 & 3
    return head[at + 1] & 0xE6 == 0xE2 and version != 1 and kbps_at not in (0, 15) and hz_at != 3


def _unheard(head: bytes, tag: int) -> int:
    """Samples that the encoder added before and after, as LAME's part of the tag states them."""
    flags = head[tag + 7]
    lame = tag + 8 + sum(n for bit, n in ((1, 4), (2, 4), (4, 100), (8, 4)) if flags & bit)
    if len(head) < lame + 24 or not head[lame : lame + 4].isalnum():
        return 0
    packed = int.from_bytes(head[lame + 21 : lame + 24], "big")
    return (packed >> 12) + (packed & 0xFFF)
