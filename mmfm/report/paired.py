"""Whether two runs differ on the same items beyond chance: paired bootstrap, exact tests of signs, Holm's correction.

The items are what is drawn: a test says whether these two models would differ on other such items, and nothing of what
training either of them again would give. Rows of one item, such as five captions of one image, are one item.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import gammaln, stdtr

TIE = 1e-12  # of values: differences that are rounding alone


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run less another: the difference, its 95 % interval, and how likely chance alone makes as large a one."""

    difference: float
    low: float
    high: float
    p: float
    test: str
    n: int  # rows
    items: int  # of which they are


def estimated(values: Float[np.ndarray, "2"], draws: Float[np.ndarray, "2 resamples"], items: int, n: int) -> Outcome:
    """First less second, with a percentile interval. p: of Student's t of the difference over its bootstrap standard
    error, with as many degrees of freedom as items less one; so it has no floor that the number of resamples sets.

    Whatever the figures, p is at least that of `items` fair coins that all fall alike: fewer items prove less.
    """
    difference = float(values[0] - values[1])
    drawn = draws[0] - draws[1]
    drawn = drawn[np.isfinite(drawn)]
    if items < 2 or len(drawn) < 2 or not np.isfinite(difference):
        return Outcome(difference=difference, low=np.nan, high=np.nan, p=1.0, test="t", n=n, items=items)
    low, high = np.quantile(drawn, (0.025, 0.975))
    tie = TIE * max(1.0, *np.abs(values))
    error = max(float(drawn.std(ddof=1)), tie)
    p = 1.0 if abs(difference) <= tie else 2 * float(stdtr(items - 1, -abs(difference) / error))
    p = min(1.0, max(p, least_p(items)))
    return Outcome(difference=difference, low=float(low), high=float(high), p=p, test="t", n=n, items=items)


def least_p(items: int) -> float:
    """The smallest p that so many items can give in a two-sided test of signs: 2^(1 - items)."""
    return 2.0 ** max(1 - items, -1_074)


def sign_flips(sums: Int[np.ndarray, " items"]) -> float:
    """Of the items on which two runs differ, could each as well have gone the other way round? Exact, two-sided: how
    likely the sum of these numbers with signs at random is as far from zero as theirs is.

    `sums`: for each item what the first gets right less what the second does, over all of its rows. Where each is 1 or
    -1 this is McNemar's test.
    """
    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    if sizes.tolist() in ([], [1]):
        return mcnemar(int((sums > 0).sum()), int((sums < 0).sum()))
    chances = np.ones(1)  # of the sum of those that keep a plus: 0, 1, 2, ...
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        spread = np.zeros(size * count + 1)
        k = np.arange(count + 1)
        spread[::size] = np.exp(gammaln(count + 1) - gammaln(k + 1) - gammaln(count - k + 1) - count * np.log(2))
        chances = np.convolve(chances, spread)
    total, found = int((sizes * counts).sum()), abs(int(sums.sum()))
    return float(min(1.0, chances[np.abs(2 * np.arange(total + 1) - total) >= found].sum()))


def mcnemar(only_first: int, only_second: int) -> float:
    """Of the items that just one of two gets right, could each as well have gone to the other? Exact, two-sided
    (McNemar 1947): twice the smaller tail of a fair coin's throws, at most 1."""
    n, fewer = only_first + only_second, min(only_first, only_second)
    term = tail = 1  # binomial coefficients, as whole numbers of any length
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**n)


def discordant(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> tuple[int, int] | None:
    """How many items only the first, and only the second, gets right; None where an item is neither right nor wrong."""
    right: list[Bool[np.ndarray, " n"]] = []
    for values in (first, second):
        if not np.isin(values, (0.0, 1.0)).all():
            return None
        right.append(values == 1.0)
    return int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())


def summed(values: Float[np.ndarray, " n"], clusters: Int[np.ndarray, " n"] | None) -> Int[np.ndarray, " items"]:
    """Whole numbers of rows, summed by cluster."""
    whole = np.rint(values).astype(int)
    return whole if clusters is None else np.rint(np.bincount(clusters, weights=whole)).astype(int)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted so that the chance of even one false finding among all is at most the level (Holm 1979)."""
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, at in enumerate(sorted(range(len(p)), key=lambda at: p[at])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[at]))
        adjusted[at] = highest
    return adjusted
