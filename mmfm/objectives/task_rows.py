"""Which samples take part in a task, where their items lie, and what is drawn for each of them: all on the CPU, by the
facts of the items, so that no device is asked."""

import zlib
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmfm.config import Generative, UserError
from mmfm.config.task import Task
from mmfm.data.batch import Batch, Items
from mmfm.runtime.randomness import hash_uniform, splitmix64

SHARED, DROPPED, HIDDEN, BLIND = 1, 2, 3, 4  # what a row's draws decide besides dropout
DIFFERENT = 1 << 20


def embeds(task: Task) -> bool:
    """Whether its pass gives the embedding of its one source: of the whole of it, and so not where it is continued."""
    return len(task.sources) == 1 and task.target != task.sources[0]


def chosen_rows(
    batch: Batch, task: Task, share: float, exclude: Int[Tensor, " m"] | None = None
) -> Int[Tensor, " n"] | None:
    """The samples that take part."""
    rows = rows_with(batch, task)
    if rows is not None and exclude is not None:
        rows = rows[~torch.isin(rows, exclude)]
    if rows is not None and len(rows) and share < 1 and (seeds := task_seeds(batch, task, rows)) is not None:
        rows = rows[hash_uniform(seeds, SHARED) < share]
    return rows if rows is not None and len(rows) else None


def rows_with(batch: Batch, task: Task) -> Int[Tensor, " n"] | None:
    """The samples that hold all that the task names, rising; None if there are none."""
    names = {name: task.mentions(name) for name in (*task.sources, task.target) if name is not None}
    if any(name not in batch.items for name in names):
        return None
    held = {name: torch.bincount(batch.items[name].facts.rows, minlength=batch.size) for name in names}
    rows = torch.stack([held[name] >= count for name, count in names.items()]).all(0).nonzero().squeeze(1)
    return rows if len(rows) else None


def item_places(items: Items, rows: Int[Tensor, " n"], back: int) -> Int[Tensor, " n"]:
    """Where the item lies that is so many places before the first item of the next sample."""
    return (torch.searchsorted(items.facts.rows, rows, right=True) - back).clamp(min=0)


def task_seeds(batch: Batch, task: Task, rows: Int[Tensor, " n"]) -> Int[Tensor, " n"] | None:
    """What is random in a row: its own in each task. None where the batch carries no draws."""
    items = batch.items[task.sources[0] if task.sources else str(task.target)]
    seeds = items.facts.take(item_places(items, rows, 1)).seeds()
    return None if seeds is None else splitmix64(seeds + zlib.crc32(str(task).encode()))


def masked_places(
    keep: Bool[Tensor, "n time"], seeds: Int[Tensor, " n"] | None, how: Generative
) -> Bool[Tensor, "n time"]:
    """What is masked of each row: a fraction drawn between the two of `how.mask_ratio`, and at least one token."""
    if seeds is None:
        seeds = torch.zeros(len(keep), dtype=torch.int64, device=keep.device)
    if not keep.shape[1]:  # nothing but texts without a token
        return keep
    low, high = how.mask_ratio
    part = low + (high - low) * hash_uniform(seeds, HIDDEN)
    first = (hash_uniform(seeds, HIDDEN + DIFFERENT) * how.mask_span).long()
    runs = (torch.arange(keep.shape[1], device=keep.device) + first[:, None]) // how.mask_span
    drawn = hash_uniform(splitmix64(seeds)[:, None] + runs, HIDDEN).masked_fill(~keep, torch.inf)
    least = drawn == drawn.amin(1, keepdim=True)
    return ((drawn < part[:, None]) | least) & keep


def check_towers(task: Task, towers: Sequence[str]) -> None:
    """A task whose source has no tower is refused before anything is built."""
    for name in task.sources:
        if name not in towers:
            raise UserError(f"task {task}: the model has no {name} tower; give model.{name} or leave the task out")


def check_codecs(task: Task, codecs: Sequence[str]) -> None:
    """And one whose target has no codes."""
    if task.target not in (None, "text", *codecs):
        told = f"model.{task.target}_codec, or leave the task out"
        raise UserError(f"task {task}: the model has no codec that writes {task.target}; give {told}")
