"""No file runs code, hangs, fills the memory or breaks off with a traceback: each gets its code, or its one line.

A row of the tables: the name, what makes the file (tests/hostile.py), and the code or the words that it must get.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import hostile as h
import numpy as np
import pytest
from hostile import BLOCK, END, GOOD, PAYLOAD, header, indexed, listed, member, pax, put, record, tar, wav, with_good
from test_checkpoint import saved
from toys import toy_run

from mmfm import config
from mmfm.config import UserError
from mmfm.config.serialization import from_json, to_json
from mmfm.data.sample import Sample, text_of
from mmfm.data.shards import Shards
from mmfm.data.sources import open_shards
from mmfm.inference.load import load_model
from mmfm.models import checkpoint
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.audio import decode_audio
from mmfm.preprocessing.image import decode_image, picture
from mmfm.preprocessing.media_headers import measure
from mmfm.preprocessing.tokenizer import load_tokenizer

MOST_MB, MOST_SECONDS = 256, 20


def hung(*_: object) -> NoReturn:
    pytest.fail(f"still busy after {MOST_SECONDS} s")


def resident_mb(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name)) // 1_024


@contextmanager
def harmless(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """Inside, nothing may run a payload, take longer than MOST_SECONDS or need more than MOST_MB at any time."""
    monkeypatch.chdir(folder)
    before = set(folder.parent.rglob("*"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of what follows
    start_mb = resident_mb("VmRSS")
    old = signal.signal(signal.SIGALRM, hung)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    assert resident_mb("VmHWM") - start_mb < MOST_MB
    assert set(folder.parent.rglob("*")) == before, "a file was written"


def one_line(caught: pytest.ExceptionInfo[Any]) -> None:
    told = str(caught.value)
    assert told.isprintable() and len(told) < 1_000, repr(told)


def test_the_payload_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is unpickled, it runs: else these tests would show nothing."""
    import pickle

    monkeypatch.chdir(tmp_path)
    pickle.loads(PAYLOAD)
    assert Path("marker").exists()


# Shards

WHOLE = b"".join((GOOD, END))
EVIL = [
    member(b"0." + extension, PAYLOAD) for extension in (b"pkl", b"pickle", b"pth", b"pyd", b"pyd.gz", b"npy", b"ten")
]
REFUSED = {
    "cut inside a member": (h.cut(BLOCK + 3), "is cut at byte 515"),
    "cut inside a header": (h.cut(2 * BLOCK + 100), "is damaged at byte 1024"),
    "cut between members": (h.cut(2 * BLOCK), "its end mark is missing"),
    "cut in its end mark": (h.cut(len(GOOD) + BLOCK), "its end mark is missing"),
    "a flipped byte in the first header": (h.flipped(5), "is damaged at byte 0"),
    "a flipped byte in a later header": (h.flipped(4 * BLOCK + 130), "is damaged at byte 2048"),
    "a wrong size": (tar(header(b"0.txt", 10**9), bytes(BLOCK)), "is cut at byte"),
    "a size of 2^80": (tar(header(b"0.txt", b"\x80" + b"\xff" * 11)), "is cut at byte"),
    "a size below zero": (tar(GOOD, header(b"0.x", b"-0000001000\0")), "is damaged at byte 6144"),
    "a size that goes back": (tar(GOOD, header(b"0.x", b"-0000002000\0")), "is damaged at byte"),
    "a negative binary size": (tar(GOOD, header(b"0.x", b"\xff" * 12)), "is damaged at byte"),
    "bytes behind the end": (tar(WHOLE, bytes(BLOCK), b"x" * BLOCK), "is not zero"),
    "a duplicate": (with_good(member(b"0.txt", b"other")), "has .txt twice"),
    "a duplicate in capitals": (with_good(member(b"0.TXT", b"other")), "has .txt twice"),
    "a name with a line break": (with_good(member(b"a\nb.txt", b"1") * 2), "has .txt twice"),
    "a cut member with a line break": (tar(header(b"a\nb.txt", 10**6)), "is cut"),
    "two pictures": (with_good(member(b"0.png", b"1"), member(b"0.jpg", b"2")), "has both .png and .jpg"),
    "GNU sparse": (h.sparse, "sparse"),
    "pax sparse": (with_good(pax(record(b"GNU.sparse.realsize", b"9" * 12))), "sparse"),
    "a pax header of 7 GB": (with_good(header(b"p", 7 << 30, kind=b"x")), "is cut"),
    "a pax header of 2 MB": (with_good(member(b"p", bytes(2 << 20), kind=b"x")), "a name of 2097152 bytes"),
    "a pax record of 10^5000 bytes": (with_good(pax(b"9" * 5_000 + b" a=b\n")), "no pax record"),
    "a pax size of 10^5000": (with_good(pax(record(b"size", b"9" * 5_000))), "no pax record|is cut"),
    "a pax record without an end": (with_good(pax(b"20 path=x")), "no pax record"),
    "a pax record of length 0": (with_good(pax(b"0 path=x\n")), "no pax record"),
    "a long name of 2 MB": (with_good(member(b"l", b"a" * (2 << 20), kind=b"L"), member(b"9.txt", b"")), "a name of"),
    "gzip": (h.gzipped, "compressed"),
    "zip": (tar(b"PK\3\4" + bytes(600)), "is damaged at byte 0"),
    "a pickle": (tar(PAYLOAD.ljust(BLOCK, b"\0")), "is damaged at byte 0"),
    "noise": (tar(np.random.default_rng(0).bytes(4_096)), "is damaged at byte 0"),
    "zero bytes": (tar(end=b""), "end mark is missing|no sample"),
    "zeros": (tar(), "no sample"),
    "only what could execute": (tar(*EVIL), "no sample with a part that is read"),
    "only links": (tar(*(h.links(kind) for kind in (b"1", b"2", b"3", b"4", b"6"))), "no sample"),
    "a part of 3 GB": (h.giant, "has 3221225472 bytes, over"),
    "a pipe on the disk": (h.fifo, "x.tar"),
    "a link to itself": (h.loop, "x.tar"),
    "a folder called x.tar": (h.hollow, "x.tar"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_archives_that_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a sample is read: damage, tricks with sizes, and what is no tar at all."""
    maker, words = REFUSED[name]
    path = maker(tmp_path)
    with harmless(monkeypatch, tmp_path), pytest.raises(UserError, match=words) as caught:
        open_shards([str(path)], config.RemoteCache())
    one_line(caught)


TAKEN = {
    "what could execute, beside what is read": with_good(*EVIL),
    "links and devices": with_good(*(h.links(kind) for kind in (b"1", b"2", b"3", b"4", b"6"))),
    "names that lead out": with_good(member(b"../../evil.txt", b"1"), member(b"a/../../../evil2.txt", b"1")),
    "absolute names": with_good(member(b"/evil.txt", b"1"), member(b"//evil2.txt", b"1")),
    "a name with NUL": with_good(member(b"a\0b.txt", b"1")),
    "a name that is not UTF-8": with_good(member(b"\xff\xfe.txt", b"1")),
    "a name of 1,000 letters": with_good(h.tarred("n" * 1_000 + ".txt", b"1")),
    "samples in pieces": tar(*(member(b"%d.%s" % (n, e), b"%d" % n) for e in (b"txt", b"cls") for n in range(3))),
    "a global pax header": with_good(member(b"g", record(b"comment", b"x"), kind=b"g")),
}


@pytest.mark.parametrize("name", TAKEN)
def test_archives_of_which_the_good_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that are links, lead out or could execute are never opened or written; the others are whole."""
    (tmp_path / "in").mkdir()
    path = TAKEN[name](tmp_path / "in")
    with harmless(monkeypatch, tmp_path / "in"):
        shards = open_shards([str(path)], config.RemoteCache())
        samples = {sample.key: sample.parts for sample in map(shards.__getitem__, range(len(shards)))}
    assert all(samples[str(n)]["cls"] == b"%d" % n and samples[str(n)]["txt"].endswith(b"%d" % n) for n in range(3))
    assert all(set(parts) <= {"txt", "cls"} and b"root" not in parts.get("txt", b"") for parts in samples.values())


INDEXES = {
    "no JSON": (indexed(raw=b"\0"), "is no index"),
    "a pickle": (indexed(raw=PAYLOAD), "is no index"),
    "not UTF-8": (indexed(raw=b'{"format": 1, "keys": ["\xff"]}'), "is no index"),
    "deep": (indexed(raw=h.DEEP), "is no index"),
    "a number of 10,000 digits": (indexed(raw=b'{"format": ' + h.LONG_NUMBER + b"}"), "is no index"),
    "a list": (indexed(raw=b"[]"), "is no index"),
    "another format": (indexed(put(2, "format")), "is no index"),
    "another tar": (indexed(put("y.tar", "shard")), "is the index of"),
    "another tar with a line break": (indexed(put("y\n.tar", "shard")), "is the index of"),
    "another size": (indexed(put(99_999, "bytes")), "is the index of"),
    "outside": (indexed(put(10**9, "parts", "txt", "offset", 2)), "ends behind the tar"),
    "below zero": (indexed(put(-512, "parts", "txt", "offset", 0)), "negative"),
    "in the first header": (indexed(put(5, "parts", "txt", "offset", 0)), "is no index|not the tar"),
    "huge": (indexed(put(2**70, "parts", "txt", "offset", 0)), "is no index"),
    "huge parts": (indexed(put(2**40, "parts", "txt", "size", 0)), "is no index"),
    "a fraction": (indexed(put(0.5, "parts", "txt", "offset", 0)), "is no index"),
    "NaN": (indexed(put(float("nan"), "parts", "txt", "offset", 0)), "is no index"),
    "Infinity": (indexed(put(float("inf"), "bytes")), "is no index"),
    "overlapping": (indexed(put(BLOCK, "parts", "txt", "offset", 1)), "not the tar that was indexed"),
    "another part's bytes": (indexed(put(3 * BLOCK, "parts", "txt", "offset", 0)), "not the tar that was indexed"),
    "a longer part": (indexed(put(600, "parts", "txt", "size", 0)), "not the tar that was indexed"),
    "a key twice": (indexed(put("0", "keys", 1)), "is no index"),
    "a key of another sample": (indexed(put("x\ny", "keys", 0)), "not the tar that was indexed"),
    "more samples than parts": (indexed(put(["0", "1", "2", "3"], "keys")), "is no index"),
    "no samples": (indexed(put([], "keys")), "is no index"),
    "a part that could execute": (indexed(put({"offset": [512] * 3, "size": [6] * 3}, "parts", "pkl")), "is no index"),
    "keys that are no strings": (indexed(put([[], {}, 1], "keys")), "is no index"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_indexes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No number in an index is believed: the worst one leads to a header that names something else."""
    maker, words = INDEXES[name]
    path = maker(tmp_path)
    with harmless(monkeypatch, tmp_path), pytest.raises(UserError, match=words) as caught:
        shards = Shards([path])
        for sample in range(len(shards)):
            shards[sample]
    one_line(caught)


def test_the_index_that_is_changed_here_is_good(tmp_path: Path) -> None:
    """Else the table above would show nothing."""
    shards = Shards([indexed()(tmp_path)])
    assert [shards[sample].parts for sample in range(3)] == [
        {"txt": b"text %d" % n, "cls": b"%d" % n} for n in range(3)
    ]
    (tmp_path / "x.idx.json").unlink()
    assert len(open_shards([str(listed()(tmp_path))], config.RemoteCache())) == 3


LISTS = {
    "no JSON": (listed(raw=b"\xff"), "is no list of shards"),
    "a pickle": (listed(raw=PAYLOAD), "is no list of shards"),
    "deep": (listed(raw=h.DEEP), "is no list of shards"),
    "a number of 10,000 digits": (listed(raw=h.LONG_NUMBER), "is no list of shards"),
    "a name that leads out": (listed(put("../x.tar", "shards", 0, "name")), "no plain file name"),
    "an absolute name": (listed(put("/x.tar", "shards", 0, "name")), "no plain file name"),
    "a name with a line break": (listed(put("a/\nb.tar", "shards", 0, "name")), "no plain file name"),
    "no shard": (listed(put("x.pkl", "shards", 0, "name")), "no .tar"),
    "another size": (listed(put(7, "shards", 0, "bytes")), "was changed after it was indexed"),
    "samples below zero": (listed(put(-1, "shards", 0, "samples")), "is no list of shards"),
    "2^70 samples": (listed(put(2**70, "shards", 0, "samples")), "is no list of shards"),
    "a checksum of 2^70": (listed(put(2**70, "shards", 0, "crc32")), "is no list of shards"),
    "holds a string": (listed(put("image", "shards", 0, "holds")), "is no list of shards"),
    "holds infinitely many": (listed(put({"text": float("inf")}, "shards", 0, "holds")), "is no list of shards"),
    "twice": (listed(lambda tree: tree["shards"].append(tree["shards"][0])), "a name twice"),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list names files of its own folder, in numbers that can be."""
    maker, words = LISTS[name]
    path = maker(tmp_path)
    with harmless(monkeypatch, tmp_path), pytest.raises(UserError, match=words) as caught:
        open_shards([str(path)], config.RemoteCache())
    one_line(caught)


SPECS = {
    "a pipe": ("pipe:touch marker", "is no scheme that is opened"),
    "a pipe with slashes": ("pipe://touch marker", "is no scheme that is opened"),
    "a pipe in a list": ("pipe:touch marker,pipe:touch marker2", "is no scheme that is opened"),
    "a pipe beside a file": ("x.tar,pipe:touch marker", "is no scheme that is opened"),
    "a pipe in braces": ("{x.tar,pipe:touch marker}", "there is no|is no scheme"),
    "a bar": ("|touch marker", "there is no"),
    "a shell's own": ("$(touch marker).tar", "there is no"),
    "an address of a file": ("file:///etc/passwd", "is no scheme that is opened"),
    "fsspec's chains": ("simplecache::http://127.0.0.1:1/x.tar", "is no scheme that is opened"),
    "NUL": ("x\0.tar", "there is no"),
    "a line break": ("x\ny.tar", "there is no"),
    "very long": ("x" * 10_000, "there is no"),
    "a user that is not there": ("~nobody-of-this-name/x.tar", "there is no"),
    "10^12 shards": ("x-{000000000000..999999999999}.tar", "shards"),
    "1,000^4 shards": ("{000..999}" * 4, "shards"),
    "a thousand braces": ("{a,b}" * 1_000, "shards"),
    "nothing": ("", "there is no"),
}


@pytest.mark.parametrize("name", SPECS)
def test_specifications(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a config says of shards is a name, whatever it looks like and whatever the environment rewrites."""
    spec, words = SPECS[name]
    monkeypatch.setenv("GOPEN_REWRITE", f"{tmp_path}=pipe:touch marker;x=pipe:touch marker ")
    monkeypatch.setenv("WDS_REWRITE", "x=pipe:touch marker ")
    with harmless(monkeypatch, tmp_path), pytest.raises(UserError, match=words) as caught:
        open_shards([spec], config.RemoteCache())
    one_line(caught)


# Content: the code is what is counted

PICTURES = {
    "zero bytes": (b"", "image_empty"),
    "a cut PNG": (h.picture_of("PNG", 0.5), "image_damaged"),
    "a cut JPEG": (h.picture_of("JPEG", 0.5), "image_damaged"),
    "a cut WebP": (h.picture_of("WEBP", 0.5), "image_damaged"),
    "one byte of a JPEG": (b"\xff", "image_damaged"),
    "two bytes of a JPEG": (b"\xff\xd8", "image_damaged"),
    "noise": (np.random.default_rng(0).bytes(999), "image_damaged"),
    "a pickle, which is a text": (PAYLOAD, "image_format"),
    "a page": (h.EPS, "image_format"),
    "a drawing": (h.SVG, "image_format"),
    **{layout: (h.picture_of(layout), "image_format") for layout in ("GIF", "TIFF", "BMP", "PPM", "ICO", "PDF")},
    "a TGA, which has no mark": (h.picture_of("TGA"), "image_damaged"),
    "a PNG bomb": (h.png_bomb, "image_too_big"),
    "a PNG of 2^31 by 2^31": (h.png(2**31 - 1, 2**31 - 1), "image_too_big"),
    "a PNG with a comment of 200 MB": (h.png_text_bomb, "image_damaged"),
    "a PNG of no width": (h.png(0, 1), "image_damaged"),
    "a JPEG of 65,500 by 65,500": (h.jpeg_of(65_500, 65_500), "image_too_big"),
    "a JPEG of no width": (h.jpeg_of(0, 10), "image_damaged"),
    "a JPEG that says it is larger": (h.jpeg_of(640, 640), "image_damaged"),
    "a JPEG of a thousand scans": (h.jpeg_of_scans, "image_damaged"),
    "a WebP of 16,384 by 16,384": (h.webp_of(16_384, 16_384), "image_too_big"),
}


def made(row: tuple[bytes | Callable[[], bytes], str]) -> tuple[bytes, str]:
    """Bombs are only made when they are used."""
    return (row[0]() if callable(row[0]) else row[0]), row[1]


def as_pictures(data: bytes) -> None:
    """All the ways in: whole, shrunk, and by its header."""
    for extension in ("png", "jpg", "webp"):
        measure(extension, lambda at, count: data[at : at + count], len(data))
    picture(data, channels=3, height_px=16, width_px=16, exact=False)


@pytest.mark.parametrize("read", [decode_image, as_pictures], ids=["whole", "small"])
@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str, read: Callable[[bytes], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut, false and oversized pictures, and formats that are not read, some of which can execute."""
    data, code = made(PICTURES[name])
    with harmless(monkeypatch, tmp_path), pytest.raises(BadSample) as caught:
        read(data)
    assert caught.value.code == code
    one_line(caught)


def test_a_picture_with_too_much_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 MB behind the only pixel of a PNG are not unfolded."""
    data = h.png_excess()
    with harmless(monkeypatch, tmp_path):
        assert decode_image(data).shape == (3, 1, 1)


NAN, LOUD = np.full(99, np.nan, np.float32), np.full(99, 1e30, np.float32)
SOUNDS = {
    "zero bytes": (b"", "audio_empty"),
    "a cut WAV": (h.sound_of("WAV", keep=0.5), "audio_cut"),
    "a cut FLAC": (h.sound_of("FLAC", keep=0.5), "audio_damaged"),
    "a cut OGG": (h.sound_of("OGG", keep=0.7), "audio_cut"),
    "a cut MP3": (h.sound_of("MP3", keep=0.5), "audio_cut"),
    "noise": (np.random.default_rng(0).bytes(999), "audio_damaged"),
    "a pickle, which is a text": (PAYLOAD, "audio_format"),
    "a text": (b"text" * 99, "audio_format"),
    "no samples": (wav(data=b""), "audio_no_samples"),
    "NaN": (h.sound_of("WAV", NAN, subtype="FLOAT"), "audio_not_finite"),
    "loud": (h.sound_of("WAV", LOUD, subtype="FLOAT"), "audio_not_finite"),
    "a FLAC bomb": (h.flac_bomb, "audio_too_long"),
    "a WAV that says it is 4 GB": (wav(size=2**32 - 16), "audio_cut"),
    "a rate of 1 Hz": (wav(rate_hz=1), "audio_rate"),
    "a rate of 2^31 Hz": (wav(rate_hz=2**31 - 1), "audio_rate|audio_damaged"),
    "no rate": (wav(rate_hz=0), "audio_rate|audio_damaged"),
    "1,000 channels": (wav(channels=1_000, data=bytes(4_000)), "audio_channels"),
    "no channels": (wav(channels=0), "audio_damaged"),
    "0 bits": (wav(bits=0), "audio_damaged|audio_format|audio_no_samples"),
    **{layout: (h.sound_of(layout), "audio_format") for layout in ("AU", "AIFF", "CAF", "W64", "VOC")},
}  # fmt: skip


def as_sounds(data: bytes, crop_seconds: float = 0.0) -> None:
    for extension in ("wav", "flac", "ogg", "mp3"):
        measure(extension, lambda at, count: data[at : at + count], len(data))
    decode_audio(data, rate_hz=16_000, max_seconds=30.0, crop_seconds=crop_seconds)


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut, endless and impossible sounds, and containers that are not read."""
    data, codes = made(SOUNDS[name])
    with harmless(monkeypatch, tmp_path), pytest.raises(BadSample) as caught:
        as_sounds(data)
    assert caught.value.code in codes.split("|")
    one_line(caught)


TEXTS = {
    "not UTF-8": ({"txt": b"caf\xe9"}, "text_not_utf8"),
    "white space": ({"txt": b" \n\t "}, "text_empty"),
    "zero bytes": ({"txt": b""}, "text_empty"),
    "10 MB": ({"txt": b"word " * 2_000_000}, "text_too_long"),
    "10 MB in a .json": ({"json": b'{"caption": "' + b"a" * 10_000_000 + b'"}'}, "text_too_long"),
    "no JSON": ({"json": b"{"}, "json_damaged"),
    "a pickle": ({"json": PAYLOAD}, "json_damaged"),
    "not UTF-8 JSON": ({"json": b'{"caption": "\xff"}'}, "json_damaged"),
    "deep JSON": ({"json": b'{"caption":' + h.DEEP}, "json_damaged"),
    "a number of 10,000 digits": ({"json": b'{"a": ' + h.LONG_NUMBER + b"}"}, "json_damaged"),
    "a list": ({"json": b"[1]"}, "json_no_object"),
    "a JSON number": ({"json": b"NaN"}, "json_no_object"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, code = TEXTS[name]
    with harmless(monkeypatch, tmp_path), pytest.raises(BadSample) as caught:
        text_of(Sample(key="k", parts=parts, where="x.tar: k"))
    assert caught.value.code == code
    one_line(caught)


def test_words_of_the_file_stay_in_one_line(tmp_path: Path) -> None:
    """A key with a line break, in a message about its text."""
    shards = Shards([with_good(member(b"a\nb.txt", b" "))(tmp_path)])
    with pytest.raises(BadSample) as caught:
        text_of(shards[3])
    one_line(caught)


# Runs and checkpoints

RUN = to_json(toy_run())
RUNS = {
    "a class": (RUN.replace('"name"', '"__class__": "os.system", "name"', 1), "unknown key __class__"),
    "a class path": (RUN.replace('"name": "toy"', '"name": {"class_path": "os.system"}'), "should be of type str"),
    "a key with a line break": (RUN.replace('"name"', '"a\\nb": 1, "name"', 1), "unknown key"),
    "a value with a line break": (RUN.replace('"toy"', '["a\\nb"]', 1), "should be of type str"),
    "a long value": (RUN.replace('"toy"', "[" + "0," * 10_000 + "0]", 1), "should be of type str"),
    "NaN": (RUN.replace('"dropout": 0.0', '"dropout": NaN'), "is no JSON number"),
    "1e999": (RUN.replace('"dropout": 0.0', '"dropout": 1e999'), "is no finite number"),
    "a whole 10^400": (RUN.replace('"dropout": 0.0', '"dropout": 1' + "0" * 400), "type float"),
    "a number of 10,000 digits": (RUN.replace('"seed": 0', '"seed": ' + "9" * 10_000), "is not strict JSON"),
    "true for a number": (RUN.replace('"seed": 0', '"seed": true'), "should be of type int"),
    "a number for a list": (RUN.replace('"contrastive": [', '"contrastive": 1, "x": [', 1), "."),
    "deep": ("[" * 200_000, "is not strict JSON|deep"),
    "a name that leads out": (RUN.replace('"name": "toy"', '"name": "../toy"'), "must be a plain folder name"),
    "a name that is up": (RUN.replace('"name": "toy"', '"name": ".."'), "must be a plain folder name"),
    "a pickle": (PAYLOAD.decode(), "is not strict JSON"),
    "zero bytes": ("", "is not strict JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved run holds values, in their places and of their types; it names nothing that could be called."""
    text, words = RUNS[name]
    assert text != RUN
    with harmless(monkeypatch, tmp_path), pytest.raises(UserError, match=words) as caught:
        from_json(text)
    one_line(caught)


def manifest(text: str) -> dict[str, Any]:
    return {"files": {}, "manifest": text.encode()}


def file(name: str, data: bytes) -> dict[str, Any]:
    return {"files": {name: data}}


LISTING = '{"files": {%s: {"crc32": 1, "bytes": 1}}}'
EMPTY = {"__metadata__": {}}
OUTSIDE = {"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}
HUGE = {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}
MODEL, TRAIN, STATE, SAVED_RUN = "model.safetensors", "train.safetensors", "train.json", "run.json"
WIDE = to_json(replace(toy_run(), model=replace(toy_run().model, embed_dim=10**9))).encode()
TALL = to_json(
    replace(toy_run(), model=replace(toy_run().model, trunk=replace(toy_run().model.trunk, depth=10**9)))
).encode()
CHECKPOINTS = {
    "pickled weights": (file(MODEL, PAYLOAD), "cannot be read"),
    "a header of 2^60 bytes": (file(MODEL, h.safetensors(EMPTY, length=2**60)), "cannot be read"),
    "a header that is deep": (file(MODEL, h.safetensors(h.DEEP)), "cannot be read"),
    "a tensor outside": (file(MODEL, h.safetensors(OUTSIDE)), "cannot be read"),
    "a tensor of 2^80 numbers": (file(MODEL, h.safetensors(HUGE, bytes(4))), "cannot be read"),
    "other weights": (file(MODEL, h.safetensors(EMPTY)), "another configuration"),
    "no bytes": (file(MODEL, b""), "cannot be read"),
    "a run that is not UTF-8": (file(SAVED_RUN, b"\xff"), "run.json"),
    "a run that is too wide": (file(SAVED_RUN, WIDE), "another configuration|too large"),
    "a run that is too deep": (file(SAVED_RUN, TALL), "another configuration|too large"),
    "a tokenizer that is none": (file("tokenizer.json", b'{"model": {"type": "Evil"}}'), "no tokenizer"),
    "a tokenizer that is a pickle": (file("tokenizer.json", PAYLOAD), "no tokenizer"),
    "a tokenizer that is not UTF-8": (file("tokenizer.json", b"\xff"), "tokenizer"),
    "a tokenizer that is deep": (file("tokenizer.json", h.DEEP), "tokenizer"),
    "a manifest that leads out": (manifest(LISTING % '"../run.json"'), "should not lack or list"),
    "a manifest of a line break": (manifest(LISTING % r'"\n"'), "should not lack or list"),
    "a manifest without files": (manifest('{"files": {}}'), "should not lack or list"),
    "a manifest of infinity": (manifest(LISTING.replace("1}", "1e999}") % '"run.json"'), "is no whole checkpoint"),
    "a manifest that is deep": (manifest("[" * 200_000), "is no whole checkpoint"),
    "a manifest that is a pickle": (manifest(PAYLOAD.decode()), "is no whole checkpoint"),
    "a manifest that is a list": (manifest("[]"), "is no whole checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files whose checksums hold, since whoever wrote the files wrote the manifest too."""
    change, words = CHECKPOINTS[name]
    folder = h.sealed(saved(tmp_path), **change)
    with harmless(monkeypatch, tmp_path), pytest.raises(UserError, match=words) as caught:
        load_model(folder)
    one_line(caught)


STATES = {
    "a pickle": (file(STATE, PAYLOAD), "no state of training"),
    "deep": (file(STATE, h.DEEP), "no state of training"),
    "deep in its own form": (file(STATE, b'{"list": [' * 100_000 + b"]}" * 100_000), "no state of training"),
    "a tensor that is not there": (file(STATE, b'{"tensor": "x"}'), "no state of training"),
    "no tree": (file(STATE, b'{"map": 1}'), "no state of training"),
    "a key that is none": (file(STATE, b'{"map": [[[], {"value": 1}]]}'), "no state of training"),
    "pickled tensors": (file(TRAIN, PAYLOAD), "train.safetensors cannot be read"),
}


@pytest.mark.parametrize("name", STATES)
def test_states(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run resumes from."""
    change, words = STATES[name]
    folder = h.sealed(saved(tmp_path), **change)
    with harmless(monkeypatch, tmp_path), pytest.raises(UserError, match=words) as caught:
        checkpoint.verified(folder).tree()
    one_line(caught)


def bit_flipped(folder: Path) -> Path:
    path = saved(folder) / MODEL
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return folder


FOREIGN = {
    "a Lightning checkpoint": (h.pickled_checkpoint, "can execute"),
    "torch.distributed.checkpoint": (h.distributed_checkpoint, "can execute"),
    "an address": (lambda _: "http://127.0.0.1:1/evil.ckpt", "is an address"),
    "an address as a path": (lambda _: Path("https://127.0.0.1:1/evil.ckpt"), "is an address"),
    "a pipe": (lambda _: "pipe:touch marker", "."),
    "a flipped bit": (bit_flipped, "is damaged"),
    "nothing": (lambda folder: folder, "has no checkpoint"),
    "a folder that is not there": (lambda folder: folder / "x", "is no folder"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_checkpoint_of_ours(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even opened, where its kind could execute."""
    maker, words = FOREIGN[name]
    given = maker(tmp_path)
    with harmless(monkeypatch, tmp_path), pytest.raises(UserError, match=words) as caught:
        load_model(given)
    one_line(caught)


BPE = b'{"version": "1.0", "added_tokens": [%s], "model": {"type": "BPE", "vocab": {%s}, "merges": [%s]}}'
TOKENIZERS = {
    "a pickle": (PAYLOAD, "no tokenizer"),
    "zero bytes": (b"", "no tokenizer"),
    "not UTF-8": (b"\xff", "tokenizer"),
    "deep": (h.DEEP, "no tokenizer"),
    "a huge id": (BPE % (b"", b'"a": 99999999999999999999', b""), "no tokenizer"),
    "merges of nothing": (BPE % (b"", b'"a": 0', b'["b", "c"]'), "no tokenizer"),
    "an added token without a place": (BPE % (b'{"id": 4294967295, "content": "x"}', b"", b""), "no tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, words = TOKENIZERS[name]
    (tmp_path / "tokenizer.json").write_bytes(data)
    with harmless(monkeypatch, tmp_path), pytest.raises(UserError, match=words) as caught:
        load_tokenizer(tmp_path / "tokenizer.json")
    one_line(caught)
