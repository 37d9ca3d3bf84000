"""What addressing samples costs: reading them, indexing them, beginning far inside, and all that is not decoding.

Raw reads are of all parts of samples whose tars are in the page cache, on one core: ours in the order of training (tars
and samples shuffled in blocks), webdataset's from the first to the last. Two sets: a picture of 2 to 10 KB with a .txt
and a .json, and one of 83 KB with a .txt; bodies are noise. The index is written as `mmfm data index` does, with a
checksum of the whole tar. A seek begins at position 1e8 of 500 million samples in 100,000 tars: draw the epoch and the
block, read that tar's index, then the sample; the tar is a real one, which stands for all of them. The engine's share
is what a batch of 64 takes besides decoding its pictures (a stub gives one that was decoded before), reading their
bytes, turning captions into ids and, as every loader must, copying pixels side by side, over the time to decode a JPEG
of 512 px; it is also given with that copy. All times are the process's on the processor. Medians over rounds, with
95 % bootstrap intervals.

    python tools/bench_read.py [--rounds 9] [--out tools/bench_read.json]
"""

import argparse
import os
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import webdataset
from bench_loader import CROP, SIDE_PX, write_photos
from measure import in_turns, on_cores, ratios, row, seconds, write_report

from mmfm.config import Augment, Data, Model, Optim, Run, Source, Vit
from mmfm.data import decode, index, stream, stream_plan
from mmfm.data.augment import DRAWS
from mmfm.data.order import Order
from mmfm.data.shard_specs import expand
from mmfm.data.shards import Shards
from mmfm.data.writer import Item, write_shard
from mmfm.preprocessing.image import picture
from mmfm.preprocessing.tokenizer import load_tokenizer

TEXT = b"A red bicycle leans against a yellow wall beside a blue door."
META = b'{"caption": "A red bicycle", "width": 512, "height": 640}'
SETS = {  # tars, samples of each, bytes of a picture, and whether there is a .json
    "parts of 2 to 10 KB": (4, 2_500, (2_000, 10_000), True),
    "pictures of 83 KB": (4, 500, (50_000, 116_000), False),
}
SEEK, TARS, OF_TAR = 100_000_000, 100_000, 5_000
BATCH, PHOTOS = 64, 128


def write_set(folder: Path, tars: int, of_tar: int, sizes: tuple[int, int], meta: bool) -> Path:
    draw, folder = random.Random(0), folder / f"{sizes[0]}-{of_tar}"
    folder.mkdir()
    for tar in range(tars):
        items = (
            Item(
                f"{tar:03d}{number:06d}",
                {"jpg": draw.randbytes(draw.randint(*sizes)), "txt": TEXT, **({"json": META} if meta else {})},
            )
            for number in range(of_tar)
        )
        write_shard(folder / f"a-{tar:06d}.tar", items)
    return folder


# Raw reads


def read_ours(shards: Shards) -> Callable[[], float]:
    seeds = iter(range(1_000))

    def run() -> float:
        turns = Order(next(seeds), [shards.counts()], [1])
        turns(0)
        return seconds(lambda: [None for at in range(len(shards)) if not shards[turns(at)[1]].parts])

    return run


def read_theirs(paths: list[Path], count: int) -> Callable[[], float]:
    def run() -> None:
        assert sum(1 for _ in webdataset.WebDataset(list(map(str, paths)), shardshuffle=False)) == count

    return lambda: seconds(run)


def raw_reads(folder: Path, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for name, how in SETS.items():
        paths = expand(str(write_set(folder, *how)))
        shards = Shards(paths)
        ways = {"ours": read_ours(shards), "webdataset": read_theirs(paths, len(shards))}
        for run in ways.values():
            run()  # fills the page cache
        found = in_turns(ways, rounds)
        for side, taken in found.items():
            rows.append(row(f"raw read, {name}: {side}", [len(shards) / each for each in taken], unit="samples/s"))
        over = ratios(found["webdataset"], found["ours"])
        rows.append(row(f"raw read, {name}: over webdataset's", over, unit="x", goal=">= 5"))
        taken = [seconds(lambda paths=paths: [index.write(path) for path in paths]) for _ in range(rounds)]
        rate = [len(shards) / each for each in taken]
        rows.append(row(f"index written, {name}", rate, unit="samples/s", goal=">= 10000"))
    return rows


# Seek


def seek(paths: list[Path], rounds: int) -> list[dict[str, Any]]:
    """Times in milliseconds: to make the order, to find a position in it, and that with the first sample."""
    made, found, first = [], [], []
    for seed in range(rounds):
        turns: list[Order] = []
        made.append(1e3 * seconds(lambda turns=turns, seed=seed: turns.append(Order(seed, [[OF_TAR] * TARS], [1]))))
        fresh, at = Shards(paths), []
        found.append(1e3 * seconds(lambda at=at, turns=turns: at.append(turns[0](SEEK)[1])))
        first.append(found[-1] + 1e3 * seconds(lambda at=at, fresh=fresh: fresh[at[0] % len(fresh)]))
    both = [a + b for a, b in zip(made, first, strict=True)]
    name = f"seek to position 1e8 of {TARS * OF_TAR / 1e6:g}M samples"
    return [
        row(f"{name}, order alone", found, unit="ms"),
        row(f"{name}, index of {OF_TAR} samples and first sample", first, unit="ms", goal="<= 5"),
        row(f"{name}, and to make the order before", both, unit="ms"),
    ]


# What is not decoding


def plan_of(folder: Path) -> stream_plan.Plan:
    source = Source(shards=str(folder), modalities=("image", "text"))
    run = Run(
        name="bench",
        model=Model(image=Vit(height_px=SIDE_PX, width_px=SIDE_PX), audio=None),
        data=Data(train=(source,), batch_size=BATCH, num_workers=0, augment=Augment(crop=CROP)),
        optim=Optim(steps=1_000),
    )
    return stream.TrainStream(run, load_tokenizer("bytes"), rank=0, world=1).plan


def engine(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Microseconds per sample of each part, round by round; the engine is what is left of a batch without them."""
    plan, numbers = plan_of(folder), iter(range(10_000))
    shards = plan.sources[0]
    names = list(range(BATCH))
    samples = [shards[at] for at in names]
    draws = np.random.default_rng(0).random((BATCH, DRAWS), dtype=np.float32)
    small = torch.zeros(3, SIDE_PX, SIDE_PX, dtype=torch.uint8)
    shape = {"channels": 3, "height_px": SIDE_PX, "width_px": SIDE_PX, "crop": CROP}
    spans = [span for at in names for span in spans_of(shards, at)]

    def decoded(exact: bool) -> None:
        for sample, own in zip(samples, draws, strict=True):
            picture(sample.parts["jpg"], **shape, draws=own, exact=exact)

    def batch() -> None:
        with patch.object(decode, "picture", lambda *_, **__: small):
            assert isinstance(plan[next(numbers)], stream_plan.Loaded)

    pixels = [torch.zeros(3, SIDE_PX, SIDE_PX, dtype=torch.uint8) for _ in names]
    parts = {
        "decode, scaled": partial(decoded, False),
        "decode, exact": partial(decoded, True),
        "a batch without decoding": batch,
        "bytes from the page cache": lambda: [os.pread(*span) for span in spans],
        "captions to ids": lambda: [plan.tokenizer.encode(sample.parts["txt"].decode()) for sample in samples],
        "pixels into a batch": lambda: torch.stack(pixels),
    }
    for run in parts.values():
        run()
    taken = in_turns({name: lambda run=run: 1e6 * seconds(run) / BATCH for name, run in parts.items()}, rounds)
    alone = np.array(taken["a batch without decoding"])
    whole = alone - np.array(taken["bytes from the page cache"]) - np.array(taken["captions to ids"])
    engine = {"": whole - np.array(taken["pixels into a batch"]), ", with pixels into a batch": whole}
    rows = [row(f"per sample: {name}", found, unit="us") for name, found in taken.items()]
    for more, left in engine.items():
        rows.append(row(f"per sample: the engine{more}", left.tolist(), unit="us"))
        for way in ("scaled", "exact"):
            share = (100 * left / np.array(taken[f"decode, {way}"])).tolist()
            rows.append(row(f"engine{more}, share of decoding, {way}", share, unit="%", goal="<= 2"))
    return rows


def spans_of(shards: Shards, sample: int) -> list[tuple[int, int, int]]:
    """(file, bytes, offset) of each part, to be read as it is."""
    shard, place = shards.find(sample)
    lies, file = shards._index(shard), shards._open(shard)
    return [(file, lies.size[name][place], lies.offset[name][place]) for name in lies.extensions(place)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("tools/bench_read.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, on_cores(1):
        folder = Path(name)
        rows = raw_reads(folder, options.rounds)
        far = expand(str(write_set(folder, 1, OF_TAR, (2_000, 2_001), False)))
        rows += seek(far, options.rounds)
        (folder / "photos").mkdir()
        write_photos(folder / "photos", different=PHOTOS, of_shard=PHOTOS // 2, shards=2)
        rows += engine(folder / "photos", options.rounds)
    versions = {"torch": torch.__version__, "webdataset": webdataset.__version__, "numpy": np.__version__}
    write_report(options.out, rows, versions, rounds=options.rounds)


if __name__ == "__main__":
    main()
