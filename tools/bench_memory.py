"""Memory of a loader process against the number of tars: what it adds while it reads, and the table it begins with.

Sets of 100, 10,000 and 100,000 tars of 5,000 samples (500 million at most). Their indexes are made when they are asked
for, in place of files, and no body is read. Each set has a process of its own, which makes the table (`Shards` and
`Order`) and forks a worker, as a training run does; the worker goes to random samples, and then to random positions of
the order. Its growth is what it does not share with its parent (Private_* of /proc/self/smaps_rollup); pages of the
table that become its own by being counted in are part of it.

    python tools/bench_memory.py [--samples 20000] [--out tools/bench_memory.json]
"""

import argparse
import gc
import multiprocessing
import random
import time
import tracemalloc
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measure import in_a_process, row, write_report

from mmfm.data.index import Index
from mmfm.data.order import Order
from mmfm.data.shard_list import Entry
from mmfm.data.shards import Shards

SETS, OF_TAR = (100, 10_000, 100_000), 5_000
POSITIONS = 500  # of the order: each needs a permutation of its own block
SIZE, STEP = 7_000, 8_192  # bytes of a picture, and from one to the next
FORK = multiprocessing.get_context("fork")


class Made(Shards):
    """A set without files: an index is made when it is needed, and is as large as one that was read."""

    def _load(self, shard: int) -> Index:
        keys = [f"{shard:06d}{number:06d}" for number in range(OF_TAR)]
        at = array("q", range(512, 512 + STEP * OF_TAR, STEP))
        text = array("q", range(512 + SIZE, 512 + SIZE + STEP * OF_TAR, STEP))
        sizes = [array("q", [size]) * OF_TAR for size in (SIZE, 60)]
        return Index(
            shard=self.places[shard],
            bytes=STEP * OF_TAR,
            crc32=0,
            keys=keys,
            offset={"jpg": at, "txt": text},
            size={"jpg": sizes[0], "txt": sizes[1]},
            texts=OF_TAR,
            seconds=array("f", [-1.0]) * OF_TAR,
            pixels=array("q", [-1]) * OF_TAR,
        )


def entries(tars: int) -> Iterator[Entry]:
    holds = {"image": OF_TAR, "audio": 0, "text": OF_TAR}
    for tar in range(tars):
        yield Entry(place=f"/data/set/image-{tar:06d}.tar", bytes=STEP * OF_TAR, samples=OF_TAR, holds=holds, crc32=tar)


def private_mb() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def walk(shards: Shards, turns: Order, samples: int, tell: Callable[[Any], None]) -> None:
    """In the worker: growth in MB after random samples, and after random positions as well."""
    gc.collect()
    before, draw = private_mb(), random.Random(0)
    for _ in range(samples):
        shards.where(draw.randrange(len(shards)))
        shards.extensions(draw.randrange(len(shards)))
    of_samples = private_mb() - before
    for _ in range(POSITIONS):
        shards.where(turns(draw.randrange(len(shards)))[1])
    tell((of_samples, private_mb() - before))


def measure(tars: int, samples: int, tell: Callable[[Any], None]) -> None:
    """The table's bytes and the seconds to make it, and the worker's growth."""
    tracemalloc.start()
    turns, shards = _table(tars)
    gc.collect()
    table, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del turns, shards
    start = time.perf_counter()
    turns, shards = _table(tars)
    taken = time.perf_counter() - start
    tell((table, taken, *in_a_process(FORK, walk, shards, turns, samples // 2)))


def _table(tars: int) -> tuple[Order, Shards]:
    shards = Made(entries(tars))
    turns = Order(0, [shards.counts()], [1])
    turns(len(shards) // 2)
    return turns, shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path("tools/bench_memory.json"))
    options = parser.parse_args()
    rows, growth = [], []
    for tars in SETS:
        table, taken, of_samples, of_all = in_a_process(FORK, measure, tars, options.samples)
        growth.append(of_all)
        name = f"{tars:,} tars of {OF_TAR:,}"
        rows += [
            row(f"table, {name}", [table / tars], unit="bytes/tar"),
            row(f"time to make it, {name}", [taken], unit="s"),
            row(f"growth of a worker, {name}: {options.samples:,} random samples", [of_samples], unit="MB"),
            row(f"growth of a worker, {name}: and {POSITIONS} positions of the order", [of_all], unit="MB"),
        ]
    rows.append(row("growth of a worker, 100,000 tars over 100", [growth[-1] / growth[0]], unit="x", goal="<= 1.5"))
    write_report(options.out, rows, {"numpy": np.__version__}, of_tar=OF_TAR)


if __name__ == "__main__":
    main()
