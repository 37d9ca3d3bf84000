"""Scores of what a model writes: exact match, word and character error rate, and bits per byte of the true text.

Written text and reference are compared after `metrics.normalised`; error rates are of the whole split: all edits over
all reference words or characters. Bits per byte are of the text as it is, with nothing normalised.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmfm.evals.metrics import Score, bits_per_byte, characters, error_rate, mean, normalised, ratio, words
from mmfm.evals.split import Split, Written

ERROR_RATES: dict[str, Callable[[str], list[str]]] = {"wer": words, "cer": characters}


def reference(split: Split, item: Written) -> str:
    text = split.texts[item.row]
    assert text is not None
    return text


def correct(split: Split, items: Sequence[Written]) -> np.ndarray:
    """True where the written text is the reference, normalised."""
    return np.array([normalised(item.text) == normalised(reference(split, item)) for item in items], bool)


def named(split: Split, task: str, items: Sequence[Written]) -> dict[str, Any]:
    """Of which samples a figure of these texts is."""
    rows = [item.row for item in items]
    return {"task": task, "n": len(rows), "items": split.names(rows), "clusters": split.clusters(rows)}


def exact_match(split: Split, task: str) -> list[Score]:
    items = split.written.get(task, [])
    if not items:
        return []
    right = mean(correct(split, items).astype(float))
    return [Score(metric="exact_match", statistic=right, chance=0.0, **named(split, task, items))]


def error_rates(split: Split, task: str) -> list[Score]:
    """WER and CER, where the references have a word at all."""
    items = split.written.get(task, [])
    figures = []
    for metric, cut in ERROR_RATES.items():
        edits, lengths = error_rate([reference(split, item) for item in items], [item.text for item in items], cut)
        if lengths.sum() > 0:
            rate = ratio(edits, lengths)
            told = {"chance": 1.0, "normalizer": "plain", **named(split, task, items)}
            figures.append(Score(metric=metric, statistic=rate, **told))
    return figures


def likelihood(split: Split, task: str) -> list[Score]:
    """Bits per byte over the samples that have the sources and a text."""
    nats = split.nats.get(task, np.empty(0))
    rows = np.flatnonzero(~np.isnan(nats))
    if len(rows) == 0:
        return []
    statistic = bits_per_byte(nats[rows], [split.texts[row] or "" for row in rows])
    lost = int(np.isinf(nats[rows]).sum())
    why = f"{lost} of {len(rows)} surprises are not finite" if lost else ""
    told = {"n": len(rows), "chance": 8.0, "items": split.names(rows), "clusters": split.clusters(rows), "unknown": why}
    return [Score(task=task, metric="bits_per_byte", statistic=statistic, **told)]


def cut_off(split: Split, task: str) -> list[Score]:
    """The share of what was written that ended at the limit of tokens, and not where the model would end it."""
    items = split.written.get(task, [])
    if not items:
        return []
    share = mean(np.array([item.cut for item in items], float))
    return [Score(metric="truncated", statistic=share, chance=0.0, **named(split, task, items))]


def writing_figures(split: Split) -> list[Score]:
    """All figures of all writing tasks, task by task."""
    tasks = list(dict.fromkeys((*split.written, *split.nats)))
    kinds = (exact_match, error_rates, likelihood, cut_off)
    return [figure for task in tasks for kind in kinds for figure in kind(split, task)]
