"""What the answer to a task of a suite is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfm.evals.collection import Opened
from mmfm.evals.config import EvalConfig
from mmfm.evals.metrics import Score
from mmfm.evals.split import Evaluable, Split, Watch
from mmfm.evals.suite import Key
from mmfm.runtime.distributed import Collective


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every answer needs. `see` gives what the model makes of a data set, each time the same; `opened`: the data
    sets that the suite declares, before the model has seen them."""

    model: Evaluable
    config: EvalConfig
    root: Path
    see: Callable[[Key], Split]
    opened: Mapping[Key, Opened | None]
    watch: Watch
    ranks: Collective


@dataclass(frozen=True, kw_only=True)
class Result:
    """Scores of one task, what the details say of it, and a line for each thing that the scores do not cover."""

    scores: list[Score]
    details: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was read for a task, and what makes its scores of it: for the first rank, which asks the others nothing."""

    splits: tuple[Split, ...]
    result: Callable[[], Result]
