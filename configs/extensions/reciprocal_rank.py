"""A metric of one's own: one over the rank of the first right answer, in the mean of all queries (MRR).

    Retrieve(data=..., metrics=(ReciprocalRank(),))  # in a suite, or "reciprocal_rank.py:ReciprocalRank"

Of answers with one score each is as likely to come first, so a model that tells nothing apart has the chance level.
"""

from dataclasses import dataclass

import numpy as np

from mmfm.config import Metric


def expected(above: np.ndarray, tied: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The mean of 1 / rank where `right` of `tied` answers stand in any order below `above` others."""
    values, left = np.zeros(len(above)), np.ones(len(above))  # left: how likely none has come yet
    for place in range(int(tied.max())):
        rest = np.maximum(tied - place, 1)
        first = left * np.minimum(right / rest, 1.0)
        values += first / (above + place + 1)
        left -= first
    return values


@dataclass(frozen=True, kw_only=True)
class ReciprocalRank(Metric):
    of = "ranking"
    label = "MRR"
    meaning = "one over the rank of the first match"
    higher_is_better = True
    chance_of = "a random order"

    def values(self, scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
        best = np.where(relevant, scores, -np.inf).max(1, keepdims=True)
        tied = scores == best
        return expected((scores > best).sum(1), tied.sum(1), (tied & relevant).sum(1))

    def chance(self, scores: np.ndarray, relevant: np.ndarray) -> float:
        every = np.full(len(relevant), relevant.shape[1])
        return float(expected(np.zeros(len(relevant), int), every, relevant.sum(1)).mean())
