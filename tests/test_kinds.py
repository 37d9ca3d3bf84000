"""What is none of the formats that are read is called by its own name, whatever its file's is, and never "damaged"."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmfm.datasets.build import build
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.audio import decode_audio
from mmfm.preprocessing.file_formats import kind_of, refusal
from mmfm.preprocessing.image import decode_image
from mmfm.preprocessing.media_headers import measure


def by_pillow(layout: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, layout)
    return file.getvalue()


def by_libsndfile(layout: str, subtype: str | None = None, seconds: float = 0.5) -> bytes:
    file = io.BytesIO()
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, round(16_000 * seconds)).astype(np.float32)
    soundfile.write(file, wave, 16_000, format=layout, subtype=subtype)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", by_pillow("PNG"))
    return file.getvalue()


def brand(name: bytes) -> bytes:
    return b"\0\0\0\x1cftyp" + name + b"\0\0\0\0" + name + bytes(200)


PAGE = b"<!DOCTYPE html>\n<html><head><title>Log in</title></head><body></body></html>"
OTHERS: dict[str, bytes | tuple[Callable[[str], bytes], str]] = {
    "a GIF picture": (by_pillow, "GIF"),
    "a TIFF picture": (by_pillow, "TIFF"),
    "a BMP picture": (by_pillow, "BMP"),
    "an icon": (by_pillow, "ICO"),
    "a PNM picture": (by_pillow, "PPM"),
    "a JPEG 2000 picture": (by_pillow, "JPEG2000"),
    "an AVIF picture": brand(b"avif"),
    "a HEIC picture": brand(b"heic"),
    "a HEIF picture": brand(b"mif1"),
    "a JPEG XL picture": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99),
    "an SVG drawing": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>',
    "an AIFF sound": (by_libsndfile, "AIFF"),
    "an AU sound": (by_libsndfile, "AU"),
    "a CAF sound": (by_libsndfile, "CAF"),
    "a Wave64 sound": (by_libsndfile, "W64"),
    "an M4A sound": brand(b"M4A "),
    "an AAC sound": b"\xff\xf1\x50\x80\x02\x1f\xfc" + bytes(400),
    "an AMR sound": b"#!AMR\n" + bytes(99),
    "a Windows Media file": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa" + bytes(99),
    "a WebM or Matroska file": b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01webm" + bytes(99),
    "an MP4 file": brand(b"isom"),
    "a QuickTime video": brand(b"qt  "),
    "an AVI video": b"RIFF\x40\0\0\0AVI LIST" + bytes(99),
    "a web page": PAGE,
    "a ZIP archive": zipped(),
    "gzip-compressed": b"\x1f\x8b\x08" + bytes(99),
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "a PDF document": (by_pillow, "PDF"),
    "a text": b"404: there is nothing of that name here\n",
}


def bytes_of(name: str) -> bytes:
    made = OTHERS[name]
    return made if isinstance(made, bytes) else made[0](made[1])


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_named_with_a_remedy(name: str) -> None:
    """As a picture and as a sound; by the decoders, whose code says that nothing is damaged."""
    data = bytes_of(name)
    for read, code in ((decode_image, "image_format"), (sound, "audio_format")):
        with pytest.raises(BadSample, match=f"this is {name}.*; (convert|take|unpack|fetch|put) ") as caught:
            read(data)
        assert caught.value.code == code and "\n" not in str(caught.value)


def sound(data: bytes) -> Any:
    return decode_audio(data, rate_hz=16_000, max_seconds=60.0)


def test_what_is_read_is_never_refused_by_name(encode_image: Any, encode_audio: Any, sine: Any) -> None:
    """By its bytes: in the right place it is none of the others, in the wrong one it is called what it is."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pictures = {layout: encode_image(pixels, layout) for layout in ("PNG", "JPEG", "WEBP")}
    sounds = {layout: encode_audio(sine(440), layout=layout) for layout in ("WAV", "FLAC", "OGG", "MP3")}
    sounds["tagged"] = b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + sounds["MP3"]
    for data in pictures.values():
        assert refusal(data, "picture") is None
        with pytest.raises(BadSample, match=r"this is a (PNG|JPEG|WebP) picture, no WAV, FLAC, OGG or MP3 sound; put"):
            sound(data)
    for data in sounds.values():
        assert refusal(data, "sound") is None
        with pytest.raises(BadSample, match=r"this is an? (WAV|FLAC|OGG|MP3) sound, no PNG, JPEG or WebP picture; put"):
            decode_image(data)
    with pytest.raises(BadSample) as caught:
        decode_image(by_pillow("PNG")[:400])
    assert caught.value.code == "image_damaged"
    assert kind_of(b"") is None and kind_of(bytes(40)) is None and kind_of(np.random.default_rng(0).bytes(999)) is None


@pytest.mark.parametrize("check", ["decode", "headers"])
def test_a_build_lists_them_by_their_names(tmp_path: Path, check: Any) -> None:
    """Files whose name lies are left out with the code of another format; a PNG that is called .jpg is taken."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(by_pillow("PNG"))
    (folder / "b.jpg").write_bytes(bytes_of("an AVIF picture"))
    (folder / "c.wav").write_bytes(bytes_of("an M4A sound"))
    (folder / "d.png").write_bytes(PAGE)
    build(folder, tmp_path / "out", check=check, progress=False)
    told = (tmp_path / "out" / "left_out.jsonl").read_text()
    for words in ("image_format", "this is an AVIF picture", "audio_format", "this is an M4A sound", "a web page"):
        assert words in told
    assert "damaged" not in told and told.count("\n") == 3


# Lengths that are not what a header says


def without_length(flac: bytes) -> bytes:
    data = bytearray(flac)
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


@pytest.mark.parametrize("seconds", [0.01, 0.5, 4.0])
def test_a_flac_that_does_not_state_its_length(seconds: float) -> None:
    """As ffmpeg writes into a pipe: its last frame says where it ends, and the decoder gives the same samples."""
    flac = by_libsndfile("FLAC", seconds=seconds)
    bare = without_length(flac)
    assert measure("flac", lambda at, count: bare[at : at + count], len(bare)).seconds == pytest.approx(seconds)
    assert sound(bare).equal(sound(flac)) and len(sound(bare)) == round(16_000 * seconds)
    crop = {"rate_hz": 16_000, "max_seconds": 1.0, "crop_seconds": 0.1, "where": 0.7}
    assert decode_audio(bare, **crop).equal(decode_audio(flac, **crop))
    tagged = b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + bare
    assert measure("flac", lambda at, count: tagged[at : at + count], len(tagged)).seconds == pytest.approx(seconds)
    if seconds > 1:
        with pytest.raises(BadSample, match=r"the sound lasts 4\.00 s, over max_seconds=1; cut it or raise the limit"):
            decode_audio(bare, rate_hz=16_000, max_seconds=1.0)
    for end in (len(bare) - 1, len(bare) // 2):
        with pytest.raises(BadSample, match=r"(cut|damaged)"):
            sound(bare[:end])


@pytest.mark.parametrize("layout", ["WAV", "FLAC", "OGG", "MP3"])
def test_of_two_recordings_in_one_file_none_is_dropped(layout: str) -> None:
    """libsndfile would read the first and say nothing of the second (of an Ogg: a chained stream)."""
    one, other = by_libsndfile(layout), by_libsndfile(layout, seconds=0.7)
    assert len(sound(one)) > 0
    for crop in (0.0, 0.1):
        with pytest.raises(BadSample, match=r"(follows|begins).*, so that only the first would be read; make it one"):
            decode_audio(one + other, rate_hz=16_000, max_seconds=60.0, crop_seconds=crop)


def test_a_length_that_the_bytes_cannot_hold_is_no_length(encode_audio: Any, sine: Any) -> None:
    """A header that says years is told as such, and not as a sound that is too long."""
    flac = bytearray(encode_audio(sine(440), layout="FLAC"))
    flac[21] |= 0x0F
    flac[22:26] = b"\xff" * 4
    with pytest.raises(
        BadSample, match=r"says that it lasts .* s, which its \d+ bytes cannot hold; convert it"
    ) as caught:
        sound(bytes(flac))
    assert caught.value.code == "audio_length"


@pytest.mark.parametrize(
    ("layout", "subtype"),
    [("RF64", "PCM_16"), ("RF64", "FLOAT"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAVEX", "PCM_32")],
)
def test_every_header_of_a_wav_is_read(layout: str, subtype: str) -> None:
    """RF64, floats, 24 bits: the same samples, the same length by the header; a cut one is refused."""
    data, plain = by_libsndfile(layout, subtype), by_libsndfile("WAV", "FLOAT")
    assert measure("wav", lambda at, count: data[at : at + count], len(data)).seconds == pytest.approx(0.5, abs=0.01)
    assert (sound(data) - sound(plain)).abs().max() < 1e-4
    with pytest.raises(BadSample, match="the WAV is cut"):
        sound(data[: len(data) // 2])
