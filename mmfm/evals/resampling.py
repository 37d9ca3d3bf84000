"""Resamples of items, and the intervals that they give. Letters: n rows, r resamples. Pure numpy.

What is drawn is the unit that was sampled. Where several rows are of one item (five captions of one image), items are
drawn and bring all their rows with them: rows of one item are no independent evidence (Davison and Hinkley 1997, 3.8).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

Statistic = Callable[[np.ndarray], np.ndarray]  # row numbers [resamples, rows] -> [resamples]
DRAWS_AT_ONCE = 2_000_000  # bounds the memory of a bootstrap to a few tens of megabytes


class Bootstrap(NamedTuple):
    """How intervals are drawn. One seed for all figures: two figures over the same items are resampled alike."""

    resamples: int = 1_000
    seed: int = 0


def numbered(clusters: Sequence[str], n: int) -> Int[np.ndarray, " n"] | None:
    """The number of each row's cluster, in the order of their first rows; None where every row is of its own."""
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    return np.array([places[name] for name in clusters], int) if 0 < len(places) < n else None


def drawn(n: int, clusters: Int[np.ndarray, " n"] | None, bootstrap: Bootstrap) -> Iterator[Int[np.ndarray, "r rows"]]:
    """The rows of each resample, so many resamples at once as have room. Clusters are drawn whole; where their sizes
    differ resamples come one by one, since each has a number of rows of its own."""
    count = n if clusters is None else int(clusters.max()) + 1
    chunk = max(1, DRAWS_AT_ONCE // n)
    every = _few_draws if bootstrap.resamples <= chunk else _draws
    for chosen in every(count, chunk, bootstrap):
        yield from (chosen,) if clusters is None else _rows_of(chosen, clusters)


def _draws(count: int, chunk: int, bootstrap: Bootstrap) -> Iterator[Int[np.ndarray, "r count"]]:
    generator = np.random.Generator(np.random.Philox(bootstrap.seed))
    for done in range(0, bootstrap.resamples, chunk):
        size = min(chunk, bootstrap.resamples - done)
        yield generator.integers(0, count, size=(size, count), dtype=np.int32)


@lru_cache(maxsize=4)
def _few_draws(count: int, chunk: int, bootstrap: Bootstrap) -> list[np.ndarray]:
    """The same, kept: all figures over as many items are resampled alike."""
    return list(_draws(count, chunk, bootstrap))


def _rows_of(chosen: Int[np.ndarray, "r count"], clusters: Int[np.ndarray, " n"]) -> Iterator[np.ndarray]:
    order, sizes = np.argsort(clusters, kind="stable"), np.bincount(clusters)
    starts = np.cumsum(sizes) - sizes
    if len(set(sizes.tolist())) == 1:
        yield order.reshape(len(sizes), -1)[chosen].reshape(len(chosen), -1)
        return
    for own in chosen:
        lengths = sizes[own]
        before = np.cumsum(lengths) - lengths
        yield order[np.repeat(starts[own] - before, lengths) + np.arange(lengths.sum())][None]


def resampled(
    statistics: Sequence[Statistic], n: int, bootstrap: Bootstrap, clusters: Int[np.ndarray, " n"] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The value of each statistic, and its values [statistics, resamples] on the same resamples of the items."""
    parts = [
        np.stack([statistic(index) for statistic in statistics]).astype(np.float64)
        for index in drawn(n, clusters, bootstrap)
    ]
    whole = np.arange(n)[None]
    return np.array([float(statistic(whole)[0]) for statistic in statistics]), np.concatenate(parts, axis=1)


def interval(
    statistic: Statistic, n: int, bootstrap: Bootstrap, clusters: Int[np.ndarray, " n"] | None = None
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval over items (Efron 1979); resamples without a value are left out.

    nan, nan where there is one item alone, which says nothing of how others differ, or no resample with a value.
    """
    _, values = resampled([statistic], n, bootstrap, clusters)
    items, values = n if clusters is None else int(clusters.max()) + 1, values[np.isfinite(values)]
    if items < 2 or len(values) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
