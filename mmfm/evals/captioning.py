"""How good captions are: BLEU-1 to 4, ROUGE-L and CIDEr, over the tokens of `words_of`. Pure Python.

They are what COCO's caption evaluation computes (Chen et al., arXiv 1504.00325), so numbers compare with published ones
as far as tokens agree: the rules are those of Stanford's tokenizer for the Penn Treebank as far as captions need them.

`cider` is the number that papers call CIDEr, which is CIDEr-D times ten: matches are clipped, and another length costs.
`cider_plain` has neither (Vedantam et al., arXiv 1411.5726, eq. 3 and 4), and no stemming. The document frequencies are
those of all references; a resample of an interval keeps them. The chance level is silence, which scores 0.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mmfm.evals.metrics import Score, Statistic, bleu, mean

LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # words: how much another length costs (arXiv 1411.5726, eq. 5)
BETA = 1.2  # ROUGE-L: how much recall weighs against precision

Words = list[str]
Gram = tuple[str, ...]
Grams = tuple[Counter[Gram], ...]  # of one word, of two, ...

SPELT = {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "--", "—": "--", "…": "...", "\u00a0": " ", "€": "$"}
TITLES = "mr mrs ms dr st vs jr sr prof inc co corp ltd etc lt mt ft ave gen col capt sgt rev hon gov sen rep no"
MONTHS = "jan feb mar apr jun jul aug sep sept oct nov dec"
TOKEN = re.compile(
    rf"""
    https?://\S+ | [\w.+-]+@[\w-]+(?:\.[\w-]+)+ | [#@][^\W\d]\w* | </?[a-z][^\s<>]*>   # addresses, #tags, marks
    | \.{{3}} | --+ | [?!]{{2,}}                            # an ellipsis, a dash, ?! and !!!
    | (?:[a-z]\.){{2,}} | ph\.d\. | (?:{"|".join(f"{TITLES} {MONTHS}".split())})\.(?=\s+\S)   # u.s., mr. smith
    | (?:etc|inc|co|corp|ltd)\.(?=\s|$) | c\+\+ | c\# | at&t\b
    | \d+(?:[.,:/]\d+)+(?:-[^\W_]+)* | \.\d+              # 1,000 3.5 10:30 1/2 3.5-inch
    | '(?:n'|\d0s|tis\b|twas\b|em\b) | '(?:s|re|ve|ll|d|m)\b   # rock 'n' roll, the '80s
    | [^\W_]+(?:[-_/'.][^\W_]+ | (?<=\b[a-z])&[^\W_]+)*   # words, also o'clock, t-shirt, black/white, at&t
    | \S                                                 # whatever else, each sign on its own
    """,
    re.VERBOSE,
)
CONTRACTED = re.compile(r"^(.+?)(n't|'(?:s|re|ve|ll|d|m|n))$")
TOGETHER = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
    "y'all": ("y'", "all"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
DROPPED = frozenset(["'", "''", "`", "``", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"])


def words_of(text: str) -> Words:
    """Lower-case tokens without punctuation; brackets stay, under the names that the treebank gives them."""
    plain = "".join(SPELT.get(letter, letter) for letter in unicodedata.normalize("NFC", text)).lower()
    parts = (part for token in TOKEN.findall(plain) for part in _parted(token))
    return [BRACKETS.get(part, part) for part in parts if part not in DROPPED]


def _parted(token: str) -> list[str]:
    """isn't: is n't; who'd've: who 'd 've; cannot: can not."""
    tail: list[str] = []
    while token not in TOGETHER and (found := CONTRACTED.match(token)):
        token, last = found.groups()
        tail.insert(0, last)
    return [*TOGETHER.get(token, (token,)), *tail]


def grams(words: Sequence[str]) -> Grams:
    """How often each run of 1 to LONGEST words occurs."""
    runs = (zip(*(words[start:] for start in range(size)), strict=False) for size in range(1, LONGEST + 1))
    return tuple(Counter(run) for run in runs)


@dataclass(frozen=True, kw_only=True)
class Matches:
    """What BLEU counts of each text."""

    found: Int[np.ndarray, "n sizes"]  # n-grams that a reference has too, each at most as often as one has it
    length: Int[np.ndarray, " n"]
    wanted: Int[np.ndarray, " n"]  # length of the reference that is nearest in length, the shorter of two

    def bleu(self, size: int) -> Statistic:
        return bleu(self.length, self.wanted, **{f"found{n}": self.found[:, n - 1] for n in range(1, size + 1)})


def matches(references: Sequence[Sequence[Words]], written: Sequence[Words]) -> Matches:
    found = np.zeros((len(written), LONGEST), int)
    for row, (texts, words) in enumerate(zip(references, written, strict=True)):
        known = [grams(text) for text in texts]
        for size, own in enumerate(grams(words)):
            most = Counter[Gram]()
            for one in known:
                most |= one[size]
            found[row, size] = (own & most).total()
    wanted = [_nearest(texts, words) for texts, words in zip(references, written, strict=True)]
    length = np.array([len(words) for words in written], int)
    return Matches(found=found, length=length, wanted=np.array(wanted, int))


def _nearest(texts: Sequence[Words], words: Words) -> int:
    return min((abs(len(text) - len(words)), len(text)) for text in texts)[1]


def rouge_l(references: Sequence[Words], words: Words) -> float:
    """The longest common subsequence with the references, of which the best precision and the best recall count."""
    common = [longest_common(text, words) for text in references]
    precision = max(common) / max(len(words), 1)
    recall = max(length / max(len(text), 1) for length, text in zip(common, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for place, other in enumerate(b, 1):
            before, row[place] = row[place], before + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """A text as CIDEr sees it: the weight of each n-gram, the norm for each n, and its length in words."""

    weights: tuple[Mapping[Gram, float], ...]
    norms: tuple[float, ...]
    length: int


def rarities(references: Sequence[Sequence[Words]]) -> dict[Gram, float]:
    """log(samples / samples of which a reference has the n-gram)."""
    seen = Counter(
        gram for texts in references for gram in {gram for text in texts for own in grams(text) for gram in own}
    )
    return {gram: math.log(len(references)) - math.log(count) for gram, count in seen.items()}


def weighed(words: Words, rarity: Mapping[Gram, float], unseen: float) -> Weighed:
    weights = tuple({gram: count * rarity.get(gram, unseen) for gram, count in own.items()} for own in grams(words))
    norms = tuple(math.sqrt(sum(weight * weight for weight in own.values())) for own in weights)
    return Weighed(weights=weights, norms=norms, length=len(words))


def likeness(own: Weighed, other: Weighed, clipped: bool) -> float:
    """Mean cosine over n; `clipped`: of CIDEr-D."""
    total = 0.0
    for size in range(LONGEST):
        norm = own.norms[size] * other.norms[size]
        there = other.weights[size]
        product = sum(
            (min(weight, there[gram]) if clipped else weight) * there[gram]
            for gram, weight in own.weights[size].items()
            if gram in there
        )
        total += product / norm if norm else 0.0
    # The scorer that tables of COCO come from takes the number of word pairs as the length; so the difference of
    # lengths is that of pairs, which differs only where a text has no word.
    delta = max(own.length - 1, 0) - max(other.length - 1, 0)
    return total / LONGEST * (math.exp(-(delta**2) / (2 * SIGMA**2)) if clipped else 1.0)


def ciders(references: Sequence[Sequence[Words]], written: Sequence[Words], clipped: bool) -> Float[np.ndarray, " n"]:
    """Ten times the mean likeness of each text to its references."""
    rarity, unseen = rarities(references), math.log(max(len(references), 1))
    scores = []
    for texts, words in zip(references, written, strict=True):
        own = weighed(words, rarity, unseen)
        scores.append(sum(likeness(own, weighed(text, rarity, unseen), clipped) for text in texts) / len(texts))
    return 10 * np.array(scores, float)


def caption_scores(
    task: str,
    references: Sequence[Sequence[str]],
    written: Sequence[str],
    names: tuple[str, ...] = (),
    clusters: tuple[str, ...] = (),
) -> list[Score]:
    """Every sample has at least one reference. `names` and `clusters`: of the samples, as in `Score`."""
    known, told = [[words_of(text) for text in texts] for texts in references], [words_of(text) for text in written]
    counted = matches(known, told)
    statistics = {
        "cider": mean(ciders(known, told, True)),
        **{f"bleu{size}": counted.bleu(size) for size in range(1, LONGEST + 1)},
        "rouge_l": mean(np.array([rouge_l(texts, words) for texts, words in zip(known, told, strict=True)], float)),
        "cider_plain": mean(ciders(known, told, False)),
    }
    return [
        Score(task=task, metric=metric, statistic=statistic, n=len(told), chance=0.0, items=names, clusters=clusters)
        for metric, statistic in statistics.items()
    ]
