"""The data set `numbers`, as its written shards have it: what training must never meet, and what it must."""

import errno
import functools
import gc
import hashlib
import io
import json
import re
import tarfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import webdataset
from PIL import Image
from sklearn.datasets import load_digits

from mmfm.config import UserError
from mmfm.datasets import numbers, numbers_plan
from mmfm.datasets.espeak import Speaker, Utterance
from mmfm.datasets.numbers_plan import PHRASES, PLAIN, SEEN, UNSEEN, name, plan
from mmfm.datasets.speech import trim
from mmfm.preprocessing.tokenizer import load_tokenizer

SPLITS = ("train", "val", "test", "test-unseen")
TINY = {"images_per_number": 3, "clips_per_number": 2, "eval_per_number": 1, "progress": False}
DIGITS = load_digits()


class Read(NamedTuple):
    """One sample, as WebDataset's own reader finds it."""

    key: str
    parts: dict[str, bytes]
    about: dict[str, Any]
    caption: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "numbers"
    numbers.build(folder, **TINY)
    return folder


@pytest.fixture(scope="module")
def samples(folder: Path) -> dict[str, list[Read]]:
    return {split: read(folder / split) for split in SPLITS}


def read(folder: Path) -> list[Read]:
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset's reader leaves its files to the collector
        raw = list(webdataset.WebDataset(shards, shardshuffle=False))
        gc.collect()
    found = []
    for sample in raw:
        parts = {key: value for key, value in sample.items() if not key.startswith("_")}
        found.append(Read(sample["__key__"], parts, json.loads(parts["json"]), parts["txt"].decode()))
    return found


def pictures(samples: list[Read]) -> list[Read]:
    return [sample for sample in samples if "png" in sample.parts]


def clips(samples: list[Read]) -> list[Read]:
    return [sample for sample in samples if "flac" in sample.parts]


def prints(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@functools.cache
def full_plan(seed: int = 0, **sizes: int) -> list[numbers_plan.Plan]:
    return plan(DIGITS.target.tolist(), seed=seed, **{"images": 75, "clips": 75, "evals": 8, **sizes})


def test_the_same_arguments_give_the_same_bytes(folder: Path, tmp_path: Path):
    """Every file of a second build, elsewhere, is the first one's byte for byte."""
    numbers.build(tmp_path / "again", **TINY)
    assert prints(tmp_path / "again") == prints(folder)


def test_another_seed_gives_other_pictures_and_voices():
    """No split has the same pairs of scans, or voices in the same order, under two seeds."""
    for one, other in zip(full_plan(seed=0), full_plan(seed=1), strict=True):
        assert {picture.scans for picture in one.pictures} != {picture.scans for picture in other.pictures}
        assert [clip.utterance for clip in one.clips] != [clip.utterance for clip in other.clips]


def test_unseen_numbers_are_nowhere_in_training(samples: dict[str, list[Read]]):
    """Neither as a number, nor as a label, nor inside any caption, nor as the two digits of a picture; and they are
    all of test-unseen. Val and test hold the other eighty."""
    hidden = re.compile("|".join(rf"\b{name(number)}\b" for number in UNSEEN))
    for sample in samples["train"]:
        assert sample.about["number"] not in UNSEEN
        assert not hidden.search(sample.caption) and not hidden.search(sample.about["label"])
    shown = [10 * DIGITS.target[left] + DIGITS.target[right] for left, right in scans(samples["train"])]
    assert not set(shown) & set(UNSEEN)
    for split, expected in (("train", SEEN), ("val", SEEN), ("test", SEEN), ("test-unseen", UNSEEN)):
        for part in (pictures(samples[split]), clips(samples[split])):
            assert {sample.about["number"] for sample in part} == set(expected)
    assert len(UNSEEN) == 20 and len(SEEN) == 80


def test_training_has_what_the_unseen_numbers_are_made_of(samples: dict[str, list[Read]]):
    """Every word of an unseen name, and every digit of it at its place, is in training, in both modalities."""
    for part in (pictures(samples["train"]), clips(samples["train"])):
        words = {word for sample in part for word in sample.about["label"].split("-")}
        tens, units = (
            {sample.about["number"] // 10 for sample in part},
            {sample.about["number"] % 10 for sample in part},
        )
        assert words == {word for number in range(100) for word in name(number).split("-")}
        assert tens == units == set(range(10))


def scans(samples: list[Read]) -> list[tuple[int, int]]:
    return [(left, right) for left, right in (sample.about["scans"] for sample in pictures(samples))]


def test_pictures_show_the_scans_and_the_scans_the_number(samples: dict[str, list[Read]]):
    """Each PNG is the two scans named beside it, stretched to 0-255, and people wrote these digits in them."""
    for sample in (sample for split in SPLITS for sample in pictures(samples[split])):
        image = Image.open(io.BytesIO(sample.parts["png"]))
        left, right = sample.about["scans"]
        expected = np.concatenate([DIGITS.images[left], DIGITS.images[right]], axis=1)
        assert image.mode == "L" and image.size == (16, 8)
        assert np.abs(np.asarray(image) / 255 - expected / 16).max() < 1 / 255
        assert 10 * DIGITS.target[left] + DIGITS.target[right] == sample.about["number"]
        assert sample.about["label"] == name(sample.about["number"])


def test_scans_are_split_before_they_are_paired(samples: dict[str, list[Read]]):
    """Each split draws from its own range of indexes, and no pair comes twice."""
    ranges = {"train": range(1_297), "val": range(1_297, 1_437), "test": range(1_437, 1_797)}
    for split in SPLITS:
        pairs = scans(samples[split])
        assert {scan for pair in pairs for scan in pair} <= set(ranges[split.removesuffix("-unseen")])
        assert len(pairs) == len(set(pairs))


def test_no_pair_of_scans_repeats_even_when_every_pair_is_needed():
    """Val has about fourteen scans of a digit: more pictures of a number than that reshuffle them, and still differ."""
    for made in full_plan(images=150, clips=1, evals=40):
        pairs = [picture.scans for picture in made.pictures]
        assert len(set(pairs)) == len(pairs) and all(left != right for left, right in pairs)


def test_test_voices_and_accents_are_never_heard_before(samples: dict[str, list[Read]]):
    """Neither half of a test voice, accent+variant, is in a clip of train or val; val's variants are not in train."""
    halves = {split: {tuple(clip.about["voice"].split("+")) for clip in clips(samples[split])} for split in SPLITS}
    accents, variants = ({split: {half[i] for half in halves[split]} for split in SPLITS} for i in (0, 1))
    for test in ("test", "test-unseen"):
        assert not accents[test] & (accents["train"] | accents["val"])
        assert not variants[test] & (variants["train"] | variants["val"])
    assert not variants["val"] & variants["train"]


def test_no_sample_joins_a_picture_and_a_clip(samples: dict[str, list[Read]]):
    """Each has one of the two, a caption and its JSON; keys are unique over the whole data set."""
    for sample in (sample for split in SPLITS for sample in samples[split]):
        assert set(sample.parts) in ({"png", "txt", "json"}, {"flac", "txt", "json"})
    keys = [sample.key for split in SPLITS for sample in samples[split]]
    assert len(keys) == len(set(keys))


def test_captions_are_plain_but_for_half_of_training(samples: dict[str, list[Read]]):
    """Exact match is well defined outside training; there, every other caption is phrased for its modality."""
    for split in SPLITS[1:]:
        assert all(sample.caption == sample.about["label"] for sample in samples[split])
    for modality, part, phrased in (("image", pictures(samples["train"]), 80), ("audio", clips(samples["train"]), 80)):
        patterns = {phrase: re.compile(re.escape(phrase).replace(r"\{\}", "(.+)")) for phrase in PHRASES[modality]}
        found = Counter(sample.caption == sample.about["label"] for sample in part)
        assert found[False] == phrased
        for sample in part:
            names = [match[1] for pattern in patterns.values() if (match := pattern.fullmatch(sample.caption))]
            assert sample.caption == PLAIN.format(sample.about["label"]) or sample.about["label"] in names
    assert all(phrase.count("{}") == 1 for phrases in PHRASES.values() for phrase in phrases)


def test_clips_are_sound_as_promised(samples: dict[str, list[Read]]):
    """16 kHz, mono, 16 bit; loud enough, at most 30 ms of silence at each end, and no two alike."""
    heard = [clip for split in SPLITS for clip in clips(samples[split])]
    for clip in heard:
        info = soundfile.info(io.BytesIO(clip.parts["flac"]))
        assert (info.format, info.subtype, info.channels, info.samplerate) == ("FLAC", "PCM_16", 1, 16_000)
        sound = soundfile.read(io.BytesIO(clip.parts["flac"]))[0]
        loud = np.flatnonzero(np.abs(sound) > 0.008 * np.abs(sound).max())
        assert 0.1 < info.duration < 2 and np.abs(sound).max() > 0.05
        assert max(loud[0], len(sound) - loud[-1]) < 0.035 * 16_000
    assert len({clip.parts["flac"] for clip in heard}) == len(heard)


def test_clips_say_their_label(samples: dict[str, list[Read]]):
    """Saying each label again, by the voice, rate and pitch of its JSON, takes as long as the clip does."""
    part = clips(samples["test-unseen"])
    with Speaker() as speaker:

        def again(about: dict[str, Any]) -> float:
            said = Utterance(text=about["label"], **{key: about[key] for key in ("voice", "rate_wpm", "pitch")})
            return len(trim(speaker.say(said), speaker.rate_hz)) / speaker.rate_hz

        expected = np.array([again(clip.about) for clip in part])
    found = np.array([soundfile.info(io.BytesIO(clip.parts["flac"])).duration for clip in part])
    assert np.median(np.abs(found - expected)) < 0.005 and np.corrcoef(found, expected)[0, 1] > 0.98


def test_what_a_split_gets_does_not_depend_on_the_others():
    """Fewer training clips leave val and test as they are, so that scores can be compared."""
    assert full_plan()[1:] == full_plan(images=20, clips=30)[1:]


def test_the_card_and_the_manifest_tell_the_truth(folder: Path, samples: dict[str, list[Read]]):
    """README's table and numbers.json count what the shards hold; every other file's hash is in numbers.json."""
    manifest, card = json.loads((folder / "numbers.json").read_text()), (folder / "README.md").read_text()
    for split in SPLITS:
        shown, heard = len(pictures(samples[split])), len(clips(samples[split]))
        about = manifest["splits"][split]
        count = len({sample.about["number"] for sample in samples[split]})
        assert (about["image"], about["audio"], about["numbers"]) == (shown, heard, count)
        assert f"| {split} | {count} | {shown} | {heard} |" in card
        assert {clip.about["voice"].split("+")[1] for clip in clips(samples[split])} <= set(about["variants"])
    found = prints(folder)
    found.pop("numbers.json")
    assert {path: about["sha256"] for path, about in manifest["files"].items()} == found
    assert all(name(number) in card for number in UNSEEN) and "CC BY 4.0" in card and "GPL" in card


def test_classes_and_tokenizer(folder: Path):
    """classnames.txt lists the hundred names in order; the tokenizer gives any text back, names in few ids."""
    for split in SPLITS:
        assert (folder / split / "classnames.txt").read_text().splitlines() == [name(number) for number in range(100)]
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    for text in ("the number forty-two", "Ünïcode, 数字 ☎", *map(name, range(100))):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.size <= numbers.VOCABULARY
    assert max(len(tokenizer.encode(name(number))) for number in SEEN) <= 8


def test_a_second_build_does_nothing(folder: Path, capsys: pytest.CaptureFixture[str]):
    """No file is touched, and one line says so."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    numbers.build(folder, **TINY)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert re.fullmatch(r".*numbers is complete already; nothing to do\n", capsys.readouterr().out)


def test_other_arguments_are_refused(folder: Path):
    """The words name what differs, and the way out; nothing is overwritten."""
    before = prints(folder)
    with pytest.raises(
        UserError, match=r"built with clips_per_number=2, not 5; seed=0, not 3; choose another folder, or"
    ):
        numbers.build(folder, **{**TINY, "clips_per_number": 5, "seed": 3})
    assert prints(folder) == before


@pytest.mark.parametrize("text", [None, "{", "[]", '{"arguments": 1}', '{"arguments": {}, "files": []}'])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, text: str | None):
    """A photo album, with or without a broken numbers.json, is never taken for ours and never written to."""
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    if text is not None:
        (tmp_path / "numbers.json").write_text(text)
    before = prints(tmp_path)
    with pytest.raises(UserError, match="exists and is no `numbers` data set; choose another folder"):
        numbers.build(tmp_path, **TINY)
    assert prints(tmp_path) == before


def test_a_damaged_folder_is_named(tmp_path: Path):
    """A shard that is gone or shorter is an error with its path: training on a part in silence would be worse."""
    shard = {"path": "train/image-000000.tar", "bytes": 10}
    manifest = {"arguments": {**numbers_arguments(), "seed": 0}, "files": {shard["path"]: {"bytes": shard["bytes"]}}}
    (tmp_path / "train").mkdir()
    (tmp_path / "numbers.json").write_text(json.dumps(manifest))
    for body in (None, b"short"):
        if body is not None:
            (tmp_path / shard["path"]).write_bytes(body)
        with pytest.raises(UserError, match=r"image-000000\.tar is missing or was changed; choose another folder, or"):
            numbers.build(tmp_path, **TINY)


def numbers_arguments() -> dict[str, int]:
    return {**{key: value for key, value in TINY.items() if key != "progress"}, "format": numbers.FORMAT}


@pytest.mark.parametrize("size", [0, -1, 1_001])
def test_sizes_have_bounds(tmp_path: Path, size: int):
    """The argument is named with its value; nothing is built."""
    with pytest.raises(UserError, match=rf"eval_per_number={size} must be between 1 and 1000"):
        numbers.build(tmp_path, **{**TINY, "eval_per_number": size})


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "No space left on device"), UserError)],
)
def test_an_interrupt_or_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, expected: type[BaseException]
):
    """In the middle of the clips: neither the folder nor its half-built sibling stays."""
    write, written = numbers.ShardWriter.write, []

    def failing(self: Any, key: str, parts: dict[str, bytes]) -> None:
        written.append(key)
        if len(written) > 260:
            raise raised
        write(self, key, parts)

    monkeypatch.setattr(numbers.ShardWriter, "write", failing)
    with pytest.raises(expected) as caught:
        numbers.build(tmp_path / "numbers", **TINY)
    assert written[-1].startswith("train-audio") and list(tmp_path.iterdir()) == []
    if expected is UserError:
        assert re.search("cannot write .*numbers: No space left on device; make room", str(caught.value))


def test_what_a_killed_build_left_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A kill leaves NAME.partial, never NAME; the next build starts over and takes nothing from it."""
    (tmp_path / "numbers.partial" / "train").mkdir(parents=True)
    (tmp_path / "numbers.partial" / "train" / "image-000000.tar").write_text("half")
    monkeypatch.setattr(numbers, "_build", lambda folder, wanted, progress: (folder / "new").write_text("whole"))
    (tmp_path / "numbers").mkdir()  # an empty folder is as good as none
    numbers.build(tmp_path / "numbers", **TINY)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["numbers", "numbers/new"]


def test_the_readme_takes_what_is_there(folder: Path) -> None:
    """The picture and the sound of the README's first uses are members of these shards."""
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    taken = re.findall(r"^tar -xOf data/numbers/(\S+) (\S+) > ", readme, re.MULTILINE)
    assert len(taken) == 2
    for shard, member in taken:
        with tarfile.open(folder / shard) as tar:
            assert member in tar.getnames()
