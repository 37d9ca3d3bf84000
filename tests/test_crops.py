"""What is cut out while it is decoded is that part of the whole; hostile files are refused before they unfold."""

import io
import struct

import numpy as np
import pytest
import simplejpeg
import soundfile
import torch
from PIL import Image, ImageOps
from scipy.stats import ks_2samp
from torchvision.transforms import v2

import mmfm.preprocessing.audio as sounds
from mmfm.data.augment import DRAWS
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.audio import decode_audio, resample
from mmfm.preprocessing.crops import CROP_DRAWS, MIRROR_DRAW, random_box
from mmfm.preprocessing.image import MAX_SCANS, decode_image, picture, resize

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers(monkeypatch):
    """Each test draws the same numbers, whichever ran before it on this process."""
    monkeypatch.setitem(globals(), "RANDOM", np.random.default_rng(0))


def photo(height=683, width=512):
    """Smooth shapes with a little noise, as a camera gives them."""
    y, x = np.mgrid[0:height, 0:width]
    shapes = [127 + 80 * np.sin(x / 37 + y / 61), 127 + 80 * np.cos(x / 47), 127 + 60 * np.sin(y / 31)]
    return (np.stack(shapes, -1) + np.random.default_rng(1).normal(0, 3, (height, width, 3))).clip(0, 255).astype("u1")


def draws():
    """Uniform numbers of one item."""
    return RANDOM.random(DRAWS, dtype=np.float32)


def shrink(data, height_px=224, width_px=224, channels=3, **how):
    return picture(data, channels=channels, height_px=height_px, width_px=width_px, **how)


# Pictures


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize(
    ("layout", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"subsampling": 0, "progressive": True}),
        ("JPEG", "RGB", {"subsampling": 1, "quality": 95}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}),
        ("WEBP", "RGB", {}),
    ],
)
def test_exact_pictures_are_pillows(layout, mode, options, turn):
    """Two decoders, one result: to the bit what Pillow decodes and turns upright, then resized; in colour and grey."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(photo(101, 77)).convert(mode).save(file, layout, exif=exif, **options)
    for channels, name in ((1, "L"), (3, "RGB")):
        pillow = np.array(ImageOps.exif_transpose(Image.open(file)).convert(name))
        theirs = torch.tensor(pillow.reshape(*pillow.shape[:2], channels)).permute(2, 0, 1)
        assert torch.equal(decode_image(file.getvalue(), channels=channels), theirs)
        ours = shrink(file.getvalue(), 32, 48, channels)
        assert torch.equal(ours, resize(theirs, 32, 48)) and ours.is_contiguous()


@pytest.mark.parametrize("size", [(224, 224), (96, 224), (224, 96)])
def test_scaled_decoding_is_near_and_never_too_small(encode_image, monkeypatch, size):
    """35 dB at least from the exact picture. A side that must keep 224 pixels is never decoded to fewer."""
    shapes, decode = [], simplejpeg.decode_jpeg

    def watched(*args, **more):
        shapes.append(decode(*args, **more).shape[:2])
        return decode(*args, **more)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", watched)
    for height, width, by in ((683, 512, 2), (960, 1_792, 4), (400, 447, 1), (224, 224, 1)):
        for turn in (1, 6):
            exif = Image.Exif()
            exif[0x0112] = turn
            data = encode_image(photo(height, width), "JPEG", quality=92, exif=exif)
            exact, scaled = shrink(data, *size), shrink(data, *size, exact=False)
            error = (exact.float() - scaled.float()).square().mean()
            assert error < 255**2 / 10**3.5
            high, wide = shapes[-1] if turn == 1 else shapes[-1][::-1]
            assert high >= size[0] and wide >= size[1]
            assert size != (224, 224) or shapes[-1] == (-(-height // by), -(-width // by))


def test_middle_is_torchvisions(encode_image):
    """resize_mode="crop" cuts the largest part of the right shape; a picture of that shape stays whole."""
    for height, width, size, cut in ((60, 100, (32, 32), (60, 60)), (100, 60, (16, 32), (30, 60))):
        data = encode_image(photo(height, width))
        theirs = v2.functional.center_crop(torch.tensor(photo(height, width)).permute(2, 0, 1), list(cut))
        assert torch.equal(shrink(data, *size, resize_mode="crop"), resize(theirs.contiguous(), *size))
    data = encode_image(photo(50, 100))
    assert torch.equal(shrink(data, 20, 40, resize_mode="crop"), shrink(data, 20, 40))


@pytest.mark.parametrize("crop", [0.1, 0.92])
@pytest.mark.parametrize("size", [(512, 683), (300, 200), (100, 400), (7, 7)])
def test_random_parts_are_distributed_as_torchvisions(size, crop):
    """Area, shape and place of RandomResizedCrop (two-sample Kolmogorov-Smirnov); another range would be noticed."""
    theirs = v2.RandomResizedCrop(224, scale=(1 - crop, 1.0))
    torch.manual_seed(0)
    made = [theirs.make_params([torch.empty(3, *size)]) for _ in range(2_000)]
    expected = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in made])

    def ours(crop):
        return np.array([random_box(*size, draws(), crop) for _ in range(2_000)])

    def measures(boxes):
        top, left, height, width = boxes.T
        return {
            "area": height * width,
            "shape": width / height,
            "top": top / np.maximum(1, size[0] - height),
            "left": left / np.maximum(1, size[1] - width),
        }

    mine, other = measures(ours(crop)), measures(ours(crop + 0.06))
    for name, values in measures(expected).items():
        assert ks_2samp(mine[name], values, method="asymp").pvalue > 1e-3, name
    assert min(size) < 200 or ks_2samp(other["area"], mine["area"], method="asymp").pvalue < 1e-3


def test_random_part_is_cut_then_resized(encode_image):
    """Decided by its own draws alone; to the bit what cutting the decoded picture gives; scaled decoding cuts there."""
    data = encode_image(photo(), "JPEG", quality=92)
    whole = decode_image(data)
    for _ in range(8):
        mine = draws()
        box = random_box(683, 512, mine, 0.5)
        cut = whole[:, box.top : box.top + box.height, box.left : box.left + box.width].contiguous()
        exact = shrink(data, 64, 96, draws=mine, crop=0.5)
        assert (exact.int() - resize(cut, 64, 96).int()).abs().max() <= 1
        other = draws()
        other[CROP_DRAWS] = mine[CROP_DRAWS]
        assert torch.equal(shrink(data, 64, 96, draws=other, crop=0.5), exact)
        scaled = shrink(data, 64, 96, draws=mine, crop=0.5, exact=False)
        assert (scaled.float() - exact.float()).abs().mean() < 2.0
    assert torch.equal(shrink(data, draws=mine), shrink(data)) and torch.equal(shrink(data, crop=0.5), shrink(data))


def test_mirror_is_half_and_whole(encode_image):
    """Below one half of its draw the picture is exchanged left and right; without draws never."""
    data, mine = encode_image(photo(20, 30)), draws()
    plain = shrink(data, 16, 16)
    for value, wanted in ((0.0, plain.flip(2)), (0.4999, plain.flip(2)), (0.5, plain), (0.9999, plain)):
        mine[MIRROR_DRAW] = value
        assert torch.equal(shrink(data, 16, 16, draws=mine, mirror=True), wanted)
        assert torch.equal(shrink(data, 16, 16, draws=mine), plain)
    assert torch.equal(shrink(data, 16, 16, mirror=True), plain)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_cut_jpeg_is_refused_when_scaled(encode_image, options):
    """At an eighth of its size too, a JPEG that ends early is no picture."""
    data = encode_image(photo(256, 256), "JPEG", **options)
    whole = shrink(data, 32, 32, exact=False)
    for length in range(0, len(data) - 2, len(data) // 40):
        with pytest.raises(BadSample) as error:
            shrink(data[:length], 32, 32, exact=False)
        assert error.value.code == ("image_damaged" if length else "image_empty")
    assert torch.equal(shrink(data + b"trailing", 32, 32, exact=False), whole)


def test_jpeg_bombs_are_refused_from_their_headers(encode_image):
    """A size of 65,535 by 65,535 pixels, and layers upon layers: each would cost seconds, of a few kilobytes."""
    plain = bytearray(encode_image(photo(16, 16), "JPEG"))
    at = plain.index(b"\xff\xc0")
    plain[at + 5 : at + 9] = b"\xff" * 4
    layers = encode_image(photo(16, 16), "JPEG", progressive=True)
    last = layers.rindex(b"\xff\xda")
    layers = layers[:last] + layers[last:-2] * (MAX_SCANS + 1) + layers[-2:]
    for data, code, words in ((bytes(plain), "image_too_big", "64 megapixels"), (layers, "image_damaged", "scans")):
        with pytest.raises(BadSample, match=words) as error:
            shrink(data)
        assert error.value.code == code and "\n" not in str(error.value)


# Sound


def recording(layout, subtype=None, seconds=12.0, rate_hz=16_000, channels=1):
    """Speech-like: a tone whose pitch and loudness change. Written in parts: libsndfile dies of long OGG in one."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    wave = (0.3 + 0.2 * np.sin(3 * t)) * np.sin(2 * np.pi * (300 * t + 40 * np.sin(2 * t)))
    wave = np.stack([wave] + [wave * 0.5] * (channels - 1), axis=1).astype(np.float32)
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate_hz, channels, format=layout, subtype=subtype) as out:
        for start in range(0, len(wave), rate_hz):
            out.write(wave[start : start + rate_hz])
    return file.getvalue()


@pytest.mark.parametrize(
    ("layout", "subtype", "rate_hz", "channels", "near"),
    [
        ("WAV", "PCM_16", 16_000, 1, 0.0),
        ("WAV", "FLOAT", 44_100, 2, 1e-7),
        ("WAV", "PCM_16", 8_000, 1, 1e-7),
        ("FLAC", None, 16_000, 2, 0.0),
        ("FLAC", None, 48_000, 1, 1e-7),
        ("OGG", "VORBIS", 44_100, 2, 1e-6),
        ("OGG", "OPUS", 48_000, 1, 1e-4),
        ("MP3", None, 44_100, 2, 1e-6),
        ("MP3", None, 16_000, 1, 1e-6),
    ],
)
def test_a_part_equals_that_part_of_the_whole(layout, subtype, rate_hz, channels, near):
    """Exact where nothing is resampled or lossy; resampling adds rounding; Opus needs a while to converge.

    The part begins within 10 ms of the fraction asked for, the steps on which both rates have a sample.
    """
    data = recording(layout, subtype, rate_hz=rate_hz, channels=channels)
    whole = decode_audio(data, rate_hz=16_000, max_seconds=20.0).numpy()
    for where in (0.0, 0.013, 0.37, 0.5, 0.81, 0.9999, None):
        part = decode_audio(data, rate_hz=16_000, max_seconds=3.0, crop_seconds=2.5, where=where).numpy()
        assert len(part) == 40_000
        start = (0.5 if where is None else where) * (len(whole) - 40_000)
        starts = [at for at in range(max(0, int(start) - 161), int(start) + 4) if at + 40_000 <= len(whole)]
        assert min(np.abs(whole[at : at + 40_000] - part).max() for at in starts) <= near


@pytest.mark.parametrize("own_hz", [8_000, 11_025, 22_050, 22_051, 44_099, 96_000, 383_999])
def test_every_rate_gives_equal_lengths(encode_audio, sine, own_hz):
    """Parts of one batch have one length, and hold the tone, at any rate of the file."""
    data = encode_audio(sine(440.0, 1.5, own_hz), own_hz)
    for where in (0.0, 0.31, 0.999, None):
        part = decode_audio(data, rate_hz=16_000, max_seconds=1.0, crop_seconds=0.7531, where=where).numpy()
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part))))
        assert len(part) == round(0.7531 * 16_000) and abs(spectrum.argmax() * 16_000 / len(part) - 440.0) < 2.0


@pytest.mark.parametrize("own_hz", [15_999, 31_999, 44_099, 383_999])
def test_strange_rates_need_no_giant_filter(sine, own_hz):
    """383,999 to 16,000 Hz is 16,000 phases of millions of taps; the filter stays small and the tone what it was."""
    wave, inner = resample(sine(440.0, 0.5, own_hz), own_hz, 16_000), slice(800, -800)
    assert (
        len(wave) == -(-round(own_hz / 2) * 16_000 // own_hz)
        and np.abs(wave[:8_000] - sine(440.0, 0.5))[inner].max() < 0.05
    )
    ratio = sounds._ratio(own_hz, 16_000)
    assert max(ratio.numerator, ratio.denominator) <= sounds.MAX_PHASES
    assert abs(ratio * own_hz / 16_000 - 1) < 2e-4


def test_long_flac_is_refused_or_read_in_part(monkeypatch):
    """A few kilobytes that unfold to an hour: refused from the header; a part of it costs that part."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8_000, 1, format="FLAC") as out:
        for _ in range(60):
            out.write(np.zeros(60 * 8_000, np.float32))
    data, reads, read = file.getvalue(), [], soundfile.SoundFile.read
    assert len(data) < 500_000

    def counted(self, frames=-1, **more):
        reads.append(frames)
        return read(self, frames, **more)

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    with pytest.raises(BadSample, match=r"lasts 3600.00 s, over max_seconds=30") as error:
        decode_audio(data, rate_hz=8_000, max_seconds=30.0)
    assert error.value.code == "audio_too_long" and not reads
    assert len(decode_audio(data, rate_hz=8_000, max_seconds=30.0, crop_seconds=2.0, where=0.7)) == 16_000
    assert sum(reads) == 16_000
    with pytest.raises(BadSample, match=r"lasts 40.00 s, over max_seconds=30"):
        decode_audio(data, rate_hz=8_000, max_seconds=30.0, crop_seconds=40.0)


def test_lengths_that_are_lies():
    """A header of hours over a second of sound: coded, in every way of asking."""
    flac = bytearray(recording("FLAC", seconds=1.0))
    flac[21] |= 0x0F
    ogg = bytearray(recording("OGG", "VORBIS", seconds=1.0))
    at = ogg.rindex(b"OggS")
    ogg[at + 6 : at + 14] = struct.pack("<q", 1 << 50)
    for data in (bytes(flac), bytes(ogg)):
        for how in ({}, {"crop_seconds": 0.5, "where": 0.9}, {"crop_seconds": 0.5}):
            with pytest.raises(BadSample) as error:
                decode_audio(data, rate_hz=16_000, max_seconds=30.0, **how)
            assert error.value.code in (
                "audio_too_long",
                "audio_cut",
                "audio_damaged",
                "audio_no_samples",
                "audio_length",
            )


@pytest.mark.parametrize(
    ("layout", "subtype"), [("WAV", "PCM_16"), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)]
)
def test_part_of_a_cut_sound(layout, subtype):
    """Refused with a code. A part before the cut comes back, and right, of a FLAC, whose header states no size, and of
    an MP3 that misses less than a frame."""
    data = recording(layout, subtype, seconds=4.0)
    whole = decode_audio(data, rate_hz=16_000, max_seconds=9.0)
    for length in range(0, len(data) - 1, len(data) // 23):
        for where in (0.0, 0.4, 0.999):
            try:
                part = decode_audio(data[:length], rate_hz=16_000, max_seconds=9.0, crop_seconds=0.5, where=where)
            except BadSample as why:
                assert why.code in ("audio_cut", "audio_damaged", "audio_empty") and "\n" not in str(why)
                continue
            assert layout == "FLAC" or (layout == "MP3" and length > len(data) - 1_442)
            start = int(where * (len(whole) - 8_000 + 1))
            assert (part - whole[start : start + 8_000]).abs().max() < 1e-6


def test_blocks_do_not_show(monkeypatch):
    """Reading in blocks bounds the memory that many channels take, and changes nothing."""
    for layout in ("WAV", "OGG"):
        data = recording(layout, seconds=1.0, channels=6)
        whole = decode_audio(data, rate_hz=8_000, max_seconds=2.0)
        monkeypatch.setattr(sounds, "BLOCK", 777)
        assert torch.equal(decode_audio(data, rate_hz=8_000, max_seconds=2.0), whole)
        monkeypatch.undo()


def test_only_the_part_is_judged(encode_audio, sine):
    """A value that is not finite is refused where it is read."""
    wave = sine(440.0, 2.0)
    wave[-10] = np.nan
    data = encode_audio(wave, 16_000, "WAV", "FLOAT")
    assert len(decode_audio(data, rate_hz=16_000, max_seconds=2.0, crop_seconds=1.0, where=0.0)) == 16_000
    for how in ({}, {"crop_seconds": 1.0, "where": 0.9999}):
        with pytest.raises(BadSample, match="nan") as error:
            decode_audio(data, rate_hz=16_000, max_seconds=2.0, **how)
        assert error.value.code == "audio_not_finite"
