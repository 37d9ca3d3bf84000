"""One link: things in, things out. Samples come from people (`sample`) or from a split that holds the answers too
(`batch`); either way sources are read, and codes are written behind them or filled in.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from mmfm.config import Run, require
from mmfm.config.task import Task
from mmfm.data.batch import Batch, Ids, Items
from mmfm.generation import (
    Finish,
    GenerationConfig,
    Judge,
    Written,
    embed_items,
    fill,
    nearness,
    source_embeddings,
    stream,
    write,
)
from mmfm.inference.infill import MaskSpec, masked, with_marks
from mmfm.inference.modality_options import check_streamed, decoding
from mmfm.inference.processing import Made, Sound, Text, Things, rate_of, thing_of, whole_turns
from mmfm.inference.processor import Processor
from mmfm.inference.validation import has_own
from mmfm.models.model import UnifiedModel
from mmfm.objectives.continuation import with_halves
from mmfm.preprocessing.tokenizer import Tokenizer

Tick = Callable[[int, int], None]  # how many codes are made by now, and of how many at the most


class GeneratedCodes(NamedTuple):
    """What was made for a sample: local ids, of which the first `start` repeat what was given; of texts, the text.

    finish: "length" where it was cut at `max_tokens`.
    """

    row: int
    ids: list[int]
    start: int = 0
    text: str | None = None
    finish: Finish = "stop"
    logprobs: list[float] | None = None


@dataclass(frozen=True)
class Pipeline:
    """tick: told as codes are made one after the other."""

    core: UnifiedModel
    run: Run
    tokenizer: Tokenizer
    tick: Tick | None = None

    def how(self, task: Task, options: Mapping[str, Any]) -> GenerationConfig:
        if task.target != "audio":
            return decoding(task, self.run, 1.0, 1, options)
        codec = self.core.codec("audio")
        return decoding(task, self.run, codec.step_samples / rate_of(self.run), len(codec.form.sizes), options)

    def chain(
        self,
        links: Sequence[Task],
        samples: Sequence[Things],
        seeds: Int[Tensor, " n"],
        mask: MaskSpec,
        options: Mapping[str, Any],
        size: int = 0,
    ) -> list[Made]:
        """A thing for each of these samples, link by link, so many at a time, 0: all at once. The options are for the
        last link."""
        require(size >= 0, f"batch_size={size} must not be negative; 0: all at once")
        (first, *rest), step, made = links, size or max(len(samples), 1), []
        for start in range(0, len(samples), step):
            own = seeds[start : start + step]
            things = self.sample(first, samples[start : start + step], own, mask, {} if rest else options)
            for link in rest:
                held = [{link.sources[0]: [thing]} for thing in things]
                things = self.sample(link, held, own, None, options if link is rest[-1] else {})
            made += things
        return made

    def sample(
        self,
        task: Task,
        samples: Sequence[Things],
        seeds: Int[Tensor, " n"],
        mask: MaskSpec,
        options: Mapping[str, Any],
    ) -> list[Made]:
        """A thing for each of these samples, which hold the same kinds of things."""
        return [self.thing(task, item) for item in self.coded(task, samples, seeds, mask, options)]

    def coded(
        self,
        task: Task,
        samples: Sequence[Things],
        seeds: Int[Tensor, " n"],
        mask: MaskSpec,
        options: Mapping[str, Any],
    ) -> list[GeneratedCodes]:
        """The same, as codes."""
        how, seeds = self.how(task, options), seeds.to(self.core.device)
        own, name = has_own(task, samples[0]), str(task.target)
        sources = [{**held, name: held[name][:-1]} for held in samples] if own else samples
        batch = self.batched(sources)
        if not task.fill:
            return self.written(task, batch, seeds, how)
        if not own:
            ids = torch.zeros(len(samples), self.core.forms[name].length, dtype=torch.int64, device=self.core.device)
            given, hidden = Ids(ids, torch.ones_like(ids, dtype=torch.bool)), torch.ones_like(ids, dtype=torch.bool)
        else:
            given, hidden = self._own([held[name][-1] for held in samples], name, mask, seeds)
        return self.filled(task, batch, given, hidden, seeds, how)

    def _own(
        self, things: Sequence[Any], name: str, mask: MaskSpec, seeds: Int[Tensor, " n"]
    ) -> tuple[Ids, Bool[Tensor, "n t"]]:
        """The local ids of items that are given whole, and which of them are hidden."""
        if name != "text":
            given = self.core.written(name, self.batched([{name: [thing]} for thing in things]).items[name])
            return given, masked(self.run, name, mask, given.keep, seeds, self.core.codec(name))
        if mask is None:
            rows = [with_marks(text, self.tokenizer) for text in things]
        else:
            rows = [(ids := self.tokenizer.encode(text), [False] * len(ids)) for text in things]
        ids = torch.tensor([ids for ids, _ in rows], device=self.core.device).view(len(rows), -1)
        require(ids.shape[1] > 0, "an empty text has nothing to fill in; give one")
        given = Ids(ids, torch.ones_like(ids, dtype=torch.bool))
        if mask is None:
            return given, torch.tensor([hidden for _, hidden in rows], device=self.core.device)
        return given, masked(self.run, name, mask, given.keep, seeds, None)

    def batch(
        self, task: Task, batch: Batch, seeds: Int[Tensor, " size"], mask: MaskSpec, options: Mapping[str, Any]
    ) -> list[GeneratedCodes]:
        """One thing for each sample that has what it takes; of samples that may hold the target, too."""
        how, name = self.how(task, options), str(task.target)
        if not task.fill and name not in task.sources:
            return self.written(task, batch, seeds.to(self.core.device), how)
        whole = with_halves(self.core, task, batch)
        rows = holding(whole, task)
        if len(rows) == 0:
            return []
        sources, items = without_last(of_rows(whole, rows), name)
        own = seeds.to(rows.device)[rows]
        if task.fill:
            given = self.core.written(name, items)
            codec = None if name == "text" else self.core.codec(name)
            hidden = masked(self.run, name, mask, given.keep, own, codec)
            found = self.filled(task, sources, given, hidden, own, how)
        else:
            found = self.written(task, sources, own, how)
        return [item._replace(row=int(rows[item.row])) for item in found]

    def written(
        self, task: Task, batch: Batch, seeds: Int[Tensor, " size"], how: GenerationConfig
    ) -> list[GeneratedCodes]:
        """From left to right; a sound that is continued stands before what continues it."""
        before: dict[int, list[int]] = {}
        if task.target == "audio" and task.sources[-1:] == ("audio",):
            batch, before = self._prompts(batch)
        decode = self.tokenizer.decode if task.target == "text" else None
        judge = self._judge(task, batch) if how.best_of > 1 else None
        with torch.no_grad():
            if self.tick is not None and decode is None and how.num_beams == how.best_of == 1:
                found = self._ticking(task, batch, how, seeds, self.tick)
            else:
                found = write(self.core, task, batch, how, seeds=seeds, decode=decode, judge=judge)
        texts, chances = found.texts or [None] * len(found.rows), found.logprobs or [None] * len(found.rows)
        return [
            GeneratedCodes(row, [*before.get(row, ()), *ids], len(before.get(row, ())), text, finish, chance)
            for row, ids, text, finish, chance in zip(found.rows, found.ids, texts, found.finish, chances, strict=True)
        ]

    def _ticking(self, task: Task, batch: Batch, how: GenerationConfig, seeds: Tensor, tick: Tick) -> Written:
        """`write`, step by step."""
        made: dict[int, list[int]] = {}
        cut: set[int] = set()
        total = batch.size * (self.core.forms[str(task.target)].length or how.max_tokens)
        for piece in stream(self.core, task, batch, how, seeds=seeds):
            made.setdefault(piece.row, []).extend(piece.ids)
            cut |= {piece.row} if piece.finish else set()
            tick(sum(map(len, made.values())), total)
        rows = sorted(made)
        return Written(rows, [made[row] for row in rows], finish=["length" if row in cut else "stop" for row in rows])

    def _prompts(self, batch: Batch) -> tuple[Batch, dict[int, list[int]]]:
        """The batch with its sounds in whole turns, and the codes of each sample's last one."""
        if "audio" not in batch.items:
            return batch, {}
        items = whole_turns(self.core, batch.items["audio"])
        ids, keep = self.core.written("audio", items)
        codes = {row: ids[at][keep[at]].tolist() for at, row in enumerate(items.rows.tolist())}
        return replace(batch, items={**batch.items, "audio": items}), codes

    def filled(
        self,
        task: Task,
        batch: Batch,
        given: Ids,
        hidden: Bool[Tensor, "size t"],
        seeds: Int[Tensor, " size"],
        how: GenerationConfig,
    ) -> list[GeneratedCodes]:
        rows, ids = fill(self.core, task, batch, given, hidden, how, seeds=seeds)
        own = given.keep[torch.tensor(rows, dtype=torch.int64, device=ids.device)]
        return [GeneratedCodes(row, line[keep].tolist()) for row, line, keep in zip(rows, ids, own, strict=True)]

    def stream(self, task: Task, held: Things, seed: int, options: Mapping[str, Any]) -> Generator[str, None, Finish]:
        """A text, piece by piece; returns whether it came to its end."""
        check_streamed(options)
        finish: Finish = "stop"
        how, batch, decode = self.how(task, options), self.batched([held]), self.tokenizer.decode
        judge = self._judge(task, batch) if how.best_of > 1 else None
        seeds = torch.tensor([seed], device=self.core.device)
        for piece in stream(self.core, task, batch, how, seeds=seeds, decode=decode, judge=judge):
            if piece.text:
                yield piece.text
            finish = piece.finish or finish
        return finish

    def batched(self, samples: Sequence[Things]) -> Batch:
        return Processor(self.run, self.tokenizer).batch(samples).to(self.core.device)

    def thing(self, task: Task, item: GeneratedCodes) -> Made:
        if item.text is not None:
            return Text(item.text, item.finish, item.logprobs)
        made = thing_of(self.core, self.run, self.tokenizer, str(task.target), item.ids, item.start)
        return made._replace(finish=item.finish) if isinstance(made, Sound) else made

    def _judge(self, task: Task, batch: Batch) -> Judge:
        """How near what is made lies to its sources, as this model's own embeddings have it."""
        name = str(task.target)
        met = {name for item in self.run.contrastive for name in item.pair}
        told = "best_of compares what is made with its sources, and this model was trained without Contrast of"
        lacking = sorted({name, *task.sources} - met)
        require(not lacking, f"{told} {' and '.join(lacking)}; leave it out")
        found = {key: value for key, value in source_embeddings(self.core, task, batch).items() if key in met}
        require(bool(found), f"best_of: {task} names each source several times; leave it out")

        def embed(ids: list[list[int]]) -> Tensor:
            made = [{name: [thing_of(self.core, self.run, self.tokenizer, name, row)]} for row in ids]
            return embed_items(self.core, name, self.batched(made).items[name])

        return nearness(found, embed)


def holding(batch: Batch, task: Task) -> Int[Tensor, " n"]:
    """The samples that hold all that the task names, its target too; rising."""
    names = [name for name in (*task.sources, task.target) if name is not None]
    every = torch.arange(batch.size, device=next(iter(batch.items.values())).rows.device)
    for name in names:
        if name not in batch.items:
            return every[:0]
        held = torch.bincount(batch.items[name].rows, minlength=batch.size)
        every = every[held[every] >= task.mentions(name)]
    return every


def of_rows(batch: Batch, rows: Int[Tensor, " n"]) -> Batch:
    """These samples alone, numbered anew; rows rise."""
    held = {}
    for name, items in batch.items.items():
        index = torch.isin(items.rows, rows).nonzero().squeeze(1)
        taken = items.take(index)
        held[name] = replace(taken, rows=torch.searchsorted(rows, taken.rows))
    return Batch(size=len(rows), items=held, positive_ids=batch.positive_ids.to(rows.device)[rows])


def without_last(batch: Batch, name: str) -> tuple[Batch, Items]:
    """The batch without each sample's last item of this modality, and these, one for each sample."""
    items = batch.items[name]
    last = F.pad(items.rows[1:] != items.rows[:-1], (0, 1), value=True)
    rest = items.take((~last).nonzero().squeeze(1))
    held = {key: value for key, value in batch.items.items() if key != name}
    if len(rest.rows):
        held[name] = rest
    return replace(batch, items=held), items.take(last.nonzero().squeeze(1))
