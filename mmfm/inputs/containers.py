"""Is a WAV, OGG or MP3 file whole? libsndfile reads a cut one to its end without a word; FLAC it checks itself.

Each function raises BadSample with the byte counts. Sources: RIFF (Microsoft 1991), RFC 3533 (Ogg), ISO 11172-3 and
13818-3 (the headers of MPEG layer III).
"""

import struct

from mmfm.inputs import BadSample
from mmfm.inputs.headers import KBPS, STREAMED

LENGTH_MARKS = (b"Xing", b"Info", b"VBRI")
LONGEST_FRAME = 1_441  # bytes, of layer III


def check_wav(data: bytes) -> None:
    """The chunk of samples must fit."""
    order, at = (">" if data[:4] == b"RIFX" else "<"), 12
    while at + 8 <= len(data):
        name, (size,) = data[at : at + 4], struct.unpack(order + "I", data[at + 4 : at + 8])
        if name == b"data" and size not in STREAMED and at + 8 + size > len(data):
            there = len(data) - at - 8
            raise BadSample(
                "audio_cut", f"the WAV is cut: {size} bytes of sound announced, {there} there; copy it again"
            )
        if name == b"data":
            return
        at += 8 + size + size % 2


def check_ogg(data: bytes) -> None:
    """The last page must be whole; a stream without an end mark is taken."""
    at = 0
    while at < len(data) and b"OggS".startswith(data[at : at + 4]):
        segments = data[at + 26] if len(data) > at + 26 else 0
        end = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        if end > len(data):
            raise BadSample("audio_cut", f"the OGG is cut in its last page, at byte {at}; copy it again")
        at = end


def check_mp3(data: bytes, rate_hz: int) -> bool:
    """Whether the file states its length. If not, libsndfile infers it from the first frame: all must have its rate."""
    at = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=False))
    at = at if data[:3] == b"ID3" else 0
    if any(mark in data[at : at + 64] for mark in LENGTH_MARKS):
        _check_stated(data, at)
        return True
    rates = set()
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] & 0xE6 == 0xE2:  # the start of a layer III frame
        version, index, padding = data[at + 1] >> 3 & 3, data[at + 2] >> 4, data[at + 2] >> 1 & 1
        if version == 1 or index in (0, 15):
            break
        rates.add(KBPS[version][index])
        at += (144_000 if version == 3 else 72_000) * KBPS[version][index] // rate_hz + padding
    if len(rates) > 1:
        raise BadSample(
            "audio_length", "the MP3 has a variable rate and does not state its length; convert it to FLAC or WAV"
        )
    if at > len(data):
        raise BadSample(
            "audio_cut", f"the MP3 is cut: its last frame should end at byte {at} of {len(data)}; copy it again"
        )
    return False


def _check_stated(data: bytes, at: int) -> None:
    """The bytes that a Xing tag announces must be there, but for a frame: a crop before the cut would not notice."""
    tag = next((found for found in (data.find(mark, at, at + 64) for mark in (b"Xing", b"Info")) if found >= 0), -1)
    if tag < 0 or len(data) < tag + 16 or data[tag + 7] & 3 != 3:
        return
    end = at + int.from_bytes(data[tag + 12 : tag + 16], "big")
    if end > len(data) + LONGEST_FRAME:
        raise BadSample("audio_cut", f"the MP3 is cut: it should end at byte {end} of {len(data)}; copy it again")
