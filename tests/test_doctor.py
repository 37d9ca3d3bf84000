"""`mmfm doctor` finds what was planted, names shard and key, and finds nothing where nothing is."""

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits
from toys import toy_config, toy_run

from mmfm.__main__ import main
from mmfm.config import Contrastive, Data, Eval, Generative, ParamGroup, RemoteCache, Run, Source, Text
from mmfm.config.serialization import to_json as run_to_json
from mmfm.data import index, remote_cache, shard_list
from mmfm.data.shard_specs import expand
from mmfm.data.shards import Shards
from mmfm.data.stream import TrainStream
from mmfm.doctor import duplicates, near_duplicates, pace, shard_integrity, speed, terminal
from mmfm.doctor import run as run_of_doctor
from mmfm.doctor.decode import Decoded, at_least, lost
from mmfm.doctor.findings import Distribution, Finding, Report, Section, clean, distribution, finding, to_json
from mmfm.doctor.page import render
from mmfm.doctor.run import ScanOptions, examine
from mmfm.doctor.run import duplicates as duplicates_of
from mmfm.doctor.scan import ScanStats, scan
from mmfm.evals.split import spread
from mmfm.models.model import build
from mmfm.objectives.joint import Objectives
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.training.optimizer import optimizer_of, set_learning

NAMES = ("zero", "one", "two", "three")
QUICK = ScanOptions(quick=True)


def pixels(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    """A smooth picture that no other seed has."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


Parts = dict[str, dict[str, bytes]]


@pytest.fixture
def samples(encode_image, encode_audio) -> Callable[..., Parts]:
    """samples("image" | "audio", first seed, count): no two alike, each with one of four names as its text."""

    def make(kind: str, first: int, count: int) -> Parts:
        made = {}
        for seed in range(first, first + count):
            wave = np.random.default_rng(seed).normal(0, 0.1, 1_600 + 10 * seed).astype(np.float32)
            data = {"png": encode_image(pixels(seed))} if kind == "image" else {"wav": encode_audio(wave)}
            made[f"{kind}-{seed}"] = {**data, "txt": NAMES[seed % 4].encode()}
        return made

    return make


@pytest.fixture
def sets(samples) -> dict[str, Parts]:
    """File -> samples, of a run with nothing wrong."""
    return {
        "train/image.tar": samples("image", 0, 30),
        "train/audio.tar": samples("audio", 100, 30),
        "val/image.tar": samples("image", 40, 8),
        "test/image.tar": samples("image", 60, 8),
        "test/audio.tar": samples("audio", 160, 8),
    }


@pytest.fixture
def run(tmp_path) -> Run:
    sources = (
        Source(shards=str(tmp_path / "train" / "image.tar"), modalities=("image", "text")),
        Source(shards=str(tmp_path / "train" / "audio.tar"), modalities=("audio", "text")),
    )
    return Run(
        name="toy",
        out=str(tmp_path / "runs"),
        model=toy_config(),
        data=Data(train=sources, val=str(tmp_path / "val"), batch_size=8, num_workers=0),
        contrastive=(Contrastive(pair=("image", "text")), Contrastive(pair=("audio", "text"))),
        generative=(Generative(task="image>text"),),
        eval=Eval(splits=(str(tmp_path / "test"),)),
    )


@pytest.fixture
def put(tmp_path, write_shard) -> Callable[..., None]:
    """put(sets): writes the shards, each with its index unless told otherwise."""

    def write(sets: dict[str, Parts], *, indexed: bool = True) -> None:
        for name, parts in sets.items():
            path = write_shard(tmp_path / name, parts)
            if indexed:
                index.write(path)

    return write


def told(diagnosis: Report, code: str) -> Finding:
    """The one finding with this code."""
    (found,) = [item for section in diagnosis.sections for item in section.findings if item.code == code]
    return found


def codes(diagnosis: Report, *levels: str) -> set[str]:
    return {item.code for section in diagnosis.sections for item in section.findings if item.level in levels}


def twins(run: Run) -> list[Finding]:
    """What the section on duplicates says."""
    known, _ = shard_integrity.look(
        shard_integrity.sets_of(run), remote_cache.ShardCache(RemoteCache()), sums=False, fetch=False
    )
    return list(duplicates_of(known, [scan(one, run) for one in known]).findings)


def picked(found: list[Finding], code: str) -> Finding:
    (one,) = [item for item in found if item.code == code]
    return one


# Nothing wrong


def test_a_clean_set_is_fit(put, sets, run):
    """No warning, status 0, and the distributions are those of what was written; speed and memory stand at the end."""
    put(sets)
    found = examine(run, "toy.py", ScanOptions())
    data = replace(found, sections=tuple(s for s in found.sections if s.name not in ("Speed", "Memory")))
    assert codes(data, "WARNING", "ERROR") == set() and codes(data, "NOTE") == {"shared_captions"}
    assert found.status == 0 and "can be trained" in found.verdict
    assert [s.name for s in found.sections][-2:] == ["Speed", "Memory"]
    drawn = {(d.title, d.unit): d for s in found.sections for d in s.distributions}
    (seconds, *_) = [row for row in drawn["Length of sounds", "s"].rows if row.name == "train audio.tar"]
    assert (seconds.n, round(seconds.least, 2), round(seconds.most, 2)) == (30, 0.16, 0.18)
    assert drawn["Width by height", ""].constant and drawn["Width of pictures", "px"].span == (32.0, 32.0)
    (tokens, *_) = drawn["Length of texts", "tokens"].rows  # of bytes: three to five
    assert (tokens.least, tokens.median, tokens.most, sum(tokens.counts)) == (3.0, 3.0, 5.0, 30)


def test_nothing_but_the_files_asked_for_is_written(put, sets, run, tmp_path):
    """An examination makes no folder of a run and touches no shard."""
    put(sets)
    before = sorted(tmp_path.rglob("*"))
    examine(run, "toy.py", ScanOptions(quick=True, samples=4))
    assert sorted(tmp_path.rglob("*")) == before


# Shards and indexes


def test_a_cut_tar_is_named_and_the_rest_looked_at(put, sets, run, tmp_path):
    """The others are still examined: the doctor does not stop at the first thing."""
    put(sets)
    whole = (path := tmp_path / "test" / "audio.tar").read_bytes()
    path.write_bytes(whole[:-12_000])
    found = examine(run, "toy.py", QUICK)
    assert told(found, "shard_damaged").level == "ERROR" and str(path) in told(found, "shard_damaged").message
    assert found.status == 2 and found.verdict.startswith("Do not train toy yet: 1 error")
    (table,) = [table for section in found.sections if section.name == "Shards" for table in section.tables]
    assert [row[:3] for row in table.rows if row[0] == "test"] == [("test", 1, 8)]


@pytest.mark.parametrize("changes", [{"start": "gone"}, {"eval": Eval(splits=("gone",))}], ids=["start", "splits"])
def test_what_is_not_there_would_be_refused(put, sets, run, tmp_path, changes):
    """As `mmfm train` does, by the field's name."""
    put(sets)
    found = examine(replace(run, **changes), "toy.py", QUICK)
    assert found.status == 2 and re.search(r"(Run\.start=|eval\.splits: .*)'gone'", told(found, "refused").message)


def test_a_stale_index_is_named(put, sets, run, samples, tmp_path):
    """A tar of the same size with other keys; then one whose list is older than it."""
    put(sets)
    other = {key.replace("image-", "imagf-"): parts for key, parts in sets["val/image.tar"].items()}
    put({"val/image.tar": other}, indexed=False)
    stale = told(examine(run, "toy.py", QUICK), "index_stale")
    assert stale.level == "ERROR" and stale.examples == (f"{tmp_path}/val/image.tar: imagf-40",)
    put({"val/image.tar": other})
    shard_list.write_list(tmp_path / "val")
    put({"val/image.tar": {**other, **samples("image", 70, 1)}})
    found = told(examine(run, "toy.py", QUICK), "list_stale")
    assert "gives" in found.message and "8 samples" in found.message and "it has 9" in found.message


def test_bytes_that_changed_after_indexing_are_found_by_their_sum(put, sets, run, tmp_path):
    """One bit of one picture: the headers cannot tell, and --quick does not look."""
    put(sets)
    path = tmp_path / "val" / "image.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    _, section = shard_integrity.look(
        shard_integrity.sets_of(run), remote_cache.ShardCache(RemoteCache()), sums=True, fetch=False
    )
    assert picked(list(section.findings), "shard_changed").examples == (str(path),)
    assert "shard_changed" not in codes(examine(run, "toy.py", QUICK), "ERROR")


def test_every_missing_shard_of_a_pattern_is_named(put, sets, run, tmp_path):
    """Not only the first; and a hole in a numbered row is noticed where a glob hides it."""
    put(sets)
    put({f"more/m-{number:03d}.tar": sets["train/image.tar"] for number in (0, 1, 3)})
    source = Source(shards=f"{tmp_path}/more/m-{{000..004}}.tar", modalities=("image", "text"))
    found = examine(replace(run, data=replace(run.data, train=(source,))), "toy.py", QUICK)
    assert told(found, "shard_missing").examples == tuple(f"{tmp_path}/more/m-00{n}.tar" for n in (2, 4))
    source = replace(source, shards=f"{tmp_path}/more")
    found = examine(replace(run, data=replace(run.data, train=(source,)), contrastive=()), "toy.py", QUICK)
    assert told(found, "shard_gap").examples == (f"{tmp_path}/more/m-002.tar",)


def test_no_index_is_a_note_and_what_is_not_read_too(put, sets, run):
    """Neither stops training: headers are read instead, and other files ignored."""
    sets["val/image.tar"]["image-40"]["mp4"] = b"film"
    put(sets, indexed=False)
    found = examine(run, "toy.py", QUICK)
    assert found.status == 0 and {"index_missing", "ignored"} <= codes(found, "NOTE")
    assert told(found, "ignored").examples == (".mp4 (1)",)


def test_a_shard_for_training_and_for_scores(put, sets, run, tmp_path):
    """The same file under two names of the configuration."""
    put(sets)
    source = replace(run.data.train[0], shards=f"{tmp_path}/train/../val/image.tar")
    found = examine(replace(run, data=replace(run.data, train=(source, run.data.train[1]))), "toy.py", QUICK)
    assert told(found, "shard_shared").examples == (f"val: {tmp_path}/val/image.tar",)


# What samples have


def test_a_missing_modality_is_named(put, sets, run, tmp_path):
    """One of 30 is within a budget of 5 %, and a warning; over it training would refuse, and so does the doctor."""
    del sets["train/image.tar"]["image-7"]["png"]
    put(sets)
    lax = replace(run, data=replace(run.data, max_bad_fraction=0.05))
    found = examine(lax, "toy.py", QUICK)
    lack = told(found, "missing_image")
    assert lack.level == "WARNING" and lack.count == 1
    assert lack.examples == (f"{tmp_path}/train/image.tar: image-7",)
    assert found.status == 0 and "3.33%" in told(found, "some_lost").message
    found = examine(run, "toy.py", QUICK)
    assert told(found, "missing_image").level == told(found, "too_many_lost").level == "ERROR" and found.status == 2
    assert "image-7" in told(found, "refused").message


def test_what_is_there_but_not_provided_is_a_note(put, sets, run):
    """Pictures in the shards of a source that promises sounds and text alone are never read."""
    sets["train/audio.tar"]["audio-100"]["png"] = sets["train/image.tar"]["image-0"]["png"]
    put(sets)
    assert told(examine(run, "toy.py", QUICK), "unread_image").count == 1


def test_a_clip_that_is_too_long_is_named(put, sets, run, encode_audio, sine, tmp_path):
    """By its header, with its seconds; with crops no clip is too long."""
    sets["train/audio.tar"]["audio-103"]["wav"] = encode_audio(sine(400, 2.5))
    put(sets)
    strict = replace(run, data=replace(run.data, max_seconds=2.0, max_bad_fraction=0.1))
    found = told(examine(strict, "toy.py", QUICK), "audio_too_long")
    assert found.level == "WARNING" and found.count == 1
    assert found.examples == (f"{tmp_path}/train/audio.tar: audio-103 (2.50 s)",)
    assert told(examine(replace(strict, data=replace(strict.data, max_bad_fraction=0.0)), "t", QUICK), "too_many_lost")
    crops = replace(strict, data=replace(strict.data, crop_seconds=1.0))
    assert "audio_too_long" not in codes(examine(crops, "toy.py", QUICK), "WARNING", "ERROR")


def test_an_empty_text_is_named_and_so_is_a_field_that_is_not_there(put, sets, run, tmp_path):
    """Of the .txt, and of the fields of the .json that a source names as its texts."""
    sets["train/image.tar"]["image-3"]["txt"] = b" \n"
    put(sets)
    found = told(examine(run, "toy.py", QUICK), "text_empty")
    assert found.count == 1 and f"{tmp_path}/train/image.tar: image-3: the text is empty" in found.examples[0]
    for seed, (key, parts) in enumerate(sets["train/image.tar"].items()):
        names = {"captions": {"fr": f"nom {seed}"} if key != "image-9" else {"de": "Name"}}
        parts["json"] = json.dumps(names).encode()
    put(sets)
    french = replace(run.data.train[0], texts=(Text(field="captions.fr"),))
    found = examine(replace(run, data=replace(run.data, train=(french, run.data.train[1]))), "toy.py", QUICK)
    assert told(found, "missing_text").examples == (f"{tmp_path}/train/image.tar: image-9",)
    assert "text_empty" not in codes(found, "WARNING", "ERROR")


def test_what_does_not_decode_is_counted_by_code(put, sets, run, tmp_path):
    """A picture whose bytes end early, among those that are decoded; and the same for a score, which cannot use it."""
    for name, key in (("train/image.tar", "image-5"), ("test/image.tar", "image-61")):
        sets[name][key]["png"] = sets[name][key]["png"][:-400]
    put(sets)
    found = examine(
        replace(run, data=replace(run.data, max_bad_fraction=0.05)), "toy.py", ScanOptions(quick=True, samples=0)
    )
    bad = [item for section in found.sections for item in section.findings if item.code == "image_damaged"]
    assert [item.examples[0].split(": ")[:2] for item in bad] == [
        [f"{tmp_path}/train/image.tar", "image-5"],
        [f"{tmp_path}/test/image.tar", "image-61"],
    ]
    assert {item.level for item in bad} == {"WARNING"} and "3.33%" in told(found, "some_lost").message


def test_the_share_that_is_lost():
    """What is known of all counts once; what only decoding found is scaled up, and sure where all were decoded."""
    swept, decoded = ScanStats(lost=3), Decoded(read=10)
    swept.doomed["audio_too_long"] = 3
    decoded.bad.update({"audio_too_long": 2, "audio_cut": 1, "missing_text": 1})
    about, least = lost(30, decoded, swept)
    assert about == pytest.approx(3 / 30 + 1 / 10) and 3 / 30 < least < about
    assert lost(10, decoded, swept) == pytest.approx((0.4, 0.4))
    low = at_least(10, 100)  # the share of which 10 of 100 lies just 1.645 standard deviations above
    assert (0.1 - low) / (low * (1 - low) / 100) ** 0.5 == pytest.approx(1.645) and at_least(0, 100) == 0.0


def test_what_is_only_likely_is_no_error(put, sets, run):
    """One bad picture among eight that were decoded may be one of 30 too: a warning, until all were looked at."""
    broken = sets["train/image.tar"][f"image-{spread(30, 8)[3]}"]
    broken["png"] = broken["png"][:-400]
    put(sets)
    lax = replace(run, data=replace(run.data, max_bad_fraction=0.05))
    found = examine(lax, "toy.py", ScanOptions(quick=True, samples=8))
    assert told(found, "perhaps_too_many_lost").level == "WARNING" and found.status == 0
    found = examine(lax, "toy.py", ScanOptions(quick=True, samples=0))
    assert told(found, "some_lost").count == 1


# Duplicates


def test_a_leak_is_an_error_and_a_shared_caption_is_not(put, sets, run, tmp_path):
    """The same bytes in training and in a score, picture or sound; names of classes are shared by nature."""
    sets["test/image.tar"]["image-62"]["png"] = sets["train/image.tar"]["image-11"]["png"]
    sets["test/audio.tar"]["audio-161"]["wav"] = sets["train/audio.tar"]["audio-120"]["wav"]
    put(sets)
    found = twins(run)
    leak = picked(found, "leak_image")
    assert leak.level == "ERROR" and leak.count == 1
    assert leak.examples == (f"{tmp_path}/test/image.tar: image-62 = {tmp_path}/train/image.tar: image-11",)
    assert picked(found, "leak_audio").examples[0].startswith(f"{tmp_path}/test/audio.tar: audio-161 = ")
    assert {item.level for item in found if item.code == "shared_captions"} == {"NOTE"}
    assert "near_image" not in {item.code for item in found}  # it is told once


def test_repeats_within_a_split_and_between_scores(put, sets, run, tmp_path):
    """A note, and a warning."""
    sets["train/image.tar"]["image-2"]["png"] = sets["train/image.tar"]["image-1"]["png"]
    sets["test/image.tar"]["image-60"]["png"] = sets["val/image.tar"]["image-40"]["png"]
    put(sets)
    found = twins(run)
    assert picked(found, "repeated_image").level == "NOTE" and picked(found, "shared_image").level == "WARNING"
    assert picked(found, "repeated_image").examples == (
        f"{tmp_path}/train/image.tar: image-2 = {tmp_path}/train/image.tar: image-1",
    )


def test_a_tar_that_two_sources_name_repeats_nothing(put, sets, run, tmp_path):
    """Mixed shards may serve two sources, each with other modalities."""
    put(sets)
    first = run.data.train[0]
    again = replace(first, name="again", modalities=("image",))
    assert "repeated_image" not in {
        item.code for item in twins(replace(run, data=replace(run.data, train=(first, again))))
    }


def encoded(image: Image.Image, layout: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, layout, **options)
    return file.getvalue()


CHANGES = {
    "jpeg": lambda image: encoded(image, "JPEG", quality=60),
    "webp": lambda image: encoded(image, "WEBP", quality=60),
    "twice as large": lambda image: encoded(image.resize((image.width * 2, image.height * 2))),
    "brighter": lambda image: encoded(image.point(lambda value: min(255, round(value * 1.15)))),
    "darker": lambda image: encoded(image.point(lambda value: round(value * 0.7))),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_near_leak_is_a_warning(change, put, sets, run, tmp_path):
    """A picture of training that was encoded, resized or lit anew is found among a test's, and nothing else is."""
    sets["test/image.tar"]["image-63"]["png"] = change(Image.fromarray(pixels(17)))
    put(sets)
    found = twins(run)
    alike = picked(found, "near_image")
    assert alike.level == "WARNING" and alike.count == 1
    assert alike.examples[0].startswith(f"{tmp_path}/test/image.tar: image-63 ~ {tmp_path}/train/image.tar: image-17 (")
    assert not [item for item in found if item.level == "ERROR"]
    one = Report(run="toy", config="c", seconds=1.0, sections=(Section(name="Duplicates", findings=tuple(found)),))
    shown = re.findall(r'<img src="data:image/[a-z]+;base64,([^"]*)" alt="">', render(one))
    assert base64.b64decode(shown[0]) == sets["test/image.tar"]["image-63"]["png"]
    assert base64.b64decode(shown[1]) == sets["train/image.tar"]["image-17"]["png"] and len(shown) == 2
    assert "base64" not in to_json(one)


def test_pairs_of_digits_are_not_taken_for_copies(put, run, encode_image):
    """Pictures of 8 x 16 pixels, alike by nature: other scans of the same digits are none; re-encoded ones are."""
    scans = load_digits().images.astype(np.uint8) * 15
    pairs = [np.concatenate([scans[2 * i], scans[2 * i + 1]], axis=1) for i in range(400)]
    train = {f"{i}": {"png": encode_image(pair), "txt": b"x"} for i, pair in enumerate(pairs[:250])}
    test = {f"t{i}": {"png": encode_image(pair), "txt": b"x"} for i, pair in enumerate(pairs[250:])}
    copies = [encode_image(pair, "JPEG", quality=75) for pair in pairs[:20]]
    test |= {f"c{i}": {"jpg": copy, "txt": b"x"} for i, copy in enumerate(copies)}
    put({"train/image.tar": train, "test/image.tar": test, "val/image.tar": {"v": test["t0"]}})
    source = run.data.train[0]
    found = twins(replace(run, data=replace(run.data, train=(source,))))
    assert picked(found, "near_image").count == 20


def test_candidates_are_all_pairs_that_are_near():
    """As comparing all with all finds them, at every distance up to seven bits."""
    draw = np.random.default_rng(0)
    a = draw.integers(0, 2**63, 200, dtype=np.uint64)
    b = draw.integers(0, 2**63, 300, dtype=np.uint64)
    for i in range(100):
        flipped = draw.choice(64, i % 10, replace=False)
        b[i] = a[i] ^ np.uint64(sum(1 << int(bit) for bit in flipped))
    expected = set(zip(*(x.tolist() for x in np.nonzero(np.bitwise_count(a[:, None] ^ b[None]) <= 7)), strict=True))
    found = [pair for i, j in near_duplicates.candidates(a, b) for pair in zip(i.tolist(), j.tolist(), strict=True)]
    assert sorted(found) == sorted(expected) and len(expected) >= 80


def test_texts_alone_leak_and_texts_alike_are_noted(put, run):
    """Where a sample is nothing but its text, an equal one is a warning; case and marks make it only alike."""
    train = {f"{i}": {"txt": f"Sentence number {i}.".encode()} for i in range(10)}
    test = {"a": {"txt": b"Sentence number 3."}, "b": {"txt": b"sentence  NUMBER 4 !"}, "c": {"txt": b"new"}}
    put({"train/text.tar": train, "val/text.tar": test})
    source = Source(shards=str(Path(run.data.val).parent / "train" / "text.tar"), modalities=("text",))
    found = twins(replace(run, data=replace(run.data, train=(source,))))
    assert picked(found, "leak_text").count == 1 and ": a" in picked(found, "leak_text").examples[0]
    assert picked(found, "near_captions").examples == ("sentence  NUMBER 4 !",)


def test_plain_text_keeps_what_words_are():
    """Case, marks, widths and white space go; letters, accents and digits of any script stay."""
    assert duplicates.plain("  A cat,\tsat!") == duplicates.plain("a CAT sat") == "a cat sat"
    assert duplicates.plain("Straße") == "strasse" and duplicates.plain("ｆｕｌｌ") == "full"
    assert duplicates.plain("été") != duplicates.plain("ete") and duplicates.plain("नमस्ते") == "नमस्ते"


# Speed and memory


@pytest.mark.parametrize(
    ("load_s", "step_s", "workers", "needed", "waiting"),
    [
        (1.0, 2.0, 1, 1, 0.0),  # the loader is quicker
        (1.0, 1.0, 1, 1, 0.0),  # just as quick
        (3.0, 1.0, 1, 3, 2 / 3),
        (3.0, 1.0, 3, 3, 0.0),
        (3.1, 1.0, 3, 4, 1 - 3 / 3.1),
        (1.0, 3.0, 0, 1, 0.25),  # without a process of its own, loading and learning take turns
    ],
)
def test_how_many_workers(load_s, step_s, workers, needed, waiting):
    """From step to step is the slower of both; workers share the loading."""
    found = speed.Pace(load_s=load_s, step_s=step_s, workers=workers)
    assert found.needed == needed and found.waiting == pytest.approx(waiting)


def measured(load_s: float, step_s: float, workers: int, **changes: float) -> speed.Measured:
    parts = speed.Memory(parameters=10, gradients=10, moments=20, activations=5, batch=1, loader=4)
    speeds = speed.Pace(load_s=load_s, step_s=step_s, workers=workers)
    return speed.Measured(batch=8, pace=speeds, memory=parts, stepped=8, **changes)


def test_a_starving_model_is_a_warning_with_a_remedy(run):
    """It says what to set; where loading keeps up, that is said; a busy machine and few cores are noted."""
    few = replace(run, data=replace(run.data, num_workers=1))
    (first, *rest) = pace.speed(measured(4.0, 1.0, 1), few, 2).findings
    assert first.level == "WARNING" and "75% of the time" in first.message and "data.num_workers=4" in first.message
    assert "few_cores" in {item.code for item in rest}
    (first, *rest) = pace.speed(measured(1.0, 2.0, 1, busy=2.0), few, 8).findings
    assert first.level == "OK" and "50% of the time" in next(i.message for i in rest if i.code == "busy")


def test_the_whole_duration_is_said_and_a_long_one_warned_of(run, monkeypatch):
    """Steps times seconds from step to step: 32 hours are a warning, a minute is none; on a GPU nothing is known."""
    monkeypatch.setattr(pace.torch.cuda, "is_available", lambda: False)
    run = replace(run, optim=replace(run.optim, steps=40_000))
    found = picked(list(pace.speed(measured(0.1, 2.88, 1), run, 2).findings), "long")
    assert found.level == "WARNING" and found.count == 115_200
    assert "40,000 steps x 2.88 s from step to step = about 32 hours in all" in found.message
    short = picked(list(pace.speed(measured(0.0001, 0.0015, 1), run, 2).findings), "duration")
    assert short.level == "OK" and "about 60 s in all" in short.message
    monkeypatch.setattr(pace.torch.cuda, "is_available", lambda: True)
    run = replace(run, accelerator="auto")
    assert picked(list(pace.speed(measured(0.1, 2.88, 1), run, 2).findings), "duration").level == "NOTE"


def test_shared_memory_that_batches_fill_is_noted(run):
    """Of two loader processes eight batches lie ready at most: of 10 MB each they fill a container's 64 MB."""
    room = speed.Memory(parameters=1, gradients=1, moments=2, activations=1, batch=10**7, loader=1)
    run = replace(run, data=replace(run.data, num_workers=2))
    small, large = (pace.memory(room, run, 10**10, shared).findings for shared in (64 * 2**20, 10**9))
    assert "up to 80 MB of shared memory, and " in picked(list(small), "shared_memory").message
    assert [item.code for item in large] == ["memory"]


def test_memory_is_the_sum_of_its_parts_and_a_warning_where_it_does_not_fit(run):
    """For all ranks of this machine together."""
    parts = measured(1.0, 1.0, 1).memory
    assert parts.total == 50
    assert [pace.memory(parts, run, room).findings[0].level for room in (50, 49)] == ["OK", "WARNING"]
    two = replace(run, devices=2)
    assert pace.memory(parts, two, 99).findings[0].level == "WARNING"
    assert speed.loader_bytes(100, 3, 0) == 3 * 4 * 100 and speed.loader_bytes(100, 0, 1) == 2**20


def test_activations_grow_with_the_batch_and_not_with_how_often_they_are_asked(put, sets, run):
    """Twice the samples keep about twice the bytes; weights are not among them; no gradient is left behind."""
    put(sets)
    tokenizer = load_tokenizer("bytes")
    objectives = Objectives(build(run.model, tokenizer.size, run.contrastive, run.data.augment), run)
    batches = [
        next(iter(TrainStream(replace(run, data=replace(run.data, batch_size=n)), tokenizer, rank=0, world=1)))
        for n in (8, 16)
    ]
    small, large = (speed.activations(objectives, run, batch) for batch in batches)
    assert 1.6 < large / small < 2.4 and speed.activations(objectives, run, batches[0]) == small
    assert all(parameter.grad is None for parameter in objectives.parameters())
    found = speed.measure(run, tokenizer, 10**12).memory
    size = sum(p.numel() * p.element_size() for p in objectives.parameters())
    assert (found.parameters, found.gradients, found.moments) == (size, size, 2 * size)


def test_the_step_that_is_tried_is_that_of_training(put, sets, run, monkeypatch):
    """Its optimiser has the groups and rates of `optim.param_groups`; what is locked has no gradient and no moments."""
    put(sets)
    tokenizer, seen = load_tokenizer("bytes"), []
    rates = (ParamGroup(pattern="towers.*", lr_scale=0.0), ParamGroup(pattern="trunk.*", lr_scale=0.5))
    run = replace(run, optim=replace(run.optim, param_groups=rates))

    def groups(optimizer: torch.optim.Optimizer) -> list[tuple[float, float, list[int]]]:
        return [(g["lr"], g["weight_decay"], [p.numel() for p in g["params"]]) for g in optimizer.param_groups]

    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *rest: (seen.append(groups(self)), step(self, *rest)))
    found = speed.measure(run, tokenizer, 10**12).memory
    model = build(run.model, tokenizer.size, run.contrastive, run.data.augment)
    rate = run.optim.lr
    wanted = groups(optimizer_of(Objectives(model, run), run.optim, set_learning(model, run)))
    assert seen and all(one == wanted for one in seen) and {one[0] for one in wanted} == {rate, 0.5 * rate}
    locked = sum(p.numel() * p.element_size() for p in model.towers.parameters())
    assert locked and found.gradients == found.parameters - locked and found.moments == 2 * found.gradients


def test_a_batch_without_room_is_not_tried_but_reckoned(put, sets, run):
    """From the least that shares and ranks allow, or from twice as many as have room; about what trying would find."""
    put(sets)
    large, tokenizer = replace(run, data=replace(run.data, batch_size=32)), load_tokenizer("bytes")
    tried, reckoned = (speed.measure(large, tokenizer, room) for room in (10**12, 0))
    assert (tried.stepped, reckoned.stepped, tried.batch, reckoned.batch) == (32, 8, 32, 32)
    assert 0.6 < reckoned.memory.activations / tried.memory.activations < 1.6
    half = speed.measure(large, tokenizer, tried.memory.activations * 3 // 4)
    assert half.stepped == 16 and 0.6 < half.memory.activations / tried.memory.activations < 1.6
    assert "times 4" in next(i.message for i in pace.speed(reckoned, run, 8).findings if i.code == "extrapolated")


def test_the_size_of_a_model_is_guessed_well_enough():
    """Before any of it is built; so a model that has no room here is not tried."""
    run = toy_run(model=toy_config(), contrastive=())
    wide = replace(run.model, trunk=replace(run.model.trunk, width=96, depth=4), text=None, image=None)
    for model in (wide, replace(wide, audio=replace(wide.audio, width=64, depth=3))):
        true = sum(p.numel() for p in build(model, 256).parameters())
        assert 0.6 < speed.rough_parameters(model, 256) / true < 1.4
    huge = replace(run, model=replace(wide, trunk=replace(wide.trunk, width=96_000, depth=100)))
    (section, none) = pace.pace_and_memory(huge, load_tokenizer("bytes"))
    assert section.findings[0].code == "step_too_large" and none is None


# Remote


def test_remote_shards_are_looked_at_by_their_lists(put, sets, run, monkeypatch):
    """What their lists say is counted; a scheme that is refused is an error, and no traceback."""
    put(sets)
    entries = [shard_list.Entry(place="https://h/a.tar", bytes=10, samples=7, holds={"image": 7, "text": 6})]
    monkeypatch.setattr(shard_integrity, "expand_remote", lambda spec, store: entries)
    source = Source(shards="https://h/", modalities=("image", "text"))
    (one,) = shard_integrity.sets_of(replace(run, data=replace(run.data, train=(source,), val=""), eval=Eval()))
    _, section = shard_integrity.look([one], remote_cache.ShardCache(RemoteCache()), sums=True, fetch=False)
    listed = picked(list(section.findings), "not_looked_at")
    assert listed.level == "WARNING" and not any(item.level == "OK" for item in section.findings)
    assert "1 remote shard with 7 samples (image 7, text 6)" in listed.message and "--fetch" in listed.message
    assert picked(list(section.findings), "missing_text").count == 1
    monkeypatch.undo()
    ftp = replace(run, data=replace(run.data, train=(replace(source, shards="ftp://h/a.tar"),)))
    found = examine(ftp, "toy.py", QUICK)
    assert told(found, "remote_refused").level == "ERROR" and "ftp" in told(found, "remote_refused").message


def test_remote_shards_that_are_fetched_are_looked_into(put, sets, run, samples, monkeypatch, tmp_path):
    """What is wrong with them is told by their URL, also where the index beside it is of another tar; a server that
    fails is told, and no traceback.
    """
    put(sets)
    url, path = "https://h/val/image.tar", tmp_path / "val" / "image.tar"
    stale = index.index_path(path).read_text()
    put({"val/image.tar": {**sets["val/image.tar"], **samples("image", 90, 1)}})
    entry = shard_list.entry(url, index.load(path, path.stat().st_size))
    monkeypatch.setattr(shard_integrity, "expand_remote", lambda spec, store: [entry])
    monkeypatch.setattr(remote_cache.ShardCache, "local", lambda self, url, size, crc32: path)
    monkeypatch.setattr(remote_cache.ShardCache, "text", lambda self, url, limit: index.index_path(path).read_text())
    (*_, one) = shard_integrity.sets_of(replace(run, data=replace(run.data, val=url), eval=Eval()))
    known, section = shard_integrity.look([one], remote_cache.ShardCache(RemoteCache()), sums=True, fetch=True)
    assert [item.code for item in section.findings] == ["whole"] and len(known[0]) == 9
    assert shard_integrity.Proven(known[0].tars).where(8) == f"{url}: image-90"
    monkeypatch.setattr(remote_cache.ShardCache, "text", lambda self, url, limit: stale)
    _, section = shard_integrity.look([one], remote_cache.ShardCache(RemoteCache()), sums=True, fetch=True)
    assert picked(list(section.findings), "index_stale").examples == (url,)

    def broken(self, url, size, crc32):
        raise remote_cache.FetchError("h does not answer")

    monkeypatch.setattr(remote_cache.ShardCache, "local", broken)
    _, section = shard_integrity.look([one], remote_cache.ShardCache(RemoteCache()), sums=True, fetch=True)
    assert "h does not answer" in picked(list(section.findings), "remote_refused").message


def test_what_is_not_looked_at_is_not_called_sound(put, sets, run, monkeypatch):
    """A split behind a URL beside sets that are here: what is said of all says that it is not of this one."""
    put(sets)
    entries = [shard_list.Entry(place="https://h/v/a.tar", bytes=10, samples=7, holds={"image": 7, "text": 7})]
    monkeypatch.setattr(shard_integrity, "expand_remote", lambda spec, store: entries)
    listed = lambda source, data: Shards([entries[0]] if "://" in source.shards else expand(source.shards))  # noqa: E731
    monkeypatch.setattr(run_of_doctor, "open_source", listed)
    found = examine(replace(run, data=replace(run.data, val="https://h/v")), "toy.py", QUICK)
    assert told(found, "not_looked_at").level == "WARNING" and "nothing is wrong" not in found.verdict
    for code in ("present", "decodes", "lengths"):
        for item in (i for section in found.sections for i in section.findings if i.code == code):
            assert item.message.endswith("; nothing is known of v, not looked at"), item


# Documents


@pytest.fixture
def documents(samples) -> Callable[[int, int], Parts]:
    """documents(first, count): two pictures, a sound and two texts to each."""

    def make(first: int, count: int) -> Parts:
        pictures, sounds = samples("image", 2 * first, 2 * count), samples("audio", first, count)
        png = [parts["png"] for parts in pictures.values()]
        return {
            f"d{first + n}": {
                "0.png": png[2 * n], "1.txt": b"what is it", "2.png": png[2 * n + 1], "3.wav": sound["wav"],
                "4.wav": sound["wav"], "5.txt": f"it is {first + n}".encode(),
            }
            for n, sound in enumerate(sounds.values())
        }  # fmt: skip

    return make


def of_documents(run: Run, tmp_path: Path) -> Run:
    sources = (Source(shards=str(tmp_path / "train"), modalities=("image", "audio", "text")),)
    data = replace(run.data, train=sources, max_seconds=0.3)
    return replace(run, data=data, generative=(Generative(task="image,text>text"),))


def test_documents_are_fit(put, documents, run, tmp_path):
    """Each picture, sound and text is looked at, by the reader of training: nothing is missing and all decode; two
    sounds of 0.2 s are none that is too long."""
    put({"train/0.tar": documents(0, 12), "val/0.tar": documents(40, 5), "test/0.tar": documents(60, 5)})
    found = examine(of_documents(run, tmp_path), "toy.py", QUICK)
    assert found.status == 0 and not codes(found, "WARNING", "ERROR"), found
    assert told(found, "decodes").count == 22
    (lengths,) = [section for section in found.sections if section.name == "Lengths"]
    counts = {one.title: {row.name: row.n for row in one.rows} for one in lengths.distributions}
    assert counts["Width of pictures"]["val"] == 10 and counts["Length of sounds"]["val"] == 10


def test_a_damaged_part_of_a_document_is_found(put, documents, run, tmp_path):
    """Named with its number; so is a document without a text."""
    sets = {"train/0.tar": documents(0, 12), "val/0.tar": documents(40, 5), "test/0.tar": documents(60, 5)}
    sets["train/0.tar"]["d3"]["2.png"] = sets["train/0.tar"]["d3"]["2.png"][:50]
    sets["train/0.tar"]["d4"] = {name: sets["train/0.tar"]["d4"][name] for name in ("0.png", "3.wav")}
    put(sets)
    found = examine(of_documents(run, tmp_path), "toy.py", QUICK)
    assert "0.tar: d3.2" in told(found, "image_damaged").examples[0]
    assert told(found, "missing_text").count == 1 and told(found, "image_damaged").count == 1


def test_every_picture_of_a_document_can_leak(put, documents, run, tmp_path):
    """One that is not the largest, and one that is encoded again."""
    sets = {"train/0.tar": documents(0, 12), "val/0.tar": documents(40, 5), "test/0.tar": documents(60, 5)}
    sets["val/0.tar"]["d41"]["0.png"] = sets["train/0.tar"]["d5"]["2.png"]
    again = Image.open(io.BytesIO(sets["train/0.tar"]["d7"]["0.png"]))
    del sets["test/0.tar"]["d62"]["2.png"]
    sets["test/0.tar"]["d62"]["2.jpg"] = encoded(again, "JPEG", quality=90)
    put(sets)
    found = twins(of_documents(run, tmp_path))
    (case,) = picked(found, "leak_image").examples
    assert "0.tar: d41.0 = " in case and case.endswith("0.tar: d5.2")
    (near_case,) = picked(found, "near_image").examples
    assert "0.tar: d62.2 ~ " in near_case and "0.tar: d7.0 (" in near_case


def test_colours_tell_shapes_apart(put, run, encode_image):
    """A green and a purple square of one grey are two pictures."""

    def square(colour: tuple[int, int, int]) -> bytes:
        pixels = np.full((32, 32, 3), 255, np.uint8)
        pixels[8:20, 6:24] = colour
        return encode_image(pixels)

    train, test = {"g": {"png": square((0, 160, 0)), "txt": b"x"}}, {"p": {"png": square((180, 60, 180)), "txt": b"x"}}
    put({"train/image.tar": train, "test/image.tar": test, "val/image.tar": {"v": test["p"]}})
    found = twins(replace(run, data=replace(run.data, train=run.data.train[:1])))
    assert not [item for item in found if item.code == "near_image"]


# Pages, JSON, command


def no_constant(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


HOSTILE = "<script>alert(1)</script>\x1b[31m\udcff&amp;\nnext"


def hostile() -> Report:
    item = finding("ERROR", "leak_image", f"a {HOSTILE}", [f"t.tar: {HOSTILE}"], 7)
    drawn = distribution("Length", "s", [(HOSTILE, np.array([1.0, 2.0, 2.0]))])
    assert drawn is not None
    return Report(
        run="toy",
        config="toy.py",
        seconds=1.5,
        sections=(Section(name="One", findings=(item,), distributions=(drawn,)),),
    )


def test_json_is_strict_and_complete(put, sets, run):
    """Every finding, table and bin comes back; the verdict and the exit status stand beside them."""
    put(sets)
    found = examine(run, "toy.py", QUICK)
    tree = json.loads(to_json(found), parse_constant=no_constant)
    assert (tree["format"], tree["status"], tree["verdict"]) == (1, 0, found.verdict)
    assert [s["name"] for s in tree["sections"]] == [s.name for s in found.sections]
    assert [f["message"] for s in tree["sections"] for f in s["findings"]] == [
        f.message for s in found.sections for f in s.findings
    ]
    assert sum(tree["counts"].values()) == sum(len(s.findings) for s in found.sections)
    rows = [row for s in tree["sections"] for d in s["distributions"] for row in d["rows"]]
    assert rows and all(sum(row["counts"]) == row["n"] for row in rows)
    assert all(
        len(row["counts"]) + 1 == len(d["edges"])
        for s in tree["sections"]
        for d in s["distributions"]
        for row in d["rows"]
    )
    to_json(hostile()).encode()


def test_the_page_says_all_and_can_do_nothing(put, sets, run):
    """Each finding and example stands in it, escaped; its policy allows its own style and nothing else."""
    put(sets)
    for found in (examine(run, "toy.py", QUICK), hostile()):
        page = render(found)
        page.encode()
        for item in (item for section in found.sections for item in section.findings):
            assert html.escape(item.message) in page and all(html.escape(case) in page for case in item.examples)
        assert found.verdict in page and "<script" not in page and "\x1b" not in page
        (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
        (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert html.unescape(policy).startswith(
            f"default-src 'none'; img-src data:; media-src data:; style-src 'sha256-{digest}';"
        )
    assert "&lt;script&gt;" in render(hostile()) and "and 6 more" in render(hostile())


def test_the_terminal_shows_all_and_obeys_nothing():
    """Brackets are no markup, and codes of a key move no cursor."""
    screen = io.StringIO()
    item = finding("WARNING", "x", "see [bold]this[/bold]", [HOSTILE])
    one = Report(run="toy", config="c", seconds=1.0, sections=(Section(name="S [red]", findings=(item,)),))
    terminal.show(one, Console(file=screen, width=120, force_terminal=False))
    assert "[bold]this[/bold]" in screen.getvalue() and "S [red]" in screen.getvalue()
    assert "\x1b" not in screen.getvalue() and "\\x1b[31m\\udcff&amp;\\nnext" in screen.getvalue()
    assert terminal.bars((0, 1, 100)) == " ▁█" and "1 warning to read first" in screen.getvalue()


def test_clean_is_one_printable_line():
    """Letters of any script stay; what is long is cut."""
    assert clean("été 猫") == "été 猫" and clean("a\nb\x07") == "a\\nb\\x07"
    assert len(clean("x" * 10_000)) == 400


def test_distributions_hold_every_value():
    """Whole numbers in bins of equally many; wide spans logarithmic; none where there is nothing."""
    draw = np.random.default_rng(0)
    for values in (draw.integers(0, 7, 50), draw.integers(3, 500, 99), draw.lognormal(0, 3, 200), np.array([2.0])):
        drawn = distribution("x", "", [("a", values), ("b", values[:1])])
        assert isinstance(drawn, Distribution)
        assert [sum(row.counts) for row in drawn.rows] == [len(values), 1]
        assert drawn.rows[0].median == sorted(values)[(len(values) - 1) // 2]
    assert distribution("x", "", [("a", np.zeros(0))]) is None


@pytest.fixture
def config(run, tmp_path) -> Path:
    (path := tmp_path / "run.json").write_text(run_to_json(run))
    return path


def test_the_exit_status_says_whether_to_go(put, sets, config, tmp_path, capsys):
    """0 and 2; `--json -` is alone on the standard output; the page and the JSON are written beside the terminal's."""
    put(sets)
    assert main(["doctor", str(config), "--quick", "--json", "-"]) == 0
    out, error = capsys.readouterr()
    assert json.loads(out)["status"] == 0
    assert error.splitlines() == [f"looking at {what}" for what in ("shards", "lengths", "decoding")]
    (tmp_path / "val" / "image.tar").write_bytes(b"no tar" * 500)
    page, tree = tmp_path / "page.html", tmp_path / "tree.json"
    assert main(["doctor", str(config), "--quick", "--html", str(page), "--json", str(tree)]) == 2
    out, error = capsys.readouterr()
    assert "Do not train toy yet" in out
    assert all(line.startswith("looking at ") for line in error.splitlines())
    assert "image.tar is damaged" in page.read_text() and json.loads(tree.read_text())["status"] == 2


MISTAKES = {
    "no configuration": ("{folder}/none.py", "no configuration at"),
    "a folder for a file": ("{config} --html {folder}", "is a folder; give the name of a file in it"),
    "no folder": ("{config} --json {folder}/a/b.json", "there is no folder"),
    "less than nothing": ("{config} --samples -1", "--samples -1 must not be negative"),
}


@pytest.mark.parametrize(("line", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(line, words, config, tmp_path, capsys):
    """Before any work, as for every command."""
    assert main(["doctor", *(word.format(config=config, folder=tmp_path) for word in line.split())]) == 2
    out, error = capsys.readouterr()
    assert out == "" and words in error and error.count("\n") == 1


def test_a_run_without_data_is_told_and_not_a_traceback(run):
    """What `mmfm train` would say is a finding here; nothing else has anything to say."""
    found = examine(replace(run, data=Data()), "toy.py", ScanOptions())
    assert "no training data" in told(found, "refused").message and found.status == 2


def test_the_seed_of_torch_is_left_alone_by_a_quick_look(put, sets, run):
    """Looking at data draws nothing from torch's generator."""
    put(sets)
    before = torch.get_rng_state()
    examine(run, "toy.py", QUICK)
    assert torch.equal(before, torch.get_rng_state())
