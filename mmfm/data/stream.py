"""Samples to batches: the endless, resumable order that training reads. What each batch holds is `stream_plan`'s."""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader

from mmfm import config
from mmfm.config import MESSAGES, require
from mmfm.data import order
from mmfm.data.bad_samples import BadSampleCounter
from mmfm.data.batch import Batch
from mmfm.data.codes import require_own
from mmfm.data.decode import decode_of
from mmfm.data.example_cache import Cache
from mmfm.data.remote_cache import ShardCache
from mmfm.data.shards import Shards
from mmfm.data.sources import open_source
from mmfm.data.stream_plan import Plan
from mmfm.data.token_counts import require_counted, spans
from mmfm.data.waiting import LOOK_S, next_batch
from mmfm.preprocessing.tokenizer import Tokenizer
from mmfm.runtime.process import loader_worker

PREFETCH = 4  # batches ready per worker


def stored(modality: str, fingerprint: str, data: config.Data, sources: Sequence[Shards]) -> bool:
    """Whether the shards that provide this modality hold its codes, which must be this codec's."""
    held = [shards for source, shards in zip(data.train, sources, strict=True) if modality in source.modalities]
    text = ShardCache(data.remote_cache).text if any(shards.remote for shards in held) else None
    found = require_own((place for shards in held for place in shards.places), modality, fingerprint, text)
    told = f"stored {modality} codes are of whole items, and crop, mirror or crop_seconds take parts: set them to 0"
    require(not (found and decode_of(data).random), f"{told}, or use shards without codes")
    return found


def require_room(data: config.Data, sources: Sequence[Shards], turns: order.Order) -> None:
    """Shards behind URLs: one block of each source must fit into the store at once, or each step would fetch anew."""
    needs = [turns.room(at, shards.sizes) for at, shards in enumerate(sources) if shards.remote]
    limit, enough = data.remote_cache.limit_gb, f"{1.01 * sum(needs) / 1e9:.3g}"
    told = f"data.remote_cache.limit_gb={limit:g} is less than the {sum(needs) / 1e9:.3g} GB of shards shuffled"
    remedy = f"set it to {enough} or more, or lower data.shuffle_buffer={data.shuffle_buffer}"
    require(sum(needs) <= limit * 1e9, f"{told} together, so that each would be fetched again and again; {remedy}")


class TrainStream:
    """The run's batches of this rank, from `consumed` (at first `start`) to the last step, in order.

    `consumed` is the whole state: it is read when iteration begins, and counts the batches that were handed out. With a
    budget of tokens `position` is too, behind the last sample of these; else it follows.
    `health` counts what could not be used. Raises UserError for missing or damaged shards, and where more samples lack
    what their source declares than may be bad.
    """

    def __init__(
        self,
        run: config.Run,
        tokenizer: Tokenizer,
        *,
        rank: int,
        world: int,
        start: int = 0,
        codecs: Mapping[str, str] | None = None,
    ) -> None:
        """codecs: by modality, the fingerprints of those whose codes are wanted; stored ones must be theirs."""
        data = run.data
        require(bool(data.train), "Data.train is empty; list at least one Source")
        require(
            data.batch_size % world == 0 or data.tokens_per_batch > 0,
            f"Data.batch_size={data.batch_size} is no multiple of the {world} ranks; change either",
        )
        require(
            not data.cache_mb or not decode_of(data).random,
            f"data.cache_mb={data.cache_mb} would keep the first crop of each sample; set it, or the crops, to 0",
        )
        sources = tuple(open_source(source, data) for source in data.train)
        for source, shards in zip(data.train, sources, strict=True):
            told = f"Source.num_shots={source.num_shots} of {source.label!r} needs more samples than its {len(shards)}"
            require(len(shards) > source.num_shots, f"{told}; lower it")
        turns = order.Order(
            run.seed,
            [shards.counts() for shards in sources],
            [source.weight for source in data.train],
            block=data.shuffle_buffer,
            unit=data.batch_size if data.mix_by == "batch" else 1,
        )
        require_room(data, sources, turns)
        if data.tokens_per_batch:
            texts = [
                pair for pair in zip(data.train, sources, strict=True) if {"text", MESSAGES} & set(pair[0].modalities)
            ]
            require_counted([(source.label, shards) for source, shards in texts], tokenizer.fingerprint)
        parts = {"run": run, "tokenizer": tokenizer, "sources": sources, "order": turns, "rank": rank, "world": world}
        codes = tuple(name for name, found in (codecs or {}).items() if stored(name, found, data, sources))
        self.plan = Plan(**parts, cache=Cache(data.cache_mb), codes=codes)
        self.health = BadSampleCounter([source.label for source in data.train], data.max_bad_fraction)
        self.consumed, self.position = start, start * data.batch_size
        self.waited_s = 0.0  # for batches, by who iterates
        self.asked: Callable[[], bool] = lambda: False  # to end, whoever asks; heard while a batch is waited for

    def __len__(self) -> int:
        return self.plan.run.optim.steps

    def __iter__(self) -> Iterator[Batch]:
        budget, left = self.plan.run.data.tokens_per_batch, len(self) - self.consumed
        numbers = spans(self.position, left, self.plan.cut) if budget else range(self.consumed, len(self))
        batches = iter(self._loader(numbers))
        while (loaded := self._next(batches)) is not None:
            if isinstance(loaded, Exception):
                raise loaded
            self.health.record(loaded.reads, loaded.bad, loaded.truncated)
            self.consumed, self.position = self.consumed + 1, loaded.stop
            yield loaded.batch

    def _next(self, batches: Iterator[Any]) -> Any:
        began = time.perf_counter()
        try:
            return next_batch(batches, self.asked)
        finally:
            self.waited_s += time.perf_counter() - began

    def _loader(self, numbers: Iterable[int | range]) -> DataLoader:
        workers = self.plan.run.data.num_workers
        more: dict[str, Any] = {}
        if workers:
            more = {"prefetch_factor": PREFETCH, "worker_init_fn": loader_worker, "timeout": LOOK_S}
        if workers and sys.platform == "linux":
            more["multiprocessing_context"] = "fork"  # shares the index; a fresh process would import torch first
        more["collate_fn"] = _as_it_is  # torch's own makes tensors of arrays
        return DataLoader(self.plan, batch_size=None, sampler=numbers, num_workers=workers, **more)

    def fingerprint(self) -> str:
        """Equal exactly when a batch's number means the same samples and draws: a resume must compare it."""
        data = self.plan.run.data
        sources = [
            [
                [shards.name(shard) for shard in range(len(shards.places))],
                shards.sizes.tolist(),
                shards.counts(),
                source.weight,
                source.modalities,
                [[text.field, text.weight] for text in source.texts],
                *([["targets", *([text.field, text.weight] for text in source.targets)]] if source.targets else []),
                *([["num_shots", source.num_shots]] if source.num_shots else []),
            ]
            for shards, source in zip(self.plan.sources, data.train, strict=True)
        ]
        budget = [data.tokens_per_batch, self.plan.tokens.tokenizer] if data.tokens_per_batch else []
        tree = json.dumps([self.plan.run.seed, data.batch_size, data.mix_by, data.shuffle_buffer, sources, *budget])
        return hashlib.blake2b(tree.encode(), digest_size=16).hexdigest()


def _as_it_is(loaded: Any) -> Any:
    return loaded
