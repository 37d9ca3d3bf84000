"""A pass is a sentence of segments: "image>text" reads a picture and writes its text, "text" only reads.

`read` runs one task over a batch in one trunk pass and gives both what contrast needs (the embedding of the first
source) and what writing needs (states and labels of the target). A sample that holds fewer items than a task names may
still take part, where its sound or text can be cut in two (`mmfm.objectives.continuation`).
"""

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmfm.config import Generative, UserError
from mmfm.config.task import Task
from mmfm.data.augment import hide_tokens
from mmfm.data.batch import Batch, Ids, Items
from mmfm.models.model import UnifiedModel
from mmfm.models.token_dropout import keep_mask
from mmfm.models.transformer import Segment
from mmfm.objectives.continuation import with_halves
from mmfm.runtime.randomness import hash_uniform, splitmix64

SHARED, DROPPED, HIDDEN, BLIND = 1, 2, 3, 4  # what a row's draws decide besides dropout
DIFFERENT = 1 << 20
TARGET = 1  # other tokens of a text are hidden where it is written than where it is read


class PassOutput(NamedTuple):
    """What one pass gives. `tokens` counts the real target tokens, over all rows; `owners` is the sample of each."""

    rows: Int[Tensor, " n"]
    embedding: Float[Tensor, "n dim"]
    states: Float[Tensor, "tokens width"]
    labels: Int[Tensor, " tokens"]
    sample_ids: Int[Tensor, " tokens"]


def embeds(task: Task) -> bool:
    """Whether its pass gives the embedding of its one source: of the whole of it, and so not where it is continued."""
    return len(task.sources) == 1 and task.target != task.sources[0]


def forward_task(
    model: UnifiedModel, task: Task, batch: Batch, how: Generative | None = None, but: Int[Tensor, " m"] | None = None
) -> PassOutput | None:
    """One trunk pass over the samples that hold all that the task names; None where there are none.

    how: which samples take part, how often the target does not see the sources, what is masked; where the batch carries
    draws. but: samples to leave out.
    """
    how, batch = how or Generative(task=str(task)), with_halves(model, task, batch)
    rows = chosen_rows(batch, task, how.sample_fraction, but)
    if rows is None:
        return None
    segments, seeds = _sources(model, task, batch, rows), task_seeds(batch, task, rows)
    if task.target is None:
        return _only_read(model, task, rows, model.trunk(segments, seeds=seeds)[0])
    target, labels, asked = _target(model, task, batch, rows, how)
    states = model.trunk([*_dropped(segments, seeds, how.condition_dropout), target], seeds=seeds)
    owners = rows[:, None].expand_as(asked)[asked]
    embedding = model.head(task.sources[0], states[0]) if task.sources else _nothing(model, model.embed_dim)
    return PassOutput(rows, embedding, states[-1][asked], labels[asked], owners)


def sources_of(model: UnifiedModel, task: Task, batch: Batch) -> tuple[Int[Tensor, " n"], list[Segment]] | None:
    """The samples that hold what the task reads, and its segments, for a target to be written behind them."""
    only = Task(task.sources, None)
    rows = rows_with(batch, only)
    return None if rows is None else (rows, _sources(model, only, batch, rows))


def _sources(model: UnifiedModel, task: Task, batch: Batch, rows: Int[Tensor, " n"]) -> list[Segment]:
    """A segment for each mention; of a modality's mentions the last one, a target's included, is the last item."""
    seen: Counter[str] = Counter()
    segments = []
    for name in task.sources:
        items = batch.items[name]
        segments.append(model.source(name, items.take(item_places(items, rows, task.mentions(name) - seen[name]))))
        seen[name] += 1
    return segments


def item_places(items: Items, rows: Int[Tensor, " n"], back: int) -> Int[Tensor, " n"]:
    """Where the item lies that is so many places before the first item of the next sample."""
    return (torch.searchsorted(items.rows, rows, right=True) - back).clamp(min=0)


def task_seeds(batch: Batch, task: Task, rows: Int[Tensor, " n"]) -> Int[Tensor, " n"] | None:
    """What is random in a row: its own in each task. None where the batch carries no draws."""
    items = batch.items[task.sources[0] if task.sources else str(task.target)]
    seeds = items.take(item_places(items, rows, 1)).seeds()
    return None if seeds is None else splitmix64(seeds + zlib.crc32(str(task).encode()))


def _dropped(segments: list[Segment], seeds: Int[Tensor, " n"] | None, chance: float) -> list[Segment]:
    """The sources, hidden from the target in rows drawn with this chance: one of several, some, or all alike often.

    Hidden and not left out, so that the pass still gives the embedding of what it reads.
    """
    if seeds is None or not chance or not segments:
        return segments
    subset = 1 + (hash_uniform(seeds, DROPPED + DIFFERENT) * (2 ** len(segments) - 1)).long()
    subset = subset * (hash_uniform(seeds, DROPPED) < chance)
    return [segment._replace(hidden=(subset >> at & 1).bool()) for at, segment in enumerate(segments)]


def _only_read(model: UnifiedModel, task: Task, rows: Tensor, states: Tensor) -> PassOutput:
    empty = rows[:0]
    return PassOutput(rows, model.head(task.sources[0], states), _nothing(model, model.trunk.width), empty, empty)


def _nothing(model: UnifiedModel, width: int) -> Tensor:
    return torch.zeros(0, width, dtype=model.dtype, device=model.device)


def chosen_rows(
    batch: Batch, task: Task, share: float, but: Int[Tensor, " m"] | None = None
) -> Int[Tensor, " n"] | None:
    """The samples that take part."""
    rows = rows_with(batch, task)
    if rows is not None and but is not None:
        rows = rows[~torch.isin(rows, but)]
    if rows is not None and len(rows) and share < 1 and (seeds := task_seeds(batch, task, rows)) is not None:
        rows = rows[hash_uniform(seeds, SHARED) < share]
    return rows if rows is not None and len(rows) else None


def rows_with(batch: Batch, task: Task) -> Int[Tensor, " n"] | None:
    """The samples that hold all that the task names, rising; None if there are none."""
    names = {name: task.mentions(name) for name in (*task.sources, task.target) if name is not None}
    if any(name not in batch.items for name in names):
        return None
    held = {name: torch.bincount(batch.items[name].rows, minlength=batch.size) for name in names}
    rows = torch.stack([held[name] >= count for name, count in names.items()]).all(0).nonzero().squeeze(1)
    return rows if len(rows) else None


def _target(
    model: UnifiedModel, task: Task, batch: Batch, rows: Int[Tensor, " n"], how: Generative
) -> tuple[Segment, Int[Tensor, "n time"], Bool[Tensor, "n time"]]:
    """The target's segment, the label of each of its places, and which places are asked for it."""
    modality = str(task.target)
    items = batch.items[modality]
    items = items.take(item_places(items, rows, 1))
    written = model.written(modality, items)
    if task.fill:
        hidden = masked_places(written.keep, task_seeds(batch, task, rows), how)
        labels = F.pad(model.vocabulary.shared(modality, written.ids), (1, 0), value=model.vocabulary.pad)
        return model.filled(modality, written.ids, hidden, written.keep), labels, F.pad(hidden, (1, 0), value=False)
    segment, labels, asked = _continued(model, modality, written, items, how.target_dropout)
    if items.cut is not None:  # where a text was cut it does not end
        ends = torch.arange(labels.shape[1], device=labels.device) == written.keep.sum(1, keepdim=True)
        asked = asked & ~(ends & items.cut[:, None])
    return segment, labels, asked


def _continued(
    model: UnifiedModel, modality: str, written: Ids, items: Items, blind: float
) -> tuple[Segment, Int[Tensor, "n time"], Bool[Tensor, "n time"]]:
    """Input ids (begin, t1, .., tn) and labels (t1, .., tn, end).

    In training some inputs may be masked, never labels: what follows must then be read from the sources.
    """
    vocabulary, chance, draws, seeds = model.vocabulary, model.augment.target_token_dropout, items.draws, items.seeds()
    ids, lengths = vocabulary.shared(modality, written.ids), written.keep.sum(1)
    steps = torch.arange(ids.shape[1] + 1, device=ids.device)
    seen = ids
    if modality == "text" and draws is not None and chance:
        seen = hide_tokens(ids, draws, chance, vocabulary.hidden, salt=TARGET)
    if seeds is not None and blind:
        seen = torch.where(keep_mask(splitmix64(seeds + BLIND), written.keep, blind), seen, vocabulary.hidden)
    begun = F.pad(seen, (1, 0), value=vocabulary.begin(modality))
    labels = torch.where(steps == lengths[:, None], vocabulary.end, F.pad(ids, (0, 1), value=vocabulary.pad))
    keep = steps <= lengths[:, None]
    return model.target(begun, keep), labels, keep


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
