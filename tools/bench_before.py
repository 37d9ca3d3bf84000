"""The product's training step now against that of an earlier commit, on the same batches of configurations' own data.

Each side is a process of its own with its own checkout; they take turns, batch by batch: losses forward and back and
the optimizer's step, in CPU time of one thread. Codecs keep their random weights. Losses are compared without dropout.

    python tools/bench_before.py [--configs quickstart any] [--before 43c6b6b] [--batches 8]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

BEFORE = "43c6b6b"  # towers and trunk were entered by each task anew, and every pass was padded
GOALS = {"quickstart": ">= 1.4", "stamps": ">= 2.5", "any": ">= 3"}
ROOT = Path(__file__).parent.parent


def serve(name: str, count: int) -> None:
    """Answers each line with the CPU seconds and the losses of a batch; what runs here is both sides' own."""
    import torch

    from mmfm.config.load import read_run
    from mmfm.data.stream import TrainStream
    from mmfm.models.model import build
    from mmfm.objectives.joint import Objectives
    from mmfm.training.initialize import prepare

    torch.set_num_threads(1)
    run = read_run(Path(f"configs/{name}.py"))
    codecs = {f"{part}_codec": replace(codec, weights="") for part, codec in run.model.codecs.items()}
    prepared = prepare(replace(run, model=replace(run.model, dropout=0.0, connector_dropout=0.0, **codecs)))
    torch.manual_seed(0)
    model = build(prepared.run.model, prepared.tokenizer.size, run.contrastive, run.data.augment).train()
    step = Objectives(model, prepared.run)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batches = list(islice(TrainStream(prepared.run, prepared.tokenizer, rank=0, world=1), count))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        start = time.process_time()
        losses = step(batches[int(line) % count])
        step.total(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
        took = time.process_time() - start
        counts = model.read_counts.host if hasattr(model, "read_counts") else {}
        filled = counts["trunk", "tokens"] / counts["trunk", "places"] if counts else 0.0
        print(json.dumps([took, sum(loss.item() for loss in losses.values()), filled]), flush=True)


class Side:
    """The process of one checkout."""

    def __init__(self, checkout: Path, name: str, count: int) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", name, "--batches", str(count)]
        env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=checkout, env=env, stdin=pipe, stdout=pipe, text=True)
        self.read()

    def read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, number: int) -> list[float]:
        assert self.process.stdin is not None
        print(number, file=self.process.stdin, flush=True)
        return self.read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True)
        subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
        (Path(folder) / "data").symlink_to((ROOT / "data").resolve())
        yield Path(folder)


def measured(name: str, before: Path, count: int) -> list[dict[str, Any]]:
    from measure import ratios, row

    sides = {"before": Side(before, name, count), "now": Side(ROOT, name, count)}
    found: dict[str, list[list[float]]] = {side: [] for side in sides}
    for number in range(count + 1):
        for side in [*sides] if number % 2 else [*sides][::-1]:
            found[side].append(sides[side].ask(number))
    for side in sides.values():
        side.close()
    times = {side: [took for took, *_ in each[1:]] for side, each in found.items()}
    filled = 100 * found["now"][-1][2]
    first, other = (found[side][0][1] for side in ("before", "now"))
    return [
        row(f"{name}: a step before over one now", ratios(times["before"], times["now"]), unit="x", goal=GOALS[name]),
        row(f"{name}: a step now", times["now"], unit="s"),
        row(f"{name}: real tokens of the places of attention's groups", [filled], unit="%", goal=">= 95"),
        row(f"{name}: difference of the first losses", [abs(first - other) / abs(first)], unit="", goal="<= 1e-5"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", choices=GOALS, default=["quickstart", "any"])
    parser.add_argument("--before", default=BEFORE)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("tools/bench_before.json"))
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.batches)
        return
    import torch
    from measure import write_report

    with checkout(args.before) as before:
        rows = [found for name in args.configs for found in measured(name, before, args.batches)]
    write_report(args.out, rows, {"torch": torch.__version__}, before=args.before)


if __name__ == "__main__":
    main()
