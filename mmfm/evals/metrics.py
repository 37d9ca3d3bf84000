"""Figures from items: what is counted, what chance would give, and how far the sample may mislead. Pure numpy.

A `Score` keeps a statistic of the items that it is made of, so that its value and its bootstrap interval come from
one definition: the statistic takes rows of item numbers (resamples) and gives one number per row.

Ties are broken at random, in expectation: an item tied with others counts with the probability that a random order puts
it first. So a model whose scores are all equal gets exactly the chance level, whatever the order of the data.

The chance level of writing is what silence would score: exact match 0, word and character error rate 1. That of bits
per byte is 8, every byte equally likely.
"""

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from mmfm.evals.resampling import Bootstrap, Statistic, interval, numbered

CHRF_BETA = 2  # how much recall weighs against precision in chrF
SMALL, TINY = 1e-9, 1e-15  # below any share of words: they keep logarithms and quotients finite


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one task over n rows, with the value that guessing would have.

    `items`: what each of the n is called, by which two runs are paired; (): by place. `clusters`: what each is of,
    where several are of one: those are drawn and tested together; (): `items`, of which one may occur several times.
    `normalizer`: by which rule texts were compared, where they were. `unknown`: why there is no value, where it is so.
    """

    task: str
    metric: str
    statistic: Statistic
    n: int
    chance: float
    items: tuple[str, ...] = ()
    clusters: tuple[str, ...] = ()
    normalizer: str = ""
    unknown: str = ""

    @property
    def value(self) -> float:
        return math.nan if self.unknown else float(self.statistic(np.arange(self.n)[None])[0])

    @property
    def numbers(self) -> Int[np.ndarray, " n"] | None:
        """The number of each row's cluster; None where each is of its own."""
        return numbered(self.clusters or self.items, self.n)

    @property
    def independent(self) -> int:
        """How many of the rows are of different items."""
        numbers = self.numbers
        return self.n if numbers is None else int(numbers.max()) + 1

    def interval(self, bootstrap: Bootstrap) -> tuple[float, float]:
        """nan, nan where there is no value, or one item alone."""
        return (math.nan, math.nan) if self.unknown else interval(self.statistic, self.n, bootstrap, self.numbers)


@dataclass(frozen=True)
class Kept:
    """A statistic that also tells the numbers that it is made of, [n] each, so that runs can be compared by pairs.

    `STATISTICS[kind](**parts)` makes it again.
    """

    kind: str
    parts: dict[str, np.ndarray]
    formula: Statistic

    def __call__(self, index: np.ndarray) -> np.ndarray:
        return self.formula(index)


def mean(values: Real[np.ndarray, " n"]) -> Statistic:
    return Kept("mean", {"values": values}, lambda index: values[index].mean(1))


def median(values: Real[np.ndarray, " n"]) -> Statistic:
    return Kept("median", {"values": values}, lambda index: np.median(values[index], axis=1))


def ratio(numerator: Real[np.ndarray, " n"], denominator: Real[np.ndarray, " n"]) -> Statistic:
    """Sum over sum, both of the same items; nan where the denominators sum to zero."""

    def statistic(index: np.ndarray) -> np.ndarray:
        over, under = numerator[index].sum(1), denominator[index].sum(1)
        return np.divide(over, under, out=np.full(len(index), np.nan), where=under > 0)

    return Kept("ratio", {"numerator": numerator, "denominator": denominator}, statistic)


def mean_per_class(hits: Real[np.ndarray, " n"], classes: Int[np.ndarray, " n"]) -> Statistic:
    """Mean over the classes that occur of the share of their items that were hit: balanced accuracy."""
    classes = classes.astype(int)
    count = int(classes.max()) + 1

    def statistic(index: np.ndarray) -> np.ndarray:
        cells = (np.arange(len(index))[:, None] * count + classes[index]).ravel()
        totals = np.bincount(cells, minlength=len(index) * count).reshape(-1, count)
        right = np.bincount(cells, weights=hits[index].ravel(), minlength=len(index) * count).reshape(-1, count)
        recalls = np.divide(right, totals, out=np.zeros(right.shape), where=totals > 0)
        return recalls.sum(1) / (totals > 0).sum(1)

    return Kept("mean_per_class", {"hits": hits, "classes": classes}, statistic)


def bleu(length: Int[np.ndarray, " n"], wanted: Int[np.ndarray, " n"], **found: Int[np.ndarray, " n"]) -> Statistic:
    """BLEU of a corpus (Papineni et al. 2002), unsmoothed. `found`: how many of the runs of one word, of two, and so on
    a reference has too; `wanted`: the length of the reference nearest in length."""
    runs = [(column, np.maximum(length - size, 0)) for size, column in enumerate(found.values())]

    def statistic(index: np.ndarray) -> np.ndarray:
        shares = [(own[index].sum(1) + TINY) / (all_[index].sum(1) + SMALL) for own, all_ in runs]
        brevity = (length[index].sum(1) + TINY) / (wanted[index].sum(1) + SMALL)
        return np.exp(np.log(shares).mean(0) + np.minimum(0.0, 1 - 1 / brevity))

    return Kept("bleu", {"length": length, "wanted": wanted, **found}, statistic)


def bleu_smoothed(
    length: Real[np.ndarray, " n"], wanted: Real[np.ndarray, " n"], **found: Real[np.ndarray, " n"]
) -> Statistic:
    """BLEU of a corpus as sacrebleu has it (arXiv 1804.08771), with the counts of `bleu`: the k-th order without
    a match counts as 2^-k of a match (NIST's smoothing), and where no text has runs of some order it is 0."""
    right = np.stack(list(found.values()))
    every = np.stack([np.maximum(length - size, 0) for size in range(len(right))])

    def statistic(index: np.ndarray) -> np.ndarray:
        hits, runs = right[:, index].sum(2), every[:, index].sum(2)
        smoothed = np.where(hits > 0, hits, 0.5 ** np.cumsum(hits == 0, 0))
        own, other = length[index].sum(1), wanted[index].sum(1)
        brevity = np.minimum(0.0, 1 - other / np.maximum(own, 1))
        value = np.exp(np.log(smoothed / np.maximum(runs, 1)).mean(0) + brevity)
        return np.where((runs > 0).all(0) & (hits > 0).any(0), value, 0.0)

    return Kept("bleu_smoothed", {"length": length, "wanted": wanted, **found}, statistic)


def chrf_of(**counts: Real[np.ndarray, " n"]) -> Statistic:
    """chrF of a corpus as sacrebleu has it: written1, wanted1 and found1 count the runs of one letter of a text, of its
    reference, and of both, written2 those of two, and so on. Orders that a side has no runs of are left out."""
    orders = len(counts) // 3
    written, wanted, found = (
        np.stack([counts[f"{name}{n + 1}"] for n in range(orders)]) for name in ("written", "wanted", "found")
    )

    def statistic(index: np.ndarray) -> np.ndarray:
        own, other, both = (part[:, index].sum(2) for part in (written, wanted, found))
        held = (own > 0) & (other > 0)
        precision, recall = (np.where(held, both / np.maximum(side, 1), 0).sum(0) for side in (own, other))
        count, under = np.maximum(held.sum(0), 1), CHRF_BETA**2 * precision + recall
        over = (1 + CHRF_BETA**2) * precision * recall / count
        return np.divide(over, under, out=np.zeros(len(index)), where=under > 0)

    return Kept("chrf_of", dict(counts), statistic)


STATISTICS: dict[str, Callable[..., Statistic]] = {
    "bleu": bleu,
    "bleu_smoothed": bleu_smoothed,
    "chrf_of": chrf_of,
    "mean": mean,
    "median": median,
    "ratio": ratio,
    "mean_per_class": mean_per_class,
}


class Ranks(NamedTuple):
    """For each query, where its best relevant item stands among the scored items."""

    above: Int[np.ndarray, " n"]  # items that score strictly better; none of them is relevant
    tied: Int[np.ndarray, " n"]  # items with exactly its score, itself included
    right: Int[np.ndarray, " n"]  # those of `tied` that are relevant
    relevant: Int[np.ndarray, " n"]  # relevant items in all


def ranks(scores: Float[np.ndarray, "n items"], relevant: Bool[np.ndarray, "n items"]) -> Ranks:
    """Every query needs at least one relevant item, and every score must be finite."""
    assert relevant.any(1).all() and np.isfinite(scores).all()
    best = np.where(relevant, scores, -np.inf).max(1, keepdims=True)
    tied = scores == best
    return Ranks((scores > best).sum(1), tied.sum(1), (tied & relevant).sum(1), relevant.sum(1))


def joined(parts: Sequence[Ranks]) -> Ranks:
    return Ranks(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def hits(found: Ranks, k: int) -> Float[np.ndarray, " n"]:
    """1 where a relevant item is among the k best, 0 where none is, between where ties decide."""
    return hit_probability(found.tied, found.right, k - found.above)


def expected_ranks(found: Ranks) -> Float[np.ndarray, " n"]:
    """The rank of the best relevant item, from 1; among ties the mean over their orders."""
    return found.above + (found.tied + 1) / (found.right + 1)


def hit_probability(
    items: Int[np.ndarray, " n"], relevant: Int[np.ndarray, " n"], draws: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The probability that `draws` of `items`, without replacement, hold a relevant one: 1 - C(n-r, k) / C(n, k)."""
    miss = np.ones(len(items))
    for drawn in range(min(int(draws.max()), int(items.max()))):
        factor = np.clip(items - relevant - drawn, 0, None) / np.maximum(items - drawn, 1)
        miss *= np.where(drawn < draws, factor, 1.0)
    return 1 - miss


def chance_recall(relevant: Int[np.ndarray, " n"], items: int, k: int) -> float:
    """Recall at k of a random order, where query i has relevant[i] of the items."""
    return float(hit_probability(np.full(len(relevant), items), relevant, np.full(len(relevant), k)).mean())


def chance_median_rank(relevant: Int[np.ndarray, " n"], items: int) -> float:
    """The smallest k at which a random order has found at least half of the queries' first relevant items."""
    kinds, counts = np.unique(relevant, return_counts=True)
    miss, k = np.ones(len(kinds)), 0
    while counts @ miss > len(relevant) / 2:
        miss *= np.clip(items - kinds - k, 0, None) / (items - k)
        k += 1
    return float(k)


@lru_cache(maxsize=1 << 14)
def normalised(text: str) -> str:
    """The rule for comparing texts: NFC, case folded, white space collapsed, and one final full stop taken off."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).removesuffix(".").rstrip()


APOSTROPHES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u02bc": "'"})


def letters(text: str) -> str:
    """The rule for comparing what was said: NFKC, case folded, and every run of what is no letter, mark, digit or
    apostrophe within a word is one space. Signs that only shape a word (joiners, soft hyphens; Unicode's Cf) part
    nothing and count for nothing."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(APOSTROPHES)
    kept = "".join(map(_letter, folded))
    return " ".join(word for part in kept.split() if (word := part.strip("'")))


def _letter(sign: str) -> str:
    kind = unicodedata.category(sign)
    return sign if kind[0] in "LMN" or sign == "'" else "" if kind == "Cf" else " "


def edit_distance(reference: Sequence[str], written: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions from one to the other (Levenshtein)."""
    if reference == written:
        return 0
    numbers = {symbol: number for number, symbol in enumerate(dict.fromkeys((*reference, *written)))}
    target, steps = np.array([numbers[symbol] for symbol in written], int), np.arange(len(written) + 1)
    row = steps
    for symbol in reference:
        changed = np.concatenate([[row[0] + 1], np.minimum(row[1:] + 1, row[:-1] + (target != numbers[symbol]))])
        row = np.minimum.accumulate(changed - steps) + steps  # insertions: from the cheapest place to the left
    return int(row[-1])


def error_rate(
    references: Sequence[str], written: Sequence[str], split: Callable[[str], list[str]]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Edits and reference length of each pair, in what `split` gives (words for WER, characters for CER)."""
    pairs = list(zip(references, written, strict=True))
    edits = {(a, b): edit_distance(split(a), split(b)) for a, b in set(pairs)}  # many are alike where classes are few
    return np.array([edits[pair] for pair in pairs], int), np.array([len(split(a)) for a, _ in pairs], int)


def bits_per_byte(nats: Float[np.ndarray, " n"], texts: Sequence[str]) -> Statistic:
    """Total nats over total UTF-8 bytes, in bits. Comparable across tokenizers; the end mark's nats count too."""
    return ratio(nats / math.log(2), np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts], int))
