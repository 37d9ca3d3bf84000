"""Lengths and sizes read off headers are those that the decoders find; hostile bytes give none, or a sane one."""

import io
import math
import struct

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmfm.preprocessing.media_headers import HEAD, TAILS, Measure, jpeg_head, measure


def of(data, extension):
    return measure(extension, lambda offset, count: data[offset : offset + count], len(data))


def noise(seconds, rate_hz, channels=1):
    return (0.1 * np.random.default_rng(0).standard_normal((round(seconds * rate_hz), channels))).astype(np.float32)


def speckled(height=48, width=64):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("seconds", [0.05, 1.2345, 7.0])
@pytest.mark.parametrize(
    ("layout", "subtype", "rate_hz", "channels"),
    [
        ("WAV", "PCM_16", 16_000, 1),
        ("WAV", "PCM_24", 44_100, 2),
        ("WAV", "FLOAT", 8_000, 1),
        ("WAV", "ULAW", 8_000, 1),
        ("WAVEX", "PCM_16", 48_000, 6),
        ("FLAC", None, 22_050, 2),
        ("OGG", "VORBIS", 44_100, 2),
        ("OGG", "OPUS", 48_000, 2),
        ("OGG", "OPUS", 16_000, 1),
        ("MP3", None, 44_100, 2),
        ("MP3", None, 48_000, 1),
        ("MP3", None, 16_000, 1),
        ("MP3", None, 8_000, 2),
    ],
)
def test_seconds_are_libsndfiles(encode_audio, layout, subtype, rate_hz, channels, seconds):
    """To the sample what libsndfile finds, which opens (and of an MP3 scans) the file for it."""
    data = encode_audio(noise(seconds, rate_hz, channels), rate_hz, layout, subtype)
    found = soundfile.info(io.BytesIO(data))
    extension = {"WAVEX": "wav"}.get(layout, "opus" if subtype == "OPUS" else layout.lower())
    assert abs(of(data, extension).seconds * found.samplerate - found.frames) < 1e-3


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "subsampling": 0}),
        ("JPEG", {"icc_profile": bytes(50_000)}),
        ("JPEG", {"comment": b"x" * 60_000}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"icc_profile": bytes(500)}),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (48, 64), (1_037, 2)])
def test_sizes_are_pillows(encode_image, layout, options, size):
    """Also behind 60 KB of other things, and whatever the file is called."""
    data = encode_image(speckled(*size), layout, **options)
    assert Image.open(io.BytesIO(data)).size == size[::-1]
    for extension in ("png", "jpg", "jpeg", "webp"):
        assert of(data, extension) == Measure(width=size[1], height=size[0])


def test_little_is_read(encode_audio, encode_image):
    """A long sound and a large picture cost a kilobyte or two; only an Ogg file's tail is longer."""
    for layout, extension in (("WAV", "wav"), ("FLAC", "flac"), ("OGG", "ogg"), ("MP3", "mp3"), ("PNG", "png")):
        picture = layout == "PNG"
        data = encode_image(speckled(400, 300)) if picture else encode_audio(noise(20, 16_000), 16_000, layout)
        spans = []
        measure(extension, lambda at, n, data=data, spans=spans: (spans.append(n), data[at : at + n])[1], len(data))
        assert sum(spans) <= HEAD + (TAILS[0] if layout == "OGG" else 3)


def test_sounds_with_odd_headers(encode_audio, sine):
    """Chunks before the samples, a size that was never filled in, tags, and MP3 that does not state its length."""
    wave, wav = sine(440, 1.5), encode_audio(sine(440, 1.5))
    fmt = wav[:36]
    far = fmt + b"LIST" + struct.pack("<I", 5_001) + bytes(5_002) + wav[36:]
    assert of(far, "wav").seconds == soundfile.info(io.BytesIO(far)).duration == 1.5
    streamed = wav[:40] + b"\xff" * 4 + wav[44:]
    assert of(streamed, "wav").seconds == 1.5
    mp3 = encode_audio(wave, layout="MP3")
    tag = b"ID3\x04\x00\x00\x00\x00\x07\x76" + bytes(1_014)
    assert of(tag + mp3 + b"TAG" + bytes(125), "mp3") == of(mp3, "mp3")
    assert of(mp3[mp3.index(mp3[:2], 100) :], "mp3") == Measure()  # its rate varies
    flac = bytearray(encode_audio(wave, layout="FLAC"))
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    assert of(bytes(flac), "flac").seconds == 1.5, "by its last frame"
    assert of(bytes(flac[:-1]), "flac") == Measure()


def test_constant_rate_mp3_without_stated_length(encode_audio):
    """From its size: within two frames of what was written."""
    file = io.BytesIO()
    with soundfile.SoundFile(
        file, "w", 44_100, 1, format="MP3", bitrate_mode="CONSTANT", compression_level=0.5
    ) as writer:
        writer.write(noise(3.0, 44_100))
    data = file.getvalue()
    second = next(i for i in range(100, len(data)) if data[i : i + 2] == data[:2])
    bare = data[second:]
    assert abs(of(bare, "mp3").seconds - 3.0) < 3 * 1_152 / 44_100


def test_other_extensions_are_not_touched():
    """No byte is read of what is neither picture nor sound."""
    assert measure("txt", lambda offset, count: pytest.fail("read"), 100) == Measure()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("turn", range(10))
def test_orientation_is_pillows(encode_image, turn, order):
    """In both byte orders, behind another segment; what is not 1 to 8 counts as 1."""
    tiff = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(
        order + "IHHHIIHHIHHI", 8, 2, 0x0100, 4, 1, 99, 0x0112, 3, 1, turn, 0, 0
    )
    data = encode_image(speckled(), "JPEG", comment=b"before", exif=b"Exif\0\0" + tiff)
    assert Image.open(io.BytesIO(data)).getexif().get(0x0112) == turn
    assert jpeg_head(data).orientation == (turn if 1 <= turn <= 8 else 1)


@pytest.mark.parametrize(("progressive", "layered"), [(False, False), (True, True)])
def test_layers_are_seen(encode_image, progressive, layered):
    """A progressive JPEG has more than one scan, a plain one has one."""
    assert jpeg_head(encode_image(speckled(), "JPEG", progressive=progressive)).layered is layered
    assert not jpeg_head(encode_image(speckled()[:, :, 0], "JPEG")).layered


def test_hostile_bytes_never_raise(encode_audio, encode_image):
    """Flipped, cut, doubled and random bytes of every format: unknown, or finite and not negative."""
    random = np.random.default_rng(0)
    sources = [("jpg", encode_image(speckled(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0" + bytes(60)))]
    sources += [("png", encode_image(speckled())), ("webp", encode_image(speckled(), "WEBP"))]
    for layout, subtype in (("WAV", None), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)):
        sources.append((layout.lower(), encode_audio(noise(0.5, 16_000), 16_000, layout, subtype)))
    for extension, whole in sources:
        for round_ in range(120):
            data = np.frombuffer(whole, np.uint8).copy()
            span = min(len(data), 200 if round_ % 3 else len(data))
            data[random.integers(span, size=6)] = random.choice([0, 1, 0x7F, 0x80, 0xFF, 0x20], size=6)
            cut = data.tobytes()[: random.integers(len(data)) if round_ % 4 == 0 else None]
            for other in (extension, "jpg", "wav"):
                found = of(cut, other)
                assert all(math.isfinite(value) and (value == -1 or value >= 0) for value in found)
            assert 1 <= jpeg_head(cut).orientation <= 8
    for length in (0, 1, 2, 3, 11, 12, 26, 27, 100):
        for start in (b"", b"\xff\xd8", b"RIFF", b"OggS", b"fLaC", b"ID3", b"\xff\xfb"):
            for extension in ("jpg", "mp3", "opus"):
                of((start + random.bytes(length))[:length], extension)
