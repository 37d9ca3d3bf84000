"""`numbers`: a hundred two-digit numbers as real handwriting, as speech and as words, in WebDataset shards.

A picture is two scans of scikit-learn's `load_digits` side by side, a clip is the number's name spoken by espeak-ng.
A sample holds a picture and a text or a clip and a text, never a picture with a clip: that the two agree must be
learned through words. Scans are split before they are paired, voices and accents before anything is spoken, and twenty
numbers are kept out of training altogether. The same arguments give the same bytes.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import numpy as np
import sklearn
import webdataset
from jaxtyping import UInt8
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from sklearn.datasets import load_digits

from mmfm.config import UserError, require
from mmfm.data import speech
from mmfm.data.speech import Utterance
from mmfm.inputs.text import train_tokenizer

FORMAT = 1  # raised when the same arguments give other bytes
SHARD, VOCABULARY = 1_000, 384
UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

# A walk down the diagonals of tens 2-9 and units 1-9: it meets every tens digit and every units digit two or three times.
UNSEEN = tuple(sorted(10 * (2 + step % 8) + 1 + 4 * step % 9 for step in range(20)))
SEEN = tuple(number for number in range(100) if number not in UNSEEN)

PLAIN = "{}"  # half of the training captions, and every caption of the other splits
PHRASES = {
    "image": (
        *("the number {}", "this is {}", "it says {}", "a picture of {}", "handwritten {}", "someone wrote {}"),
        *("two digits, {}", "it reads {}"),
    ),
    "audio": (
        *("the number {}", "this is {}", "it says {}", "a voice says {}", "spoken {}", "someone said {}"),
        *("you hear {}", "it sounds like {}"),
    ),
}

# Kept together: variants that differ in little more than their name. Nearest to a voice of training, by the distance of
# their aligned log-mel spectra, is a test voice at 0.9 of the distance of two accents.
VARIANTS_TEST = (
    *("Andrea", "Denis", "Gene", "Gene2", "Marco", "Mario", "Nguyen", "anika", "anikaRobot", "belinda", "ed", "f3"),
    *("linda", "m2", "m7", "paul", "quincy", "rob", "robert", "victor"),
)
VARIANTS_VAL = ("Annie", "boris", "f1", "m4", "norbert", "sandro", "steph", "steph2", "steph3", "travis")
VARIANTS_LEFT_OUT = ("RicishayMax", "RicishayMax2", "RicishayMax3", "zac")  # an echo longer than the words; a squeak
ACCENTS_TRAIN = ("en", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-x-rp", "en-us", "en-us-nyc")
ACCENTS_TEST = ("en-029", "en-gb-scotland")
RATES_WPM, PITCHES = (130, 220), (25, 75)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Where a split's numbers, scans and voices come from."""

    name: str
    numbers: tuple[int, ...]
    scans: range
    variants: tuple[str, ...]
    accents: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Picture:
    number: int
    scans: tuple[int, int]
    caption: str


@dataclass(frozen=True, kw_only=True)
class Clip:
    number: int
    utterance: Utterance
    caption: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a split will hold, in the order of its shards."""

    split: Split
    pictures: list[Picture]
    clips: list[Clip]


Item = TypeVar("Item")


def name(number: int) -> str:
    """In words: 7 is "seven", 42 is "forty-two"."""
    if number < len(UNITS):
        return UNITS[number]
    return TENS[number // 10 - 2] + (f"-{UNITS[number % 10]}" if number % 10 else "")


def splits() -> tuple[Split, ...]:
    """Train, val, test and test-unseen. Voices of training are all that the wheel has and nobody else needs."""
    apart = {*VARIANTS_TEST, *VARIANTS_VAL, *VARIANTS_LEFT_OUT}
    missing = sorted(apart.difference(speech.variants()))
    require(not missing, f"espeak-ng has no variant {', '.join(missing)}; install espeakng-loader 0.2.4")
    train = tuple(variant for variant in speech.variants() if variant not in apart)
    test = {"scans": range(1_437, 1_797), "variants": VARIANTS_TEST, "accents": ACCENTS_TEST}
    return (
        Split(name="train", numbers=SEEN, scans=range(1_297), variants=train, accents=ACCENTS_TRAIN),
        Split(name="val", numbers=SEEN, scans=range(1_297, 1_437), variants=VARIANTS_VAL, accents=ACCENTS_TRAIN),
        Split(name="test", numbers=SEEN, **test),
        Split(name="test-unseen", numbers=UNSEEN, **test),
    )


def _deal(items: Sequence[Item], random: Random) -> Iterator[Item]:
    """Every item once in a random order, then all again in another, without end."""
    while True:
        yield from random.sample(items, len(items))


def _captions(split: Split, modality: str, number: int, count: int, random: Random) -> list[str]:
    """Half of them plain in training, the others phrased; all of them plain elsewhere."""
    phrased = count // 2 if split.name == "train" else 0
    phrases = _deal(PHRASES[modality], random)
    return [(next(phrases) if i < phrased else PLAIN).format(name(number)) for i in range(count)]


def _pictures(split: Split, digits: Sequence[int], count: int, random: Random) -> list[Picture]:
    """`count` of each number, no two alike; every scan of a digit is used as often as the others, give or take one or two."""
    decks = {d: _deal([i for i in split.scans if digits[i] == d], random) for d in range(10)}
    made = []
    for number in split.numbers:
        captions = _captions(split, "image", number, count, random)
        pairs: dict[tuple[int, int], None] = {}
        while len(pairs) < count:
            left, right = next(decks[number // 10]), next(decks[number % 10])
            if left != right:
                pairs[left, right] = None
        made += [Picture(number=number, scans=pair, caption=c) for pair, c in zip(pairs, captions, strict=True)]
    return random.sample(made, len(made))


def _clips(split: Split, count: int, random: Random) -> list[Clip]:
    """`count` of each number, every voice as often as the others, at random speeds and pitches."""
    voices = _deal([f"{accent}+{variant}" for accent in split.accents for variant in split.variants], random)
    made = []
    for number in split.numbers:
        for caption in _captions(split, "audio", number, count, random):
            rate_wpm, pitch = random.randint(*RATES_WPM), random.randint(*PITCHES)
            said = Utterance(text=name(number), voice=next(voices), rate_wpm=rate_wpm, pitch=pitch)
            made.append(Clip(number=number, utterance=said, caption=caption))
    return random.sample(made, len(made))


def side_by_side(left: UInt8[np.ndarray, "8 8"], right: UInt8[np.ndarray, "8 8"]) -> bytes:
    """The two scans, white ink on black, as a PNG of 16 x 8 px."""
    file = io.BytesIO()
    Image.fromarray(np.concatenate([left, right], axis=1)).save(file, format="PNG")
    return file.getvalue()


def _picture_sample(picture: Picture, images: UInt8[np.ndarray, "n 8 8"]) -> dict[str, Any]:
    left, right = picture.scans
    about = {"number": picture.number, "label": name(picture.number), "scans": [left, right]}
    return {"png": side_by_side(images[left], images[right]), "txt": picture.caption, "json": about}


def _clip_sample(clip: Clip, flac: bytes) -> dict[str, Any]:
    said = {"voice": clip.utterance.voice, "rate_wpm": clip.utterance.rate_wpm, "pitch": clip.utterance.pitch}
    return {"flac": flac, "txt": clip.caption, "json": {"number": clip.number, "label": name(clip.number), **said}}


def plan(digits: Sequence[int], *, seed: int, images: int, clips: int, evals: int) -> list[Plan]:
    """What `build` writes, before anything is drawn or spoken. `digits`: what each scan shows."""
    plans = []
    for split in splits():
        own = {"test-unseen": 3 * evals}.get(split.name, evals)
        shown, heard = (images, clips) if split.name == "train" else (own, own)
        pictures = _pictures(split, digits, shown, Random(f"{seed} {split.name} pictures"))
        spoken = _clips(split, heard, Random(f"{seed} {split.name} clips"))
        plans.append(Plan(split=split, pictures=pictures, clips=spoken))
    return plans


def _write_shards(folder: Path, modality: str, samples: Iterator[dict[str, Any]], count: int) -> None:
    """Shards of SHARD samples. No header carries the time or the user, so equal samples are equal bytes."""
    for first in range(0, count, SHARD):
        path = folder / f"{modality}-{first // SHARD:06d}.tar"
        with path.open("wb") as file, webdataset.TarWriter(file, mtime=0, user="", group="") as tar:
            for index, sample in zip(range(first, min(first + SHARD, count)), samples, strict=False):
                tar.write({"__key__": f"{folder.name}-{modality}-{index:06d}", **sample})


def _write_splits(folder: Path, plans: Sequence[Plan], digits: Any, tick: Callable[[str], None]) -> None:
    """Every split's shards and class names. The clips of all splits are one stream, in the order of the plans."""
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)

    def ticked(split: Split, samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            yield sample
            tick(split.name)

    with closing(speech.speak([clip.utterance for made in plans for clip in made.clips])) as flacs:
        for made in plans:
            inside = folder / made.split.name
            inside.mkdir()
            (inside / "classnames.txt").write_text("".join(name(number) + "\n" for number in range(100)))
            drawn = ticked(made.split, (_picture_sample(picture, images) for picture in made.pictures))
            _write_shards(inside, "image", drawn, len(made.pictures))
            spoken = ticked(made.split, (_clip_sample(clip, next(flacs)) for clip in made.clips))
            _write_shards(inside, "audio", spoken, len(made.clips))


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} samples/s")


@contextmanager
def _ticker(total: int, shown: bool) -> Iterator[Callable[[str], None]]:
    """A bar with the split, the speed and the time left."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn()
    with Progress(*columns, disable=not shown, transient=True) as bar:
        task = bar.add_task("numbers", total=total)
        yield lambda split: bar.update(task, advance=1, description=f"numbers: {split}")


def build(
    folder: Path,
    *,
    seed: int = 0,
    images_per_number: int = 75,
    clips_per_number: int = 75,
    eval_per_number: int = 8,
    progress: bool = True,
) -> None:
    """Write the data set into `folder`, which must be new or empty, or hold just this data set: then nothing is done.

    `images_per_number` and `clips_per_number` are of train; val and test have `eval_per_number` of each, and
    test-unseen three times as many. Everything is made in a folder beside it, which takes its name when complete.
    """
    folder = folder.resolve()
    sizes = {
        "images_per_number": images_per_number,
        "clips_per_number": clips_per_number,
        "eval_per_number": eval_per_number,
    }
    for what, value in sizes.items():
        require(1 <= value <= 1_000, f"{what}={value} must be between 1 and 1000")
    wanted = {"format": FORMAT, "seed": seed, **sizes}
    if _complete(folder, wanted):
        print(f"{folder} is complete; nothing to do")
        return
    partial = folder.with_name(folder.name + ".partial")
    try:
        _build(partial, wanted, progress)
        partial.rename(folder)
    except OSError as why:
        raise UserError(
            f"cannot write {folder}: {why.strerror or why}; make room there or choose another folder"
        ) from why
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{folder} is complete")


def _complete(folder: Path, wanted: dict[str, int]) -> bool:
    """Whether `folder` is just what is wanted; False if there is nothing. UserError if it is something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    remedy = "choose another folder, or delete this one and build again"
    try:
        manifest = json.loads((folder / "numbers.json").read_text())
        found, files = manifest["arguments"], manifest["files"]
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{folder} exists and is no `numbers` data set; {remedy}") from None
    differing = [f"{key}={found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value]
    require(not differing, f"{folder} was built with {'; '.join(differing)}; {remedy}")
    for path, about in files.items():
        whole = (folder / path).is_file() and (folder / path).stat().st_size == about["bytes"]
        require(whole, f"{folder / path} is missing or was changed; {remedy}")
    return True


def _build(folder: Path, wanted: dict[str, int], progress: bool) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    digits: Any = load_digits()
    images, clips, evals = (wanted[f"{what}_per_number"] for what in ("images", "clips", "eval"))
    plans = plan(digits.target.tolist(), seed=wanted["seed"], images=images, clips=clips, evals=evals)
    with _ticker(sum(len(made.pictures) + len(made.clips) for made in plans), progress) as tick:
        _write_splits(folder, plans, digits, tick)
    captions = [item.caption for item in (*plans[0].pictures, *plans[0].clips)]
    (folder / "tokenizer.json").write_text(train_tokenizer(captions, VOCABULARY).to_json())
    (folder / "README.md").write_text(_readme(plans))
    manifest = {
        "arguments": wanted,
        "made_with": {"espeak-ng": speech.version(), "scikit-learn": sklearn.__version__},
        "unseen": list(UNSEEN),
        "splits": {made.split.name: _about(made) for made in plans},
        "files": {str(path.relative_to(folder)): _print_of(path) for path in sorted(folder.rglob("*.*"))},
    }
    (folder / "numbers.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _about(made: Plan) -> dict[str, Any]:
    split = made.split
    return {
        "numbers": len(split.numbers),
        "image": len(made.pictures),
        "audio": len(made.clips),
        "scans": [split.scans.start, split.scans.stop - 1],
        "variants": list(split.variants),
        "accents": list(split.accents),
    }


def _print_of(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


README = """\
# numbers

A hundred two-digit numbers, 00 to 99, as real handwriting, as speech and as words. WebDataset shards: samples of
`.png .txt .json` (a picture of 16 x 8 px and its caption) and of `.flac .txt .json` (a clip, mono, 16 bit, 16 kHz, and
its caption). No sample has both a picture and a clip. `numbers.json` has the arguments that built it, and the size and
hash of every file.

| split | numbers | image-text | audio-text | scans | voices | captions |
|---|---|---|---|---|---|---|
{rows}

The numbers of test-unseen are in no picture, clip or caption of training: {unseen}.
Every digit at both places, every tens word and every units word is in training.

- Pictures: two scans of scikit-learn's `load_digits` side by side, tens on the left. `scans` in the JSON are their
  indexes there. The scans were split, by index, before they were paired; no pair comes twice within a split.
- Clips: the name of the number ("seven", "forty-two") spoken by espeak-ng {espeak}. `voice` is accent+variant;
  {rate_low} to {rate_high} words a minute, pitch {pitch_low} to {pitch_high} of 99. Silence at the ends is cut to {edge_ms} ms, then one
  polyphase resampling from 22,050 Hz. Voices left out, as they are hardly speech: {left_out}.
- Captions: the plain name; in training, half of them are phrased ("{phrase}").
- `tokenizer.json`: byte-level BPE of {vocabulary} tokens, trained on the training captions only.

## Voices
{voices}

## Licences

- Scans: the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, UCI Machine
  Learning Repository, doi 10.24432/C50P49), CC BY 4.0. Changed: two scans side by side, values 0-16 stretched to 0-255.
- Speech: espeak-ng is a program under the GPL, version 3 or later. That licence covers the program and its data files.
  What a program puts out is in general not covered by its licence, unless the output carries parts of the program; and
  espeak-ng mixes short recorded consonants from its data files into its speech. Whether those make a clip a derived
  work is not settled, and nothing here settles it. The clips were made on the machine where this folder was built;
  to use them there is free. Who passes the clips on should decide that question first.
"""


def _readme(plans: Sequence[Plan]) -> str:
    rows, voices = [], []
    for made in plans:
        split, about = made.split, _about(made)
        heard = f"{len(split.variants)} variants x {len(split.accents)} accents"
        style = "half phrased" if split.name == "train" else "plain"
        cells = (
            split.name,
            about["numbers"],
            about["image"],
            about["audio"],
            "{}-{}".format(*about["scans"]),
            heard,
            style,
        )
        rows.append("| " + " | ".join(map(str, cells)) + " |")
        voices.append(f"- {split.name}: accents {', '.join(split.accents)}; variants {', '.join(split.variants)}.")
    return README.format(
        rows="\n".join(rows),
        voices="\n".join(voices),
        unseen=", ".join(map(name, UNSEEN)),
        espeak=speech.version(),
        rate_low=RATES_WPM[0],
        rate_high=RATES_WPM[1],
        pitch_low=PITCHES[0],
        pitch_high=PITCHES[1],
        edge_ms=round(1_000 * speech.EDGE_SECONDS),
        left_out=", ".join(VARIANTS_LEFT_OUT),
        phrase=PHRASES["image"][0].format(name(42)),
        vocabulary=VOCABULARY,
    )
