"""Two things that are decoded in part instead of whole, each against the other way in the same process.

Sounds: 3 s out of 180 s, by seek, against decoding all and taking a slice; the samples are checked to be equal.
Pictures: JPEGs of 512 px on the shorter side to a random crop of 224 px, by `picture` (scaled and exact) and by the
transform of open_clip's training. Ours stays in 8 bits, as normalising belongs to the device; open_clip's gives floats.
Both are given bytes in memory and one thread. A round runs every way once, in changing order; what counts is the median
over rounds of the ratio within a round, with its 95 % bootstrap interval.

    python tools/bench_decode.py [--rounds 15] [--out tools/bench_decode.json]
"""

import argparse
import io
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL
import simplejpeg
import soundfile
import torch
from open_clip.transform import AugmentationCfg, image_transform
from PIL import Image

from mmfm.data.augment import DRAWS
from mmfm.preprocessing.audio import decode_audio
from mmfm.preprocessing.image import picture
from mmfm.runtime.machine import cores

LONG_S, PART_S, RATE_HZ, PARTS = 180, 3.0, 16_000, 4
SOUNDS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg vorbis": ("OGG", "VORBIS"),
    "ogg opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
NEAR = 1e-4  # of Opus; the others agree to 1e-6
PICTURES, SHORT_PX, LONG_PX, SIDE_PX, CROP, QUALITY = 24, 512, 683, 224, 0.1, 88

Way = Callable[[], Any]


def speech_like(rng: np.random.Generator) -> np.ndarray:
    """Noise under a changing loudness, and a gliding tone: nothing that a coder could skip."""
    t = np.arange(LONG_S * RATE_HZ) / RATE_HZ
    tone = np.sin(2 * np.pi * (200 * t + 30 * np.sin(2 * t)))
    return ((0.3 + 0.2 * np.sin(3 * t)) * (tone + 0.05 * rng.standard_normal(len(t)))).astype(np.float32)


def encode(wave: np.ndarray, layout: str, subtype: str) -> bytes:
    """In parts: libsndfile dies of minutes of OGG in one."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", RATE_HZ, 1, format=layout, subtype=subtype) as out:
        for start in range(0, len(wave), RATE_HZ):
            out.write(wave[start : start + RATE_HZ])
    return file.getvalue()


def photo(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Noise whose power falls with the cube of the frequency, in related colours: files as large as a camera's."""
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falling = np.maximum(np.hypot(down, across), 1 / max(height, width)) ** -1.5
    layers = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * falling) for _ in range(3)]
    grey, *tints = (layer / layer.std() for layer in layers)
    colours = np.stack([grey + 0.3 * tints[0], grey, grey + 0.3 * tints[1]], axis=-1)
    return Image.fromarray((127 + 55 * colours).clip(0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def by_seek(data: bytes, where: float) -> torch.Tensor:
    return decode_audio(data, rate_hz=RATE_HZ, max_seconds=PART_S, crop_seconds=PART_S, where=where)


def by_slice(data: bytes, where: float) -> torch.Tensor:
    whole, samples = decode_audio(data, rate_hz=RATE_HZ, max_seconds=2.0 * LONG_S), round(PART_S * RATE_HZ)
    start = int(where * (len(whole) - samples + 1))
    return whole[start : start + samples].clone()


def sound_ways(data: bytes, places: list[float]) -> dict[str, Way]:
    for where in places:
        apart = (by_seek(data, where) - by_slice(data, where)).abs().max().item()
        if not apart <= NEAR:
            sys.exit(f"the part by seek is {apart:.1e} from the slice: nothing to compare")
    return {
        "seek": lambda: [by_seek(data, where) for where in places],
        "slice": lambda: [by_slice(data, where) for where in places],
    }


def picture_ways(files: list[bytes], rng: np.random.Generator) -> dict[str, Way]:
    draws = rng.random((len(files), DRAWS), dtype=np.float32)
    theirs = image_transform(SIDE_PX, is_train=True, aug_cfg=AugmentationCfg(scale=(1 - CROP, 1.0)))
    assert callable(theirs)

    def ours(exact: bool) -> list[torch.Tensor]:
        return [
            picture(data, channels=3, height_px=SIDE_PX, width_px=SIDE_PX, exact=exact, draws=each, crop=CROP)
            for data, each in zip(files, draws, strict=True)
        ]

    return {
        "open_clip": lambda: [theirs(Image.open(io.BytesIO(data)).convert("RGB")) for data in files],
        "scaled": lambda: ours(False),
        "exact": lambda: ours(True),
    }


def run_rounds(ways: Mapping[str, Way], count: int) -> list[dict[str, float]]:
    """Seconds of each way in each round, after one that is not counted."""
    rounds: list[dict[str, float]] = []
    for number in range(count + 1):
        names, taken = list(ways), {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            ways[name]()
            taken[name] = time.perf_counter() - start
        rounds.append(taken)
    return rounds[1:]


def median_interval(values: list[float], draws: int = 2000) -> dict[str, float]:
    """Median and 95 % bootstrap interval."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    low, high = medians[int(0.025 * draws)], medians[int(0.975 * draws)]
    return {"value": round(statistics.median(values), 4), "low": round(low, 4), "high": round(high, 4)}


def row(what: str, way: str, base: str, items: int, rounds: list[dict[str, float]]) -> dict[str, Any]:
    found = {
        "what": what,
        "way": way,
        "against": base,
        "items_per_s": median_interval([items / taken[way] for taken in rounds]),
        "items_per_s_against": median_interval([items / taken[base] for taken in rounds]),
        "ratio": median_interval([taken[base] / taken[way] for taken in rounds]),
    }
    ratio = found["ratio"]
    print(
        f"{what}: {way} {found['items_per_s']['value']:.1f}/s, {ratio['value']:.2f}x of {base} "
        f"({ratio['low']:.2f} to {ratio['high']:.2f})",
        flush=True,
    )
    return found


def hardware() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "cores": cores()}


def commit() -> str:
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return described.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("tools/bench_decode.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng, rows = np.random.default_rng(0), []
    wave, places = speech_like(rng), rng.random(PARTS).tolist()
    for name, (layout, subtype) in SOUNDS.items():
        rounds = run_rounds(sound_ways(encode(wave, layout, subtype), places), options.rounds)
        rows.append(row(f"{PART_S:g} s of {LONG_S} s, {name}", "seek", "slice", PARTS, rounds))
    sizes = [(SHORT_PX, LONG_PX) if i % 2 else (LONG_PX, SHORT_PX) for i in range(PICTURES)]
    files = [as_jpeg(photo(rng, *size)) for size in sizes]
    rounds = run_rounds(picture_ways(files, rng), options.rounds)
    title = f"JPEG of {SHORT_PX} px, {statistics.mean(map(len, files)) / 1e3:.0f} KB, to {SIDE_PX} px"
    rows += [row(title, way, "open_clip", PICTURES, rounds) for way in ("scaled", "exact")]
    report = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "versions": {
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
            "simplejpeg": simplejpeg.__version__,
            "pillow": PIL.__version__,
            "soundfile": soundfile.__version__,
            "libsndfile": soundfile.__libsndfile_version__,
        },
        "hardware": hardware(),
        "date": date.today().isoformat(),
        "rounds": options.rounds,
        "rows": rows,
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
