"""Metrics of one's own (`mmfm.config.Metric`): their scores beside those of mmfm, and what results keep of them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast, get_args

import numpy as np
from jaxtyping import Float

from mmfm.config import Metric, UserError, require
from mmfm.evals import metrics_table
from mmfm.evals.metrics import Score, mean, ratio
from mmfm.evals.metrics_table import Unit
from mmfm.evals.records import OwnMetric

Parts = Callable[[], Iterable[tuple[Any, Any]]]  # what `values` is asked of, some rows at a time


def own_scores(metrics: Sequence[Metric], parts: Parts, **told: Any) -> list[Score]:
    """A score of each. `told`: what `Score` is told besides."""
    return [_score(metric, parts, **told) for metric in metrics]


def _score(metric: Metric, parts: Parts, **told: Any) -> Score:
    rows, chances = [], []
    for first, second in parts():
        rows.append(_numbers(metric, first, second))
        chances.append(float(metric.chance(first, second)))
    columns = np.concatenate(rows, 1)
    statistic = mean(columns[0]) if len(columns) == 1 else ratio(*columns)
    chance = float(np.average(chances, weights=[part.shape[1] for part in rows]))
    return Score(metric=metric.name, statistic=statistic, chance=chance, **told)


def _numbers(metric: Metric, first: Any, second: Any) -> Float[np.ndarray, "columns n"]:
    """What it gives for these rows, as one column or two. UserError: it fails, or gives anything else."""
    try:
        found = np.atleast_2d(np.asarray(metric.values(first, second), float))
    except UserError:
        raise
    except Exception as why:  # whatever the person's code raises
        raise UserError(f"{metric.spec()} fails with {type(why).__name__}: {why}; --debug shows where") from why
    good = found.ndim == 2 and len(found) in (1, 2) and found.shape[1] == len(second) and bool(np.isfinite(found).all())
    told = f"{metric.spec()} gave {list(found.shape)} for {len(second)} rows"
    require(good, f"{told}; its values should be a finite number for each row, or two such lists")
    return found


def known(metrics: Sequence[Metric]) -> dict[str, OwnMetric]:
    """What results keep of them, by name; tables know them from here on."""
    for metric in metrics:
        told = f"{metric.spec()}: its unit {metric.unit!r} is none of {', '.join(get_args(Unit))}"
        require(metric.unit in get_args(Unit), told)
    found = {metric.name: _record(metric) for metric in metrics}
    for name, one in found.items():
        learn(name, one)
    return found


def _record(metric: Metric) -> OwnMetric:
    return OwnMetric(
        **metric.saved(),
        of=metric.of,
        label=metric.label or metric.name,
        meaning=metric.meaning,
        unit=cast(Unit, metric.unit),
        higher_is_better=metric.higher_is_better,
        headline=metric.headline,
        chance=metric.chance_of,
    )


def learn(name: str, one: OwnMetric) -> None:
    """Lets tables know a metric by what results say of it, without its file."""
    group = metrics_table.WRITING if one.of == "texts" else metrics_table.RETRIEVAL
    told = {"headline": one.headline, "chance": one.chance, "higher_is_better": one.higher_is_better}
    metrics_table.OWN[name] = metrics_table.Metric(one.label, one.meaning, group, one.unit, **told)
