"""How far texts overlap with references: ROUGE-1, 2 and L, BLEU and chrF, of which each reference gives the best. Pure.

ROUGE is the F1 of Google's rouge_score without stemming, but that words of all scripts count, with their accents: it
leaves out whatever is not ASCII. BLEU and chrF are sacrebleu's (Post, arXiv 1804.08771) with their default settings:
tok:13a|smooth:exp and nc:6|nw:0|space:no; they are of a corpus, so that each item keeps its counts, which a resample
adds up. All are parts of one here, and not of a hundred.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from mmfm.evals.captioning import longest_common, matches
from mmfm.evals.metrics import Statistic, bleu_smoothed, chrf_of

ORDERS = 6  # letters of an n-gram of chrF
SPACED = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # a full stop or comma, but within numbers
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}


@lru_cache(maxsize=1 << 14)
def rouge_words(text: str) -> tuple[str, ...]:
    """Lower-case runs of letters, their marks, and digits."""
    signs = unicodedata.normalize("NFC", text).lower()
    return tuple("".join(sign if unicodedata.category(sign)[0] in "LMN" else " " for sign in signs).split())


def rouge_n(size: int) -> Callable[[str, Sequence[str]], float]:
    """F1 over n-grams of so many words, each as often as it occurs (Lin 2004)."""

    def score(written: str, references: Sequence[str]) -> float:
        own = _grams(rouge_words(written), size)
        return max(_overlap(own, _grams(rouge_words(text), size)) for text in references)

    return score


def _grams(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(size)), strict=False))


def _overlap(own: Counter[tuple[str, ...]], other: Counter[tuple[str, ...]]) -> float:
    return 2 * (own & other).total() / max(own.total() + other.total(), 1)


def rouge_l(written: str, references: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words."""
    own, known = rouge_words(written), [rouge_words(text) for text in references]
    return max(2 * longest_common(words, own) / max(len(words) + len(own), 1) for words in known)


def words_13a(text: str) -> list[str]:
    """Words and signs as mteval-v13a of WMT parts them."""
    line = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, sign in ENTITIES.items():
        line = line.replace(entity, sign)
    line = f" {line} "
    for pattern, parted in SPACED:
        line = pattern.sub(parted, line)
    return line.split()


def bleu(written: Sequence[str], references: Sequence[Sequence[str]]) -> Statistic:
    """BLEU-4 of a corpus (Papineni et al. 2002); an order without a match counts as half, a quarter, ... of one."""
    found = matches(
        [[words_13a(text) for text in texts] for texts in references], [words_13a(text) for text in written]
    )
    columns = {f"found{n + 1}": found.found[:, n] for n in range(found.found.shape[1])}
    return bleu_smoothed(found.length, found.wanted, **columns)


def chrf(written: Sequence[str], references: Sequence[Sequence[str]]) -> Statistic:
    """F2 of the mean precision and recall over runs of 1 to 6 letters (Popovic 2015)."""
    rows = np.array([_best(text, texts) for text, texts in zip(written, references, strict=True)], float)
    names = ("written", "wanted", "found")
    counts = rows.reshape(len(written), len(names), ORDERS)
    columns = {f"{name}{n + 1}": counts[:, at, n] for at, name in enumerate(names) for n in range(ORDERS)}
    return chrf_of(**columns)


def _best(written: str, references: Sequence[str]) -> Float[np.ndarray, "3 orders"]:
    """The counts with the reference that they score best with."""
    own = _runs(written)
    return max((_counts(own, _runs(text)) for text in references), key=_score)


def _score(counts: Float[np.ndarray, "3 orders"]) -> float:
    names = ("written", "wanted", "found")
    columns = {f"{name}{n + 1}": counts[at, n : n + 1] for at, name in enumerate(names) for n in range(ORDERS)}
    return float(chrf_of(**columns)(np.zeros((1, 1), int))[0])


def _runs(text: str) -> list[Counter[str]]:
    line = "".join(text.split())
    return [Counter(line[at : at + size] for at in range(len(line) - size + 1)) for size in range(1, ORDERS + 1)]


def _counts(own: Sequence[Counter[str]], other: Sequence[Counter[str]]) -> Float[np.ndarray, "3 orders"]:
    """How many runs of each length were written, are in the reference, and are in both. None count as written that the
    reference is too short for."""
    rows = [(a.total() if b else 0, b.total(), (a & b).total()) for a, b in zip(own, other, strict=True)]
    return np.array(rows, float).T
