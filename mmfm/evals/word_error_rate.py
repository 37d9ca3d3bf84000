"""Scores of transcripts: word and character error rates over all texts, and what is heard in silence.

Rates are of the whole corpus, all edits over all reference words or characters, as jiwer 4 and Whisper have them. A
reference without a word stays: what is written for it counts as insertions.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mmfm.evals.metrics import Score, error_rate, mean, ratio
from mmfm.evals.text_normalizers import Normalizer

RATES: dict[str, Callable[[str], list[str]]] = {"wer": str.split, "cer": list}


def transcription_figures(
    task: str,
    references: Sequence[str],
    written: Sequence[str],
    normalize: Normalizer,
    rule: str,
    names: Sequence[str] = (),
) -> list[Score]:
    """WER and CER of both sides after `normalize`, which results call `rule`; and of the references without a word the
    share for which a word was written, where there are such. `names`: of the texts.

    Where no reference has a word the rates have no value, and say so.
    """
    said, heard = ([normalize(text) for text in texts] for texts in (references, written))
    told = {"task": task, "n": len(said), "items": tuple(names), "normalizer": rule}
    silent = np.array([not text for text in said])
    why = "no reference has a word" if silent.all() else ""
    figures = [
        Score(metric=metric, statistic=ratio(*error_rate(said, heard, cut)), chance=1.0, unknown=why, **told)
        for metric, cut in RATES.items()
    ]
    if silent.any():
        told |= {"n": int(silent.sum()), "items": tuple(np.array(names, object)[silent]) if names else ()}
        spoken = np.array([bool(text) for text in heard], float)[silent]
        figures.append(Score(metric="hallucinated", statistic=mean(spoken), chance=0.0, **told))
    return figures
