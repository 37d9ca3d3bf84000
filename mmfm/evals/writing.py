"""Scores of what a model writes: exact match, word and character error rate, and bits per byte of the true text.

Error rates are of the whole split, all edits over all reference words or characters, as jiwer and Whisper have them,
after a normalizer that results name. Bits per byte are of the text as it is, with nothing normalised.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmfm.evals.captioning import caption_scores
from mmfm.evals.metrics import Score, bits_per_byte, error_rate, mean, normalised, ratio
from mmfm.evals.split import Split, Written
from mmfm.evals.text_normalizers import Normalizer

RATES: dict[str, Callable[[str], list[str]]] = {"wer": str.split, "cer": list}


def reference(split: Split, item: Written) -> str:
    text = split.infos[item.row].text
    assert text is not None
    return text


def correct(split: Split, items: Sequence[Written]) -> np.ndarray:
    """True where the written text is one of the references, normalised."""
    known = [set(map(normalised, split.infos[item.row].texts)) for item in items]
    return np.array([normalised(item.text) in texts for item, texts in zip(items, known, strict=True)], bool)


def writing_scores(split: Split) -> list[Score]:
    """Of all writing tasks, task by task."""
    tasks = dict.fromkeys((*split.written, *split.nats))
    return [score for task in tasks for score in (*_written(split, task), *_likelihood(split, task), *cut(split, task))]


def _written(split: Split, task: str) -> list[Score]:
    """Exact match, and error rates where the references have a word at all; where samples have several, what captions
    are scored by too."""
    items = split.written.get(task, [])
    if not items:
        return []
    told = _of(split, task, [item.row for item in items])
    exact = Score(metric="exact_match", statistic=mean(correct(split, items).astype(float)), chance=0.0, **told)
    references, written = [reference(split, item) for item in items], [item.text for item in items]
    rates = error_rates(references, written, normalised, **told, normalizer="plain")
    return [exact, *(rate for rate in rates if not rate.unknown), *_captions(split, items, written, told)]


def _captions(split: Split, items: Sequence[Written], written: Sequence[str], told: Mapping[str, Any]) -> list[Score]:
    """CIDEr, BLEU and ROUGE-L against all references, where a sample has several."""
    references = [split.infos[item.row].texts for item in items]
    if all(len(texts) == 1 for texts in references):
        return []
    return caption_scores(told["task"], references, written, told["items"], told["clusters"])


def _of(split: Split, task: str, rows: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """Of which samples a score is."""
    return {"task": task, "n": len(rows), "items": split.names(rows), "clusters": split.clusters(rows)}


def error_rates(references: Sequence[str], written: Sequence[str], normalize: Normalizer, **told: Any) -> list[Score]:
    """WER and CER of both sides after `normalize`; without a value where no reference has a word, and then they say so.

    A reference without a word counts: what is written for it are insertions.
    """
    said, heard = ([normalize(text) for text in texts] for texts in (references, written))
    why = "" if any(said) else "no reference has a word"
    return [
        Score(metric=metric, statistic=ratio(*error_rate(said, heard, cut)), chance=1.0, unknown=why, **told)
        for metric, cut in RATES.items()
    ]


def transcription_scores(
    task: str,
    references: Sequence[str],
    written: Sequence[str],
    normalize: Normalizer,
    rule: str,
    names: Sequence[str] = (),
) -> list[Score]:
    """WER and CER by the normalizer that results call `rule`; and of the references without a word the share for which
    a word was written, where there are such. `names`: of the texts."""
    told = {"task": task, "n": len(references), "items": tuple(names), "normalizer": rule}
    scores = error_rates(references, written, normalize, **told)
    silent = np.array([not normalize(text) for text in references])
    if silent.any():
        told |= {"n": int(silent.sum()), "items": tuple(np.array(names, object)[silent]) if names else ()}
        spoken = np.array([bool(normalize(text)) for text in written], float)[silent]
        scores.append(Score(metric="hallucinated", statistic=mean(spoken), chance=0.0, **told))
    return scores


def _likelihood(split: Split, task: str) -> list[Score]:
    """Bits per byte over the samples that have the sources and a text."""
    nats = split.nats.get(task, np.empty(0))
    rows = np.flatnonzero(~np.isnan(nats))
    if len(rows) == 0:
        return []
    statistic = bits_per_byte(nats[rows], [split.infos[row].text or "" for row in rows])
    lost = int(np.isinf(nats[rows]).sum())
    why = f"{lost} of {len(rows)} surprises are not finite" if lost else ""
    return [Score(metric="bits_per_byte", statistic=statistic, chance=8.0, unknown=why, **_of(split, task, rows))]


def cut(split: Split, task: str) -> list[Score]:
    """The share of what was written that ended at the limit of tokens, and not where the model would end it."""
    items = split.written.get(task, [])
    if not items:
        return []
    share = mean(np.array([item.cut for item in items], float))
    return [Score(metric="truncated", statistic=share, chance=0.0, **_of(split, task, [item.row for item in items]))]
