"""What all ranks enter in a step, where the weights are sharded: a tower's weights come by collectives, so that a rank
without pictures must enter the tower of pictures too, as often as any other rank.

Before the step each rank tells the others what it enters: one gather of a few whole numbers on the CPU. A rank that
enters less than another lets one row of zeros through instead, of which no row goes on: a truly empty row has no shape
that all encoders take. Its gradient is exactly zero, and the graph is that of the others.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from mmfm.config import Generative
from mmfm.config.task import Task
from mmfm.data.batch import NO_TEXT, Batch, Items
from mmfm.models.model import UnifiedModel
from mmfm.objectives.conversation import PlannedChats
from mmfm.objectives.task_pass import PlannedPass
from mmfm.runtime.distributed import Collective

DTYPES = (torch.uint8, torch.bool, torch.int64, torch.float64, torch.float32, torch.float16, torch.bfloat16)
MOST_DIMS = 6  # of an item
ENTRY = 4 + MOST_DIMS  # numbers that tell of a tower


class RollCall(NamedTuple):
    """absent: passes of no samples, one for each entry of a tower that another rank makes and this one does not.
    facts: what else was told, the largest of all ranks."""

    absent: list[PlannedPass]
    facts: dict[str, int]


def roll_call(
    model: UnifiedModel, passes: Sequence[PlannedPass | PlannedChats], facts: Mapping[str, int], ranks: Collective
) -> RollCall:
    """All ranks must ask, each with the same names of facts, and at least one."""
    entered = tower_items(passes)
    mine = [number for name in model.towers for number in _entries(entered.get(name, []))] + [*facts.values()]
    told = ranks.all_gather(torch.tensor([mine], dtype=torch.int64), [1] * ranks.size)
    towers, rest = told[:, : len(told[0]) - len(facts)].unflatten(1, (len(model.towers), ENTRY)), told[:, -len(facts) :]
    absent = []
    for at, name in enumerate(model.towers):
        first = int(towers[:, at, 0].argmax())  # of the ranks that enter it most often
        most, *like = towers[first, at].tolist()
        absent += [_absent(name, like, model, passes) for _ in range(most - len(entered.get(name, [])))]
    return RollCall(absent, dict(zip(facts, rest.amax(0).tolist(), strict=True)))


def tower_items(passes: Sequence[PlannedPass | PlannedChats]) -> dict[str, list[Items]]:
    """What enters each tower: items that several passes read enter once."""
    found: dict[str, dict[int, Items]] = {}
    for one in passes:
        for name in one.task.sources:
            found.setdefault(name, {}).setdefault(id(one.batch.items[name]), one.batch.items[name])
    return {name: [*items.values()] for name, items in found.items()}


def _entries(items: Sequence[Items]) -> list[int]:
    """How often a tower is entered, and the type and shape of an item, so that others can make one like it."""
    if not items:
        return [0] * ENTRY
    x, time = items[0].x, items[0].keep.shape[1]
    shape = [*x.shape[1:], *[0] * (MOST_DIMS + 1 - x.ndim)]
    return [len(items), DTYPES.index(x.dtype), time, x.ndim - 1, *shape]


def _absent(
    name: str, like: Sequence[int], model: UnifiedModel, passes: Sequence[PlannedPass | PlannedChats]
) -> PlannedPass:
    """A pass that reads one item of zeros, of no sample."""
    kind, time, ndim, *shape = like
    items = Items(
        x=torch.zeros(1, *shape[:ndim], dtype=DTYPES[kind]),
        keep=torch.ones(1, time, dtype=torch.bool),
        rows=torch.zeros(1, dtype=torch.int64),
    )
    batch = Batch(size=1, items={name: items}, positive_ids=torch.full((1,), NO_TEXT)).to(model.device)
    none = torch.zeros(0, dtype=torch.int64)
    seeds = none if all(one.seeds is not None for one in passes) else None
    return PlannedPass(Task((name,), None), Generative(task=name), batch, none, seeds)
