"""What a few labels make of the embeddings: k nearest neighbours, and logistic regression.

Both see the unit embeddings of the shared space. Whatever is chosen is chosen on training data alone.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from mmfm.config import require
from mmfm.evals.metrics import Ranks, ranks
from mmfm.evals.split import slices
from mmfm.evals.suite import KNN, LinearProbe

QUERIES_AT_ONCE = 512
MOST_STEPS = 1_000
LEAST_STD = 1e-8


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """A score of every class for each item, and what was chosen on the way."""

    scores: Float[np.ndarray, "n classes"]
    chosen: dict[str, Any] = field(default_factory=dict)


Predict = Callable[..., Predicted]  # features, their classes, features asked of, number of classes


def nearest_neighbours(
    x: Float[np.ndarray, "train d"],
    y: Int[np.ndarray, " train"],
    asked: Float[np.ndarray, "n d"],
    classes: int,
    *,
    k: int,
    temperature: float,
) -> Predicted:
    """Votes of the k nearest by cosine, each of exp(cosine / temperature) (Wu et al., arXiv 1805.01978, 3.4).

    Vectors are of length one. Where several are equally near for the last place, those that come first are taken.
    """
    require(k <= len(x), f"KNN.k={k} is more than the {len(x)} items to learn from; set it lower")
    votes = np.zeros((len(asked), classes))
    for part in slices(len(asked), QUERIES_AT_ONCE):
        cosines = asked[part] @ x.T
        near = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        own = np.take_along_axis(cosines, near, 1).astype(float)
        weights = np.exp((own - own.max(1, keepdims=True)) / temperature)  # a common factor changes no vote
        np.add.at(votes, (np.arange(part.start, part.stop)[:, None], y[near]), weights)
    return Predicted(scores=votes)


def regression(
    x: Float[np.ndarray, "train d"],
    y: Int[np.ndarray, " train"],
    asked: Float[np.ndarray, "n d"],
    classes: int,
    *,
    costs: Sequence[float],
    held_out: float,
) -> Predicted:
    """Multinomial, with the C that is best on every part of `x` that is held out for it; then fitted on all of `x`."""
    require(len(np.unique(y)) > 1, "LinearProbe needs two classes at least to learn from")
    apart = kept_apart(y, held_out)
    scores = [accuracy(decided(x[~apart], y[~apart], x[apart], classes, cost), y[apart]) for cost in costs]
    best = float(costs[int(np.argmax(scores))])  # of equals the first
    tried = {f"{cost:g}": round(score, 6) for cost, score in zip(costs, scores, strict=True)}
    return Predicted(scores=decided(x, y, asked, classes, best), chosen={"C": best, "held_out_accuracy": tried})


def kept_apart(y: Int[np.ndarray, " n"], share: float) -> np.ndarray:
    """True for a `share` of the items of each class, drawn by a fixed seed; a class of one keeps it for learning."""
    draws, apart = np.random.Generator(np.random.Philox(0)), np.zeros(len(y), bool)
    for name in np.unique(y):
        own = draws.permutation(np.flatnonzero(y == name))
        apart[own[: min(max(1, round(share * len(own))), len(own) - 1)]] = True
    require(bool(apart.any()), "LinearProbe has one item of each class, and none to choose C by; give it more")
    return apart


def decided(
    x: Float[np.ndarray, "train d"],
    y: Int[np.ndarray, " train"],
    asked: Float[np.ndarray, "n d"],
    classes: int,
    cost: float,
) -> Float[np.ndarray, "n classes"]:
    """log-probabilities; those of classes that were not there to learn lie below all others."""
    middle, spread = x.mean(0), x.std(0)
    spread = np.where(spread > LEAST_STD, spread, 1.0)
    model = LogisticRegression(C=cost, max_iter=MOST_STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((x - middle) / spread, y)
    scores = np.full((len(asked), classes), -1e9)
    scores[:, model.classes_] = model.predict_log_proba((asked - middle) / spread).clip(-1e8)
    return scores


def accuracy(scores: Float[np.ndarray, "n classes"], y: Int[np.ndarray, " n"]) -> float:
    return float((scores.argmax(1) == y).mean())


def cross_predicted(
    x: Float[np.ndarray, "n d"],
    y: Int[np.ndarray, " n"],
    folds: Int[np.ndarray, " n"],
    predict: Predict,
    classes: int,
    where: str,
) -> Predicted:
    """Each fold as the others predict it."""
    names = np.unique(folds)
    require(len(names) > 1, f"{where} has no folds to learn and to ask by; give the task a test=")
    scores, chosen = np.zeros((len(x), classes)), {}
    for name in names:
        asked = folds == name
        found = predict(x[~asked], y[~asked], x[asked], classes)
        scores[asked] = found.scores
        chosen[str(name)] = found.chosen
    return Predicted(scores=scores, chosen={"folds": chosen})


def probe_ranks(scores: Float[np.ndarray, "n classes"], y: Int[np.ndarray, " n"]) -> Ranks:
    """Where the true class of each item stands."""
    return ranks(scores, y[:, None] == np.arange(scores.shape[1]))


def predictor(task: KNN | LinearProbe) -> tuple[Predict, dict[str, Any]]:
    """What learns and is asked, and the choices that it makes."""
    if isinstance(task, KNN):
        told = {"k": task.k, "temperature": task.temperature}
        return partial(nearest_neighbours, **told), told
    told = {"costs": list(task.costs), "held_out": task.held_out}
    return partial(regression, costs=task.costs, held_out=task.held_out), told
