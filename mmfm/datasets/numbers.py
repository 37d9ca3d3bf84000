"""`numbers`: a hundred two-digit numbers as real handwriting, as speech and as words, in WebDataset shards.

A picture is two scans of scikit-learn's `load_digits` side by side, a clip is the number's name spoken by espeak-ng.
A sample holds a picture and a text or a clip and a text, never a picture with a clip: that the two agree must be
learned through words. Everything comes with pip. The same arguments give the same bytes.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from jaxtyping import UInt8
from PIL import Image
from sklearn.datasets import load_digits

from mmfm.config import require
from mmfm.data import shard_list
from mmfm.data.progress import ticker
from mmfm.data.writer import ShardWriter, as_json
from mmfm.datasets import espeak, speech
from mmfm.datasets.folder import PARTIAL, complete, prints
from mmfm.datasets.numbers_plan import PHRASES, PITCHES, RATES_WPM, VARIANTS_LEFT_OUT, Clip, Picture, Plan, name, plan
from mmfm.preprocessing.tokenizer import train_tokenizer
from mmfm.runtime.files import output_folder, replace_file

FORMAT = 1  # raised when the same arguments give other bytes
SHARD, VOCABULARY = 1_000, 384  # samples; ids


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
    test-unseen three times as many. All is made in a folder beside it, NAME.partial, which takes its name when whole.
    """
    images, clips, evals = images_per_number, clips_per_number, eval_per_number
    wanted = {"images_per_number": images, "clips_per_number": clips, "eval_per_number": evals}
    for what, value in wanted.items():
        require(1 <= value <= 1_000, f"{what}={value} must be between 1 and 1000")
    wanted |= {"seed": seed, "format": FORMAT}
    if complete(folder, "numbers", wanted):
        print(f"{folder} is complete already; nothing to do")
        return
    with output_folder(folder, PARTIAL) as partial:
        _build(partial, wanted, progress)
    print(f"{folder} is complete")


def _build(folder: Path, wanted: dict[str, int], progress: bool) -> None:
    scans, digits = _scans()
    images, clips, evals = (wanted[f"{what}_per_number"] for what in ("images", "clips", "eval"))
    plans = plan(digits, seed=wanted["seed"], images=images, clips=clips, evals=evals)
    with ticker("numbers", sum(len(made.pictures) + len(made.clips) for made in plans), progress) as tick:
        _write_splits(folder, plans, scans, tick)
    captions = [item.caption for item in (*plans[0].pictures, *plans[0].clips)]
    replace_file(folder / "tokenizer.json", train_tokenizer(captions, VOCABULARY).to_json())
    replace_file(folder / "README.md", _readme(plans))
    manifest = {
        "arguments": wanted,
        "made_with": {"espeak-ng": espeak.version(), "scikit-learn": sklearn.__version__},
        "unseen": list(_unseen(plans)),
        "splits": {made.split.name: _about(made) for made in plans},
        "files": prints(folder),
    }
    replace_file(folder / "numbers.json", json.dumps(manifest, indent=1) + "\n")


def _write_splits(
    folder: Path, plans: Sequence[Plan], scans: UInt8[np.ndarray, "n 8 8"], tick: Callable[[str], None]
) -> None:
    """Every split's shards and class names. The clips of all splits are one stream, in the order of the plans."""

    def ticked(split: str, samples: Iterator[dict[str, bytes]]) -> Iterator[dict[str, bytes]]:
        for sample in samples:
            yield sample
            tick(split)

    with closing(speech.speak([clip.utterance for made in plans for clip in made.clips])) as flacs:
        for made in plans:
            split = made.split.name
            (folder / split).mkdir()
            replace_file(folder / split / "classnames.txt", "".join(f"{name(number)}\n" for number in range(100)))
            drawn = (_picture_sample(picture, scans) for picture in made.pictures)
            _write_shards(folder / split, "image", ticked(split, drawn))
            spoken = (_clip_sample(clip, next(flacs)) for clip in made.clips)
            _write_shards(folder / split, "audio", ticked(split, spoken))
            shard_list.write_list(folder / split)


def _write_shards(folder: Path, modality: str, samples: Iterator[dict[str, bytes]]) -> None:
    with ShardWriter(folder, modality, samples=SHARD) as writer:
        for number, sample in enumerate(samples):
            writer.write(f"{folder.name}-{modality}-{number:06d}", dict(sorted(sample.items())))


def _scans() -> tuple[UInt8[np.ndarray, "n 8 8"], list[int]]:
    """The scans, 0 to 255, white ink on black, and the digits that they show."""
    pixels, digits = load_digits(return_X_y=True)
    return np.rint(np.reshape(pixels, (-1, 8, 8)) * (255 / 16)).astype(np.uint8), [int(digit) for digit in digits]


def _picture_sample(picture: Picture, scans: UInt8[np.ndarray, "n 8 8"]) -> dict[str, bytes]:
    """A grey PNG, 16 px wide and 8 px high: tens on the left."""
    file = io.BytesIO()
    Image.fromarray(np.concatenate([scans[index] for index in picture.scans], axis=1)).save(file, format="PNG")
    about = {"number": picture.number, "label": name(picture.number), "scans": list(picture.scans)}
    return {"png": file.getvalue(), "txt": picture.caption.encode(), "json": as_json(about)}


def _clip_sample(clip: Clip, flac: bytes) -> dict[str, bytes]:
    said = {"voice": clip.utterance.voice, "rate_wpm": clip.utterance.rate_wpm, "pitch": clip.utterance.pitch}
    return {
        "flac": flac,
        "txt": clip.caption.encode(),
        "json": as_json({"number": clip.number, "label": name(clip.number), **said}),
    }


def _about(made: Plan) -> dict[str, Any]:
    split = made.split
    return {
        "numbers": len(split.numbers),
        "image": len(made.pictures),
        "audio": len(made.clips),
        "scans": [split.scans.start, split.scans.stop - 1],
        "accents": list(split.accents),
        "variants": list(split.variants),
    }


README = """\
# numbers

A hundred two-digit numbers, 00 to 99, as real handwriting, as speech and as words. WebDataset shards: samples of
`.png .txt .json` (a grey picture of 16 x 8 px and its caption) and of `.flac .txt .json` (a clip, mono, 16 bit,
16 kHz, and its caption). No sample has both a picture and a clip. `numbers.json` holds the arguments that built it, and
the size and hash of every file.

| split | numbers | image-text | audio-text | scans | voices | captions |
|---|---|---|---|---|---|---|
{rows}

Never in a picture, clip or caption of training: {unseen}.
Every digit at either place, every tens word and every units word is in training.

- Pictures: two scans of scikit-learn's `load_digits`, tens on the left; `scans` in the JSON are their indexes there.
  The scans were split by index before they were paired, and no pair comes twice within a split.
- Clips: the name of the number ("seven", "forty-two") spoken by espeak-ng {espeak}; `voice` in the JSON is
  accent+variant. {rates} words a minute, pitch {pitches} of 99. The silence at the ends was cut to {edge_ms} ms,
  and the sound resampled once, from 22,050 Hz by a polyphase filter.
- Captions: the plain name; in training half of them are phrased, such as "{phrase}".
- `tokenizer.json`: byte-level BPE of {vocabulary} ids, trained on the training captions alone.

## Voices

{voices}

Left out as hardly speech: {left_out}.

## Licences

- Scans: the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998; UCI Machine
  Learning Repository, doi 10.24432/C50P49), CC BY 4.0. Changed here: two scans side by side, 0-16 stretched to 0-255.
- Speech: espeak-ng is a program under the GNU GPL, version 3 or later. That licence covers the program and its data
  files. What a program puts out is in general not covered by its licence unless it carries parts of the program, and
  espeak-ng does mix short recorded consonants from its data files into what it says. Whether this makes a clip a
  derived work is not settled, and this file does not settle it. The clips were made on the machine that built this
  folder, where using them needs no further permission; settle the question before you pass them on.
"""


def _unseen(plans: Sequence[Plan]) -> tuple[int, ...]:
    """The numbers of test-unseen, as they were planned."""
    return next(made.split.numbers for made in plans if made.split.name == "test-unseen")


def _readme(plans: Sequence[Plan]) -> str:
    rows, voices = [], []
    for made in plans:
        split, about = made.split, _about(made)
        heard = f"{len(split.variants)} variants x {len(split.accents)} accents"
        style = "half phrased" if split.name == "train" else "plain"
        scans = "{}-{}".format(*about["scans"])
        rows.append(
            f"| {split.name} | {about['numbers']} | {about['image']} | {about['audio']} | {scans} | {heard} | {style} |"
        )
        voices.append(f"- {split.name}: accents {', '.join(split.accents)}; variants {', '.join(split.variants)}.")
    return README.format(
        rows="\n".join(rows),
        voices="\n".join(voices),
        unseen=", ".join(map(name, _unseen(plans))),
        espeak=espeak.version(),
        rates="{} to {}".format(*RATES_WPM),
        pitches="{} to {}".format(*PITCHES),
        edge_ms=round(1_000 * speech.EDGE_SECONDS),
        left_out=", ".join(VARIANTS_LEFT_OUT),
        phrase=PHRASES["image"][0].format(name(42)),
        vocabulary=VOCABULARY,
    )
