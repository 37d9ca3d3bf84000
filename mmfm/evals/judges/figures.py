"""Figures of what judges read. The chance level is what the best constant answer would score.

The names of figures say whose they are: "text>image" read by "digits" has the metric "digits/right".
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mmfm.config import require
from mmfm.evals.judges.contract import NAMES, OTHER
from mmfm.evals.metrics import Score, error_rate, letters, mean, ratio


def read_right(task: str, judge: str, wanted: Sequence[str], read: Sequence[str], items: Sequence[str] = ()) -> Score:
    """The share of things in which just the wanted caption was read. items: what each is called."""
    _paired(task, wanted, read)
    right = np.array([a == b for a, b in zip(wanted, read, strict=True)], float)
    chance = max(Counter(wanted).values()) / len(wanted)
    return _figure(task, f"{judge}/right", right, chance, items)


def is_number(task: str, judge: str, read: Sequence[str], items: Sequence[str] = ()) -> Score:
    """The share of things whose whole reading is one of the hundred names."""
    require(bool(read), f"{task}: nothing was read; a figure needs at least one reading")
    return _figure(task, f"{judge}/number", np.array([text in NAMES for text in read], float), 0.0, items)


def word_errors(task: str, judge: str, wanted: Sequence[str], read: Sequence[str], items: Sequence[str] = ()) -> Score:
    """Word error rate over all words wanted; "forty-two" is two. Silence scores 1."""
    _paired(task, wanted, read)
    rate = ratio(*error_rate(wanted, read, _words))
    return Score(task=task, metric=f"{judge}/wer", statistic=rate, n=len(wanted), chance=1.0, items=tuple(items))


def _words(text: str) -> list[str]:
    """Of a text; a judge's sign for something else is a word too many, and not silence."""
    return [word for part in text.split() for word in ([part] if part == OTHER else letters(part).split())]


def _figure(task: str, metric: str, values: Float[np.ndarray, " n"], chance: float, items: Sequence[str]) -> Score:
    return Score(task=task, metric=metric, statistic=mean(values), n=len(values), chance=chance, items=tuple(items))


def _paired(task: str, wanted: Sequence[str], read: Sequence[str]) -> None:
    require(len(wanted) == len(read), f"{task}: {len(wanted)} captions and {len(read)} readings; give one for each")
    require(bool(wanted), f"{task}: nothing was read; a figure needs at least one reading")
