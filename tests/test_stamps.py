"""The data set `stamps`, made from a small tree of the package's layout: what a file is, and which split it is in."""

import gc
import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from mmfm.config import UserError
from mmfm.data import shard_list
from mmfm.datasets import debian, stamps
from mmfm.datasets.stamps_read import read_tree, split_of
from mmfm.preprocessing.tokenizer import load_tokenizer

OWL = "An owl.\nfr.utf8=Un hibou.\nca@valencia.utf8=Un mussol.\npt_BR.utf8=Uma coruja.\nde.utf8=\nnonsense\n"


def fate(caption: str) -> str:
    """The rule once more, from its words: of a caption with one full stop."""
    n = int(hashlib.md5(caption.lower().rstrip(".").encode()).hexdigest(), 16) % 100
    return "test" if n in range(15) else "val" if n in range(15, 20) else "train"


def picked(split: str, count: int) -> list[str]:
    """Captions of one split, found by asking the rule."""
    names = (f"A thing {number}." for number in range(10_000))
    return [name for name in names if fate(name) == split][:count]


@pytest.fixture
def tree(tmp_path: Path, encode_image: Callable[..., bytes], encode_audio: Callable[..., bytes], sine: Any) -> Path:
    """Ten train stamps, three test, two val; each with a picture, a French description and, the first, an effect."""
    root = tmp_path / "package"
    names = [*picked("train", 10), *picked("test", 3), *picked("val", 2)]
    for number, caption in enumerate(names):
        stem = root / stamps.PACKAGE.data / "things" / ("a" if number % 2 else "b") / f"thing.{number}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_name(f"{stem.name}.txt").write_text(f"{caption}\nfr.utf8=Chose {number}.\nru.utf8=Вещь {number}.\n")
        pixels = np.full((8, 8, 4), number, np.uint8)
        stem.with_name(f"{stem.name}.png").write_bytes(encode_image(pixels))
        stem.with_name(f"{stem.name}_desc_fr.ogg").write_bytes(encode_audio(sine(200.0 + number, 0.1), 16_000, "OGG"))
        stem.with_name(f"{stem.name}.dat").write_text("not read")
    (root / stamps.PACKAGE.copyright).parent.mkdir(parents=True)
    (root / stamps.PACKAGE.copyright).write_text("License: GPL-2\n either version 2, or {at your option} any later\n")
    return root


@pytest.fixture
def build(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """build() -> the data set made from `tree`, as if it had come out of the package."""

    @contextmanager
    def unpacked(package: debian.Package, file: Path, folder: Path) -> Iterator[Path]:
        yield tree

    (tmp_path / "some.deb").write_bytes(b"deb")
    monkeypatch.setattr(debian, "unpacked", unpacked)
    monkeypatch.setattr(debian, "output", lambda *asked: b"1.2-3\n")

    def run() -> Path:
        stamps.build(tmp_path / "stamps", deb=tmp_path / "some.deb", progress=False)
        return tmp_path / "stamps"

    return run


def things(tree: Path) -> Path:
    return tree / stamps.PACKAGE.data / "things"


def stem_of(tree: Path, caption: str) -> str:
    """The path without its ending of the stamp that is called so."""
    return next(str(p)[:-4] for p in sorted(tree.rglob("*.txt")) if p.read_text().splitlines()[0] == caption)


def read(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    """Samples by key, as webdataset's own reader finds them, with their JSON as "about"."""
    paths = [str(path) for path in sorted(folder.glob(f"{kind}-*.tar"))]
    if not paths:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        found = list(webdataset.WebDataset(paths, shardshuffle=False))
        gc.collect()
    return {sample["__key__"]: {**sample, "about": json.loads(sample["json"])} for sample in found}


def test_the_split_is_the_rule() -> None:
    """Case and the one final full stop do not matter, anything else does; the shares are 80, 5 and 15 of 100."""
    names = [f"A {word} number {number}." for word in ("cat", "Dog", "hérisson") for number in range(500)]
    splits = [split_of(name) for name in names]
    assert splits == [fate(name) for name in names]
    assert [split_of(name.upper().removesuffix(".")) for name in names] == splits
    shares = {split: splits.count(split) / len(splits) for split in ("train", "val", "test")}
    assert abs(shares["train"] - 0.80) < 0.03 and abs(shares["val"] - 0.05) < 0.02 and abs(shares["test"] - 0.15) < 0.03
    doubled = [f"{name}." for name in names]
    assert [split_of(name) for name in doubled] != splits, "of two full stops one stays"


def test_names_say_what_a_file_is(tmp_path: Path) -> None:
    """Picture, effect, descriptions by language; what belongs to no stamp is counted under its reason, drawings too."""
    for name in (
        "a/owl.png", "a/owl_mirror.png", "a/stray.png", "a/owl.svg", "a/cat.svg", "a/owl.ogg", "a/owl_desc.ogg",
        "a/owl_desc_fr.ogg", "a/owl_desc_pt_BR.wav", "a/owl_desc_ca@valencia.ogg", "a/owl_desc_de.ogg",
        "a/owl_en_GB.ogg", "a/owl_zh_tw.ogg", "a/cow_desc_fr.ogg", "a/moo.ogg", "a/owl.dat", "a/owl_desc_fr.wav",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a" / "owl.txt").write_text(OWL, "utf-8")
    (tmp_path / "a" / "cat.txt").write_text("A cat.\n", "utf-8")
    (tmp_path / "a" / "empty.txt").write_text("\nfr.utf8=Rien.\n", "utf-8")
    found, left_out = read_tree(tmp_path)
    owl = next(stamp for stamp in found if stamp.name == "a/owl")
    assert owl.captions == {"en": "An owl.", "fr": "Un hibou.", "ca@valencia": "Un mussol.", "pt_BR": "Uma coruja."}
    assert owl.picture == tmp_path / "a/owl.png" and owl.effect == tmp_path / "a/owl.ogg"
    assert {language: path.name for language, path in owl.spoken.items()} == {
        "en": "owl_desc.ogg",
        "fr": "owl_desc_fr.ogg",
        "pt_BR": "owl_desc_pt_BR.wav",
        "ca@valencia": "owl_desc_ca@valencia.ogg",
    }
    assert dict(left_out) == {
        "mirrored picture": 1,
        "picture without a caption": 1,
        "drawing (SVG) without a picture beside it": 1,
        "description in a language without a caption": 1,
        "sound effect of one language": 2,
        "sound without a stamp": 2,
        "second file of the same kind": 1,
        "text without a caption": 1,
    }


def test_every_split_holds_its_own_stamps(build: Callable[[], Path], tree: Path) -> None:
    """Each sample's English caption has the fate of its folder, in all kinds (webdataset's reader); none is lost."""
    stem = stem_of(tree, picked("test", 1)[0])
    Path(f"{stem}.ogg").write_bytes(Path(f"{stem}_desc_fr.ogg").read_bytes())
    folder, pictures, spoken = build(), 0, 0
    for split in ("train", "val", "test"):
        images, speech = read(folder / split, "image"), read(folder / split, "speech")
        assert {split_of(sample["about"]["caption"]) for sample in images.values()} == {split}
        assert {split_of(sample["about"]["english"]) for sample in speech.values()} == {split}
        names = (folder / split / "classnames.txt").read_text().splitlines()
        assert names == sorted({sample["txt"].decode() for sample in images.values()})
        pictures, spoken = pictures + len(images), spoken + len(speech)
        listed = shard_list.read_list(folder / split)
        assert sum(entry.holds["image"] for entry in listed.values()) == len(images)
    assert pictures == spoken == 15
    manifest = json.loads((folder / "stamps.json").read_text())
    assert [manifest["splits"][split]["image"] for split in ("train", "val", "test")] == [10, 2, 3]
    assert manifest["splits"]["test"]["sound"] == 1 and manifest["package"]["version"] == "1.2-3"


def test_a_sample_says_what_is_said(build: Callable[[], Path], tree: Path) -> None:
    """Speech has the caption of its language and the package's bytes; a picture has all captions; keys have no dot."""
    caption = picked("val", 1)[0]
    stem = Path(stem_of(tree, caption))
    number = stem.name.removeprefix("thing.")
    folder = build() / "val"
    speech = read(folder, "speech")[f"speech-fr-things-{stem.parent.name}-thing-{number}"]
    assert speech["txt"].decode() == speech["about"]["caption"] == f"Chose {number}."
    assert (speech["about"]["english"], speech["about"]["language"]) == (caption, "fr")
    assert speech["about"]["stamp"] == f"things/{stem.parent.name}/thing.{number}"
    assert speech["ogg"] == Path(f"{stem}_desc_fr.ogg").read_bytes()
    image = read(folder, "image")[f"image-things-{stem.parent.name}-thing-{number}"]
    assert image["txt"].decode() == caption and image["png"] == Path(f"{stem}.png").read_bytes()
    assert image["about"]["captions"] == {"fr": f"Chose {number}.", "ru": f"Вещь {number}."}


def test_a_large_picture_is_reduced_with_its_ground(
    build: Callable[[], Path], tree: Path, encode_image: Callable[..., bytes]
) -> None:
    """256 px on the longer side; what was transparent stays so, and no colour of it bleeds into what is visible."""
    stem = stem_of(tree, picked("test", 1)[0])
    pixels = np.zeros((100, 600, 4), np.uint8)
    pixels[:, :300] = (255, 0, 0, 255)
    pixels[:, 300:] = (0, 0, 255, 0)
    Path(f"{stem}.png").write_bytes(encode_image(pixels))
    folder = build()
    key = f"image-things-{Path(stem).parent.name}-{Path(stem).name.replace('.', '-')}"
    (folder / "seen.png").write_bytes(read(folder / "test", "image")[key]["png"])
    with Image.open(folder / "seen.png") as image:
        seen = np.asarray(image)
    assert seen.shape == (43, 256, 4)
    assert (seen[:, :120] == (255, 0, 0, 255)).all() and (seen[:, 136:, 3] == 0).all()
    assert seen[seen[..., 3] > 8][:, 2].max() == 0, "blue of the transparent side"
    assert json.loads((folder / "stamps.json").read_text())["reduced_pictures"] == 1


def test_what_cannot_be_used_is_counted(build: Callable[[], Path], tree: Path, encode_audio: Any) -> None:
    """A damaged picture, a cut description, silence: left out under their codes, in README and JSON."""
    first, second, third = (stem_of(tree, caption) for caption in picked("train", 3))
    Path(f"{first}.png").write_bytes(b"\x89PNG\r\n")
    spoken = Path(f"{second}_desc_fr.ogg")
    spoken.write_bytes(spoken.read_bytes()[:-40])
    Path(f"{third}.ogg").write_bytes(encode_audio(np.zeros(1_600, np.float32), 16_000, "OGG"))
    folder = build()
    manifest = json.loads((folder / "stamps.json").read_text())
    assert manifest["left_out"] == {"audio_cut": 1, "audio_silent": 1, "image_damaged": 1}
    assert manifest["splits"]["train"]["image"] == manifest["splits"]["train"]["speech"] == 9
    assert "- audio_silent: 1\n" in (folder / "README.md").read_text()


def test_bytes_of_a_test_stamp_are_never_trained_on(build: Callable[[], Path], tree: Path) -> None:
    """A recording that a test stamp and a train stamp share stays in test alone, though the captions differ."""
    held, trained = stem_of(tree, picked("test", 1)[0]), stem_of(tree, picked("train", 1)[0])
    Path(f"{trained}_desc_fr.ogg").write_bytes(Path(f"{held}_desc_fr.ogg").read_bytes())
    folder = build()
    shared = Path(f"{held}_desc_fr.ogg").read_bytes()
    assert shared in [sample["ogg"] for sample in read(folder / "test", "speech").values()]
    assert shared not in [sample["ogg"] for sample in read(folder / "train", "speech").values()]
    assert json.loads((folder / "stamps.json").read_text())["left_out"] == {"the same bytes as in val or test": 1}


def test_the_tokenizer_has_seen_train_alone(build: Callable[[], Path], tree: Path) -> None:
    """A word that only test has is many tokens; one that train repeats is one. Every text survives there and back."""
    for caption, word in ((picked("test", 1)[0], "Qwzxvbk"), *((name, "Éléphant") for name in picked("train", 5))):
        path = Path(f"{stem_of(tree, caption)}.txt")
        path.write_text(f"{caption}\nfr.utf8={word} {word} {word}\n", "utf-8")
    tokenizer = load_tokenizer(build() / "tokenizer.json")
    assert len(tokenizer.encode("Qwzxvbk")) == 7 and len(tokenizer.encode("Éléphant")) == 1
    assert tokenizer.decode(tokenizer.encode("Вещь 7. 鳥")) == "Вещь 7. 鳥"


def test_the_readme_counts_and_quotes(build: Callable[[], Path]) -> None:
    """Counts as they were written; the licence in the package's own words, braces and all."""
    folder = build()
    text = (folder / "README.md").read_text()
    assert "| train | 10 | 10 | 10 | 0.0 | 0 | 0.0 |" in text and "| fr | 10 | 2 | 3 | 0.0 |" in text
    assert "either version 2, or {at your option} any later" in text and "en 15, fr 15, ru 15" in text
    assert (folder / "LICENSE").read_text().startswith("License: GPL-2")


def test_the_same_package_gives_the_same_bytes_and_is_kept(
    build: Callable[[], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second build is equal in every file; a third finds the folder complete and reads no package."""

    def bytes_of(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    first = build().rename(tmp_path / "first")
    second = build()
    assert bytes_of(first) == bytes_of(second)
    (tmp_path / "some.deb").unlink()
    build()
    assert capsys.readouterr().out.endswith("stamps is complete already; nothing to do\n")
    (second / "val" / "classnames.txt").unlink()
    with pytest.raises(UserError, match=r"val/classnames\.txt is missing or was changed; choose another folder"):
        build()


PROGRAMS = {  # stand-ins: they note their words, and do what the real ones do to files
    "apt-get": "pathlib.Path(sys.argv[2] + '_9_all.deb').write_text('package')",
    "dpkg-deb": "sys.argv[1] == '-f' and print('9') or sys.argv[1] == '-x' and shutil.copytree(TREE, sys.argv[3], "
    "dirs_exist_ok=True)",
}


def install(folder: Path, tree: Path, programs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Only these programs can be found. Returns the file in which they note how they were called."""
    folder.mkdir()
    for name, does in programs.items():
        code = f"import os, pathlib, shutil, sys\nTREE = {str(tree)!r}\n"
        code += f"print(*sys.argv[1:], file=open({str(folder / 'calls')!r}, 'a'))\n{does}\n"
        (folder / name).write_text(f"#!{sys.executable} -S\n{code}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder / "calls"


def test_the_package_is_downloaded_once(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """apt-get writes aside, and the package is kept beside the data set: a second build asks for none."""
    calls = install(tmp_path / "bin", tree, PROGRAMS, monkeypatch)
    for _ in range(2):
        stamps.build(tmp_path / "stamps", progress=False)
        (tmp_path / "stamps").rename(tmp_path / f"stamps{len(list(tmp_path.iterdir()))}")
    words = [line.split()[0] for line in calls.read_text().splitlines()]
    assert words == ["download", "-x", "-f", "-x", "-f"]
    kept = tmp_path / "stamps.deb"
    assert [path.name for path in kept.iterdir()] == ["tuxpaint-stamps-default_9_all.deb"]
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]
    made = next(path for path in tmp_path.iterdir() if (path / "stamps.json").is_file())
    assert sorted(path.name for path in made.iterdir() if path.is_dir()) == ["test", "train", "val"]


@pytest.mark.parametrize(
    ("programs", "words"),
    [
        ({}, "there is no apt-get on this machine; use Debian or Ubuntu, or give a tuxpaint-stamps-default_VERSION"),
        (
            {"apt-get": "sys.exit('E: Unable to locate package tuxpaint-stamps-default')"},
            r"apt-get could not do it \(Unable to locate package tuxpaint-stamps-default\); as root run apt-get update",
        ),
        ({"apt-get": ""}, "apt-get left no package in .*; give a tuxpaint-stamps-default_VERSION_all.deb"),
        ({"apt-get": PROGRAMS["apt-get"]}, "there is no dpkg-deb on this machine"),
        ({**PROGRAMS, "dpkg-deb": "sys.exit('not a deb')"}, r"dpkg-deb could not do it \(not a deb\); delete .*deb if"),
        ({**PROGRAMS, "dpkg-deb": ""}, "holds no usr/share/tuxpaint/stamps; give a tuxpaint-stamps-default_VERSION"),
    ],
)
def test_a_package_that_cannot_be_had(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, str], words: str
) -> None:
    """One line that says how to get it; no half-built folder and no half-downloaded package stays."""
    install(tmp_path / "bin", tree, programs, monkeypatch)
    with pytest.raises(UserError, match=words) as caught:
        stamps.build(tmp_path / "stamps", progress=False)
    assert "\n" not in str(caught.value) and "--deb FILE" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"bin", "package", "stamps.deb"}
    if "dpkg-deb" not in programs and "write_text" not in programs.get("apt-get", ""):
        assert list((tmp_path / "stamps.deb").iterdir()) == []


def test_a_package_that_is_not_there(tmp_path: Path) -> None:
    """The path is named; nothing is downloaded in its place."""
    with pytest.raises(UserError, match=r"there is no package .*none\.deb'; give a tuxpaint-stamps-default_VERSION"):
        stamps.build(tmp_path / "stamps", deb=tmp_path / "none.deb", progress=False)
    assert list(tmp_path.iterdir()) == []
