"""What both objectives in one run cost: the product's training step with contrast and writing, over contrast alone, and
with a pass of its own for each embedding over one pass.

The same batches and weights in one process, a model for each seed; losses, gradients, clipping and the optimizer, in
CPU time. Every way reads the same samples.

    python tools/bench_joint.py [--configs quickstart stamps] [--seeds 3] [--rounds 4] [--out tools/bench_joint.json]
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from measure import in_turns, ratios, row, seconds, write_report

from mmfm.config import Run
from mmfm.config.load import read_run
from mmfm.data.batch import Batch
from mmfm.data.stream import TrainStream
from mmfm.models.model import build
from mmfm.training.initialize import begin, prepare
from mmfm.training.module import JointModule


def step_of(run: Run, text_size: int, start: Callable[[Any], Any]) -> Callable[[Batch], None]:
    """A training step of a model of its own."""
    torch.manual_seed(run.seed)
    model = build(run.model, text_size, run.contrastive, run.data.augment)
    start(model)
    module = JointModule(run, model).train()
    made: Any = module.configure_optimizers()
    optimizer = made["optimizer"]

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        module.objectives.total(module.objectives(batch)).backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()

    return step


def measured(name: str, seeds: int, rounds: int) -> Sequence[dict[str, Any]]:
    found: dict[str, list[float]] = {"both": [], "contrast": [], "two passes": []}
    for seed in range(seeds):
        prepared = prepare(replace(read_run(Path(f"configs/{name}.py")), seed=seed))
        run, size = prepared.run, prepared.tokenizer.size
        batches = list(islice(TrainStream(run, prepared.tokenizer, rank=0, world=1), rounds + 1))
        runs = {"both": run, "contrast": replace(run, generative=()), "two passes": replace(run, passes="two")}
        steps = {key: step_of(one, size, lambda model, of=prepared: begin(model, of)) for key, one in runs.items()}
        for number, batch in enumerate(batches):
            ways = {key: lambda step=step, of=batch: seconds(lambda: step(of)) for key, step in steps.items()}
            taken = in_turns(ways, 1)
            if number:  # the first of all warms up
                for key, values in taken.items():
                    found[key] += values
    return [
        row(
            f"{name}: both objectives over contrast", ratios(found["both"], found["contrast"]), unit="x", goal="<= 1.2"
        ),
        row(f"{name}: two passes over one", ratios(found["two passes"], found["both"]), unit="x"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=["quickstart", "stamps"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("tools/bench_joint.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [found for name in options.configs for found in measured(name, options.seeds, options.rounds)]
    write_report(options.out, rows, {"torch": torch.__version__}, seeds=options.seeds)


if __name__ == "__main__":
    main()
