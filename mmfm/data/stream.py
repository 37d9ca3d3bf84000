"""Samples to batches: examples, how they are put together, and the endless, resumable order that training reads.

What a training batch holds depends on the run's plan and the batch's number alone, whatever the ranks and workers. A
sample whose content cannot be used is replaced by another of its source, also by the plan alone, and is counted.
"""

import hashlib
import itertools
import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmfm import config
from mmfm.batch import NO_TEXT, Batch, Ids, Items
from mmfm.config import MODALITIES, UserError, require
from mmfm.data import order
from mmfm.data.health import Bad, Health
from mmfm.data.index import MODALITY
from mmfm.data.sample import Sample, meta_of, text_of
from mmfm.data.shards import Shards
from mmfm.data.sources import open_source
from mmfm.inputs import BadSample
from mmfm.inputs.audio import decode_audio
from mmfm.inputs.augment import DRAWS
from mmfm.inputs.image import picture
from mmfm.inputs.text import Tokenizer
from mmfm.process import loader_worker

PREFETCH = 4  # batches ready per worker
STUCK_S = 1_800  # without a batch: a reader hangs, and an error is better
OF_ITEMS = len(MODALITIES) * DRAWS  # a position's draws: first those of its items, then these two
TEXT_DRAW, CROP_DRAW = OF_ITEMS, OF_ITEMS + 1
WORDS = ("txt", "json", "cls")


@dataclass(frozen=True, kw_only=True)
class Decode:
    """How bytes become tensors. See config.Data, which says the same."""

    max_seconds: float = 30.0
    crop_seconds: float = 0.0
    exact: bool = False
    crop: float = 0.0  # of pictures, in training
    mirror: bool = False

    @property
    def random(self) -> bool:
        return self.crop_seconds > 0 or self.crop > 0 or self.mirror


def decode_of(data: config.Data) -> Decode:
    return Decode(
        max_seconds=data.max_seconds,
        crop_seconds=data.crop_seconds,
        exact=data.exact_decode,
        crop=data.augment.crop,
        mirror=data.augment.mirror,
    )


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample, decoded: `image` at the tower's size, `audio` at its rate. None: not there, or no tower reads it.

    `words`: the sample as it was, but for pictures and sounds.
    """

    key: str
    image: UInt8[Tensor, "channels height width"] | None = None
    audio: Float[Tensor, " samples"] | None = None
    text: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    words: Sample | None = None


def read_example(
    sample: Sample,
    model: config.Model,
    decode: Decode,
    wanted: Collection[str] = MODALITIES,
    draws: Float[np.ndarray, " k"] | None = None,
) -> Example:
    """The modalities of `wanted` that `sample` has and `model` reads. Raises BadSample, naming shard and key.

    `draws`, of one position, choose the part of a picture and of a long clip; without them it is the middle.
    """
    named = {MODALITY[name]: data for name, data in sample.parts.items() if name in MODALITY}
    image = audio = None
    try:
        if "image" in named and "image" in wanted and model.image is not None:
            image = _picture(named["image"], model.image.pixels, decode, draws)
        if "audio" in named and "audio" in wanted and model.audio is not None:
            audio = decode_audio(
                named["audio"],
                rate_hz=model.audio.sound.rate_hz,
                max_seconds=decode.max_seconds,
                crop_seconds=decode.crop_seconds,
                where=None if draws is None else float(draws[CROP_DRAW]),
            )
    except BadSample as why:
        raise BadSample(why.code, f"{sample.where}: {why}") from None
    words = Sample(sample.key, {name: data for name, data in sample.parts.items() if name in WORDS}, sample.where)
    text = text_of(sample) if "text" in wanted else None
    return Example(key=sample.key, image=image, audio=audio, text=text, meta=meta_of(sample), words=words)


def _picture(
    data: bytes, how: config.Pixels, decode: Decode, draws: Float[np.ndarray, " k"] | None
) -> UInt8[Tensor, "channels height width"]:
    crop = {} if draws is None else {"draws": draws[:DRAWS], "crop": decode.crop, "mirror": decode.mirror}
    return picture(data, **shape_of(how), exact=decode.exact, **crop)


def shape_of(how: config.Pixels) -> dict[str, Any]:
    """What `picture` is told of a tower's contract; its mean and deviation are the tower's own matter."""
    return {name: value for name, value in vars(how).items() if name not in ("mean", "std")}


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
        index, written = torch.tensor(rows), None
        if name == "text":
            x, keep = _ids(list(map(tokenizer.read, values)))
            written = None if tokenizer.reader is None else Ids(*_ids(list(map(tokenizer.encode, values))))
        else:
            x, keep = _images(values) if name == "image" else _padded(values)
        mine = None if draws is None else draws[index, at]
        items[name] = Items(x=x, keep=keep, rows=index, draws=mine, written=written)
    texts = tuple(example.text for example in examples)
    same = torch.tensor([text_hash(text) for text in texts], dtype=torch.int64)
    return Batch(size=len(examples), items=items, same=same, keys=tuple(e.key for e in examples), texts=texts)


def text_hash(text: str | None) -> int:
    """63 bits, equal for equal texts; NO_TEXT for none."""
    if text is None:
        return NO_TEXT
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little") >> 1


def _images(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.stack(values), torch.ones(len(values), 1, dtype=torch.bool)


def _padded(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Zeros after the end of each."""
    lengths = torch.tensor([len(value) for value in values])
    keep = torch.arange(int(lengths.max())) < lengths[:, None]
    return torch.nn.utils.rnn.pad_sequence(values, batch_first=True), keep


def _ids(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Zeros after the end of each; all at once, as a tensor of each text's own takes longer than its tokens."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    keep = np.arange(lengths.max()) < lengths[:, None]
    x = np.zeros(keep.shape, np.int64)
    x[keep] = np.fromiter(itertools.chain.from_iterable(rows), np.int64, lengths.sum())
    return torch.from_numpy(x), torch.from_numpy(keep)


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


class Loaded(NamedTuple):
    """A batch, how many samples of each source were read for it, and which of these could not be used."""

    batch: Batch
    reads: tuple[int, ...]
    bad: tuple[Bad, ...]


class Asks(NamedTuple):
    """What a source's samples are asked for: extensions, modalities without which one is bad, and what is decoded."""

    names: frozenset[str]
    must: frozenset[str]
    plain: tuple[str, ...]


def asks_of(source: config.Source) -> Asks:
    wanted = source.provides
    return Asks(
        names=frozenset(name for name, modality in MODALITY.items() if modality in wanted) | {"json"},
        must=frozenset(wanted) - {"text"},
        plain=tuple(name for name in wanted if name != "text" or not source.texts),
    )


@dataclass(frozen=True, kw_only=True)
class Plan(Dataset):
    """Batch number -> Loaded, or the error of reading it: one raised in a worker would arrive as a traceback."""

    run: config.Run
    tokenizer: Tokenizer
    sources: tuple[Shards, ...]
    order: order.Order
    rank: int
    world: int
    cache: Cache

    def __getitem__(self, number: int) -> Loaded | UserError | OSError:
        try:
            positions = self.positions(number)
            self._look_ahead(positions)
            return self._load(positions)
        except (UserError, OSError) as why:
            return why

    def positions(self, number: int) -> list[int]:
        """This rank's positions of a step: a contiguous part, or the one that it is dealt by length."""
        batch = self.run.data.batch
        mine, first = batch // self.world, number * batch
        if not self.run.data.balance or self.world == 1:
            return list(range(first + self.rank * mine, first + (self.rank + 1) * mine))
        places = [self.order(position) for position in range(first, first + batch)]
        lengths = [self.sources[source].length(sample) for source, sample in places]
        return [first + at for at in order.deal(lengths, self.world)[self.rank]]

    def _look_ahead(self, positions: Sequence[int]) -> None:
        """Where shards are fetched: those of this block of the order, and of the next one."""
        for source, shards in enumerate(self.sources):
            first = next((position for position in positions if self.order.place(position).source == source), None)
            if shards.remote and first is not None:
                shards.ahead(self.order.shards_soon(first))

    def _load(self, positions: Sequence[int]) -> Loaded:
        numbers = order.draws(self.run.seed, positions, OF_ITEMS + 2)
        bad: list[Bad] = []
        examples = [self._example(position, own, bad) for position, own in zip(positions, numbers, strict=True)]
        reads = [item.source for item in bad] + [self.order.place(position).source for position in positions]
        table = torch.from_numpy(numbers[:, :OF_ITEMS]).reshape(-1, len(MODALITIES), DRAWS)
        counts = tuple(reads.count(source) for source in range(len(self.sources)))
        return Loaded(collate(examples, self.tokenizer, table), counts, tuple(bad))

    def _example(self, position: int, draws: Float[np.ndarray, " k"], bad: list[Bad]) -> Example:
        """What the position asks for, or where that cannot be used, what it draws instead; `bad` gets those."""
        source, sample = self.order(position)
        for attempt in range(order.MOST_REDRAWS):
            try:
                return self._chosen(source, sample, draws)
            except BadSample as why:
                shard, _, key = self.sources[source].where(sample).partition(": ")
                bad.append(Bad(source, shard, key, why.code, str(why), position))
                sample = self.order.redraw(position, attempt)
        label = self.run.data.train[source].label
        raise UserError(
            f"{order.MOST_REDRAWS} samples of {label!r}, one after the other, cannot be used: {bad[-1].message}"
        )

    def _chosen(self, source: int, sample: int, draws: Float[np.ndarray, " k"]) -> Example:
        """The sample with the text that `draws` choose; its pixels and sound may be kept from before."""
        how = self.run.data.train[source]
        example = self.cache.found.get((source, sample)) or self.cache.keep(
            (source, sample), self._read(source, sample, draws)
        )
        if how.texts and "text" in how.provides and example.words is not None:
            example = replace(example, text=text_of(example.words, how.texts, float(draws[TEXT_DRAW])))
        if "text" in how.provides and example.text is None:
            raise BadSample(
                "missing_text", f"{self.sources[source].where(sample)} has no text, which its source provides"
            )
        return example

    def _read(self, source: int, sample: int, draws: Float[np.ndarray, " k"]) -> Example:
        asks = self._asks[source]
        parts = self.sources[source].read(sample, asks.names)
        for name in asks.must.difference(map(MODALITY.get, parts.parts)):
            raise BadSample(f"missing_{name}", f"{parts.where} has no {name}, which its source provides")
        return read_example(parts, self.run.model, self._decode, asks.plain, draws if self._decode.random else None)

    @cached_property
    def _decode(self) -> Decode:
        return decode_of(self.run.data)

    @cached_property
    def _asks(self) -> tuple[Asks, ...]:
        return tuple(asks_of(source) for source in self.run.data.train)


class TrainStream:
    """The run's batches of this rank, from `consumed` (at first `start`) to the last step, in order.

    `consumed` is the whole state: it is read when iteration begins, and counts the batches that were handed out.
    `health` counts what could not be used. Raises UserError for missing or damaged shards, and where more samples lack
    what their source declares than may be bad.
    """

    def __init__(self, run: config.Run, tokenizer: Tokenizer, *, rank: int, world: int, start: int = 0) -> None:
        data = run.data
        require(bool(data.train), "Data.train is empty; list at least one Source")
        require(data.batch % world == 0, f"Data.batch={data.batch} is no multiple of the {world} ranks; change either")
        require(
            not data.cache_mb or not decode_of(data).random,
            f"data.cache_mb={data.cache_mb} would keep the first crop of each sample; set it, or the crops, to 0",
        )
        sources = tuple(open_source(source, data) for source in data.train)
        turns = order.Order(
            run.seed,
            [shards.counts() for shards in sources],
            [source.share for source in data.train],
            block=data.shuffle,
            unit=data.batch if data.unit == "batch" else 1,
        )
        parts = {"run": run, "tokenizer": tokenizer, "sources": sources, "order": turns, "rank": rank, "world": world}
        self.plan = Plan(**parts, cache=Cache(data.cache_mb))
        self.health = Health([source.label for source in data.train], data.most_bad)
        self.consumed = start

    def __len__(self) -> int:
        return self.plan.run.optim.steps

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._loader(range(self.consumed, len(self))))
        while (loaded := _next(batches)) is not None:
            if isinstance(loaded, Exception):
                raise loaded
            self.health.note(loaded.reads, loaded.bad)
            self.consumed += 1
            yield loaded.batch

    def _loader(self, numbers: range) -> DataLoader:
        workers = self.plan.run.data.workers
        more: dict[str, Any] = {}
        if workers:
            more = {"prefetch_factor": PREFETCH, "worker_init_fn": loader_worker, "timeout": STUCK_S}
        if workers and sys.platform == "linux":
            more["multiprocessing_context"] = "fork"  # shares the index; a fresh process would import torch first
        return DataLoader(self.plan, batch_size=None, sampler=numbers, num_workers=workers, **more)

    def fingerprint(self) -> str:
        """Equal exactly when a batch's number means the same samples and draws: a resume must compare it."""
        data = self.plan.run.data
        sources = [
            [
                [shards.name(shard) for shard in range(len(shards.places))],
                shards.sizes.tolist(),
                shards.counts(),
                source.share,
                source.provides,
                [[text.field, text.weight] for text in source.texts],
            ]
            for shards, source in zip(self.plan.sources, data.train, strict=True)
        ]
        tree = json.dumps([self.plan.run.seed, data.batch, data.unit, data.shuffle, sources])
        return hashlib.blake2b(tree.encode(), digest_size=16).hexdigest()


def _next(batches: Iterator[Loaded | Exception]) -> Loaded | Exception | None:
    """The next of the loader's, None at the end. A loader process that died is an error of the machine."""
    try:
        return next(batches, None)
    except RuntimeError as why:
        if "DataLoader" not in str(why):
            raise
        told = " ".join(str(why).split())
        if (forget := getattr(batches, "_shutdown_workers", None)) is not None:
            forget()  # else torch raises the same again wherever another child ends
        return ChildProcessError(f"a loader process died or hung ({told}); --resume continues from the last checkpoint")
