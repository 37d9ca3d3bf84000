"""Our loader against open_clip's: samples/s of one over the other, on one core without and on two with two workers.

The same shards for both: synthetic photographs of 512 px on the shorter side with captions, from the page cache, to
random crops (9/10 to all of the area) of 224 px and ids of CLIP's tokenizer. Ours is `TrainStream`, which leaves images
in 8 bits: it normalises them on the device that trains, so that a fourth of the bytes goes from worker to trainer. This
is part of what is compared; a third row makes them floats on the same core instead. Theirs is `get_wds_dataset` of
open_clip's trainer (tools/peer_open_clip.py). A round begins each loader anew, leaves some batches uncounted, and times
the next ones; the loaders take turns. Without workers it is the process's time on the processor that counts, which
other processes disturb less; with workers it is the time that one waits. Medians over rounds, with 95 % bootstrap
intervals.

    python tools/bench_loader.py [--rounds 6] [--out tools/bench_loader.json]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import simplejpeg
import torch
import webdataset
from bench_decode import as_jpeg, photo
from bench_step import CAPTIONS
from measure import in_turns, on_cores, ratios, row, write_report
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from peer_open_clip import loader, tokenizer_json
from torch import Tensor

from mmfm.config import Augment, Data, Model, Optim, Run, Source, Vit
from mmfm.data.stream import TrainStream
from mmfm.data.writer import ShardWriter
from mmfm.preprocessing.tokenizer import Tokenizer, load_tokenizer

SHARDS, OF_SHARD, BATCH = 8, 64, 64  # so that no worker of open_clip's has a rest, which it would decode and drop
SHORT_PX, LONGEST, SIDE_PX, CROP = 512, 1.6, 224, 0.1
DIFFERENT = 128  # pictures; they come again under other keys
ENDLESS = 1_000_000  # samples of an epoch, as far as a loader is told
SETTINGS = {"1 core, no workers": (1, 0), "2 cores, 2 workers": (2, 2)}
WARM, COUNTED = {0: 1, 2: 4}, {0: 3, 2: 12}  # batches, by the number of workers
GOALS = {"scaled": ">= 3", "exact": ">= 2.5", "scaled, made floats": ""}

Pair = tuple[Tensor, Any]  # images, and ids in a loader's own form


def write_photos(folder: Path, *, different: int = DIFFERENT, of_shard: int = OF_SHARD, shards: int = SHARDS) -> float:
    """a-000000.tar ... in `folder`, every picture with a caption of its own; returns the mean bytes of a JPEG."""
    rng = np.random.default_rng(0)
    sides = [[SHORT_PX, round(SHORT_PX * rng.uniform(1, LONGEST))] for _ in range(different)]
    files = [as_jpeg(photo(rng, *rng.permutation(pair).tolist())) for pair in sides]
    with ShardWriter(folder, "a", samples=of_shard) as writer:
        for number in range(shards * of_shard):
            which = number % different
            text = f"{CAPTIONS[which % len(CAPTIONS)]} {which}"
            writer.write(f"{number:06d}", {"jpg": files[which], "txt": text.encode()})
    return statistics.mean(map(len, files))


def ours(folder: Path, tokenizer: Tokenizer, *, workers: int, exact: bool, batch: int = BATCH) -> Iterator[Pair]:
    source = Source(shards=str(folder), modalities=("image", "text"))
    run = Run(
        name="bench",
        model=Model(image=Vit(height_px=SIDE_PX, width_px=SIDE_PX), audio=None),
        data=Data(
            train=(source,),
            batch_size=batch,
            num_workers=workers,
            exact_decode=exact,
            augment=Augment(crop=CROP),
            shuffle_buffer=256,
        ),
        optim=Optim(steps=ENDLESS // batch),
    )
    for found in TrainStream(run, tokenizer, rank=0, world=1):
        yield found.items["image"].x, found.items["text"]


def theirs(folder: Path, *, workers: int, batch: int = BATCH, shards: int = SHARDS) -> Iterator[Pair]:
    pattern = f"{folder}/a-{{000000..{shards - 1:06d}}}.tar"
    yield from loader(pattern, samples=ENDLESS, batch=batch, workers=workers, side_px=SIDE_PX, crop=CROP)


def made_floats(batches: Iterable[Pair]) -> Iterator[Pair]:
    mean, std = (torch.tensor(each)[:, None, None] for each in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    for images, ids in batches:
        yield (images / 255).sub_(mean).div_(std), ids


def rate(begin: Callable[[], Iterator[Pair]], workers: int) -> float:
    """Samples per second of the batches after the first ones; every batch is handed over as soon as it is there."""
    batches, clock = begin(), time.perf_counter if workers else time.process_time
    for _ in range(WARM[workers]):
        next(batches)
    start, count = clock(), 0
    for _ in range(COUNTED[workers]):
        count += len(next(batches)[0])
    taken = clock() - start
    del batches  # ends its workers
    return count / taken


def compare(folder: Path, tokenizer: Tokenizer, workers: int, rounds: int) -> dict[str, list[float]]:
    scaled = partial(ours, folder, tokenizer, workers=workers, exact=False)
    begins = {
        "open_clip": partial(theirs, folder, workers=workers),
        "scaled": scaled,
        "exact": partial(ours, folder, tokenizer, workers=workers, exact=True),
        "scaled, made floats": lambda: made_floats(scaled()),
    }
    return in_turns({name: partial(rate, begin, workers) for name, begin in begins.items()}, rounds)


def rows_of(setting: str, rates: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    rows = [row(f"loader, {setting}: {name}", rates[name], unit="samples/s") for name in ("open_clip", *GOALS)]
    for name, goal in GOALS.items():
        told = f"loader, {setting}: {name}, over open_clip's"
        rows.append(row(told, ratios(rates[name], rates["open_clip"]), unit="x", goal=goal))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("tools/bench_loader.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mean_bytes = write_photos(folder)
        (folder / "clip.json").write_text(tokenizer_json())
        tokenizer = load_tokenizer(folder / "clip.json")
        for setting, (cores, workers) in SETTINGS.items():
            with on_cores(cores):
                rows += rows_of(setting, compare(folder, tokenizer, workers, options.rounds))
    modules = {"torch": torch, "open_clip": open_clip, "webdataset": webdataset, "simplejpeg": simplejpeg}
    versions = {name: module.__version__ for name, module in modules.items()}
    about = {"samples": SHARDS * OF_SHARD, "pictures": DIFFERENT, "mean_kb": round(mean_bytes / 1e3, 1)}
    write_report(options.out, rows, versions, rounds=options.rounds, batch=BATCH, **about)


if __name__ == "__main__":
    main()
