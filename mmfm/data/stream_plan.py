"""What one batch holds, by its positions in the order: samples are read, replaced where they cannot be used, collated.

The plan and a batch's number alone decide, whatever the ranks and workers. A sample whose content cannot be used is
replaced by another of its source, also by the plan alone, and is counted.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch.utils.data import Dataset, get_worker_info

from mmfm import config
from mmfm.config import MESSAGES, MODALITIES, UserError
from mmfm.data import order
from mmfm.data.augment import DRAWS
from mmfm.data.bad_samples import Bad
from mmfm.data.batch import Batch
from mmfm.data.conversations import with_chat
from mmfm.data.decode import OF_ITEMS, TEXT_DRAW, Decode, Example, collate, decode_of, read_example, require_short
from mmfm.data.documents import joined
from mmfm.data.example_cache import Cache
from mmfm.data.index import CODES, MODALITY
from mmfm.data.sample import modalities, text_of, why_no_text
from mmfm.data.shards import Shards
from mmfm.data.token_counts import TokenCounts
from mmfm.data.worker_transfer import Piped, handed_over
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.chat import PARTS
from mmfm.preprocessing.tokenizer import Tokenizer


class Loaded(NamedTuple):
    """A batch, how many samples of each source were read for it, which of these could not be used, of how many the text
    was cut, and the position behind its last one, of all ranks."""

    batch: Batch
    reads: tuple[int, ...]
    bad: tuple[Bad, ...]
    truncated: tuple[int, ...] = ()
    stop: int = 0


class Asks(NamedTuple):
    """What a source's samples are asked for: extensions, modalities without which one is bad, and what is decoded."""

    names: frozenset[str]
    must: frozenset[str]
    plain: tuple[str, ...]


def asks_of(source: config.Source, codes: Sequence[str] = ()) -> Asks:
    wanted = source.modalities
    if MESSAGES in wanted:
        names = frozenset(name for name, modality in MODALITY.items() if modality in PARTS)
        return Asks(names=names | {"json"}, must=frozenset(), plain=tuple(PARTS))
    stored = {CODES[name] for name in codes}
    return Asks(
        names=frozenset(name for name, modality in MODALITY.items() if modality in wanted)
        | ({"json"} if "text" in wanted else set())
        | stored,
        must=frozenset(wanted) - {"text"},
        plain=tuple(name for name in wanted if name != "text" or not source.texts),
    )


@dataclass(frozen=True, kw_only=True)
class Plan(Dataset):
    """The positions of a batch, or its number where all are of one size -> Loaded, or the error of reading it: one
    raised in a worker would arrive as a traceback."""

    run: config.Run
    tokenizer: Tokenizer
    sources: tuple[Shards, ...]
    order: order.Order
    rank: int
    world: int
    cache: Cache
    codes: tuple[str, ...] = ()  # modalities whose codes are stored in the shards

    def __getitem__(self, batch: int | range) -> Loaded | Piped | UserError | OSError | MemoryError:
        try:
            size = self.run.data.batch_size
            step = batch if isinstance(batch, range) else range(batch * size, (batch + 1) * size)
            positions = self.positions(step)
            self._look_ahead(positions)
            loaded = self._load(positions)._replace(stop=step.stop)
        except (UserError, OSError, MemoryError) as why:
            return why
        return loaded if get_worker_info() is None else handed_over(loaded)

    def positions(self, step: range) -> list[int]:
        """This rank's positions of a step: a contiguous part, or the one that it is dealt by tokens. Of a token budget
        ranks may get unequal numbers, so that the budget alone decides of a step."""
        data = self.run.data
        if self.world == 1:
            return list(step)
        if not (data.balance_by_length or data.tokens_per_batch):
            mine = len(step) // self.world
            return list(step[self.rank * mine : (self.rank + 1) * mine])
        lengths = [self.tokens(*self.order(position)) for position in step]
        return [step[at] for at in order.deal(lengths, self.world, not data.tokens_per_batch)[self.rank]]

    def cut(self, first: int) -> range:
        """The positions of the step that begins at `first`; those of one source where steps are of one."""
        data, most = self.run.data, self.run.data.batch_size
        if not data.tokens_per_batch:
            return range(first, first + most)
        most = most - first % most if data.mix_by == "batch" else most
        return order.within(first, data.tokens_per_batch, most, lambda position: self.tokens(*self.order(position)))

    def _look_ahead(self, positions: Sequence[int]) -> None:
        """Where shards are fetched: those of this block of the order, and of the next one."""
        for source, shards in enumerate(self.sources):
            first = next((position for position in positions if self.order.place(position).source == source), None)
            if shards.remote and first is not None:
                shards.prefetch(self.order.shards_soon(first))

    def _load(self, positions: Sequence[int]) -> Loaded:
        if not positions:
            nothing = Batch(size=0, items={}, positive_ids=torch.zeros(0, dtype=torch.int64))
            return Loaded(nothing, (0,) * len(self.sources), (), (0,) * len(self.sources))
        numbers = order.draws(self.run.seed, positions, OF_ITEMS + 2)
        bad: list[Bad] = []
        examples = [self._example(position, own, bad) for position, own in zip(positions, numbers, strict=True)]
        reads = [item.source for item in bad]
        for source in (self.order.place(position).source for position in positions):
            reads += [source] * (1 + self.run.data.train[source].num_shots)
        table = torch.from_numpy(numbers[:, :OF_ITEMS]).reshape(-1, len(MODALITIES), DRAWS)
        counts = tuple(reads.count(source) for source in range(len(self.sources)))
        batch = collate(examples, self.tokenizer, table)
        cut = [self.order.place(positions[row]).source for row in batch.truncated]
        return Loaded(batch, counts, tuple(bad), tuple(cut.count(source) for source in range(len(self.sources))))

    def _example(self, position: int, draws: Float[np.ndarray, " k"], bad: list[Bad]) -> Example:
        """What the position asks for, or where that cannot be used, what it draws instead; `bad` gets those. Before it
        come the shots of its source."""
        source, sample = self.order(position)
        again = (self.order.redraw(position, attempt) for attempt in itertools.count())
        sample, example = self._usable(position, source, itertools.chain([sample], again), draws, bad)
        shots = self.run.data.train[source].num_shots
        if not shots:
            return example
        others, before = (other for other in self.order.others(position, shots) if other != sample), []
        for number in range(shots):
            own = order.generator(self.run.seed, "shot", position, number).random(OF_ITEMS + 2, dtype=np.float32)
            before.append(self._usable(position, source, others, own, bad)[1])
        return joined([*before, example])

    def _usable(
        self, position: int, source: int, samples: Iterable[int], draws: Float[np.ndarray, " k"], bad: list[Bad]
    ) -> tuple[int, Example]:
        """The first of `samples` that can be used."""
        for sample in itertools.islice(samples, order.MOST_REDRAWS):
            try:
                return sample, self.chosen(source, sample, draws)
            except BadSample as why:
                shard, _, key = self.sources[source].where(sample).partition(": ")
                bad.append(Bad(source, shard, key, why.code, str(why), position))
        label = self.run.data.train[source].label
        raise UserError(
            f"{order.MOST_REDRAWS} samples of {label!r}, one after the other, cannot be used: {bad[-1].message}"
        )

    def chosen(self, source: int, sample: int, draws: Float[np.ndarray, " k"]) -> Example:
        """The sample with the text that `draws` choose; its pixels and sound may be kept from before."""
        how = self.run.data.train[source]
        example = self.cache.found.get((source, sample)) or self.cache.keep(
            (source, sample), self._read(source, sample, draws)
        )
        if MESSAGES in how.modalities:
            return with_chat(example, self.run.model, self.tokenizer)
        if how.texts and "text" in how.modalities and example.words is not None:
            example = replace(example, text=text_of(example.words, how.texts, float(draws[TEXT_DRAW])))
        if "text" in how.modalities and example.text is None:
            named = f" ({' or '.join(text.field for text in how.texts)})" if how.texts else ""
            told = f"{self.sources[source].where(sample)} has no text, which its source provides{named}"
            why = "" if how.texts or example.words is None else why_no_text(example.words)
            raise BadSample("missing_text", f"{told}{why}")
        example = self._answered(how, example, float(draws[TEXT_DRAW])) if how.targets else example
        require_short(example, self.tokenizer, self.sources[source].where(sample))
        return example

    def _answered(self, how: config.Source, example: Example, draw: float) -> Example:
        """The example with its answer behind its text."""
        assert example.words is not None
        answer = text_of(example.words, how.targets, draw)
        if answer is None:
            named = " or ".join(text.field for text in how.targets)
            told = f"{example.words.where} has no answer, which its source asks for ({named})"
            raise BadSample("missing_text", told)
        question = Example(key=example.key, text=example.text)
        return replace(example, text=answer, before=(*example.before, question))

    def _read(self, source: int, sample: int, draws: Float[np.ndarray, " k"]) -> Example:
        asks = self._asks[source]
        parts = self.sources[source].read(sample, asks.names)
        for name in asks.must.difference(modalities(parts.parts)):
            code = f"missing_{name}" if name in MODALITIES else "missing_own"
            raise BadSample(code, f"{parts.where} has no {name}, which its source provides")
        talks = MESSAGES in self.run.data.train[source].modalities
        decode = replace(self._decode, tiles=self.run.model.tiles) if talks else self._decode
        return read_example(parts, self.run.model, decode, asks.plain, draws if decode.random else None)

    @cached_property
    def tokens(self) -> TokenCounts:
        return TokenCounts(self.run, self.sources, self.tokenizer.fingerprint, self.tokenizer.limits.read)

    @cached_property
    def _decode(self) -> Decode:
        return replace(decode_of(self.run.data), codes=self.codes)

    @cached_property
    def _asks(self) -> tuple[Asks, ...]:
        return tuple(asks_of(source, self.codes) for source in self.run.data.train)
