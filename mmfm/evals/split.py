"""A split as a model sees it: what is known of its samples, and all that the model said of them."""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmfm.config import Model, media_names, require
from mmfm.config.task import parse
from mmfm.data import order
from mmfm.data.batch import Batch
from mmfm.data.sample import Sample
from mmfm.evals.gather import shared
from mmfm.evals.reading import Reader
from mmfm.pretrained.encoder import rested
from mmfm.runtime.distributed import Collective, SingleProcess

TEXTS_AT_ONCE = 256
Watch = Callable[[list[Any]], Iterable[Any]]
ALONE = SingleProcess()


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

    def embed(self, batch: Batch) -> dict[str, Float[Tensor, "n d"]]: ...
    def encode_text(self, texts: list[str], normalize: bool = True) -> Float[Tensor, "n d"]: ...
    def write(self, task: str, batch: Batch, max_tokens: int) -> tuple[list[int], list[str]]: ...
    def nats(self, task: str, batch: Batch) -> Float[Tensor, " size"]: ...
    def parameters(self) -> Iterator[Tensor]: ...


class Vectors(NamedTuple):
    """Unit vectors of one modality and the samples that they belong to."""

    x: Float[Tensor, "n d"]
    rows: Int[np.ndarray, " n"]


class Written(NamedTuple):
    """What the model wrote for a sample that has a text of its own to compare with. prompt: the last text that it was
    given, if any. cut: writing stopped at the limit, and not at its end."""

    row: int
    text: str
    prompt: str | None = None
    cut: bool = False


class SampleInfo(NamedTuple):
    """What is kept of a sample besides what the model says about it."""

    key: str
    text: str | None
    labels: tuple[Any, Any]  # its .cls and its json "label"
    digest: str  # equal where all bytes of the sample are
    modalities: tuple[str, ...] = ()  # of its files
    plain: bool = False  # its text is none that a source of the run would find
    several: tuple[str, ...] = ()  # modalities that it holds several items of
    media: str = ""  # equal where all pictures and sounds of the sample are; "": it has none
    texts: tuple[str, ...] = ()  # all that are as right as its text, which comes first


class Filled(NamedTuple):
    """What was asked of one sample with masked places, by its row of the split."""

    row: int
    nats: float
    places: int
    right: int
    asked: int


class Coded(NamedTuple):
    """What a codec gave for some items. `room`: pixels or seconds. `media`: a digest of what was coded, equal where one
    picture or sound is in several samples. `chance`: the values of what the chance level is of."""

    keys: list[str]
    media: list[str]
    values: dict[str, Float[np.ndarray, " n"]]
    chance: dict[str, Float[np.ndarray, " n"]]
    codes: list[Int[np.ndarray, "_"]]
    room: list[float]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Rows count the samples that were read; `places` are their places in `samples`, `own` how many of them ask: the
    rest only widen the galleries."""

    name: str
    source: str
    samples: Samples
    places: tuple[int, ...]
    own: int
    infos: tuple[SampleInfo, ...] = ()
    vectors: dict[str, Vectors] = field(default_factory=dict)
    written: dict[str, list[Written]] = field(default_factory=dict)
    nats: dict[str, Float[np.ndarray, " samples"]] = field(default_factory=dict)  # nan: not asked; inf: not finite
    filled: dict[str, list[Filled]] = field(default_factory=dict)
    coded: dict[str, Coded] = field(default_factory=dict)
    unread: int = 0  # samples with nothing that the model reads
    bad: dict[int, str] = field(default_factory=dict)  # row -> code of a sample whose content cannot be used
    truncated: int = 0  # samples with a text of which only the beginning is read
    max_tokens: int = 0  # after which writing stopped
    reader: Reader | None = None
    digest: str = ""  # equal where the same samples were read, byte for byte, in the same order

    def __len__(self) -> int:
        return self.own

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(info.key for info in self.infos)

    @property
    def texts(self) -> tuple[str | None, ...]:
        return tuple(info.text for info in self.infos)

    @property
    def captions(self) -> list[str]:
        """The distinct texts, those that are as right included, in the order of their first sample."""
        return list(dict.fromkeys(text for info in self.infos for text in info.texts))

    def names(self, rows: Sequence[int] | Int[np.ndarray, " n"]) -> tuple[str, ...]:
        """What these samples are called: their keys, with a number behind one that came before."""
        return tuple(self._names[row] for row in rows)

    @cached_property
    def _names(self) -> list[str]:
        return numbered_names(self.keys)

    def sample(self, row: int) -> Sample:
        return self.samples[self.places[row]]

    def clusters(self, rows: Sequence[int] | Int[np.ndarray, " n"]) -> tuple[str, ...]:
        """What each of these samples is of, where several are of one picture or sound; () where none are."""
        named = zip(self.names(rows), (self.infos[row].media for row in rows), strict=True)
        found = tuple(media or name for name, media in named)
        return found if len(set(found)) < len(found) else ()

    def counts(self) -> dict[str, int]:
        named = [name for name in media_names() if name in self.vectors or name in ("image", "audio")]
        rows = {name: self.vectors[name].rows if name in self.vectors else np.empty(0, int) for name in named}
        found = {name: int((of_name < self.own).sum()) for name, of_name in rows.items()}
        return {"samples": len(self), **found, "text": sum(text is not None for text in self.texts[: self.own])}


def numbered_names(keys: Iterable[str]) -> list[str]:
    """Each with a number behind it where it came before."""
    seen: Counter[str] = Counter()
    return [f"{key} #{seen[key]}" if seen.update([key]) or seen[key] > 1 else key for key in keys]


@contextmanager
def at_rest(model: Evaluable) -> Iterator[None]:
    """`rested`, and without gradients. Not inference_mode: training cannot use what it caches."""
    assert isinstance(model, nn.Module)
    with rested(model), torch.no_grad():
        yield


def writing_tasks(model: Evaluable, among: Collection[str] | None = None) -> list[str]:
    """The tasks whose target can be compared with a sample's text; what is filled in is scored otherwise."""
    tasks = {task: parse(task) for task in model.tasks if among is None or task in among}
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

    parts = shared(slices(len(texts), TEXTS_AT_ONCE), encode, ranks, Tensor)
    return some_finite(torch.cat(parts), "text") if parts else torch.empty(0, model.embed_dim)


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


def unknown(*sides: tuple[str, Float[Tensor, "_ _"]]) -> str:
    """Why nothing can be said of what is made of these vectors, each with its name; "" where all are finite."""
    broken = [(what, int((~x.isfinite().all(1)).sum()), len(x)) for what, x in sides]
    told = [f"{count} of {total} vectors of {what} are not finite" for what, count, total in broken if count]
    return "; ".join(dict.fromkeys(told))


def comparable(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """With zeros for each vector that is not finite, so that what compares all goes on."""
    return torch.where(x.isfinite().all(1, keepdim=True), x, torch.zeros_like(x))
