"""Samples to batches: examples, how they are put together, and the endless, resumable order that training reads.

What a training batch holds depends on the run's plan and the batch's number alone, whatever the ranks and workers.
"""

import hashlib
import json
import signal
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmfm import config
from mmfm.batch import NO_TEXT, Batch, Items
from mmfm.config import MODALITIES, UserError, require
from mmfm.data import order
from mmfm.data.shards import MODALITY, Sample, Shards, expand, meta_of, text_of
from mmfm.inputs import BadSample
from mmfm.inputs.audio import decode_audio
from mmfm.inputs.augment import DRAWS
from mmfm.inputs.image import decode_image, resize
from mmfm.inputs.text import Tokenizer

PREFETCH = 4  # batches ready per worker


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample, decoded: `image` at the tower's size, `audio` at its rate. None: not there, or no tower reads it."""

    key: str
    image: UInt8[Tensor, "channels height width"] | None = None
    audio: Float[Tensor, " samples"] | None = None
    text: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def read_example(
    sample: Sample, model: config.Model, max_seconds: float, wanted: Collection[str] = MODALITIES
) -> Example:
    """The modalities of `wanted` that `sample` has and `model` reads. Raises BadSample, naming shard and key."""
    named = {MODALITY[name]: data for name, data in sample.parts.items() if name in MODALITY}
    image = audio = None
    try:
        if "image" in named and "image" in wanted and model.image is not None:
            tower = model.image
            image = resize(decode_image(named["image"], channels=tower.channels), tower.height_px, tower.width_px)
        if "audio" in named and "audio" in wanted and model.audio is not None:
            audio = decode_audio(named["audio"], rate_hz=model.audio.mel.rate_hz, max_seconds=max_seconds)
    except BadSample as why:
        raise BadSample(why.code, f"{sample.where}: {why}") from None
    text = text_of(sample) if "text" in wanted else None
    return Example(key=sample.key, image=image, audio=audio, text=text, meta=meta_of(sample))


def collate(
    examples: Sequence[Example], tokenizer: Tokenizer, draws: Float[Tensor, "n modalities k"] | None = None
) -> Batch:
    """Items in the order of `examples`, padded at the end to the longest. `draws` has a row for each of MODALITIES."""
    items = {}
    for at, name in enumerate(MODALITIES):
        rows = [row for row, example in enumerate(examples) if getattr(example, name) is not None]
        if not rows:
            continue
        values = [getattr(examples[row], name) for row in rows]
        x, keep = _images(values) if name == "image" else _padded([_vector(value, tokenizer) for value in values])
        index = torch.tensor(rows)
        items[name] = Items(x=x, keep=keep, rows=index, draws=None if draws is None else draws[index, at])
    texts = tuple(example.text for example in examples)
    same = torch.tensor([text_hash(text) for text in texts], dtype=torch.int64)
    return Batch(size=len(examples), items=items, same=same, keys=tuple(e.key for e in examples), texts=texts)


def text_hash(text: str | None) -> int:
    """63 bits, equal for equal texts; NO_TEXT for none."""
    if text is None:
        return NO_TEXT
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little") >> 1


def _vector(value: Tensor | str, tokenizer: Tokenizer) -> Tensor:
    return torch.tensor(tokenizer.encode(value), dtype=torch.int64) if isinstance(value, str) else value


def _images(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.stack(values), torch.ones(len(values), 1, dtype=torch.bool)


def _padded(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Zeros after the end of each."""
    lengths = torch.tensor([len(value) for value in values])
    keep = torch.arange(int(lengths.max())) < lengths[:, None]
    return torch.nn.utils.rnn.pad_sequence(values, batch_first=True), keep


class Cache:
    """Decoded samples by place, until `limit_mb` is reached; then what is there stays and nothing more is kept."""

    def __init__(self, limit_mb: int) -> None:
        self.left_bytes = limit_mb * 2**20
        self.found: dict[tuple[int, int], Example] = {}

    def keep(self, place: tuple[int, int], example: Example) -> Example:
        size = 1_000 + sum(x.numel() * x.element_size() for x in (example.image, example.audio) if x is not None)
        if size <= self.left_bytes:
            self.left_bytes -= size
            self.found[place] = example
        return example


@dataclass(frozen=True, kw_only=True)
class Plan(Dataset):
    """Batch number -> Batch, or the error of reading it: one raised in a worker would arrive as a traceback."""

    run: config.Run
    tokenizer: Tokenizer
    sources: tuple[Shards, ...]
    order: order.Order
    rank: int
    world: int
    cache: "Cache"

    def __getitem__(self, number: int) -> Batch | UserError:
        mine = self.run.data.batch // self.world
        first = number * self.run.data.batch + self.rank * mine
        try:
            return self._batch(range(first, first + mine))
        except UserError as why:
            return why

    def _batch(self, positions: range) -> Batch:
        examples = [self._example(*self.order(position)) for position in positions]
        k = len(MODALITIES) * DRAWS
        numbers = np.stack([order.draws(self.run.seed, position, k) for position in positions])
        return collate(examples, self.tokenizer, torch.from_numpy(numbers).view(-1, len(MODALITIES), DRAWS))

    def _example(self, source: int, sample: int) -> Example:
        found = self.cache.found.get((source, sample))
        return found or self.cache.keep((source, sample), self._read(source, sample))

    def _read(self, source: int, sample: int) -> Example:
        wanted = self.run.data.train[source].provides
        names = {name for name, modality in MODALITY.items() if modality in wanted} | {"json"}
        parts = self.sources[source].read(sample, names)
        return read_example(parts, self.run.model, self.run.data.max_seconds, wanted)


class TrainStream:
    """The run's batches of this rank, from `consumed` (at first `start`) to the last step, in order.

    `consumed` is the whole state: it is read when iteration begins, and counts the batches that were handed out.
    Raises UserError for missing or damaged shards, and where a sample lacks what its source declares.
    """

    def __init__(self, run: config.Run, tokenizer: Tokenizer, *, rank: int, world: int, start: int = 0) -> None:
        data = run.data
        require(bool(data.train), "Data.train is empty; list at least one Source")
        require(data.batch % world == 0, f"Data.batch={data.batch} is no multiple of the {world} ranks; change either")
        sources = tuple(open_source(source) for source in data.train)
        shares = tuple(source.share for source in data.train)
        plan = order.Order(run.seed, [len(shards) for shards in sources], shares)
        parts = {"run": run, "tokenizer": tokenizer, "sources": sources, "order": plan, "rank": rank, "world": world}
        self.plan = Plan(**parts, cache=Cache(data.cache_mb))
        self.consumed = start

    def __len__(self) -> int:
        return self.plan.run.optim.steps

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader(range(self.consumed, len(self))):
            if isinstance(batch, UserError):
                raise batch
            self.consumed += 1
            yield batch

    def _loader(self, numbers: range) -> DataLoader:
        workers = self.plan.run.data.workers
        more: dict[str, Any] = {"prefetch_factor": PREFETCH, "worker_init_fn": _no_interrupt} if workers else {}
        if workers and sys.platform == "linux":
            more["multiprocessing_context"] = "fork"  # shares the index; a fresh process would import torch first
        return DataLoader(self.plan, batch_size=None, sampler=numbers, num_workers=workers, **more)

    def fingerprint(self) -> str:
        """Equal exactly when a batch's number means the same samples and draws: a resume must compare it."""
        data = self.plan.run.data
        sources = [
            [[path.name for path in shards.paths], shards.sizes, shards.counts(), source.share, source.provides]
            for shards, source in zip(self.plan.sources, data.train, strict=True)
        ]
        tree = json.dumps([self.plan.run.seed, data.batch, sources])
        return hashlib.blake2b(tree.encode(), digest_size=16).hexdigest()


def open_source(source: config.Source) -> Shards:
    """The shards of a source, each sample of which has what the source provides."""
    shards = Shards(expand(source.shards))
    for sample in range(len(shards)):
        missing = set(source.provides) - shards.modalities(sample)
        if missing:
            name = min(missing)
            raise UserError(f"{shards.where(sample)} has no {name}, which its source provides; add it or drop {name!r}")
    return shards


def _no_interrupt(_: int) -> None:
    """Ctrl-C reaches every process of the terminal; only the main one should answer, and it ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
