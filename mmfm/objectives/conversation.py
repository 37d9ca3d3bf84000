"""Conversations as sentences of the trunk: text causal, through its own table; each picture and sound a whole block at
its place. What is asked are the tokens of answers.

    <begin> user  What is [i i i i] this? <end>  <begin> assistant  A cat. <end>
                                                                    ------------  learned

All is laid out on the CPU, by the facts of the items; a device then gathers each token once. Letters: n conversations.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmfm.config import Chat
from mmfm.config.chat import END, PARTS
from mmfm.config.task import Task
from mmfm.data.batch import Batch, Conversations, Items, Tokens
from mmfm.models.model import UnifiedModel
from mmfm.models.packing import pad_packed
from mmfm.models.transformer import Segment, Sentences
from mmfm.models.varlen import take
from mmfm.runtime.transfer import to_device


class Mention(NamedTuple):
    """Items of one modality that a pass reads or writes: of a task one of each of its samples, of conversations all."""

    modality: str
    items: Items
    places: Int[Tensor, " n"]


class PlannedChats(NamedTuple):
    """The conversations of a batch, before anything is computed; on the CPU."""

    objective: Chat
    batch: Batch
    chats: Conversations
    names: tuple[str, ...]  # of what they mention

    @property
    def task(self) -> Task:
        return Task(self.names, "text")

    @property
    def rows(self) -> Int[Tensor, " n"]:
        return self.chats.rows

    @property
    def seeds(self) -> Int[Tensor, " n"] | None:
        return self.chats.seeds

    def mentions(self) -> list[Mention]:
        """All items of their samples, modality by modality."""
        held = [(name, self.batch.items[name]) for name in self.names]
        return [Mention(name, items, self._places(items)) for name, items in held]

    def _places(self, items: Items) -> Int[Tensor, " m"]:
        return torch.isin(items.facts.rows, self.rows).nonzero().squeeze(1)


def plan_chats(batch: Batch, objective: Chat | None = None) -> PlannedChats | None:
    """The conversations of a batch; None where it has none."""
    if batch.chats is None:
        return None
    names = tuple(name for name, mark in PARTS.items() if bool((batch.chats.ids == mark).any()))
    return PlannedChats(objective or Chat(), batch, batch.chats, names)


class LaidOut(NamedTuple):
    """Conversations as the trunk reads them. labels, owners, counts: of the places that are asked, in order. answers:
    how many these are, where each counts as one."""

    sentences: Sentences
    labels: Int[Tensor, " tokens"]
    owners: Int[Tensor, " tokens"]
    counts: Float[Tensor, " tokens"] | None
    answers: int | None

    def asked(
        self, states: Float[Tensor, "m width"], where: Int[Tensor, "n time"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, int | None]:
        """States, labels, samples and counts of the tokens that are learned; where: of the states, on the CPU."""
        assert self.sentences.wanted is not None
        places = to_device(where[self.sentences.wanted], states.device)
        return take(states, places), self.labels, self.owners, self.counts, self.answers


class _Places(NamedTuple):
    """Every token of all conversations, one after the other. of: its place in the table of ids, flattened. kind: 0 for
    text, else the number of its modality. time: its place in its conversation."""

    of: Int[Tensor, " m"]
    kind: Int[Tensor, " m"]
    row: Int[Tensor, " m"]
    time: Int[Tensor, " m"]
    longest: int


def lay_out(model: UnifiedModel, planned: PlannedChats, parts: Sequence[Segment]) -> LaidOut:
    """parts: of each of `planned.mentions()`, the segment of all its items, with a pool token that is left out."""
    chats, device = planned.chats, model.device
    known = [_own(part) for part in parts]
    marks = [PARTS[name] for name in planned.names]
    at = _places(chats, marks, known)
    index = torch.empty_like(at.of)
    texts = at.kind == 0
    index[texts] = torch.arange(int(texts.sum()))
    start = int(texts.sum())
    for number, real in enumerate(known):
        index[at.kind == number + 1] = start + real.flatten().nonzero().squeeze(1)
        start += real.numel()
    ids = _shared(model, chats.ids.flatten()[at.of[texts]])
    tables = [model.embedding(to_device(ids, device)), *(part.tokens.x.flatten(0, 1) for part in parts)]
    tables = [table.to(tables[0].dtype) for table in tables]
    size = (len(chats.rows), at.longest)
    flat = at.row * at.longest + at.time
    places, order = to_device(torch.stack([flat, index]), device)
    x = pad_packed(take(torch.cat(tables), order), places, size)
    segment = _segment(x, at, flat, size, chats, parts)
    labels, wanted, counts, answers = _asked(model, planned, at, flat, size)
    segment = segment if segment.shown is None else segment._replace(shown=segment.shown | wanted)
    owners = chats.rows[:, None].expand(size)[wanted]
    sent = None if counts is None else to_device(counts, device)
    return LaidOut(Sentences([segment], chats.seeds, wanted), to_device(labels, device), owners, sent, answers)


def _own(part: Segment) -> Bool[Tensor, "items time"]:
    """Real tokens of a part's items, its pool token not one of them; on the CPU."""
    keep = part.planned().tokens.keep
    return torch.cat([keep[:, :-1], torch.zeros_like(keep[:, -1:])], dim=1)


def _places(chats: Conversations, marks: list[int], known: list[Bool[Tensor, "items time"]]) -> _Places:
    counts, kinds = chats.keep.long(), torch.zeros_like(chats.ids)
    for number, (mark, real) in enumerate(zip(marks, known, strict=True), 1):
        mentioned = (chats.ids == mark) & chats.keep
        assert int(mentioned.sum()) == len(real), "conversations mention as many parts as their samples hold"
        counts[mentioned], kinds[mentioned] = real.sum(1), number
    of = torch.repeat_interleave(torch.arange(counts.numel()), counts.flatten())
    row = of // counts.shape[1]
    lengths = counts.sum(1)
    time = torch.arange(len(of)) - (lengths.cumsum(0) - lengths)[row]
    return _Places(of, kinds.flatten()[of], row, time, int(lengths.max()))


def _shared(model: UnifiedModel, ids: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
    """Ids of texts as those of the vocabulary; its own end mark among them."""
    shared = model.vocabulary.shared("text", ids)
    return torch.where(ids == END, model.vocabulary.end, shared)


def _segment(
    x: Float[Tensor, "n time width"],
    at: _Places,
    flat: Int[Tensor, " m"],
    size: tuple[int, int],
    chats: Conversations,
    parts: Sequence[Segment],
) -> Segment:
    keep = torch.zeros(size, dtype=torch.bool)
    keep.view(-1)[flat] = True
    blocks = torch.zeros(size, dtype=torch.int64)
    blocks.view(-1)[flat] = torch.where(at.kind > 0, at.of + 1, 0)
    shown = None
    if any(part.shown is not None for part in parts):
        shown = torch.zeros(size, dtype=torch.bool)
        seen = torch.ones_like(at.kind, dtype=torch.bool)
        for number, part in enumerate(parts, 1):
            if part.shown is not None:
                seen[at.kind == number] = part.shown[_own(part)]
        shown.view(-1)[flat] = seen
    there = to_device(keep, x.device)
    return Segment(Tokens(x, there), causal=True, shown=shown, known=keep, blocks=blocks)


def _asked(
    model: UnifiedModel, planned: PlannedChats, at: _Places, flat: Int[Tensor, " m"], size: tuple[int, int]
) -> tuple[Int[Tensor, " tokens"], Bool[Tensor, "n time"], Float[Tensor, " tokens"] | None, int | None]:
    """Labels, the places before them, how much each counts, and how many answers they are."""
    chats = planned.chats
    learn, turns = chats.learn, chats.turns
    if planned.objective.turns == "last":
        last = torch.where(learn, turns, -1).amax(1, keepdim=True)
        learn = learn & (turns == last)
    learned = torch.zeros(size, dtype=torch.bool)
    learned.view(-1)[flat] = learn.flatten()[at.of] & (at.kind == 0)
    table = torch.zeros(size, dtype=torch.int64)
    table.view(-1)[flat] = torch.where(at.kind == 0, _shared(model, chats.ids.flatten()[at.of]), 0)
    wanted = F.pad(learned[:, 1:], (0, 1))
    learned[:, 0] = False  # nothing stands before it
    labels = table[learned]
    if planned.objective.per == "token":
        return labels, wanted, None, None
    of = torch.zeros(size, dtype=torch.int64)
    of.view(-1)[flat] = (at.row * (int(turns.max()) + 1)) + turns.flatten()[at.of]
    _, place, counts = of[learned].unique(return_inverse=True, return_counts=True)
    return labels, wanted, (1 / counts.double())[place].float(), len(counts)
