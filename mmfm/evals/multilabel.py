"""Average precision of scores against labels of any number per item, and its mean over classes (mAP).

Items of one score enter together, so an order among equals that nobody chose gains nothing; a model whose scores are
all equal gets exactly the chance level, which is the share of items that have the class. This is scikit-learn's
`average_precision_score`; a version that breaks ties by place, as some benchmarks have, differs where scores tie.
Classes that no item has are left out of the mean.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from mmfm.evals.metrics import Figure, Statistic

RESAMPLES_AT_ONCE = 64


class Sorted(NamedTuple):
    """Items in falling order of a class's scores, and of each that has the class, where its run of equals ends."""

    order: Int[np.ndarray, " n"]
    right: Int[np.ndarray, " k"]  # places in `order`
    ends: Int[np.ndarray, " k"]  # the last place in `order` of the same score
    last: Int[np.ndarray, " k"]  # the last place in `right` of the same score


def sort(scores: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> Sorted:
    order = np.argsort(-scores, kind="stable")
    right = np.flatnonzero(truth[order])
    falling = -scores[order]
    ends = np.searchsorted(falling, falling[right], side="right") - 1
    return Sorted(order, right, ends, np.searchsorted(right, ends, side="right") - 1)


def precision(counts: Int[np.ndarray, "resamples n"], by: Sorted) -> Float[np.ndarray, " resamples"]:
    """Average precision where item i occurs counts[:, i] times; nan where none that occurs has the class."""
    ordered = counts[:, by.order]
    own = ordered[:, by.right]
    seen, found = ordered.cumsum(1)[:, by.ends], own.cumsum(1)[:, by.last]
    total = own.sum(1)
    gained = (own * found / np.maximum(seen, 1)).sum(1)
    return np.divide(gained, total, out=np.full(len(counts), np.nan), where=total > 0)


def drawn(index: np.ndarray, n: int) -> Int[np.ndarray, "resamples n"]:
    """How often each of n items is in each resample: so that a class is sorted once for all of them."""
    cells = (np.arange(len(index))[:, None] * n + index).ravel()
    return np.bincount(cells, minlength=len(index) * n).reshape(len(index), n)


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


def multilabel_figures(
    task: str, scores: Float[np.ndarray, "n classes"], truth: Bool[np.ndarray, "n classes"]
) -> list[Figure]:
    """mAP. Its chance level is the mean share of the items that have a class, over those that occur."""
    chance, statistic = float(truth[:, truth.any(0)].mean()), mean_average_precision(scores, truth)
    return [Figure(task=task, metric="mAP", statistic=statistic, n=len(truth), chance=chance)]
