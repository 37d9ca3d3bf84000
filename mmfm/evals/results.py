"""The files of an evaluation, and how they are written: also with numbers that are not finite, and of broken-off work.

`results.json` is tidy: a list of rows {"split", "task", "metric", "value", "low", "high", "chance", "n", "clusters"}
with what they are of (see `provenance`). `clusters`: how many of the n are of different items. What is not finite is
null; a row without a value says why in `reason`, one that compares texts by which rule in `normalizer`. Beside it
stand `results.details.json`, which the report shows, and `results.samples.json`, from which runs are compared.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from mmfm.config import require
from mmfm.evals.metrics import Bootstrap, Score
from mmfm.evals.metrics_table import entry_of
from mmfm.evals.paths import write_json
from mmfm.evals.provenance import Origin
from mmfm.evals.table import print_split, printable

NO_VALUE = "the statistic has no finite value"
PARTIAL = ".partial"
NOWHERE = Origin()


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Rows of results.json for one split, and its entry in results.details.json."""

    rows: list[dict[str, Any]]
    details: dict[str, Any]
    samples: dict[str, Any] = field(default_factory=dict)  # its entry in results.samples.json


def row_of(split: str, figure: Score, bootstrap: Bootstrap) -> dict[str, Any]:
    """A row of results.json."""
    assert entry_of(figure.metric), f"{figure.metric} has no entry in mmfm.evals.metrics_table.METRICS"
    value, (low, high) = figure.value, figure.interval(bootstrap)
    chance = round(figure.chance, 9) if math.isfinite(figure.chance) else None
    numbers = {"value": finite_or_none(value), "low": finite_or_none(low), "high": finite_or_none(high)}
    told = {"normalizer": figure.normalizer, "reason": "" if math.isfinite(value) else figure.unknown or NO_VALUE}
    return {
        "split": split,
        "task": figure.task,
        "metric": figure.metric,
        **numbers,
        "chance": chance,
        "n": figure.n,
        "clusters": figure.independent,
        **{name: said for name, said in told.items() if said},
    }


def finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def paths_of(out: Path) -> tuple[Path, Path, Path]:
    """Of the rows, the details and the samples."""
    return out, out.with_name(f"{out.stem}.details.json"), out.with_name(f"{out.stem}.samples.json")


def write(scores: Mapping[str, Scores], out: Path, origin: Origin, partial: bool = False) -> list[dict[str, Any]]:
    """All three files, the rows last; returns these. `partial`: beside the files of an evaluation that ended."""
    rows = [origin.of(row, score.samples.get("data", "")) for score in scores.values() for row in score.rows]
    about = asdict(origin)
    details = {"about": about, "splits": {name: score.details for name, score in scores.items()}}
    samples = {"about": about, "splits": {name: score.samples for name, score in scores.items() if score.samples}}
    places = [path.with_name(path.name + PARTIAL * partial) for path in paths_of(out)]
    for path, tree, indent in ((places[2], samples, None), (places[1], details, 1), (places[0], rows, 1)):
        write_json(path, tree, indent=indent)
    return rows


@contextmanager
def kept(scores: Mapping[str, Scores], out: Path, console: Console) -> Iterator[None]:
    """Where the work within breaks off, says where that stands which was scored until then."""
    try:
        yield
    except BaseException:
        if scores:
            told = f"{', '.join(scores)}: kept in {out.name}{PARTIAL}, beside {out}"
            console.print(printable(told), soft_wrap=True, highlight=False, markup=False)
        raise


def finish(
    scores: Mapping[str, Scores], splits: Mapping[str, str], out: Path, console: Console, origin: Origin = NOWHERE
) -> list[dict[str, Any]]:
    """Write and print. Raises UserError where nothing was scored."""
    lines = [f"{name}: {line}" for name, score in scores.items() for line in score.details["left_out"]]
    scored = any(score.rows for score in scores.values())
    require(scored, f"nothing can be scored in {', '.join(splits.values())}: {'; '.join(lines)}")
    rows = write(scores, out, origin)
    for path in paths_of(out):
        path.with_name(path.name + PARTIAL).unlink(missing_ok=True)
    for name, score in scores.items():
        print_split(name, score.rows, score.details, console)
    console.print(printable(f"wrote {out}"), soft_wrap=True, highlight=False, markup=False)
    return rows
