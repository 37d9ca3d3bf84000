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
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmfm.batch import Batch
from mmfm.config import MODALITIES, Model, Store, require
from mmfm.data import order
from mmfm.data.example import Decode, Example, collate, read_example, require_short
from mmfm.data.sample import Sample, label_of, modalities
from mmfm.data.sources import open_shards
from mmfm.data.splits import asked_and_more
from mmfm.distributed import Alone, Ranks
from mmfm.evals.parts import Known, Part, Vectors, Written, mark_of, pack, unpack
from mmfm.evals.share import shared
from mmfm.grammar import Task, parse
from mmfm.inputs import BadSample

TEXTS_AT_ONCE = 256
Watch = Callable[[list[list[int]]], Iterable[list[int]]]
STORE, ALONE = Store(), Alone()


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

    def counts(self) -> dict[str, int]:
        rows = {name: self.vectors[name].rows if name in self.vectors else np.empty(0, int) for name in MODALITIES[:2]}
        found = {name: int((of_name < self.own).sum()) for name, of_name in rows.items()}
        return {"samples": len(self), **found, "text": sum(text is not None for text in self.texts[: self.own])}


def writing_tasks(model: Evaluable) -> list[str]:
    """The tasks whose target can be compared with a sample's text; a continuation, and what is filled in, has no one
    answer."""
    tasks = {task: parse(task) for task in model.tasks}
    return [
        name for name, task in tasks.items() if task.target == "text" and "text" not in task.sources and not task.fill
    ]


def reads(model: Evaluable) -> set[str]:
    """The modalities that the model takes as a source or as a target."""
    return {*model.modalities, *(name for task in model.tasks if (name := parse(task).target) is not None)}


def device_of(model: Evaluable) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def encode_texts(model: Evaluable, texts: Sequence[str], ranks: Ranks = ALONE) -> Float[Tensor, "n d"]:
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
    store: Store = STORE,
    max_tokens: int,
    limit: int | None = None,
    with_nats: bool = True,
    writing: Collection[str] | None = None,
    opened: Samples | None = None,
    watch: Watch = iter,
    ranks: Ranks = ALONE,
) -> Split:
    """Read every sample once and put all questions to the model, which must be `at_rest`. `watch` sees the batches go.

    With `ranks` all must ask for the same; whole batches are dealt to them, and each returns the same, whole Split.
    `writing`: the tasks to write for; None: all of the model's. `opened`: the samples, where `spec` only names them.

    Raises UserError where no sample has anything that the model reads, and where the model gives no finite numbers.
    """
    asking, more = asked_and_more(spec) if opened is None else (spec, "")
    shards = open_shards([asking, *([more] if more else [])], store) if opened is None else opened
    total = len(open_shards([asking], store)) if more else len(shards)
    places = (*spread(total, limit), *range(total, len(shards)))
    own = len(places) - (len(shards) - total)
    tasks = [task for task in writing_tasks(model) if writing is None or task in writing]
    runs = [*batches(0, own, batch), *batches(own, len(shards) - total, batch)]

    def ask(part: list[int]) -> Part:
        return _ask(model, [shards[places[at]] for at in part], decode, tasks, max_tokens, with_nats, part[0] < own)

    parts = shared(runs, ask, ranks, pack=pack, unpack=unpack, watch=watch)
    split = _joined(parts, name=name, source=spec, shards=shards, places=places, own=own)
    able = ", ".join(name for name in MODALITIES if name in reads(model))
    require(
        not able or split.unread < len(split),
        f"{spec}: none of its {len(split)} samples has what this model reads ({able})",
    )
    return split


def _ask(
    model: Evaluable,
    samples: list[Sample],
    decode: Decode,
    tasks: Sequence[str],
    max_tokens: int,
    with_nats: bool,
    asking: bool,
) -> Part:
    """All that the model says about these samples; of those that only widen the galleries, where they lie."""
    examples, bad = _read(model, samples, decode)
    batch = collate(examples, model.tokenizer).to(device_of(model))
    held = {name: set(items.rows.tolist()) for name, items in batch.items.items() if name in reads(model)}
    able = {task: _able(parse(task), held) if asking else set() for task in tasks}
    return Part(
        known=[_known(sample, example) for sample, example in zip(samples, examples, strict=True)],
        vectors=_embed(model, batch),
        written={
            task: _write(model, task, batch, rows, max_tokens) for task, rows in able.items() if parse(task).sources
        },
        nats={task: _nats(model, task, batch, rows - _cut(batch)) for task, rows in able.items() if with_nats},
        unread=batch.size - len(set().union(*held.values(), bad)) if asking else 0,
        bad=bad,
        truncated=len(batch.truncated) if asking else 0,
    )


def _cut(batch: Batch) -> set[int]:
    """The samples whose text goes on beyond what can be asked of it."""
    items = batch.items.get("text")
    return set() if items is None or items.cut is None else set(items.rows[items.cut].tolist())


def _read(model: Evaluable, samples: list[Sample], decode: Decode) -> tuple[list[Example], dict[int, str]]:
    """An example of each sample; one that cannot be used holds nothing, and its row and code are told."""
    examples: list[Example] = []
    bad: dict[int, str] = {}
    for row, sample in enumerate(samples):
        try:
            example = read_example(sample, model.config, decode)
            require_short(example, model.tokenizer, sample.where)
            examples.append(example)
        except BadSample as why:
            bad[row] = why.code
            examples.append(Example(key=sample.key))
    return examples, bad


def _known(sample: Sample, example: Example) -> Known:
    mark = sample.parts.get("cls")
    whole = mark is None or mark.strip().isdigit()
    require(whole, f"{sample.where}: the .cls is no whole number; write the class's place in classnames.txt, from 0")
    labels = (None if mark is None else int(mark), label_of(sample))
    return Known(example.key, example.text, labels, mark_of(sample), tuple(sorted(modalities(sample.parts))))


def _embed(model: Evaluable, batch: Batch) -> dict[str, Vectors]:
    """Of pictures and sounds; texts are encoded later, each distinct one once."""
    seen = {name: items for name, items in batch.items.items() if name != "text" and name in model.modalities}
    given = model.embed(replace(batch, items=seen)) if seen else {}
    return {name: Vectors(x.float().cpu(), seen[name].rows.cpu().numpy()) for name, x in given.items()}


def _able(task: Task, held: dict[str, set[int]]) -> set[int]:
    """The rows that have all the sources of the task, and its target."""
    return set.intersection(*(held.get(name, set()) for name in (*task.sources, str(task.target))))


def _write(model: Evaluable, task: str, batch: Batch, able: set[int], max_tokens: int) -> list[Written]:
    rows, texts = model.write(task, batch, max_tokens) if able else ([], [])
    return [Written(row, text) for row, text in zip(rows, texts, strict=True) if row in able]


def _nats(model: Evaluable, task: str, batch: Batch, able: set[int]) -> Float[np.ndarray, " size"]:
    nats = np.full(batch.size, np.nan)
    if able:
        rows = sorted(able)
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
        digest=hashlib.blake2b(json.dumps([own, *(one.mark for one in known)]).encode(), digest_size=16).hexdigest(),
    )


def _vectors(modality: str, parts: Sequence[tuple[int, Part]]) -> Vectors:
    own = [(start, part.vectors[modality]) for start, part in parts if modality in part.vectors]
    return Vectors(
        some_finite(torch.cat([vectors.x for _, vectors in own]), modality),
        np.concatenate([s + v.rows for s, v in own]),
    )


def _shifted(task: str, parts: Sequence[tuple[int, Part]]) -> list[Written]:
    return [Written(start + item.row, item.text) for start, part in parts for item in part.written[task]]
