"""A pass is a sentence of segments: "image>text" reads a picture and writes its text, "text" only reads.

`read` runs one task over a batch in one trunk pass and gives both what contrast needs (the embedding of the first
source) and what writing needs (states and labels of the target). `plan` says which tasks a step must run.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmfm.batch import Batch, Ids, Items
from mmfm.config import MODALITIES, Augment, UserError
from mmfm.grammar import Task
from mmfm.inputs.augment import DRAWS, hide_tokens
from mmfm.layers import mix
from mmfm.model import UnifiedModel
from mmfm.vocabulary import Vocabulary


class Reading(NamedTuple):
    """What one pass gives. `tokens` counts the real target tokens, over all rows; `owners` is the sample of each."""

    rows: Int[Tensor, " n"]
    embedding: Float[Tensor, "n dim"]
    states: Float[Tensor, "tokens width"]
    labels: Int[Tensor, " tokens"]
    owners: Int[Tensor, " tokens"]


def one_pass(pairs: Sequence[tuple[str, str]], writes: Sequence[Task]) -> list[Task]:
    """The tasks of a step: an embedding comes from the first pass that reads its modality alone, if there is one."""
    given = {task.sources[0] for task in writes if len(task.sources) == 1}
    return [*writes, *(Task((name,), None) for name in _contrasted(pairs) if name not in given)]


def two_passes(pairs: Sequence[tuple[str, str]], writes: Sequence[Task]) -> list[Task]:
    """The same, with a pass of its own for every embedding; for comparison (experiments/001-one-pass)."""
    return [*(Task((name,), None) for name in _contrasted(pairs)), *writes]


PLANS: dict[str, Callable[[Sequence[tuple[str, str]], Sequence[Task]], list[Task]]] = {
    "one": one_pass,
    "two": two_passes,
}


def _contrasted(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [name for name in MODALITIES if any(name in pair for pair in pairs)]


def read(model: UnifiedModel, task: Task, batch: Batch) -> Reading | None:
    """One trunk pass over the samples that have every source of the task; None where there are none.

    A sample without the target is read all the same: its embedding counts, and it has no target tokens.
    """
    rows = rows_with(batch, task.sources or (str(task.target),))
    if rows is None:
        return None
    segments = [model.source(name, select(batch.items[name], rows)) for name in task.sources]
    seeds = _seeds(batch, task, rows)
    if task.target is None:
        return _only_read(model, task, rows, model.trunk(segments, seeds=seeds)[0])
    begun, keep, labels = target_ids(batch, task.target, rows, model.vocabulary, model.augment)
    states = model.trunk([*segments, model.target(begun, keep)], seeds=seeds)
    owners = rows[:, None].expand_as(keep)[keep]
    embedding = model.head(task.sources[0], states[0]) if task.sources else _nothing(model, model.embed_dim)
    return Reading(rows, embedding, states[-1][keep], labels[keep], owners)


def _seeds(batch: Batch, task: Task, rows: Int[Tensor, " n"]) -> Int[Tensor, " n"] | None:
    """Of the trunk's dropout: each row's own, another in each task. None where the batch carries no draws."""
    first = task.sources[0] if task.sources else str(task.target)
    seeds = select(batch.items[first], rows).seeds()
    return None if seeds is None else mix(seeds + zlib.crc32(str(task).encode()))


def _only_read(model: UnifiedModel, task: Task, rows: Tensor, states: Tensor) -> Reading:
    empty = rows[:0]
    return Reading(rows, model.head(task.sources[0], states), _nothing(model, model.trunk.width), empty, empty)


def _nothing(model: UnifiedModel, width: int) -> Tensor:
    return torch.zeros(0, width, dtype=model.dtype, device=model.device)


def rows_with(batch: Batch, modalities: Sequence[str]) -> Int[Tensor, " n"] | None:
    """The samples that have all of these modalities, rising; None if there are none."""
    if any(name not in batch.items for name in modalities):
        return None
    rows = batch.items[modalities[0]].rows
    for name in modalities[1:]:
        rows = rows[torch.isin(rows, batch.items[name].rows)]
    return rows if len(rows) else None


def select(items: Items, rows: Int[Tensor, " n"]) -> Items:
    """The items of these samples, padding that no one needs cut off."""
    if len(rows) == len(items.rows):
        return items
    index = torch.searchsorted(items.rows, rows)
    keep = items.keep[index]
    longest = int(keep.sum(1).max())
    x, keep = items.x[index], keep[:, :longest]
    padded = items.x.shape[1:] == items.keep.shape[1:]
    draws = None if items.draws is None else items.draws[index]
    written = None if items.written is None else Ids(*(part[index] for part in items.written))
    return Items(x=x[:, :longest] if padded else x, keep=keep, rows=rows, draws=draws, written=written)


def target_ids(
    batch: Batch, modality: str, rows: Int[Tensor, " n"], vocabulary: Vocabulary, augment: Augment
) -> tuple[Int[Tensor, "n time"], Bool[Tensor, "n time"], Int[Tensor, "n time"]]:
    """Input ids (begin, t1, .., tn), which of them are real, and labels (t1, .., tn, end). Rows without: nothing real.

    In training some inputs may be masked, never labels: what follows must then be read from the sources.
    """
    items = batch.items.get(modality)
    if items is None:
        none = torch.zeros(len(rows), 1, dtype=torch.int64, device=rows.device)
        return none + vocabulary.begin(modality), none.bool(), none
    place = torch.searchsorted(items.rows, rows).clamp(max=len(items.rows) - 1)
    has = items.rows[place] == rows
    written = items.written or Ids(items.x, items.keep)
    ids, lengths = vocabulary.shared(modality, written.ids[place]), written.keep[place].sum(1)
    steps = torch.arange(ids.shape[1] + 1, device=rows.device)
    seen, chance = ids, augment.hide_target_tokens
    if items.draws is not None and chance:
        seen = hide_tokens(ids, items.draws[place, DRAWS // 2 :], chance, vocabulary.hidden)
    begun = F.pad(seen, (1, 0), value=vocabulary.begin(modality))
    labels = torch.where(steps == lengths[:, None], vocabulary.end, F.pad(ids, (0, 1), value=vocabulary.pad))
    return begun, (steps <= lengths[:, None]) & has[:, None], labels


def check_towers(task: Task, towers: Sequence[str]) -> None:
    """A task whose source has no tower is refused before anything is built."""
    for name in task.sources:
        if name not in towers:
            raise UserError(f"task {task}: the model has no {name} tower; give model.{name} or leave the task out")
