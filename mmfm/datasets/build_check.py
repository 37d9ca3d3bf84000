"""A row's bytes, and whether a training run could read them: nothing here changes a byte."""

import base64
import binascii
import errno
import io
import stat
import sys
from pathlib import Path
from typing import Literal

import soundfile

from mmfm.config import MESSAGES
from mmfm.data.index import MAX_PART, MODALITY, modality_of, numbered
from mmfm.data.sample import Sample, meta_of, text_of
from mmfm.data.writer import Item
from mmfm.datasets.build_rows import Part, Row
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.audio import decode_audio
from mmfm.preprocessing.chat import PARTS, parse_messages
from mmfm.preprocessing.chat import Part as Mention
from mmfm.preprocessing.file_formats import READ, refusal
from mmfm.preprocessing.image import MAX_PIXELS, decode_image
from mmfm.preprocessing.media_headers import measure

Check = Literal["decode", "headers", "none"]
MAGIC = (  # at byte 0
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpg"),
    (b"fLaC", "flac"),
    (b"OggS", "ogg"),
    (b"ID3", "mp3"),
    (b"\xff\xfb", "mp3"),
    (b"\xff\xf3", "mp3"),
    (b"\xff\xf2", "mp3"),
)
RIFF = {b"WEBP": "webp", b"WAVE": "wav"}  # at byte 8, after RIFF, RIFX or RF64
SAME = {"jpeg": "jpg"}
UNKNOWN: dict[str, tuple[str, Literal["picture", "sound"]]] = {
    "image": ("image_format", "picture"),
    "audio": ("audio_format", "sound"),
}


def read_row(row: Row) -> Item:
    """Raises BadSample where the bytes are of no known format, and FileNotFoundError where there is no file."""
    if row.bad is not None:
        raise BadSample(*row.bad)
    parts: dict[str, bytes] = {}
    for part in row.parts:
        data = part.content if isinstance(part.content, bytes) else _bytes_of(part)
        parts[_extension(part, data)] = data
    return Item(row.key, parts)


def _bytes_of(part: Part) -> bytes:
    """A table may name anything: a device would never end, and a pipe would wait for ever."""
    path = part.content
    if not isinstance(path, Path):
        return _decoded(str(path), numbered(part.role)[1])
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise FileNotFoundError(errno.ENOENT, "no plain file", str(path))
    if about.st_size > MAX_PART:
        raise BadSample("part_too_big", f"{path} has {about.st_size} bytes, over {MAX_PART}; cut it into samples")
    return path.read_bytes()


def _decoded(url: str, role: str) -> bytes:
    head, _, body = url.partition(",")
    try:
        if head.lower().endswith(";base64"):
            return base64.b64decode("".join(body.split()), validate=True)
    except binascii.Error:
        pass
    code = "audio_damaged" if role.endswith("audio") else "image_damaged"
    raise BadSample(code, f"{url[:40]!r} is no data URL of base64; write data:TYPE;base64,DATA, or a path")


def _extension(part: Part, data: bytes) -> str:
    """That of the file's name if it fits the role, else what the first bytes say."""
    number, _, role = part.role.rpartition(".")
    if number and role in UNKNOWN:
        return f"{number}.{_extension(part._replace(role=role), data)}"
    if part.role not in UNKNOWN:
        return SAME.get(part.role, part.role)
    named = part.content.suffix[1:].lower() if isinstance(part.content, Path) else ""
    found = named if MODALITY.get(named) == part.role else format_of(data)
    if MODALITY.get(found) != part.role:
        raise _other(part.role, data)
    return SAME.get(found, found)


def _other(role: str, data: bytes) -> BadSample:
    """What these bytes are, which are of no format that is read."""
    code, wanted = UNKNOWN[role]
    unknown = f"the first bytes are those of no {READ[wanted]} {wanted}; convert it"
    return BadSample(code, refusal(data, wanted) or unknown)


def format_of(data: bytes) -> str:
    """The usual extension of what begins so; empty: unknown."""
    if data[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return RIFF.get(data[8:12], "")
    return next((name for magic, name in MAGIC if data.startswith(magic)), "")


def check_item(item: Item, check: Check, max_seconds: float = sys.float_info.max) -> None:
    """Raises BadSample for what a run would refuse: all of it ("decode"), or what headers tell ("headers")."""
    sample = Sample(key=item.key, parts=dict(item.parts), where=item.key)
    known = {modality_of(name) for name in item.parts} - {None}
    if not known and text_of(sample) is None and not _is_talk(sample):
        raise BadSample("empty_sample", f"{item.key} has no picture, sound or text; add one or leave it out")
    if check == "none":
        return
    text_of(sample)
    if _is_talk(sample):
        _check_talk(sample)
    for name, data in item.parts.items():
        extension = numbered(name)[1]
        kind = modality_of(name)
        if extension == "cls" and not data.strip().isdigit():
            raise BadSample("label_no_number", f"{item.key}: the .cls is no whole number; write the number of a class")
        if kind == "image":
            decode_image(data) if check == "decode" else _check_picture(extension, data)
        elif kind == "audio":
            _decode_sound(data, max_seconds) if check == "decode" else _check_sound(extension, data, max_seconds)


def _is_talk(sample: Sample) -> bool:
    return isinstance(meta_of(sample).get(MESSAGES), list)


def _check_talk(sample: Sample) -> None:
    """That a conversation mentions the parts that there are, in their order."""
    messages = parse_messages(meta_of(sample)[MESSAGES], sample.where)
    mentioned = [piece.kind for one in messages for piece in one.content if isinstance(piece, Mention)]
    counted = sorted((numbered(name)[0], kind) for name in sample.parts if (kind := modality_of(name)) in PARTS)
    held = [kind for _, kind in counted]
    if mentioned != held:
        told = f"{sample.key}: its messages mention {len(mentioned)} parts ({', '.join(mentioned)}), and it holds"
        remedy = "give as many, counted from 0 in the order of mention"
        raise BadSample("messages_parts", f"{told} {len(held)} ({', '.join(held)}); {remedy}")


def _check_picture(extension: str, data: bytes) -> None:
    seen = measure(extension, lambda at, count: data[at : at + count], len(data))
    if seen.width < 0 and refusal(data, "picture"):
        raise _other("image", data)
    if seen.width < 0:
        raise BadSample("image_damaged", "the image does not say how large it is; it may be cut or damaged")
    if seen.width * seen.height > MAX_PIXELS:
        most = MAX_PIXELS // 1_000_000
        raise BadSample("image_too_big", f"the image is {seen.width}x{seen.height}, more than {most} megapixels")


def _check_sound(extension: str, data: bytes, max_seconds: float) -> None:
    seen = measure(extension, lambda at, count: data[at : at + count], len(data))
    if MODALITY.get(format_of(data)) != "audio":
        raise _other("audio", data)
    if seen.seconds > max_seconds:
        raise BadSample("audio_too_long", f"the sound lasts {seen.seconds:.2f} s, over {max_seconds:g}; cut it")


def _decode_sound(data: bytes, max_seconds: float) -> None:
    """At the sound's own rate, so that nothing is resampled."""
    try:
        rate_hz = soundfile.info(io.BytesIO(data)).samplerate
    except soundfile.LibsndfileError:
        rate_hz = 16_000  # the decoder says what is wrong
    decode_audio(data, rate_hz=rate_hz, max_seconds=max_seconds)
