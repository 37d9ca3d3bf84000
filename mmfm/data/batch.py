"""What a step gets. For each modality only the items that exist, and `rows`: which sample each belongs to.

A sample may lack any modality; a batch may hold none of one. `keep` is True where a value is real, everywhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmfm.runtime.transfer import to_device

NO_TEXT = -1


class Tokens(NamedTuple):
    """A padded sequence of vectors."""

    x: Float[Tensor, "batch time width"]
    keep: Bool[Tensor, "batch time"]


class Ids(NamedTuple):
    """Padded local ids of what is written, without marks."""

    ids: Int[Tensor, "n time"]
    keep: Bool[Tensor, "n time"]


def seeds_of(draws: Float[Tensor, "n k"]) -> Int[Tensor, " n"]:
    """A whole number for each item, made of all its draws."""
    bits = draws.contiguous().view(torch.int32).long()
    odd = 2 * torch.arange(bits.shape[1], device=bits.device) + 0x9E3779B97F4A7C15 % 2**62 | 1
    return (bits * odd).sum(1)


class Raw(NamedTuple):
    """Pictures or sounds as a codec wants them, shaped as Items.x and Items.keep."""

    x: Tensor
    keep: Bool[Tensor, "n time"]


class ItemFacts(NamedTuple):
    """What a step is planned by, always on the CPU: a device need not be asked, which would wait for all it has to do.

    lengths: how many values of each item are real; items are padded at their ends alone. written: how many ids of it.
    """

    rows: Int[Tensor, " n"]
    lengths: Int[Tensor, " n"]
    draws: Float[Tensor, "n k"] | None = None
    written: Int[Tensor, " n"] | None = None
    cut: Bool[Tensor, " n"] | None = None

    def seeds(self) -> Int[Tensor, " n"] | None:
        """Those of `Items.seeds`."""
        return None if self.draws is None else seeds_of(self.draws)

    def take(self, index: Int[Tensor, " m"]) -> "ItemFacts":
        rows, lengths, *rest = self
        return ItemFacts(rows[index], lengths[index], *(None if value is None else value[index] for value in rest))


class Known(NamedTuple):
    """Facts, and the very tensors that they are of: where one of these was replaced they say nothing."""

    facts: ItemFacts
    of: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Items:
    """The items of one modality, in rising order of `rows`; a sample with several has its row several times.

    x: images uint8 [n, channels, height, width]; audio float [n, samples] at the model's rate; text int64 [n, tokens],
    ids of the tokenizer without marks, or those of the tower's own tokenizer, with its marks. keep: [n, samples] or
    [n, tokens]; [n, 1] for images, which are never padded.
    draws: uniform numbers in [0, 1) that decide this item's augmentation; None: no augmentation. written: what a task
    with this target predicts; None: x itself, or its codes. raw: what a codec makes these of, where it wants another
    size or rate than the tower; None: x. cut: True for a text that goes on beyond what is written of it here, so that
    no end is to be learned; None: all are whole. tokens: the tower's, where they are known already, so that several
    passes share them; None: the tower is asked. known: the facts, where the tensors lie on another device.
    """

    x: Tensor
    keep: Bool[Tensor, "n time"]
    rows: Int[Tensor, " n"]
    draws: Float[Tensor, "n k"] | None = None
    written: Ids | None = None
    raw: Raw | None = None
    cut: Bool[Tensor, " n"] | None = None
    tokens: Tokens | None = None
    known: Known | None = None

    @property
    def counted(self) -> tuple[Any, ...]:
        """What the facts are of."""
        return self.rows, self.keep, self.draws, self.written, self.cut

    @cached_property
    def facts(self) -> ItemFacts:
        """What a plan asks of these items, on the CPU."""
        if self.known is not None and all(a is b for a, b in zip(self.known.of, self.counted, strict=True)):
            return self.known.facts
        rest = (self.draws, None if self.written is None else self.written.keep.sum(1), self.cut)
        there = (None if value is None else value.cpu() for value in rest)
        return ItemFacts(self.rows.cpu(), self.keep.sum(1).cpu(), *there)

    def knowing(self, facts: ItemFacts) -> "Items":
        """The same with its facts, which no device need then be asked for."""
        return replace(self, known=Known(facts, self.counted))

    def seeds(self) -> Int[Tensor, " n"] | None:
        """A whole number for each item, made of all its draws: what is random in the model belongs to it too."""
        return None if self.draws is None else seeds_of(self.draws)

    def to(self, device: torch.device) -> "Items":
        there = Items(**self._each(lambda x: to_device(x, device)))
        return there if device.type == "cpu" else there.knowing(self.facts)

    def take(self, index: Int[Tensor, " m"]) -> "Items":
        """These items alone, padding that none of them needs cut off. An index on the CPU waits for no device."""
        facts, index = self.facts.take(index.cpu()), to_device(index, self.rows.device)
        taken, longest = self._each(lambda x: x[index]), int(facts.lengths.max()) if len(index) else 0
        cut = ("x", "keep") if self.x.shape[1:] == self.keep.shape[1:] else ("keep",)
        shorter = {name: taken[name][:, :longest] for name in cut}
        found = Items(**taken | shorter)
        return found if self.known is None else found.knowing(facts)

    def behind(self, start: int) -> "Items":
        """The same of samples that are counted from this one on."""
        found = replace(self, rows=self.rows - start, known=None)
        return found if self.known is None else found.knowing(self.facts._replace(rows=self.facts.rows - start))

    def _each(self, apply: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        return {one.name: _each(getattr(self, one.name), apply) for one in fields(self) if one.name != "known"}


def _each(value: Any, apply: Callable[[Tensor], Tensor]) -> Any:
    """The same of a tensor, a named tuple of tensors or None."""
    if value is None:
        return None
    return apply(value) if isinstance(value, Tensor) else type(value)(*map(apply, value))


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """n conversations, of the samples `rows`, which rise. ids: local ones of texts, or below zero what
    `mmfm.config.chat.PARTS` has. learn: what is predicted. turns: of each id its message. seeds: of dropout, one
    for each; None: as torch draws.
    """

    rows: Int[Tensor, " n"]
    ids: Int[Tensor, "n time"]
    keep: Bool[Tensor, "n time"]
    learn: Bool[Tensor, "n time"]
    turns: Int[Tensor, "n time"]
    seeds: Int[Tensor, " n"] | None = None

    def part(self, start: int, stop: int) -> "Conversations | None":
        """Those of these samples, counted from the first of them on; None where there is none."""
        index = ((self.rows >= start) & (self.rows < stop)).nonzero().squeeze(1)
        if not len(index):
            return None
        longest = int(self.keep[index].sum(1).max())
        ids, keep, learn, turns = (x[index, :longest] for x in (self.ids, self.keep, self.learn, self.turns))
        seeds = None if self.seeds is None else self.seeds[index]
        return Conversations(rows=self.rows[index] - start, ids=ids, keep=keep, learn=learn, turns=turns, seeds=seeds)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`size` samples. positive_ids: one number per sample, equal where the texts are equal, NO_TEXT where there is
    none; always on the CPU.

    truncated: the samples with a text of which only the beginning is read or written. chats: their conversations, which
    mention items; on the CPU.
    """

    size: int
    items: Mapping[str, Items]
    positive_ids: Int[Tensor, " size"]
    keys: tuple[str, ...] = field(default=())
    texts: tuple[str | None, ...] = field(default=())
    truncated: tuple[int, ...] = field(default=())
    chats: Conversations | None = None

    def to(self, device: torch.device) -> "Batch":
        items = {name: item.to(device) for name, item in self.items.items()}
        return replace(self, items=items)

    def micro_batches(self, size: int) -> "list[Batch]":
        """Its samples in order, so many to each; of no samples one that is empty."""
        return [self.part(start, min(start + size, self.size)) for start in range(0, max(self.size, 1), size)]

    def part(self, start: int, stop: int) -> "Batch":
        """These samples alone, counted from the first of them on."""
        items = {}
        for name, item in self.items.items():
            rows = item.facts.rows
            index = ((rows >= start) & (rows < stop)).nonzero().squeeze(1)
            if len(index):
                items[name] = item.take(index).behind(start)
        return Batch(
            size=stop - start,
            items=items,
            positive_ids=self.positive_ids[start:stop],
            keys=self.keys[start:stop],
            texts=self.texts[start:stop],
            truncated=tuple(row - start for row in self.truncated if start <= row < stop),
            chats=None if self.chats is None else self.chats.part(start, stop),
        )
