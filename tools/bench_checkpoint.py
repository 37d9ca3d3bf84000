"""What a checkpoint costs: how long training waits for one that is written aside, what memory writing takes, and how
many bytes any number of ranks read to go on from it.

The state is that of AdamW: weights and two moments of 32 million numbers in fp32, 384 MB. A thread of the training
writes it as `mmfm.training.saving` does, its sums, its fsync and its reading back included, on one thread of torch;
training waits while it copies the state into memory that is there. Times are of the clock, as a disk is waited for,
and each round has both in turn. Ranks that read are threads of one process; bytes are those of tensors that it was
asked to read from files, and each file is read by one rank to verify it.

    python tools/bench_checkpoint.py [--rounds 7] [--out tools/bench_checkpoint.json]
"""

import argparse
import gc
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import in_a_process, row, write_report
from safetensors.torch import save
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from ranks import on_ranks  # noqa: E402  # pyright: ignore[reportMissingImports]

from mmfm.models.checkpoint import MODEL, STATE, TRAIN, Save, verified  # noqa: E402
from mmfm.runtime.distributed import Collective, SingleProcess  # noqa: E402
from mmfm.runtime.files import write_file  # noqa: E402
from mmfm.runtime.tensor_files import Part  # noqa: E402
from mmfm.training.saving import Staging  # noqa: E402

MATRICES, ROWS, COLUMNS = 32, 1_024, 1_024
MOMENTS = ("exp_avg", "exp_avg_sq")
WRITERS, READERS = 4, (1, 2, 4, 8)
FORK = multiprocessing.get_context("fork")
Parts = dict[str, dict[str, Tensor | Part]]


def state() -> Parts:
    torch.manual_seed(0)
    names = [f"blocks.{number}.weight" for number in range(MATRICES)]
    moments = {f"{name}/{moment}": torch.rand(ROWS, COLUMNS) for name in names for moment in MOMENTS}
    return {MODEL: {name: torch.randn(ROWS, COLUMNS) for name in names}, TRAIN: {**moments}}


def bytes_of(held: Parts) -> int:
    return sum(one.nbytes for tensors in held.values() for one in tensors.values() if isinstance(one, Tensor))


def new(folder: Path, step: int, held: Parts, ranks: Collective | None = None) -> Save:
    small = {STATE: b'{"map": []}', "run.json": b"{}", "tokenizer.json": b"{}"}
    return Save(folder, step, small, held[MODEL], held[TRAIN], ranks or SingleProcess())


def waits(rounds: int) -> list[tuple[float, float]]:
    """Seconds of copying and of writing; the first round, which finds no memory yet, does not count."""
    held, staging, found = state(), Staging(), []
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-") as folder:
        for step in range(rounds + 1):
            start = time.perf_counter()
            copied = staging.copies(held)
            between = time.perf_counter()
            new(Path(folder), step, copied).whole()
            found.append((between - start, time.perf_counter() - between))
    return found[1:]


def resident(kind: str) -> int:
    told = re.search(kind + r":\s+(\d+)", Path("/proc/self/status").read_text())
    assert told is not None
    return 1024 * int(told[1])


def peak(way: str, tell: Callable[[Any], None]) -> None:
    """Memory above that of the state while it is written, over the bytes of the state."""
    held = state()
    size = bytes_of(held)
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-") as folder:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS")
        if way == "from where it lies":
            new(Path(folder), 1, held).whole()
        else:  # safetensors makes the bytes of a file before they are written
            for name, tensors in held.items():
                write_file(
                    Path(folder) / name, save({key: one for key, one in tensors.items() if isinstance(one, Tensor)})
                )
        tell((resident("VmHWM") - before) / size)


def rows_of(held: Parts, rank: int, size: int) -> Parts:
    """What each of some ranks holds whose tensors are cut by rows."""
    each, made = ROWS // size, Parts()
    for kind, tensors in held.items():
        whole = {name: one for name, one in tensors.items() if isinstance(one, Tensor)}
        cut = {n: one[rank * each : (rank + 1) * each] for n, one in whole.items()}
        made[kind] = {name: Part(one, (rank * each, 0), (ROWS, COLUMNS)) for name, one in cut.items()}
    return made


def read_again(readers: int, folder: Path, held: Parts) -> float:
    """Bytes that all ranks read to have what each of them holds, over those of the state."""

    def read(ranks: Collective) -> int:
        found = verified(folder, ranks)
        for kind, tensors in rows_of(held, ranks.rank, ranks.size).items():
            for name, part in tensors.items():
                assert isinstance(part, Part)
                there = found.tensors[kind].read(name, (part.offset, tuple(part.tensor.shape)))
                assert torch.equal(there, part.tensor)
        return sum(one.bytes_read for one in found.tensors.values())

    counts = on_ranks(readers, read)
    return sum(one for one in counts if isinstance(one, int)) / bytes_of(held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("tools/bench_checkpoint.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    lying, made = (in_a_process(FORK, peak, name) for name in ("from where it lies", "as the bytes of a file"))
    both, held = waits(options.rounds), state()
    rows = [
        row("training waits, of what writing takes", [copy / write for copy, write in both], unit="x", goal="<= 0.1"),
        row("a copy of 384 MB", [copy for copy, _ in both], unit="s"),
        row("writing them, on the disk and read back", [write for _, write in both], unit="s"),
        row("memory of writing it from where it lies, over the state's", [lying], unit="x", goal="<= 0.1"),
        row("memory of writing it as the bytes of a file, over the state's", [made], unit="x"),
    ]
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-") as folder:
        written = on_ranks(
            WRITERS, lambda ranks: new(Path(folder), 1, rows_of(held, ranks.rank, ranks.size), ranks).whole()
        )
        assert isinstance(written[0], Path), written
        for readers in READERS:
            told = f"bytes that {readers} ranks read of what {WRITERS} wrote, over the state's"
            rows.append(row(told, [read_again(readers, written[0], held)], unit="x", goal="<= 1"))
    write_report(
        options.out, rows, {"torch": torch.__version__}, rounds=options.rounds, state_mb=bytes_of(held) // 10**6
    )


if __name__ == "__main__":
    main()
