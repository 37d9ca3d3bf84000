"""Average precision of scores against labels of any number per item, and its mean over classes (mAP).

Items of one score enter together, so an order among equals that nobody chose gains nothing; a model whose scores are
all equal gets exactly the chance level, which is the share of items that have the class. This is scikit-learn's
`average_precision_score`; a version that breaks ties by place, as some benchmarks have, differs where scores tie.
Classes that no item has are left out of the mean.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from mmfm.evals.resampling import Statistic

RESAMPLES_AT_ONCE = 64


class Sorted(NamedTuple):
    """Items in falling order of a class's scores. Runs: of one score, those of them in which an item has the class."""

    order: Int[np.ndarray, " n"]
    right: Int[np.ndarray, " k"]  # places in `order` of the items that have the class
    run: Int[np.ndarray, " k"]  # the run of each
    starts: Int[np.ndarray, " runs"]  # where in `order` the last run before it ended
    last: Int[np.ndarray, " runs"]  # the place in `right` of its last item


def sort(scores: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> Sorted:
    order = np.argsort(-scores, kind="stable")
    falling, right = -scores[order], np.flatnonzero(truth[order])
    ends, run = np.unique(np.searchsorted(falling, falling[right], side="right"), return_inverse=True)
    starts, last = np.concatenate([[0], ends[:-1]]), np.searchsorted(right, ends) - 1
    return Sorted(order[: ends[-1]], right, run, starts, last)


def precision(counts: Int[np.ndarray, "n resamples"], by: Sorted) -> Float[np.ndarray, " resamples"]:
    """Average precision where item i occurs counts[i] times; nan where none that occurs has the class."""
    ordered = np.take(counts, by.order, axis=0)
    own = ordered[by.right]
    seen = np.add.reduceat(ordered, by.starts, axis=0).cumsum(0)
    share = own.cumsum(0)[by.last] / np.maximum(seen, 1)
    total = own.sum(0)
    return np.divide((own * share[by.run]).sum(0), total, out=np.full(len(total), np.nan), where=total > 0)


def drawn(index: np.ndarray, n: int) -> Int[np.ndarray, "n resamples"]:
    """How often each of n items is in each resample: so that a class is sorted once for all of them."""
    cells = (np.arange(len(index))[:, None] * n + index).ravel()
    counts = np.bincount(cells, minlength=len(index) * n).reshape(len(index), n)
    return np.ascontiguousarray(counts.T, dtype=np.int32)


def mean_average_precision(scores: Float[np.ndarray, "n classes"], truth: Bool[np.ndarray, "n classes"]) -> Statistic:
    """Over the classes that an item of the resample has."""
    classes = [sort(scores[:, place], truth[:, place]) for place in np.flatnonzero(truth.any(0))]

    def of_some(index: np.ndarray) -> np.ndarray:
        counts = drawn(index, len(scores))
        values = np.stack([precision(counts, by) for by in classes], 1)
        there = (~np.isnan(values)).sum(1)
        return np.divide(np.nansum(values, 1), there, out=np.full(len(index), np.nan), where=there > 0)

    def statistic(index: np.ndarray) -> np.ndarray:
        starts = range(0, len(index), RESAMPLES_AT_ONCE)
        return np.concatenate([of_some(index[start : start + RESAMPLES_AT_ONCE]) for start in starts])

    return statistic
