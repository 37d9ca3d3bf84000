"""What `mmfm plan` predicts of a step, against steps that run on this machine: memory, time, and FLOPs by formula.

Memory is the peak of a process of its own during a step, above what it held before it; time is of the processor. The
weights and the optimizer are no part of either. Configurations of the repository, with samples that are made up.

    python tools/bench_plan.py [--rounds 5] [--out tools/bench_plan.json]
"""

import argparse
import ctypes
import gc
import multiprocessing
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import in_a_process, ratios, row, seconds, write_report

from mmfm.config import Run, TextTower, Trunk
from mmfm.config.load import read_run
from mmfm.data.batch import Batch
from mmfm.models.model import build
from mmfm.objectives.joint import Objectives
from mmfm.plan.batches import Assumed, made_up_batches
from mmfm.plan.command import this_processor
from mmfm.plan.estimate import compute_seconds
from mmfm.plan.measure import measure

CONFIGS = Path(__file__).parent.parent / "configs"
ASSUMED = Assumed(text_tokens=24, audio_seconds=2.0, vocabulary=500)
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0"}  # what is free is given back
SPAWN = multiprocessing.get_context("spawn")


def runs() -> dict[str, Run]:
    found = {"quickstart": read_run(CONFIGS / "quickstart.py"), "stamps": stamps(), "wide": wide()}
    return {name: nowhere(run) for name, run in found.items()}


def stamps() -> Run:
    run = read_run(CONFIGS / "stamps.py")
    return replace(run, data=replace(run.data, batch_size=64))


def wide() -> Run:
    run = stamps()
    model = replace(
        run.model,
        image=replace(run.model.image, width=192, depth=4),
        audio=replace(run.model.audio, width=192, depth=3),
        text=TextTower(width=192, depth=3, heads=4),
        trunk=Trunk(width=256, depth=4, heads=4, kv_heads=2),
    )
    return replace(run, name="wide", model=model, data=replace(run.data, batch_size=24))


def nowhere(run: Run) -> Run:
    """Without the data that may lie on this machine, so that every machine measures the same."""
    train = tuple(replace(source, shards=f"nowhere/{number}.tar") for number, source in enumerate(run.data.train))
    model = replace(run.model, tokenizer="nowhere/tokenizer.json")
    return replace(run, model=model, data=replace(run.data, train=train, val=""))


def step_of(run: Run) -> Callable[[int], None]:
    """Forward and backward over so many samples."""
    model = build(run.model, ASSUMED.vocabulary, run.contrastive, run.data.augment).train()
    objectives, batches = Objectives(model, run), made_up_batches(run, model, ASSUMED)

    made: dict[int, Batch] = {}

    def step(size: int) -> None:
        batch = made.setdefault(size, made.get(size) or batches(size))
        objectives.total(objectives(batch)).backward()
        objectives.zero_grad()

    return step


def resident(kind: str) -> int:
    found = re.search(kind + r":\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def grown(name: str, tell: Callable[[Any], None]) -> None:
    """Bytes that a process takes more at the peak of a step than before it."""
    torch.set_num_threads(1)
    run = runs()[name]
    step = step_of(run)
    step(8)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step(run.data.batch_size)
    tell(resident("VmHWM") - before)


def measured(name: str, run: Run, rounds: int) -> list[dict[str, Any]]:
    os.environ.update(ALLOCATOR)
    size = run.data.batch_size
    counted = measure(run, ASSUMED, size, timed=True)
    predicted = max(counted.large.forward, *(sum(moment) for moment in counted.large.moments.values()))
    memory = [predicted / in_a_process(SPAWN, grown, name) for _ in range(max(1, rounds // 2))]
    step, processor = step_of(run), this_processor()
    step(size)
    took = [seconds(lambda: step(size)) for _ in range(rounds)]
    expected = [sum(compute_seconds(counted, processor, float(size)))] * rounds
    products = sum(counted.large.flops.values())
    return [
        row(f"{name}: memory of a step, predicted over measured", memory, unit="x"),
        row(f"{name}: time of a step, predicted over measured", ratios(expected, took), unit="x"),
        row(f"{name}: FLOPs by formula over those of all products", [counted.large.model_flops / products], unit="x"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("tools/bench_plan.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [found for name, run in runs().items() for found in measured(name, run, args.rounds)]
    write_report(args.out, rows, {"torch": torch.__version__})


if __name__ == "__main__":
    main()
