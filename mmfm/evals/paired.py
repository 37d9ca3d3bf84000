"""Whether two runs differ on the same items beyond chance: paired bootstrap, McNemar's exact test, Holm's correction.

The items are what is drawn: a test says whether these two models would differ on other such items, and nothing of what
training either of them again would give. Pure numpy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from mmfm.evals.metrics import DRAWS_AT_ONCE, Bootstrap, Statistic

TIE = 1e-12  # differences of resamples that are equal but for rounding


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run less another: the difference, its 95 % interval, and how likely chance alone makes as large a one."""

    difference: float
    low: float
    high: float
    p: float
    test: str
    n: int


def resampled(
    statistics: Sequence[Statistic], n: int, bootstrap: Bootstrap
) -> tuple[Float[np.ndarray, " runs"], Float[np.ndarray, "runs resamples"]]:
    """The value of each run, and its values on resamples of the items: the same items for all runs each time."""
    generator = np.random.Generator(np.random.Philox(bootstrap.seed))
    chunk = max(1, DRAWS_AT_ONCE // n)
    parts: list[np.ndarray] = []
    for done in range(0, bootstrap.resamples, chunk):
        size = min(chunk, bootstrap.resamples - done)
        index = generator.integers(0, n, size=(size, n), dtype=np.int32)
        parts.append(np.stack([statistic(index) for statistic in statistics]))
    whole = np.arange(n)[None]
    values = np.array([float(statistic(whole)[0]) for statistic in statistics])
    return values, np.concatenate(parts, axis=1).astype(np.float64)


def bootstrap_outcome(values: Float[np.ndarray, "2"], draws: Float[np.ndarray, "2 resamples"], n: int) -> Outcome:
    """First less second. p: how often the resampled difference is at least as far from the difference as that is from
    zero (Efron and Tibshirani 1993, 16.4), the sample itself counted once; so it is never 0."""
    difference = float(values[0] - values[1])
    drawn = draws[0] - draws[1]
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, (0.025, 0.975)) if len(drawn) else (np.nan, np.nan)
    as_far = int((np.abs(drawn - difference) >= abs(difference) - TIE).sum())
    p = (1 + as_far) / (1 + len(drawn))
    return Outcome(difference=difference, low=float(low), high=float(high), p=p, test="bootstrap", n=n)


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


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted so that the chance of even one false finding among all is at most the level (Holm 1979)."""
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, at in enumerate(sorted(range(len(p)), key=lambda at: p[at])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[at]))
        adjusted[at] = highest
    return adjusted
