"""The questions that are put to a model about each batch of a split, and the split with the answers."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmfm.config import modality_names, require
from mmfm.config.task import Task, parse
from mmfm.data.batch import Batch, Items
from mmfm.data.decode import WORDS
from mmfm.data.sample import modalities
from mmfm.data.shards import Shards
from mmfm.datasets.encode import Coder
from mmfm.evals.config import EvalConfig
from mmfm.evals.masked_prediction import fill
from mmfm.evals.predict import Loaded, SplitReader, able_rows, predict
from mmfm.evals.reading import Reader
from mmfm.evals.split import (
    ALONE,
    Coded,
    Evaluable,
    Filled,
    SampleInfo,
    Samples,
    Split,
    Vectors,
    Watch,
    Written,
    batches,
    device_of,
    reads,
    some_finite,
    spread,
    writing_tasks,
)
from mmfm.inference.interface import Interface
from mmfm.inference.pipeline import without_last
from mmfm.preprocessing import BadSample
from mmfm.runtime.distributed import Collective

LEAST_WRITTEN = 32  # tokens


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the heads gave for a batch; rows count from the batch's first sample, but those of `filled`."""

    infos: tuple[SampleInfo, ...]
    vectors: dict[str, Vectors]
    written: dict[str, list[Written]]
    nats: dict[str, Float[np.ndarray, " size"]]
    filled: dict[str, list[Filled]] = field(default_factory=dict)
    coded: dict[str, Coded] = field(default_factory=dict)
    unread: int
    bad: dict[int, str]
    truncated: int = 0  # samples with a text of which only the beginning is read


@dataclass(frozen=True, kw_only=True)
class Heads:
    """All questions to a model about a split; what only widens the galleries is embedded and nothing else."""

    model: Evaluable
    own: int
    tasks: Sequence[str]
    max_tokens: int
    nats: bool
    fill: Sequence[str] = ()
    coders: Mapping[str, Coder] = field(default_factory=dict)

    def __call__(self, loaded: Loaded) -> Part:
        device, asks = device_of(self.model), loaded.rows[0] < self.own
        sources = {name for task in (*self.tasks, *self.fill) if asks for name in parse(task).sources}
        batch = _encoded(self.model, loaded.batch.to(device), {*self.model.modalities} - {"text"} | sources)
        shots = {
            task: (_encoded(self.model, shot.to(device), parse(task).sources), set(rows))
            for task, (shot, rows) in loaded.shots.items()
        }
        asked = {task: self._asked(task, batch, shots.get(task)) if asks else [] for task in self.tasks}
        held = [set(items.rows.tolist()) for name, items in batch.items.items() if name in reads(self.model)]
        return Part(
            infos=loaded.infos,
            vectors=_embed(self.model, batch),
            written={task: self._written(task, parts) for task, parts in asked.items() if parse(task).sources},
            nats={task: _nats(self.model, task, batch.size, parts) for task, parts in asked.items() if self.nats},
            filled=self._filled(batch, loaded.rows) if asks else {},
            coded=self._coded(batch, loaded) if asks else {},
            unread=batch.size - len(set().union(*held, loaded.bad)) if asks and reads(self.model) else 0,
            bad=loaded.bad,
            truncated=len(batch.truncated) if asks else 0,
        )

    def _asked(self, task: str, batch: Batch, shot: tuple[Batch, set[int]] | None) -> list[tuple[Batch, set[int]]]:
        """Batches, and the rows of each that hold all items that the task names: as they are, or else behind shots."""
        able = able_rows(parse(task), batch)
        return [*([(batch, able)] if able else []), *([shot] if shot else [])]

    def _written(self, task: str, parts: Sequence[tuple[Batch, set[int]]]) -> list[Written]:
        return sorted(one for batch, rows in parts for one in _write(self.model, task, batch, rows, self.max_tokens))

    def _filled(self, batch: Batch, rows: Sequence[int]) -> dict[str, list[Filled]]:
        if not self.fill:
            return {}
        return {task: fill(self.model, parse(task), batch, rows) for task in self.fill}

    def _coded(self, batch: Batch, loaded: Loaded) -> dict[str, Coded]:
        if not self.coders:
            return {}
        from mmfm.evals.codec import code_batch  # whose metrics are slow to import

        return {name: code_batch(batch, name, coder, loaded.media[name]) for name, coder in self.coders.items()}


def _encoded(model: Evaluable, batch: Batch, modalities: Collection[str]) -> Batch:
    """With the towers' tokens, which embedding, writing and likelihood then share; planted models have no towers."""
    return model.encoded(batch, modalities) if isinstance(model, Interface) else batch


def _embed(model: Evaluable, batch: Batch) -> dict[str, Vectors]:
    """Of pictures and sounds, of each sample the last one, as training contrasts it; texts are encoded later, each
    distinct one once."""
    seen = {
        name: last_of_each(items) for name, items in batch.items.items() if name != "text" and name in model.modalities
    }
    given = model.embed(replace(batch, items=seen)) if seen else {}
    for name, x in given.items():
        assert len(x) == len(seen[name].rows), name
    return {name: Vectors(x.float().cpu(), seen[name].rows.cpu().numpy()) for name, x in given.items()}


def last_of_each(items: Items) -> Items:
    """The last item of every sample."""
    last = F.pad(items.rows[1:] != items.rows[:-1], (0, 1), value=True)
    return items if bool(last.all()) else items.take(last.nonzero().squeeze(1))


def _write(model: Evaluable, name: str, batch: Batch, able: set[int], max_tokens: int) -> list[Written]:
    """For these rows. What is to be written is not among what is read."""
    task, asked = parse(name), batch
    if task.target in task.sources:
        asked, _ = without_last(batch, str(task.target))
    rows, texts = model.write(name, asked, max_tokens) if able else ([], [])
    prompts = _prompts(model, task, asked)
    return [
        Written(row, str(text), prompts.get(row), getattr(text, "finish", "stop") == "length")
        for row, text in zip(rows, texts, strict=True)
        if row in able
    ]


def _prompts(model: Evaluable, task: Task, batch: Batch) -> dict[int, str]:
    """The last text that each row is asked with."""
    items = batch.items.get("text") if "text" in task.sources else None
    if items is None:
        return {}
    items = last_of_each(items)
    ids, keep = (items.x, items.keep) if items.written is None else items.written
    return {
        row: model.tokenizer.decode(line[real].tolist())
        for row, line, real in zip(items.rows.tolist(), ids.cpu(), keep.cpu(), strict=True)
    }


def _nats(
    model: Evaluable, task: str, size: int, asked: Sequence[tuple[Batch, set[int]]]
) -> Float[np.ndarray, " size"]:
    nats = np.full(size, np.nan)
    for batch, able in asked:
        items = batch.items.get("text")  # of one that goes on beyond what can be asked of it nothing is asked
        cut = set() if items is None or items.cut is None else set(items.rows[items.cut].tolist())
        rows = sorted(able - cut)
        found = model.nats(task, batch).double().cpu()[rows]
        nats[rows] = found.nan_to_num(torch.inf, torch.inf, torch.inf).numpy()  # nan is for what was not asked
    return nats


# A whole split


def read_split(
    model: Evaluable,
    samples: Samples,
    *,
    name: str,
    source: str,
    config: EvalConfig,
    asking: int | None = None,
    writing: Collection[str] | None = None,
    fill: Sequence[str] = (),
    coders: Mapping[str, Coder] | None = None,
    as_run: bool = True,
    wider: Split | None = None,
    watch: Watch = iter,
    ranks: Collective = ALONE,
) -> Split:
    """Read every sample once and put all questions to the model, which must be `at_rest`. `watch` sees the batches go.

    `asking`: the first so many samples ask, the rest only widen the galleries; None: all. `writing`: the tasks to write
    for; None: all of the model's. `fill` and `coders`: tasks with masked places, and codecs, that are scored too.
    `as_run`: texts lie where the run's sources have them, and their likelihood is asked for. `wider`: a split of all
    samples that do not ask, read the same way before: its embeddings are taken, and it is not read again.

    With `ranks` all must ask for the same; whole batches are dealt to them, and each returns the same, whole Split.
    Raises UserError where no sample has anything that the model reads, and where the model gives no finite numbers.
    """
    total = len(samples) if asking is None else asking
    places = (*spread(total, config.limit), *range(total, len(samples)))
    own = len(places) - (len(samples) - total)
    tasks = writing_tasks(model, writing)
    texts = {"sources": config.sources, "texts": config.texts} if as_run else {}
    reader = Reader(model=model.config, decode=config.decode, **texts)
    most = config.max_tokens or longest(model, reader, samples, places[:own]) if tasks else config.max_tokens
    nats = as_run and not config.quick
    heads = Heads(model=model, own=own, tasks=tasks, max_tokens=most, nats=nats, fill=fill, coders=coders or {})
    parts = predict(
        SplitReader(
            reader=reader,
            tokenizer=model.tokenizer,
            samples=samples,
            places=places,
            own=own,
            tasks=tuple(tasks),
            coded=tuple(heads.coders),
        ),
        [
            *batches(0, own, config.batch_size),
            *([] if wider else batches(own, len(samples) - total, config.batch_size)),
        ],
        heads,
        Part,
        num_workers=config.num_workers,
        ranks=ranks,
        watch=watch,
    )
    split = Split(name=name, source=source, samples=samples, places=places, own=own, max_tokens=most, reader=reader)
    split = joined(split, parts, wider)
    able = ", ".join(name for name in modality_names() if name in reads(model))
    told = f"{source}: none of its {len(split)} samples has what this model reads ({able})"
    require(not able or split.unread < len(split), told)
    return split


def longest(model: Evaluable, reader: Reader, samples: Samples, places: Sequence[int]) -> int:
    """Tokens that are room for any of these samples' texts, and for as much again, as far as the model can write it."""
    written = (len(model.tokenizer.held(text).written) for text in _captions(reader, samples, places))
    room = max([LEAST_WRITTEN, *(2 * count for count in written)])
    return min(room, model.tokenizer.limits.written or room)


def _captions(reader: Reader, samples: Samples, places: Sequence[int]) -> Iterator[str]:
    """The texts that are to be written; of shards nothing else is read for it."""
    items = getattr(samples, "items", None)
    for place in places:
        if items is not None:
            yield from items[place].captions
            continue
        known = isinstance(samples, Shards)
        sample = samples.read(place, WORDS) if known else samples[place]
        with suppress(BadSample):
            found = reader.words(sample, modalities(samples.extensions(place)) if known else None)
            yield found.answer or found.text or ""


def seen_again(split: Split) -> Part:
    """A whole split as one batch that only widens galleries."""
    nothing = {task: np.full(len(split.infos), np.nan) for task in split.nats}
    written: dict[str, list[Written]] = {task: [] for task in split.written}
    return Part(infos=split.infos, vectors=split.vectors, written=written, nats=nothing, unread=0, bad=split.bad)


def joined(split: Split, parts: Sequence[Part], wider: Split | None = None) -> Split:
    """The split with what was found of its batches, and behind them of another split."""
    parts = [*parts, *([seen_again(wider)] if wider else [])]
    starts = [0, *accumulate(len(part.infos) for part in parts)]
    both = list(zip(starts, parts, strict=False))
    infos = tuple(info for part in parts for info in part.infos)
    heard = [modality for modality in modality_names() if any(modality in part.vectors for part in parts)]
    first = parts[0] if parts else None
    digests = [split.own, *(info.digest for info in infos)]
    return replace(
        split,
        infos=infos,
        vectors={modality: _vectors(modality, both) for modality in heard},
        written={
            task: [item._replace(row=start + item.row) for start, part in both for item in part.written[task]]
            for task in (first.written if first else {})
        },
        nats={task: np.concatenate([part.nats[task] for part in parts]) for task in (first.nats if first else {})},
        filled={
            task: [item for part in parts for item in part.filled.get(task, [])]
            for task in (first.filled if first else {})
        },
        coded=_coded(parts),
        unread=sum(part.unread for part in parts),
        truncated=sum(part.truncated for part in parts),
        bad={start + row: code for start, part in both for row, code in part.bad.items()},
        digest=hashlib.blake2b(json.dumps(digests).encode(), digest_size=16).hexdigest(),
    )


def _vectors(modality: str, parts: Sequence[tuple[int, Part]]) -> Vectors:
    own = [(start, part.vectors[modality]) for start, part in parts if modality in part.vectors]
    x: Tensor = some_finite(torch.cat([vectors.x for _, vectors in own]), modality)
    return Vectors(x, np.concatenate([start + vectors.rows for start, vectors in own]))


def _coded(parts: Sequence[Part]) -> dict[str, Coded]:
    names = dict.fromkeys(name for part in parts for name in part.coded)
    if not names:
        return {}
    from mmfm.evals.codec import joined as joined_codes

    return {name: joined_codes([part.coded[name] for part in parts if name in part.coded]) for name in names}
