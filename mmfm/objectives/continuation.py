"""A sound or a text in two: what is heard or read, and what continues it ("audio>audio", "image,text>text").

Where a sample holds as many items as such a task names they are taken as they are, as a question and its answer; one
that holds an item less has its last one cut.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmfm.config import UserError, require
from mmfm.config.task import Task
from mmfm.data.batch import Batch, Ids, Items
from mmfm.models.model import UnifiedModel
from mmfm.runtime.randomness import hash_uniform
from mmfm.runtime.transfer import to_device

EARLIEST, LATEST = 0.25, 0.75  # of an item's length; half where nothing is drawn
CUT = 4  # what a row's draws decide


def with_halves(model: UnifiedModel, task: Task, batch: Batch) -> Batch:
    """The batch with the last item of the target's modality cut, in the samples that hold one less than is named."""
    name = task.target
    if name is None or task.fill or name not in task.sources or name not in batch.items:
        return batch
    items, wanted = batch.items[name], task.mentions(name)
    rows = items.facts.rows
    held = torch.bincount(rows, minlength=batch.size)
    last = torch.searchsorted(rows, rows, right=True) - 1
    asked = (held[rows] == wanted - 1) & (last == torch.arange(len(last)))
    if not bool(asked.any()):
        return batch
    unit, books = _units(model, name, items)
    return replace(batch, items={**batch.items, name: halves(items, asked, unit, books)})


def _units(model: UnifiedModel, name: str, items: Items) -> tuple[int, int]:
    """What a cut may fall between, in values of the item; and the written ids for each."""
    if name == "text":
        told = (
            "a text tower with a tokenizer of its own reads other tokens than are written: give two texts to a sample"
        )
        require(items.written is None, told)
        return 1, 1
    if name != "audio" or name not in model.codecs:
        raise UserError(
            f"{name}>{name}: an item of {name} cannot be cut; give samples with two of them, or use {name}~"
        )
    codec = model.codec(name)
    return codec.step_samples, len(codec.form.sizes)


def halves(items: Items, asked: Bool[Tensor, " n"], unit: int, books: int = 1) -> Items:
    """Items in which each one that is `asked` stands twice: up to a cut between two units, and from there on.

    One of less than two units stays whole, and so its sample takes no part.
    """
    facts, device = items.facts, items.rows.device
    units = (facts.lengths + unit - 1) // unit
    asked = asked & (units >= 2)
    seeds = facts.seeds()
    part = EARLIEST + (LATEST - EARLIEST) * (0.5 if seeds is None else hash_uniform(seeds, CUT))
    cut = (units * part).round().long().clamp(min=1).minimum(units - 1)
    index = torch.repeat_interleave(torch.arange(len(asked)), 1 + asked.long())
    second = _again(index) & asked[index]
    first = asked[index] & ~second
    start = torch.where(second, cut[index], 0)
    stop = torch.where(first, cut[index], units[index])
    doubled, there = items.take(index), to_device(index, device)
    lengths = (stop * unit).minimum(facts.lengths[index]) - start * unit
    x, keep = _window(items.x[there], start * unit, lengths)
    written, of_written = None, None
    if items.written is not None:
        assert facts.written is not None
        of_written = (stop * books).minimum(facts.written[index]) - start * books
        written = Ids(*_window(items.written.ids[there], start * books, of_written))
    if items.raw is not None:
        raise UserError("a sound that tower and codec take at two rates cannot be cut; give them one rate")
    cut_up = replace(doubled, x=x, keep=keep, written=written, tokens=None)
    return (
        cut_up if doubled.known is None else cut_up.knowing(doubled.facts._replace(lengths=lengths, written=of_written))
    )


def _again(index: Int[Tensor, " m"]) -> Bool[Tensor, " m"]:
    """True where the one before is the same."""
    again = torch.zeros_like(index, dtype=torch.bool)
    again[1:] = index[1:] == index[:-1]
    return again


def _window(
    x: Tensor, start: Int[Tensor, " m"], lengths: Int[Tensor, " m"]
) -> tuple[Tensor, Bool[Tensor, "m shorter"]]:
    """So many values of each row from its start on, moved to the left, with zeros behind."""
    begin, count = to_device(torch.stack([start, lengths]), x.device)
    steps = torch.arange(int(lengths.max()), device=x.device)
    keep = steps < count[:, None]
    return x.gather(1, (steps + begin[:, None]).clamp(max=x.shape[1] - 1)) * keep, keep
