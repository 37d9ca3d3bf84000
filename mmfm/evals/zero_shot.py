"""Zero-shot classification: an image or a sound is of the class whose prompts lie nearest in the shared space.

The head of a class is the mean of its prompts' unit vectors, scaled back to length one (CLIP, arXiv 2103.00020, 3.1.4).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mmfm.config import Metric
from mmfm.evals.classes import ClassSet
from mmfm.evals.metrics import Ranks, Score, chance_recall, hits, joined, mean, mean_per_class, ranks
from mmfm.evals.own_metrics import own_scores
from mmfm.evals.split import ALONE, Evaluable, Split, comparable, encode_texts, slices, unknown
from mmfm.runtime.distributed import Collective as Processes

ROWS_AT_ONCE = 512
CLASSES_AT_ONCE = 256


def class_vectors(
    model: Evaluable, names: Sequence[str], templates: Sequence[str], processes: Processes = ALONE
) -> Float[Tensor, "classes d"]:
    """One unit vector per class: the mean over its prompts' unit vectors, scaled back to length one.

    Ranks share the encoding; all must ask for the same.
    """
    heads = []
    for part in slices(len(names), CLASSES_AT_ONCE):
        prompts = [template.replace("{}", name) for name in names[part] for template in templates]
        x = encode_texts(model, prompts, processes)
        heads.append(F.normalize(x.view(-1, len(templates), x.shape[1]).mean(1), dim=-1))
    return torch.cat(heads)


@dataclass(frozen=True, kw_only=True)
class Classified:
    """What one modality gave: scores, and how often each true class was taken for each other."""

    scores: list[Score]
    confusion: tuple[tuple[int, int, int], ...]  # [true, predicted, count]


def classes_of(split: Split, classes: ClassSet, modality: str) -> Int[np.ndarray, " some"]:
    """The places of the classes that a sample of this modality is one of: all that are listed, else the captions of the
    split's samples of this modality."""
    if classes.listed or modality not in split.vectors:
        return np.arange(len(classes.names))
    own = {split.infos[row].text for row in split.vectors[modality].rows.tolist()}
    return np.array([place for place, name in enumerate(classes.names) if name in own], int)


def classify(
    split: Split,
    modality: str,
    owned: Int[np.ndarray, " samples"],
    head: Float[Tensor, "classes d"],
    among: Int[np.ndarray, " some"] | None = None,
    metrics: Sequence[Metric] = (),
) -> Classified | None:
    """acc@1, acc@5 and mean per class of the samples of this modality that have a class, each chosen `among` these
    places of the head, or all; None where there are no such samples. `metrics`: those of one's own."""
    vectors = split.vectors.get(modality)
    if vectors is None:
        return None
    among = np.arange(len(head)) if among is None else among
    chosen = np.flatnonzero(np.isin(owned[vectors.rows], among) & (vectors.rows < len(split)))
    if len(chosen) == 0:
        return None
    truth = owned[vectors.rows[chosen]]

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for some in slices(len(chosen), ROWS_AT_ONCE):
            scores = (comparable(vectors.x[chosen[some]]) @ comparable(head[among]).T).numpy()
            yield scores, truth[some, None] == among

    found = [(ranks(scores, right), among[scores.argmax(1)]) for scores, right in parts()]
    guesses = [own for _, own in found]
    pairs, counts = np.unique(np.stack([truth, np.concatenate(guesses)], 1), axis=0, return_counts=True)
    confusion = tuple((true, seen, n) for (true, seen), n in zip(pairs.tolist(), counts.tolist(), strict=True))
    own = vectors.rows[chosen]
    told = {"items": split.names(own), "clusters": split.clusters(own)}
    why = unknown((modality, vectors.x[chosen]), ("classes", head[among]))
    told |= {"task": f"{modality}->text", "unknown": why}
    scores = class_scores(joined([one for one, _ in found]), truth, len(among), **told)
    return Classified(scores=scores + own_scores(metrics, parts, n=len(truth), **told), confusion=confusion)


def class_scores(found: Ranks, truth: Int[np.ndarray, " n"], classes: int, **told: Any) -> list[Score]:
    """acc@1, acc@5 and mean per class; chance is a random order of the classes."""
    statistics = {
        **{f"acc@{k}": (mean(hits(found, k)), chance_recall(found.relevant, classes, k)) for k in (1, 5)},
        "mean_per_class": (mean_per_class(hits(found, 1), truth), 1 / classes),
    }
    return [
        Score(metric=metric, statistic=statistic, n=len(truth), chance=chance, **told)
        for metric, (statistic, chance) in statistics.items()
    ]
