"""The product's training step as one row of real tokens against the same step over padded batches.

Batches of a configuration's own data; losses and gradients forward and back, without the optimizer. Padded: each task
is a pass of its own through the trunk, padded to its longest, and towers read padded items, each once. (Before steps
were packed each task also entered the towers anew: that is not counted here.)

    python tools/bench_packing.py [--configs quickstart stamps] [--batches 8] [--out tools/bench_packing.json]
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from measure import in_turns, ratios, row, seconds, write_report
from torch import Tensor

from mmfm.config.load import read_run
from mmfm.data.batch import Batch
from mmfm.data.stream import TrainStream
from mmfm.models import conformer, mel, text_transformer
from mmfm.models.model import UnifiedModel, build
from mmfm.models.transformer import Sentences
from mmfm.objectives.joint import Objectives
from mmfm.training.initialize import begin, prepare

GOALS = {"quickstart": ">= 1.4", "stamps": ">= 2.5", "any": ">= 3"}


def padded_trunk(model: UnifiedModel) -> Callable[[Sequence[Sentences]], tuple[Tensor, list[Tensor]]]:
    """What `trunk.packed` gives, by a padded pass for each task."""

    def packed(passes: Sequence[Sentences]) -> tuple[Tensor, list[Tensor]]:
        states, where, start = [], [], 0
        for one in passes:
            x = torch.cat(model.trunk(one.segments, seeds=one.seeds), dim=1)
            where.append(torch.arange(start, start + x.shape[0] * x.shape[1]).view(x.shape[:2]))
            states.append(x.flatten(0, 1))
            start += len(states[-1])
        return torch.cat(states), where

    return packed


def padded(model: UnifiedModel, step: Callable[[], Any]) -> None:
    never = mock.Mock(return_value=False)
    with (
        mock.patch.object(model.trunk, "packed", padded_trunk(model)),
        mock.patch.object(text_transformer, "worth_packing", never),
        mock.patch.object(conformer, "worth_packing", never),
        mock.patch.object(mel, "worth_packing", never),
    ):
        step()


def measured(name: str, count: int) -> list[dict[str, Any]]:
    run = read_run(Path(f"configs/{name}.py"))
    torch.manual_seed(0)
    prepared = prepare(run)
    run = prepared.run
    model = build(run.model, prepared.tokenizer.size, run.contrastive, run.data.augment).train()
    begin(model, prepared)
    step = Objectives(model, run)
    batches = list(islice(TrainStream(run, prepared.tokenizer, rank=0, world=1, start=0, codecs=None), count))
    places: dict[str, list[int]] = {"packed": [], "padded": []}

    def once(batch: Batch) -> None:
        step.total(step(batch)).backward()
        model.zero_grad()

    hook = model.trunk.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:2].numel()))
    for name_of, way in (("packed", once), ("padded", lambda batch: padded(model, lambda: once(batch)))):
        seen: list[int] = []
        way(batches[0])
        places[name_of] = seen
    hook.remove()
    found: dict[str, list[float]] = {"packed": [], "padded": []}
    for batch in batches:
        ways = {
            "packed": lambda batch=batch: seconds(lambda: once(batch)),
            "padded": lambda batch=batch: seconds(lambda: padded(model, lambda: once(batch))),
        }
        for key, values in in_turns(ways, 1).items():
            found[key] += values
    share = 100 * sum(places["packed"]) / sum(places["padded"])
    goal = GOALS.get(name, "")
    return [
        row(f"{name}: a padded step over a packed one", ratios(found["padded"], found["packed"]), unit="x", goal=goal),
        row(f"{name}: real tokens of the padded trunk's places", [share], unit="%"),
        row(f"{name}: trunk passes of a step, padded", [len(places["padded"])], unit=""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=["quickstart", "stamps"])
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("tools/bench_packing.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [found for name in args.configs for found in measured(name, args.batches)]
    write_report(args.out, rows, {"torch": torch.__version__})


if __name__ == "__main__":
    main()
