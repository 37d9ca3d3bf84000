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

EARLIEST, LATEST = 0.25, 0.75  # of an item's length; half where nothing is drawn
CUT = 4  # what a row's draws decide


def with_halves(model: UnifiedModel, task: Task, batch: Batch) -> Batch:
    """The batch with the last item of the target's modality cut, in the samples that hold one less than is named."""
    name = task.target
    if name is None or task.fill or name not in task.sources or name not in batch.items:
        return batch
    items, wanted = batch.items[name], task.mentions(name)
    held = torch.bincount(items.rows, minlength=batch.size)
    last = torch.searchsorted(items.rows, items.rows, right=True) - 1
    asked = (held[items.rows] == wanted - 1) & (last == torch.arange(len(last), device=last.device))
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
    units = (items.keep.sum(1) + unit - 1) // unit
    asked = asked & (units >= 2)
    seeds = items.seeds()
    part = EARLIEST + (LATEST - EARLIEST) * (0.5 if seeds is None else hash_uniform(seeds, CUT))
    cut = (units * part).round().long().clamp(min=1).minimum(units - 1)
    index = torch.repeat_interleave(torch.arange(len(asked), device=asked.device), 1 + asked.long())
    second = _again(index) & asked[index]
    first = asked[index] & ~second
    start = torch.where(second, cut[index], 0)
    stop = torch.where(first, cut[index], units[index])
    doubled = items.take(index)
    x, keep = _window(items.x[index], items.keep[index], start * unit, stop * unit)
    written = None
    if items.written is not None:
        written = Ids(*_window(items.written.ids[index], items.written.keep[index], start * books, stop * books))
    if items.raw is not None:
        raise UserError("a sound that tower and codec take at two rates cannot be cut; give them one rate")
    return replace(doubled, x=x, keep=keep, written=written, tokens=None)


def _again(index: Int[Tensor, " m"]) -> Bool[Tensor, " m"]:
    """True where the one before is the same."""
    again = torch.zeros_like(index, dtype=torch.bool)
    again[1:] = index[1:] == index[:-1]
    return again


def _window(
    x: Tensor, keep: Bool[Tensor, "m time"], start: Int[Tensor, " m"], stop: Int[Tensor, " m"]
) -> tuple[Tensor, Bool[Tensor, "m shorter"]]:
    """Each row from its start to its stop, moved to the left, with zeros behind."""
    place = torch.arange(x.shape[1], device=x.device) + start[:, None]
    inside = (place < stop[:, None]) & (place < x.shape[1])
    place = place.clamp(max=x.shape[1] - 1)
    keep = keep.gather(1, place) & inside
    longest = int(keep.sum(1).max())
    return (x.gather(1, place) * keep)[:, :longest], keep[:, :longest]
