"""Average precision of scores against labels of any number per item, and its mean over classes (mAP).

Items of one score enter together, so an order among equals that nobody chose gains nothing; a model whose scores are
all equal gets exactly the chance level, which is the share of items that have the class. This is scikit-learn's
`average_precision_score`; a version that breaks ties by place, as some benchmarks have, differs where scores tie.
Classes that no item has are left out of the mean.
"""

import numpy as np
from jaxtyping import Bool, Float

from mmfm.evals.metrics import Figure, Statistic

RESAMPLES_AT_ONCE = 64


def average_precision(scores: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> Statistic:
    """Precision at each score that occurs, weighed by the recall that it adds; nan where no item has the class.

    For resamples an item counts as often as it was drawn, so that it is sorted once.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # the last of each run of equal scores
    right = truth[order].astype(float)

    def statistic(index: np.ndarray) -> np.ndarray:
        parts = [index[start : start + RESAMPLES_AT_ONCE] for start in range(0, len(index), RESAMPLES_AT_ONCE)]
        return np.concatenate([of_counts(drawn(part, len(scores))[:, order], right, ends) for part in parts])

    return statistic


def drawn(index: np.ndarray, n: int) -> Float[np.ndarray, "resamples n"]:
    """How often each item is in each resample."""
    cells = (np.arange(len(index))[:, None] * n + index).ravel()
    return np.bincount(cells, minlength=len(index) * n).reshape(len(index), n).astype(float)


def of_counts(
    counts: Float[np.ndarray, "resamples n"], right: Float[np.ndarray, " n"], ends: np.ndarray
) -> Float[np.ndarray, " resamples"]:
    """Items in falling order of their scores; `ends`: where runs of equal scores end."""
    found, seen = (counts * right).cumsum(1)[:, ends], counts.cumsum(1)[:, ends]
    total = found[:, -1:]
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    gained = np.diff(found, prepend=0.0)
    with np.errstate(invalid="ignore"):
        return (precision * gained).sum(1) / np.where(total[:, 0] > 0, total[:, 0], np.nan)


def mean_average_precision(scores: Float[np.ndarray, "n classes"], truth: Bool[np.ndarray, "n classes"]) -> Statistic:
    """Over the classes that an item of the resample has."""
    classes = [average_precision(scores[:, place], truth[:, place]) for place in np.flatnonzero(truth.any(0))]

    def statistic(index: np.ndarray) -> np.ndarray:
        values = np.stack([one(index) for one in classes], 1)
        there = ~np.isnan(values)
        return np.where(there, values, 0.0).sum(1) / np.maximum(there.sum(1), 1)

    return statistic


def multilabel_figures(
    task: str, scores: Float[np.ndarray, "n classes"], truth: Bool[np.ndarray, "n classes"]
) -> list[Figure]:
    occur = truth.any(0)
    chance = float(truth[:, occur].mean())
    statistic = mean_average_precision(scores, truth)
    return [Figure(task=task, metric="mAP", statistic=statistic, n=len(truth), chance=chance)]
