"""Is a WAV, OGG or MP3 file whole, and one recording? libsndfile reads a cut one to its end without a word, and of two
that were joined only the first. Of FLAC it checks what is there, if the length is stated.

Each function raises BadSample with the byte counts. Sources: RIFF (Microsoft 1991), EBU Tech 3306 (RF64), RFC 3533
(Ogg), RFC 9639 (FLAC), ISO 11172-3 and 13818-3 (the headers of MPEG layer III).
"""

import struct

from mmfm.preprocessing import BadSample
from mmfm.preprocessing.media_headers import KBPS, STREAMED, after_id3, flac_frames

LENGTH_MARKS = (b"Xing", b"Info", b"VBRI")
LONGEST_FRAME = 1_441  # bytes, of layer III
ONE = "so that only the first would be read; make it one, such as with: ffmpeg -i IN OUT.flac"
FLAC_TAIL = 1 << 14  # bytes in which the last frame nearly always begins; where it does not, all are searched
FLAC_START = (b"fLaC\0\0\0\x22", b"fLaC\x80\0\0\x22")  # with the head of the block that every FLAC begins with


def check_wav(data: bytes) -> None:
    """The chunk of samples must fit."""
    order, at = (">" if data[:4] == b"RIFX" else "<"), 12
    while at + 8 <= len(data):
        name, (size,) = data[at : at + 4], struct.unpack(order + "I", data[at + 4 : at + 8])
        if name == b"data" and size == 0xFFFFFFFF and data[:4] == b"RF64" and data[12:16] == b"ds64":
            size = int.from_bytes(data[28:36], "little")
        if name == b"data" and size not in STREAMED and at + 8 + size > len(data):
            there = len(data) - at - 8
            raise BadSample(
                "audio_cut", f"the WAV is cut: {size} bytes of sound announced, {there} there; copy it again"
            )
        if name == b"data":
            after = at + 8 + size + size % 2
            if size not in STREAMED and data[after : after + 4] in (b"RIFF", b"RIFX", b"RF64"):
                raise BadSample("audio_format", f"a second WAV follows at byte {after}, {ONE}")
            return
        at += 8 + size + size % 2


def with_length(data: bytes) -> bytes:
    """A FLAC that does not state how many samples it has, as programs write that cannot go back, with their number."""
    at = after_id3(data[:10])
    if data[at : at + 4] != b"fLaC" or len(data) < at + 26:
        return data
    packed = int.from_bytes(data[at + 18 : at + 26], "big")
    if packed & (1 << 36) - 1:
        return data
    frames = flac_frames(data[at : at + 26], data)
    if frames <= 0:
        told = "the FLAC does not state its length, and its end is no whole frame"
        raise BadSample("audio_cut", f"{told}; it may be cut: copy it again, or convert it to WAV")
    return data[: at + 18] + (packed | frames).to_bytes(8, "big") + data[at + 26 :]


def check_flac(data: bytes, frames: int) -> None:
    """The decoder proves each frame; what comes behind the last one of `frames` samples it does not see."""
    at = after_id3(data[:10])
    if flac_frames(data[at : at + 26], data[-FLAC_TAIL:], proven=False) == frames:
        return
    second = max(data.find(start, at + 4) for start in FLAC_START)
    if second > 0:
        raise BadSample("audio_format", f"a second FLAC follows at byte {second}, {ONE}")


def check_ogg(data: bytes) -> None:
    """The last page must be whole; a stream without an end mark is taken. One that begins behind another is refused."""
    at, begun = 0, False
    while at < len(data) and b"OggS".startswith(data[at : at + 4]):
        segments = data[at + 26] if len(data) > at + 26 else 0
        end = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        if end > len(data):
            raise BadSample("audio_cut", f"the OGG is cut in its last page, at byte {at}; copy it again")
        first = bool(data[at + 5] & 2)
        if first and begun:
            raise BadSample("audio_format", f"the OGG is a chain: another stream begins at byte {at}, {ONE}")
        at, begun = end, begun or not first
    if (more := data.find(b"OggS", at)) > at:
        told = f"the OGG is damaged at byte {at}: no page begins there, but one at byte {more}"
        raise BadSample("audio_damaged", f"{told}; copy it again")


def check_mp3(data: bytes, rate_hz: int) -> bool:
    """Whether the file states its length. If not, libsndfile infers it from the first frame: all must have its rate."""
    at = after_id3(data[:10])
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
    if data[end : end + 1] == b"\xff" and len(data) > end + LONGEST_FRAME and data[end + 1] & 0xE6 == 0xE2:
        raise BadSample("audio_format", f"the MP3 says that it ends at byte {end}, where another begins, {ONE}")
