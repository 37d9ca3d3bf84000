"""Bytes in, tensors out: what is decoded is what was encoded, and what is damaged is refused in one line."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
import torchaudio
from PIL import Image
from scipy.signal import resample_poly
from torchvision.transforms import v2

from mmfm.config import UserError
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.audio import decode_audio, load_audio, resample
from mmfm.preprocessing.image import decode_image, load_picture, resize
from mmfm.preprocessing.tokenizer import load_tokenizer, parse_tokenizer, train_tokenizer

ODD = (
    "forty-two",
    "  two leading spaces,\ttab\r\nnewline\n\n",
    "naïve café ümlaut ﬁ e\u0301",
    "👩‍👩‍👧‍👦 🇫🇷 日本語 العربية",
    "\x00\x01\x7f\u200b\ufeff\U0010ffff",
    "<|endoftext|> <s> [MASK]",
    " ",
    "a" * 500,
)


def smooth(height=48, width=64):
    """A picture without sharp edges, so that every format keeps it."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([2 * y, 255 - 3 * x, x + y], axis=-1).clip(0, 255).astype(np.uint8)


def one_line(error):
    return "\n" not in str(error.value) and "0x" not in str(error.value)


# Images


@pytest.mark.parametrize(
    ("layout", "options", "near"), [("PNG", {}, 0), ("WEBP", {"lossless": True}, 0), ("JPEG", {}, 6)]
)
def test_pixels_survive(encode_image, layout, options, near):
    """Channels come first, in the order red, green, blue; a lossless format gives the very pixels."""
    image = decode_image(encode_image(smooth(), layout, **options))
    assert (image.permute(1, 2, 0).int() - torch.tensor(smooth()).int()).abs().float().mean() <= near / 4
    assert (image.permute(1, 2, 0).int() - torch.tensor(smooth()).int()).abs().max() <= 4 * near


@pytest.mark.parametrize(
    ("layout", "options"), [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {})]
)
def test_cut_image_is_refused_at_every_length(encode_image, layout, options):
    """No prefix of a file decodes to other pixels than the whole: grey never stands in for what is missing."""
    data = encode_image(smooth(), layout, **options)
    whole, refused = decode_image(data), 0
    for length in range(0, len(data), 3):
        try:
            assert torch.equal(decode_image(data[:length]), whole)
        except BadSample as why:
            refused += 1
            assert "\n" not in str(why)
    assert refused > 0.9 * len(data) / 3 - 10


def test_damaged_image_raises_nothing_but_bad_input(encode_image):
    """Whatever bytes are flipped, the decoder's own exceptions stay inside."""
    random = np.random.default_rng(0)
    for layout in ("PNG", "JPEG", "WEBP"):
        data = np.frombuffer(encode_image(smooth(16, 16), layout), np.uint8)
        for _ in range(150):
            broken = data.copy()
            broken[random.integers(len(data), size=3)] = random.integers(256, size=3)
            try:
                decode_image(broken.tobytes())
            except BadSample as why:
                assert "\n" not in str(why)


def test_only_three_formats_are_opened():
    """A GIF is refused: each further parser is one more way in."""
    file = io.BytesIO()
    Image.fromarray(smooth()).save(file, "GIF")
    with pytest.raises(BadSample, match="this is a GIF picture, no PNG, JPEG or WebP picture; convert it") as error:
        decode_image(file.getvalue())
    assert one_line(error)
    with pytest.raises(BadSample, match="empty"):
        decode_image(b"")


@pytest.mark.parametrize("side", [8_001, 20_000])
def test_large_image_is_refused_from_its_header(side):
    """The size is read before any pixel: this PNG holds a header and no pixels at all."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    idat = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(BadSample, match="more than 64 megapixels"):
        decode_image(b"\x89PNG\r\n\x1a\n" + chunk + idat)


def test_exif_orientation_is_applied(encode_image):
    """A picture stored on its side (orientation 6: turn right) comes out upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode_image(np.rot90(smooth()).copy(), "PNG", exif=exif)
    assert torch.equal(decode_image(data), torch.tensor(smooth()).permute(2, 0, 1))


def test_grey_transparent_palette_and_16_bit(encode_image):
    """Grey fills three channels; what is transparent lies on white; a palette is applied; 16 bits keep the upper 8."""
    grey = smooth()[:, :, 0]
    assert torch.equal(decode_image(encode_image(grey)), torch.tensor(grey).expand(3, -1, -1))
    assert torch.equal(decode_image(encode_image(grey), channels=1)[0], torch.tensor(grey))
    seen = np.dstack([smooth(), np.zeros_like(grey)])
    seen[:10, :, 3] = 255
    image = decode_image(encode_image(seen))
    assert torch.equal(image[:, :10], torch.tensor(smooth()).permute(2, 0, 1)[:, :10]) and (image[:, 10:] == 255).all()
    file = io.BytesIO()
    Image.fromarray(grey).convert("P").save(file, "PNG")
    assert torch.equal(decode_image(file.getvalue(), channels=1)[0], torch.tensor(grey))
    deep = grey.astype(np.uint16) * 256 + 77
    assert torch.equal(decode_image(encode_image(deep), channels=1)[0], torch.tensor(grey))
    with pytest.raises(UserError, match="1 or 3 channels, not 2"):
        decode_image(encode_image(grey), channels=2)


@pytest.mark.parametrize("size", [(16, 24), (224, 224), (48, 7)])
def test_resize_equals_torchvision_and_nearly_pillow(size):
    """Parity: torchvision's antialiased bicubic to the bit, and Pillow's (another implementation) to two levels."""
    image = torch.tensor(np.random.default_rng(0).integers(0, 256, (3, 48, 64), dtype=np.uint8))
    ours = resize(image, *size)
    theirs = v2.functional.resize(image, list(size), v2.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(ours, theirs)
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
    assert (ours.permute(1, 2, 0).int() - torch.tensor(np.array(pillow)).int()).abs().max() <= 2


def test_users_file_is_named(tmp_path):
    """A wrong path, a folder and a damaged file each give one line that starts with the path."""
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    for path, words in (("none.png", "No such file"), (".", "Is a directory"), ("x.png", "no readable PNG")):
        with pytest.raises(UserError, match=words) as error:
            load_picture(tmp_path / path, channels=3, height_px=8, width_px=8)
        assert str(error.value).startswith(str(tmp_path / path)) and one_line(error)
        with pytest.raises(UserError) as error:
            load_audio(tmp_path / path, rate_hz=16_000, max_seconds=1.0)
        assert str(error.value).startswith(str(tmp_path / path)) and one_line(error)


# Sound


def pitch(wave, rate_hz):
    """Frequency of the strongest line, in Hz."""
    spectrum = np.abs(np.fft.rfft(np.asarray(wave) * np.hanning(len(wave))))
    return spectrum.argmax() * rate_hz / len(wave)


@pytest.mark.parametrize(
    ("layout", "subtype", "rate_hz"),
    [
        ("WAV", "PCM_16", 8_000),
        ("WAV", "FLOAT", 44_100),
        ("WAVEX", "PCM_24", 96_000),
        ("FLAC", None, 22_050),
        ("OGG", "VORBIS", 8_000),
        ("OGG", "OPUS", 48_000),
        ("MP3", None, 44_100),
    ],
)
def test_any_rate_and_format_keeps_length_and_pitch(encode_audio, sine, layout, subtype, rate_hz):
    """Stereo of any rate: the mean of the channels at 16 kHz; one holds 440 Hz, the other is silent."""
    left = sine(440.0, 1.25, rate_hz)
    data = encode_audio(np.stack([left, 0 * left], axis=1), rate_hz, layout, subtype)
    wave = decode_audio(data, rate_hz=16_000, max_seconds=2.0)
    assert len(wave) == 20_000
    assert abs(pitch(wave, 16_000) - 440.0) < 1.0
    assert abs(float(wave[2_000:18_000].abs().max()) - 0.25) < 0.02


@pytest.mark.parametrize(("from_hz", "to_hz"), [(8_000, 16_000), (44_100, 16_000), (48_000, 16_000), (16_000, 8_000)])
def test_resampling_agrees_with_torchaudio_and_the_formula(sine, from_hz, to_hz):
    """A sine inside the band is that sine at the new rate; so do torchaudio and scipy's own filter."""
    wave = sine(1_000.0, 0.5, from_hz)
    ours, inner = resample(wave, from_hz, to_hz), slice(to_hz // 20, -to_hz // 20)
    theirs = torchaudio.functional.resample(torch.tensor(wave), from_hz, to_hz, lowpass_filter_width=32).numpy()
    assert np.abs(ours - sine(1_000.0, 0.5, to_hz))[inner].max() < 2e-3
    assert np.abs(ours - theirs[: len(ours)])[inner].max() < 2e-3
    assert np.abs(ours - resample_poly(wave, to_hz, from_hz)).max() < 1e-6


@pytest.mark.parametrize(
    ("layout", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)],
)
def test_cut_sound_is_refused_at_every_length(encode_audio, sine, layout, subtype):
    """No prefix of a file is taken for a shorter clip."""
    data = encode_audio(sine(440.0, 0.6, 8_000), 8_000, layout, subtype)
    for length in range(0, len(data) - 1, max(1, len(data) // 97)):
        with pytest.raises(BadSample) as error:
            decode_audio(data[:length], rate_hz=8_000, max_seconds=2.0)
        assert one_line(error)


def test_mp3_without_stated_length(encode_audio):
    """Of a variable rate it is refused (libsndfile would return a part); tags before and after the sound do no harm."""
    loud = np.random.default_rng(0).standard_normal(48_000) * np.linspace(0, 0.5, 48_000)
    file = encode_audio(loud.astype(np.float32), 16_000, "MP3")
    bare = file[file.find(file[:2], 100) :]  # from the second frame on: the first holds the length
    with pytest.raises(BadSample, match="variable rate and does not state its length"):
        decode_audio(bare, rate_hz=16_000, max_seconds=9.0)
    tagged = b"ID3\x04\x00\x00\x00\x00\x07\x76" + bytes(1_014) + file + b"TAG" + bytes(125)
    assert len(decode_audio(tagged, rate_hz=16_000, max_seconds=9.0)) == 48_000


def test_wav_of_a_stream_is_taken(encode_audio, sine):
    """A recorder that cannot seek leaves 0xFFFFFFFF as the size: that is no cut."""
    data = bytearray(encode_audio(sine(440.0, 0.5), 16_000))
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff" * 4
    assert len(decode_audio(bytes(data), rate_hz=16_000, max_seconds=2.0)) == 8_000


@pytest.mark.parametrize(
    ("wave", "words"),
    [
        (np.zeros(0, np.float32), "0 samples"),
        (np.array([0.1, np.nan, 0.2], np.float32), "nan"),
        (np.array([0.1, -np.inf, 0.2], np.float32), "inf"),
        (np.full(100, 1e30, np.float32), "1e\\+30"),
        (np.zeros(16_000 * 3, np.float32), "lasts 3.00 s, over max_seconds=2"),
        (np.zeros((100, 40), np.float32), "40 channels"),
    ],
)
def test_unusable_sound_is_refused(encode_audio, wave, words):
    """Nothing, not a number, infinite, overflowing, too long, too many channels: each by its name."""
    with pytest.raises(BadSample, match=words) as error:
        decode_audio(encode_audio(wave, 16_000, "WAV", "FLOAT"), rate_hz=16_000, max_seconds=2.0)
    assert one_line(error)


def test_sound_of_no_or_another_format(encode_audio, sine):
    """0 bytes, rubbish, and a format that libsndfile knows but we do not read."""
    for data, words in (
        (b"", "empty"),
        (b"RIFF\0rubbish" * 9, "no readable"),
        (encode_audio(sine(440), layout="AIFF"), "AIFF"),
    ):
        with pytest.raises(BadSample, match=words) as error:
            decode_audio(data, rate_hz=16_000, max_seconds=2.0)
        assert one_line(error)


# Text


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def tokenizer(request):
    return (
        load_tokenizer("bytes") if request.param == "bytes" else train_tokenizer(["forty-two", "forty-three"] * 9, 300)
    )


@pytest.mark.parametrize("text", ODD)
def test_text_comes_back_exactly(tokenizer, text):
    """Decoding undoes encoding for any string, also after a trip through tokenizer.json."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and all(0 <= i < tokenizer.size for i in ids)
    assert parse_tokenizer(tokenizer.to_json()).encode(text) == ids


def test_any_ids_decode(tokenizer):
    """Half of a character, ids of another range and negative ones: never an exception, and what is text is kept."""
    random = np.random.default_rng(0)
    for _ in range(200):
        tokenizer.decode(random.integers(-5, tokenizer.size + 50, 20).tolist())
    assert tokenizer.decode([*tokenizer.encode("ab"), 10**9, -1, *tokenizer.encode("c")]) == "abc"
    assert "\ufffd" in tokenizer.decode(tokenizer.encode("é")[:1]) and tokenizer.decode([]) == ""


def test_bytes_are_the_values_of_utf8():
    """The ids of "bytes" are the bytes themselves; a lone surrogate, which JSON can hold, becomes a question mark."""
    assert load_tokenizer("bytes").encode("né\n") == list("né\n".encode()) and load_tokenizer("bytes").size == 256
    assert load_tokenizer("bytes").encode("a\ud800") == list(b"a?")


def test_merges_stay_inside_words_and_are_deterministic():
    """The frequent word is one id, no id spans a space between words, and a second training is equal to the byte."""
    texts = ["forty two", "forty three", "sixty two"] * 20
    first, second = (train_tokenizer(iter(texts), 290) for _ in range(2))
    assert first.to_json() == second.to_json() and first.size <= 290
    pieces = [first.decode([i]) for i in range(first.size)]
    assert "forty" in pieces and not any(" " in piece.strip(" ") for piece in pieces)
    with pytest.raises(UserError, match="at least 256"):
        train_tokenizer(texts, 255)


def test_special_tokens_of_a_foreign_tokenizer_are_never_encoded():
    """A tokenizer.json with marks, padding and truncation: what looks like a mark stays text, at its own length."""
    tree = json.loads(train_tokenizer(["forty two"], 300).to_json())
    mark = {"content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tree["added_tokens"] = [{"id": 299, "special": True, **mark}]
    tree["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    foreign = parse_tokenizer(json.dumps(tree))
    ids = foreign.encode("a <|end|> b")
    assert 299 not in ids and foreign.decode(ids) == "a <|end|> b" and foreign.decode([*ids, 299]) == "a <|end|> b"


@pytest.mark.parametrize(
    ("name", "data"), [("none.json", None), ("bad.json", b"{}"), ("cut.json", b'{"model": '), ("x", b"\xff")]
)
def test_missing_or_invalid_tokenizer(tmp_path, name, data):
    """One line that names the path."""
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=name) as error:
        load_tokenizer(tmp_path / name)
    assert one_line(error)
