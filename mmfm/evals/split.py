"""One pass of a model over a split: everything that the scores need, so that no sample is read or encoded twice.

A split is any shards. A sample may have any of image, audio, text; samples that have nothing that the model reads are
counted. With a limit, the samples are spread evenly over the shards, which may hold one modality each.

"A+B" is the split A, whose retrieval also has to choose among the pictures, sounds and texts of B; B asks nothing. So
classes that training never met can be looked for among all.
"""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mmfm.config import MODALITIES, Model, RemoteCache, Source, Text, require
from mmfm.config.task import Task, parse
from mmfm.data import order
from mmfm.data.batch import Batch, Items
from mmfm.data.decode import WORDS, Decode, Example, collate, require_short
from mmfm.data.sample import Sample, label_of, modalities
from mmfm.data.shards import Shards
from mmfm.data.sources import open_shards
from mmfm.data.splits import asked_and_more
from mmfm.evals.parts import Known, Part, Vectors, Written, mark_of, media_of, pack, unpack
from mmfm.evals.reading import Reader, held_by
from mmfm.evals.sharding import shared
from mmfm.inference.pipeline import without_last
from mmfm.preprocessing import BadSample
from mmfm.runtime.distributed import Collective, SingleProcess

TEXTS_AT_ONCE = 256
LEAST_WRITTEN = 32  # tokens
Watch = Callable[[list[list[int]]], Iterable[list[int]]]
STORE, ALONE = RemoteCache(), SingleProcess()


@runtime_checkable
class Samples(Protocol):
    """Samples by their number: `Shards`, or what reads files as if they were shards."""

    @property
    def ignored(self) -> Counter[str]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, sample: int, /) -> Sample: ...


@runtime_checkable
class Evaluable(Protocol):
    """What evaluation asks of a model, which is also a torch Module. Embeddings are unit vectors."""

    embed_dim: int
    modalities: tuple[str, ...]
    tasks: tuple[str, ...]
    tokenizer: Any
    config: Model
    training: bool

    def embed(self, batch: Batch) -> dict[str, Float[Tensor, "n d"]]: ...
    def encode_text(self, texts: list[str], normalize: bool = True) -> Float[Tensor, "n d"]: ...
    def write(self, task: str, batch: Batch, max_tokens: int) -> tuple[list[int], list[str]]: ...
    def nats(self, task: str, batch: Batch) -> Float[Tensor, " size"]: ...
    def parameters(self) -> Iterator[Tensor]: ...
    def train(self, mode: bool = True) -> Any: ...


@contextmanager
def at_rest(model: Evaluable) -> Iterator[None]:
    """Without gradients and dropout; the mode is put back. Not inference_mode: training cannot use what it caches."""
    training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split as the model sees it. Rows count the samples that were read; `places` are their places in `shards`."""

    name: str
    source: str
    shards: Samples
    places: tuple[int, ...]
    keys: tuple[str, ...]
    texts: tuple[str | None, ...]
    labels: tuple[tuple[Any, Any], ...]  # of each sample: its .cls and its json "label", None where it has none
    vectors: dict[str, Vectors]
    written: dict[str, list[Written]]
    nats: dict[str, Float[np.ndarray, " samples"]]  # nan where a sample lacks a source or the target; inf: not finite
    unread: int  # samples with nothing that the model reads
    bad: dict[int, str]  # row -> code of a sample whose content cannot be used: it asks nothing and answers nothing
    own: int  # rows from here on only widen the galleries
    held: tuple[tuple[str, ...], ...] = ()  # of each sample: the modalities of its files
    truncated: int = 0  # samples with a text of which only the beginning is read
    plain: int = 0  # samples whose text is none that a source of the run would find
    chosen: int = 0  # samples with several texts, of which one is read
    several: Mapping[str, int] = field(default_factory=dict)  # samples that hold several items of a modality
    most_written: int = 0  # tokens after which writing stopped
    reader: Reader | None = None
    media: tuple[str, ...] = ()  # of each sample: a digest of its pictures and sounds, "" where it has none
    digest: str = ""  # equal where the same samples were read, byte for byte, in the same order

    def __len__(self) -> int:
        return self.own

    @property
    def captions(self) -> list[str]:
        """The distinct texts, in the order of their first sample."""
        return list(dict.fromkeys(text for text in self.texts if text is not None))

    def names(self, rows: Sequence[int] | Int[np.ndarray, " n"]) -> tuple[str, ...]:
        """What these samples are called: their keys, with a number behind one that came before."""
        seen: Counter[str] = Counter()
        names = [f"{key} #{seen[key]}" if seen.update([key]) or seen[key] > 1 else key for key in self.keys]
        return tuple(names[row] for row in rows)

    def example(self, row: int) -> Example:
        """The sample of a row, decoded; one that cannot be used holds nothing, as the split has told."""
        assert self.reader is not None
        sample = self.shards[self.places[row]]
        try:
            return self.reader.read(sample)[0]
        except BadSample:
            return Example(key=sample.key)

    def clusters(self, rows: Sequence[int] | Int[np.ndarray, " n"]) -> tuple[str, ...]:
        """What each of these samples is of, where several are of one picture or sound; () where none are."""
        named = zip(self.names(rows), (self.media[row] if self.media else "" for row in rows), strict=True)
        found = tuple(media or name for name, media in named)
        return found if len(set(found)) < len(found) else ()

    def counts(self) -> dict[str, int]:
        rows = {name: self.vectors[name].rows if name in self.vectors else np.empty(0, int) for name in MODALITIES[:2]}
        found = {name: int((of_name < self.own).sum()) for name, of_name in rows.items()}
        return {"samples": len(self), **found, "text": sum(text is not None for text in self.texts[: self.own])}


def writing_tasks(model: Evaluable) -> list[str]:
    """The tasks whose target can be compared with a sample's text; what is filled in is scored otherwise."""
    tasks = {task: parse(task) for task in model.tasks}
    return [name for name, task in tasks.items() if task.target == "text" and not task.fill]


def reads(model: Evaluable) -> set[str]:
    """The modalities that the model takes as a source or as a target."""
    return {*model.modalities, *(name for task in model.tasks if (name := parse(task).target) is not None)}


def device_of(model: Evaluable) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def encode_texts(model: Evaluable, texts: Sequence[str], ranks: Collective = ALONE) -> Float[Tensor, "n d"]:
    """Unit vectors on the CPU, a few hundred texts at a time; with `ranks` all must ask, of the same texts."""

    def encode(part: slice) -> Tensor:
        with warnings.catch_warnings():  # how many texts are cut is counted where the split is read
            warnings.filterwarnings("ignore", message="only the beginning of a long text")
            return model.encode_text(list(texts[part]), normalize=True).float().cpu()

    parts = shared(slices(len(texts), TEXTS_AT_ONCE), encode, ranks, pack=_as_it_is, unpack=_as_it_is)
    return some_finite(torch.cat(parts), "text") if parts else torch.empty(0, model.embed_dim)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def slices(total: int, size: int) -> list[slice]:
    """0 ... total-1 in runs of `size`; the last may be shorter."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def batches(first: int, count: int, size: int) -> list[list[int]]:
    """first ... first+count-1, each once, as `order.once` deals them out; what only fills up is left out."""
    return [[first + at for at in part if at is not None] for part in order.once(count, size)]


def spread(total: int, limit: int | None) -> tuple[int, ...]:
    """At most `limit` of the places 0 ... total-1: one from each of `limit` equal runs, always the same ones.

    Where in its run a place lies is drawn: a fixed stride could miss classes of data where these take turns.
    """
    count = total if limit is None else min(limit, total)
    ends = np.arange(count + 1) * total // max(count, 1)
    drawn = np.random.Generator(np.random.Philox(0)).random(count)
    return tuple((ends[:-1] + (drawn * np.diff(ends)).astype(int)).tolist())


def some_finite(x: Float[Tensor, "n *_"], what: str) -> Tensor:
    """The same; UserError where no row of it is finite: such a model gives no scores."""
    good = len(x) == 0 or bool(x.reshape(len(x), -1).isfinite().all(1).any())
    require(good, f"{what}: the model gives numbers that are not finite; evaluate an earlier step")
    return x


def unknown(what: str, x: Float[Tensor, "n d"]) -> str:
    """Why nothing can be said of what is made of these vectors; "" where all are finite."""
    broken = int((~x.isfinite().all(1)).sum())
    return f"{broken} of {len(x)} vectors of {what} are not finite" if broken else ""


def comparable(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """With zeros for each vector that is not finite, so that what compares all goes on."""
    return torch.where(x.isfinite().all(1, keepdim=True), x, torch.zeros_like(x))


def read_split(
    model: Evaluable,
    spec: str,
    *,
    name: str,
    batch: int,
    decode: Decode,
    store: RemoteCache = STORE,
    sources: tuple[Source, ...] = (),
    texts: tuple[Text, ...] = (),
    max_tokens: int = 0,
    limit: int | None = None,
    with_nats: bool = True,
    writing: Collection[str] | None = None,
    opened: Samples | None = None,
    watch: Watch = iter,
    ranks: Collective = ALONE,
) -> Split:
    """Read every sample once and put all questions to the model, which must be `at_rest`. `watch` sees the batches go.

    With `ranks` all must ask for the same; whole batches are dealt to them, and each returns the same, whole Split.
    `writing`: the tasks to write for; None: all of the model's. `opened`: the samples, where `spec` only names them.
    `sources`: of the run, by which texts are read; `texts`: fields to read instead. `max_tokens`: where writing stops
    at the latest; 0: after twice the longest text that is to be written.

    Raises UserError where no sample has anything that the model reads, and where the model gives no finite numbers.
    """
    asking, more = asked_and_more(spec) if opened is None else (spec, "")
    shards = open_shards([asking, *([more] if more else [])], store) if opened is None else opened
    total = len(open_shards([asking], store)) if more else len(shards)
    places = (*spread(total, limit), *range(total, len(shards)))
    own = len(places) - (len(shards) - total)
    tasks = [task for task in writing_tasks(model) if writing is None or task in writing]
    runs = [*batches(0, own, batch), *batches(own, len(shards) - total, batch)]

    reader = Reader(model=model.config, decode=decode, sources=() if opened is not None else sources, texts=texts)
    most = max_tokens or longest(model, reader, shards, places[:own]) if tasks else max_tokens
    asker = _Asker(model, reader, shards, places, own, tasks, most, with_nats)
    parts = shared(runs, asker.ask, ranks, pack=pack, unpack=unpack, watch=watch)
    split = _joined(parts, name=name, source=spec, shards=shards, places=places, own=own)
    split = replace(split, most_written=most, reader=reader)
    able = ", ".join(name for name in MODALITIES if name in reads(model))
    require(
        not able or split.unread < len(split),
        f"{spec}: none of its {len(split)} samples has what this model reads ({able})",
    )
    return split


def longest(model: Evaluable, reader: Reader, shards: Samples, places: Sequence[int]) -> int:
    """Tokens that are room for any of these samples' texts, and for as much again, as far as the model can write it."""
    written = (len(model.tokenizer.held(text).written) for text in _captions(reader, shards, places))
    room = max([LEAST_WRITTEN, *(2 * count for count in written)])
    return min(room, model.tokenizer.limits.written or room)


def _captions(reader: Reader, shards: Samples, places: Sequence[int]) -> Iterator[str]:
    """The texts that are to be written; of shards nothing else is read for it."""
    items = getattr(shards, "items", None)
    for place in places:
        if items is not None:
            yield from items[place].captions
            continue
        known = isinstance(shards, Shards)
        sample = shards.read(place, WORDS) if known else shards[place]
        with suppress(BadSample):
            found = reader.words(sample, modalities(shards.extensions(place)) if known else None)
            yield found.answer or found.text or ""


class _Asker(NamedTuple):
    """All questions to a model about a split."""

    model: Evaluable
    reader: Reader
    shards: Samples
    places: tuple[int, ...]
    own: int
    tasks: Sequence[str]
    max_tokens: int
    with_nats: bool

    def ask(self, part: list[int]) -> Part:
        """What it says about these rows; of those that only widen the galleries, where they lie."""
        model, asking = self.model, part[0] < self.own
        samples = [self.shards[self.places[at]] for at in part]
        examples, bad, plain, choices = _read(self.reader, model.tokenizer, samples)
        batch = self._batch(examples)
        counts = counts_of(batch)
        held = {
            name: {row for row, count in enumerate(counts[name]) if count} for name in counts if name in reads(model)
        }
        asked = {task: self._asked(task, part, examples, batch) if asking else [] for task in self.tasks}
        return Part(
            known=[
                _known(
                    sample,
                    example,
                    plain=row in plain,
                    several=tuple(name for name in counts if counts[name][row] > 1),
                    choices=choices.get(row, 0),
                )
                for row, (sample, example) in enumerate(zip(samples, examples, strict=True))
            ],
            vectors=_embed(model, batch),
            written={
                task: sorted(
                    one for batch, rows in several for one in _write(model, task, batch, rows, self.max_tokens)
                )
                for task, several in asked.items()
                if parse(task).sources
            },
            nats={task: _nats(model, task, batch.size, several) for task, several in asked.items() if self.with_nats},
            unread=batch.size - len(set().union(*held.values(), bad)) if asking else 0,
            bad=bad,
            truncated=len(batch.truncated) if asking else 0,
        )

    def _batch(self, examples: Sequence[Example]) -> Batch:
        return collate(examples, self.model.tokenizer).to(device_of(self.model))

    def _asked(self, name: str, part: list[int], examples: list[Example], batch: Batch) -> list[tuple[Batch, set[int]]]:
        """Batches, and the rows of each that hold all items that the task names: as they are, or else behind shots."""
        task = parse(name)
        able = able_rows(task, batch)
        found, rest = [(batch, able)] if able else [], [row for row in range(batch.size) if row not in able]
        if not rest or not self.reader.shots or not held_of(task, batch):
            return found
        behind = list(examples)
        for row in rest:
            if {*task.sources, "text"} <= held_by(examples[row]):
                behind[row] = self.reader.behind_shots(examples[row], self._sample, part[row], self.own)
        shot = self._batch(behind)
        more = able_rows(task, shot) - able
        return [*found, (shot, more)] if more else found

    def _sample(self, row: int) -> Sample:
        return self.shards[self.places[row]]


def counts_of(batch: Batch) -> dict[str, list[int]]:
    """How many items of each modality each sample holds."""
    return {
        name: torch.bincount(items.rows.cpu(), minlength=batch.size).tolist() for name, items in batch.items.items()
    }


def able_rows(task: Task, batch: Batch) -> set[int]:
    """The rows that hold as many items as the task names, its target's included; none of them is cut in two."""
    counts, names = counts_of(batch), {*task.sources, str(task.target)}
    if not names <= counts.keys():
        return set()
    return {row for row in range(batch.size) if all(counts[name][row] >= task.mentions(name) for name in names)}


def held_of(task: Task, batch: Batch) -> bool:
    """Whether the batch holds something of all that the task names."""
    return {*task.sources, str(task.target)} <= set(batch.items)


def _cut(batch: Batch) -> set[int]:
    """The samples whose text goes on beyond what can be asked of it."""
    items = batch.items.get("text")
    return set() if items is None or items.cut is None else set(items.rows[items.cut].tolist())


def _read(
    reader: Reader, tokenizer: Any, samples: list[Sample]
) -> tuple[list[Example], dict[int, str], set[int], dict[int, int]]:
    """An example of each sample; one that cannot be used holds nothing, and its row and code are told; and the rows
    whose text no source of the run would find; and how many texts there were to choose from."""
    examples: list[Example] = []
    bad: dict[int, str] = {}
    plain = set[int]()
    choices = dict[int, int]()
    for row, sample in enumerate(samples):
        try:
            example, odd = reader.read(sample)
            require_short(example, tokenizer, sample.where)
            examples.append(example)
            plain |= {row} if odd else set()
            choices[row] = reader.choices(sample)
        except BadSample as why:
            bad[row] = why.code
            examples.append(Example(key=sample.key))
    return examples, bad, plain, choices


def _known(sample: Sample, example: Example, *, plain: bool, several: tuple[str, ...], choices: int) -> Known:
    mark = sample.parts.get("cls")
    whole = mark is None or mark.strip().isdigit()
    require(whole, f"{sample.where}: the .cls is no whole number; write the class's place in classnames.txt, from 0")
    labels = (None if mark is None else int(mark), label_of(sample))
    held = tuple(sorted(modalities(sample.parts)))
    return Known(example.key, example.text, labels, mark_of(sample), held, plain, several, media_of(sample), choices)


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
    given = _given(model, task, asked)
    return [
        Written(row, str(text), given.get(row), getattr(text, "finish", "stop") == "length")
        for row, text in zip(rows, texts, strict=True)
        if row in able
    ]


def _given(model: Evaluable, task: Task, batch: Batch) -> dict[int, str]:
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
        rows = sorted(able - _cut(batch))
        found = model.nats(task, batch).double().cpu()[rows]
        nats[rows] = found.nan_to_num(torch.inf, torch.inf, torch.inf).numpy()  # nan is for what was not asked
    return nats


def _joined(
    parts: Sequence[Part], *, name: str, source: str, shards: Samples, places: tuple[int, ...], own: int
) -> Split:
    starts = [0, *accumulate(len(part.known) for part in parts)]
    both = list(zip(starts, parts, strict=False))
    heard = [modality for modality in MODALITIES if any(modality in part.vectors for part in parts)]
    known = [one for part in parts for one in part.known]
    return Split(
        name=name,
        source=source,
        shards=shards,
        places=places,
        keys=tuple(one.key for one in known),
        texts=tuple(one.text for one in known),
        labels=tuple(one.labels for one in known),
        vectors={modality: _vectors(modality, both) for modality in heard},
        written={task: _shifted(task, both) for task in (parts[0].written if parts else {})},
        nats={task: np.concatenate([part.nats[task] for part in parts]) for task in (parts[0].nats if parts else {})},
        unread=sum(part.unread for part in parts),
        truncated=sum(part.truncated for part in parts),
        bad={start + row: code for start, part in both for row, code in part.bad.items()},
        own=own,
        held=tuple(one.held for one in known),
        media=tuple(one.media for one in known),
        plain=sum(one.plain for one in known[:own]),
        chosen=sum(one.choices > 1 for one in known[:own]),
        several=Counter(name for one in known[:own] for name in one.several),
        digest=hashlib.blake2b(json.dumps([own, *(one.mark for one in known)]).encode(), digest_size=16).hexdigest(),
    )


def _vectors(modality: str, parts: Sequence[tuple[int, Part]]) -> Vectors:
    own = [(start, part.vectors[modality]) for start, part in parts if modality in part.vectors]
    return Vectors(
        some_finite(torch.cat([vectors.x for _, vectors in own]), modality),
        np.concatenate([s + v.rows for s, v in own]),
    )


def _shifted(task: str, parts: Sequence[tuple[int, Part]]) -> list[Written]:
    return [item._replace(row=start + item.row) for start, part in parts for item in part.written[task]]
