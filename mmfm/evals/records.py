"""The files of an evaluation as dataclasses: results.json, and beside it .details.json and .samples.json.

They are written and read as strict JSON (`mmfm.config.serialization`). Numbers that are not finite are null. Standard
library only.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmfm.evals.metrics_table import Unit


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Of what scores are. `weights`: the CRC-32 of model.safetensors, as the checkpoint's manifest has it, or of the
    CRC-32s of its parts, as always of a bundle, which has no step; of a model in no folder neither is known. `suite`: a
    digest of its tasks."""

    step: int | None = None
    weights: str = ""
    suite: str = ""
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One score: a row of results.json, with what it is of (see `Origin`).

    `clusters`: how many of the `n` are of different items. `reason`: why there is no value. `normalizer`: the rule by
    which texts were compared. `data`: a digest of the samples that were read.
    """

    split: str
    task: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    chance: float | None
    n: int
    clusters: int = 0
    normalizer: str = ""
    reason: str = ""
    step: int | None = None
    weights: str = ""
    suite: str = ""
    version: str = ""
    data: str = ""


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something to be shown; `src` is a data: URI of a picture or sound."""

    modality: str
    key: str = ""
    caption: str = ""
    src: str = ""


@dataclass(frozen=True, kw_only=True)
class Match:
    """What was found for a query; `hit`: it is relevant."""

    item: Item
    score: float | None
    hit: bool


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    task: str
    query: Item
    matches: tuple[Match, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Writing:
    task: str
    source: Item | None
    reference: str
    written: str
    correct: bool


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What was written for a question. documents: the keys of those that stood before it. correct: by exact match."""

    task: str
    key: str
    kind: str
    question: str
    answers: tuple[str, ...]
    written: str
    correct: bool
    documents: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What was drawn or said. start: seconds of a sound that repeat what was given. read: by judge, what is read in it;
    own_read: in the sample's own. correct: None where nobody judged."""

    task: str
    sources: tuple[Item, ...]
    made: Item
    start: float = 0.0
    read: dict[str, str] = field(default_factory=dict)
    correct: bool | None = None
    own: Item | None = None
    own_read: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How many of so many samples, of scans or voices that a judge has not learned from, it reads right."""

    on: str
    right: int
    of: int


@dataclass(frozen=True, kw_only=True)
class JudgeInfo:
    """What a judge reads, what it has learned from, and how well it reads what it has not."""

    of: str
    learned_from: str
    held_out: HeldOut | None


@dataclass(frozen=True, kw_only=True)
class OwnMetric:
    """A metric of one's own: its class and the file's content, as run.json names extensions, and how it reads."""

    extension: str
    sha256: str
    options: dict[str, Any]
    of: Literal["texts", "ranking"]
    label: str
    meaning: str
    unit: Unit
    higher_is_better: bool | None
    headline: bool
    chance: str


@dataclass(frozen=True, kw_only=True)
class SplitDetails:
    """Of a split, or of the tasks of a suite that share a name. `confusion`: by task, (true class, predicted class, how
    often). `unusable`: key -> code. `choices`: what tasks chose on their way, as JSON."""

    source: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    confusion: dict[str, tuple[tuple[int, int, int], ...]] = field(default_factory=dict)
    retrievals: tuple[Retrieval, ...] = ()
    writings: tuple[Writing, ...] = ()
    generations: tuple[Generation, ...] = ()
    answers: tuple[Answered, ...] = ()
    judges: dict[str, JudgeInfo] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, OwnMetric] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Details:
    about: Origin = field(default_factory=Origin)
    splits: dict[str, SplitDetails]


@dataclass(frozen=True, kw_only=True)
class KeptScore:
    """What each row of a score gave: `kind` and `parts` make its statistic again. `items`: a place in the list of lists
    of names, None where rows are paired by place; `clusters`: another, of what each row is of, None where no two are of
    one item."""

    task: str
    metric: str
    n: int
    kind: str
    parts: dict[str, tuple[float | None, ...]]
    items: int | None = None
    clusters: int | None = None
    normalizer: str = ""


@dataclass(frozen=True, kw_only=True)
class SplitSamples:
    """From which `mmfm compare` pairs two runs item by item. `data`: a digest of all samples that were read, `classes`
    of the names that were chosen among. Scores whose statistic keeps nothing are not there."""

    source: str
    data: str
    samples: int
    classes: str
    templates: tuple[str, ...]
    items: tuple[tuple[str, ...], ...]
    scores: tuple[KeptScore, ...]
    metrics: dict[str, OwnMetric] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Samples:
    about: Origin = field(default_factory=Origin)
    splits: dict[str, SplitSamples]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What is written of one split."""

    rows: tuple[Row, ...] = ()
    details: SplitDetails = field(default_factory=SplitDetails)
    samples: SplitSamples | None = None


def paths_of(out: Path) -> tuple[Path, Path, Path]:
    """Of the rows, the details and the samples."""
    return out, out.with_name(f"{out.stem}.details.json"), out.with_name(f"{out.stem}.samples.json")
