"""The data set `corpus`, from a small package of the real one's layout that is made here."""

import hashlib
import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmfm.config import UserError
from mmfm.data.shards import Shards
from mmfm.datasets import corpus
from mmfm.datasets.corpus import LONGEST, PACKAGE, SHORTEST, Chapter, decompressed, passages
from mmfm.preprocessing.tokenizer import load_tokenizer

WINDOW = 200  # bytes: so few that compress(1) would still write codes of 9 bits


def compressed(text: bytes, window: int = WINDOW) -> bytes:
    """The package's format: each window as literal codes of 9 bits, the lowest bit first."""
    head = b"\x1f\x9d\x90"
    parts = [text[at : at + window] for at in range(0, len(text), window)]
    packed = [_nine_bits(part) for part in parts]
    start = 84 + 8 + 4 * (len(parts) + 1) + len(head)
    ends = [start + sum(map(len, packed[:at])) for at in range(len(parts) + 1)]
    counts = struct.pack(f">2I{len(ends)}I", window, len(parts), *ends)
    return b"EC02Compressed Data File".ljust(84, b"\0") + counts + head + b"".join(packed)


def _nine_bits(part: bytes) -> bytes:
    bits = (np.frombuffer(part, np.uint8)[:, None].astype(np.int64) >> np.arange(9)) & 1
    return np.packbits(bits.ravel().astype(np.uint8), bitorder="little").tobytes()


def verse(number: int, words: int = 18) -> str:
    """Words that no other verse has in this order, and an end."""
    drawn = np.random.Generator(np.random.Philox(number)).integers(0, 26, size=(words, 4))
    return " ".join("".join(chr(97 + int(letter)) for letter in word) for word in drawn) + "."


def lines(chapters: int = 40, verses: int = 6) -> list[str]:
    found = [f"Ge{c}:{v} {verse(c * 100 + v)}" for c in range(1, chapters + 1) for v in range(1, verses + 1)]
    return ["A Bible. Textfile 1.", *found]


@pytest.fixture
def pack(tmp_path: Path) -> Callable[[bytes], Path]:
    """pack(bible.data) -> a package with it."""

    def make(data: bytes) -> Path:
        root = tmp_path / "root"
        for name, content in {
            PACKAGE.data: data,
            PACKAGE.copyright: b"It is expired.\n",
            "DEBIAN/control": b"Package: bible-kjv-text\nVersion: 9.1\nArchitecture: all\nMaintainer: a <a@b>\n"
            b"Description: text\n",
        }.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        (root / "DEBIAN").chmod(0o755)
        deb = tmp_path / "bible-kjv-text_9.1_all.deb"
        subprocess.run(["dpkg-deb", "--build", "--root-owner-group", str(root), str(deb)], check=True, timeout=60)
        return deb

    return make


def read(folder: Path, split: str) -> list[tuple[str, str]]:
    shards = Shards(sorted((folder / split).glob("*.tar")))
    samples = [shards[at] for at in range(len(shards))]
    return [(sample.key, sample.parts["txt"].decode()) for sample in samples]


def test_a_package_becomes_passages(tmp_path: Path, pack: Callable[[bytes], Path]) -> None:
    """Every verse stands once, in one split, in order; the split is the rule of the README; bytes are always the same,
    and the tokenizer knows train alone."""
    told = lines()
    deb = pack(compressed("\n".join(told).encode() + b"\n"))
    for name in ("one", "two"):
        corpus.build(tmp_path / name, deb=deb)
    assert (tmp_path / "one" / "corpus.json").read_bytes() == (tmp_path / "two" / "corpus.json").read_bytes()
    found = {split: read(tmp_path / "one", split) for split in ("train", "val", "test")}
    for chapter in range(1, 41):
        n = int(hashlib.md5(f"Ge {chapter}".encode()).hexdigest(), 16) % 100
        split = "test" if n < 10 else "val" if n < 15 else "train"
        mine = [text for key, text in found[split] if key.startswith(f"Ge-{chapter}-")]
        assert " ".join(mine) == " ".join(verse(chapter * 100 + v) for v in range(1, 7))
    everything = [text for of_split in found.values() for _, text in of_split]
    assert all(SHORTEST <= len(text) <= LONGEST for text in everything)
    manifest = json.loads((tmp_path / "one" / "corpus.json").read_text())
    assert manifest["package"]["version"] == "9.1" and sum(manifest["passages"].values()) == len(everything)
    tokenizer = load_tokenizer(tmp_path / "one" / "tokenizer.json")
    count = {split: np.mean([len(tokenizer.encode(t)) / len(t) for _, t in found[split]]) for split in found}
    assert count["train"] < count["test"]


def test_what_stood_before_is_left_out(tmp_path: Path, pack: Callable[[bytes], Path]) -> None:
    """A chapter of train that repeats one of test with other marks leaves no passage; test keeps its own."""
    fates = {chapter: corpus.split_of(Chapter("Ge", chapter, {})) for chapter in range(1, 41)}
    test = next(c for c, split in fates.items() if split == "test")
    train = next(c for c, split in fates.items() if split == "train")
    told = lines()
    for v in range(1, 7):
        said = verse(test * 100 + v).upper().replace(" ", ", ", 3)
        told[1 + (train - 1) * 6 + v - 1] = f"Ge{train}:{v} {said}"
    corpus.build(tmp_path / "made", deb=pack(compressed("\n".join(told).encode() + b"\n")))
    keys = {split: [key for key, _ in read(tmp_path / "made", split)] for split in ("train", "test")}
    assert not [key for key in keys["train"] if key.startswith(f"Ge-{train}-")]
    assert [key for key in keys["test"] if key.startswith(f"Ge-{test}-")]
    left_out = json.loads((tmp_path / "made" / "corpus.json").read_text())["left_out"]
    assert left_out["test"] == 0 and left_out["train"] == 2


def test_passages_end_with_sentences() -> None:
    """By hand: a comma does not end a passage, a verse too many does, and a short tail joins what is before it."""
    comma, end = "a" * 249 + ",", "b" * 249 + "."
    assert [(p.first, p.last) for p in passages(Chapter("Ge", 1, {1: comma, 2: end, 3: end}))] == [(1, 2), (3, 3)]
    assert [(p.first, p.last) for p in passages(Chapter("Ge", 1, {1: comma, 2: comma, 3: comma}))] == [(1, 2), (3, 3)]
    assert [(p.first, p.last) for p in passages(Chapter("Ge", 1, {1: end, 2: "b."}))] == [(1, 2)]
    split = list(passages(Chapter("Ge", 1, {1: comma, 2: comma, 3: "b" * 99 + "."})))
    assert [(p.first, p.last) for p in split] == [(1, 1), (2, 3)]
    assert [p.text for p in passages(Chapter("Ge", 1, {1: "b."}))] == ["b."]


def test_windows_are_what_compress_wrote(tmp_path: Path) -> None:
    """A text over many windows comes back byte for byte."""
    text = bytes(range(32, 127)) * 30
    (tmp_path / "data").write_bytes(compressed(text))
    assert decompressed(tmp_path / "data") == text


WHOLE = compressed(b"A Bible.\nGe1:1 In the beginning.\n")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"something else", "is no text that this version reads; give a bible-kjv-text_VERSION_all.deb"),
        (WHOLE[:-1], "is no text that this version reads"),
        (compressed(b"A Bible.\nIn the beginning.\n"), "'In the beginning.' is no verse, such as 'Ge1:1 In the"),
        (compressed(b"A Bible.\n"), "holds no verses"),
        (compressed(b"A Bible.\nGe1:1 In.\nGe1:1 In.\n"), "Ge 1:1 comes twice"),
        (WHOLE.replace(b"\x1f\x9d\x90", b"\x1f\x9d\x9f"), r"gzip could not do it \(.*\); give a bible-kjv-text"),
    ],
)
def test_a_damaged_package_is_said(tmp_path: Path, pack: Callable[[bytes], Path], data: bytes, words: str) -> None:
    """One line with what is wrong and what to do; no half-built folder stays."""
    deb = pack(data)
    with pytest.raises(UserError, match=words) as caught:
        corpus.build(tmp_path / "made", deb=deb)
    assert "\n" not in str(caught.value) and "--deb FILE" in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("made")]
