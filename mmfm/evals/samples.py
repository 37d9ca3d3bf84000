"""What each sample gave: results.samples.json, from which `mmfm compare` pairs two runs item by item.

    {"splits": {NAME: {"source", "data", "samples", "classes", "templates", "items": [[...], ...],
                       "figures": [{"task", "metric", "n", "kind", "parts", "items", "clusters", "normalizer"}, ...]}}}

`data` is a digest of all samples that were read. `kind` and `parts` make the statistic again; `items` is a place in the
list of lists of names, null where items are paired by place; `clusters` another, of what each row is of, null where no
two are of one item. Figures whose statistic keeps nothing are not there.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmfm.evals.metrics import Kept, Score
from mmfm.evals.split import Split

Tree = dict[str, Any]


def samples_of(
    splits: Sequence[Split], figures: Sequence[Score], classes: Sequence[str], templates: Sequence[str]
) -> Tree:
    """The entry of a split, or of a suite's task that reads several; `classes`: all names that were chosen among."""
    lists: dict[tuple[str, ...], int] = {}
    kept = [(figure, figure.statistic) for figure in figures if not figure.unknown]
    told = [_figure(figure, statistic, lists) for figure, statistic in kept if isinstance(statistic, Kept)]
    return {
        "source": " ".join(split.source for split in splits),
        "data": digest([split.digest for split in splits]) if len(splits) != 1 else splits[0].digest,
        "samples": sum(len(split) for split in splits),
        "classes": digest(classes),
        "templates": list(templates),
        "items": [list(names) for names in lists],
        "figures": told,
    }


def _figure(figure: Score, statistic: Kept, lists: dict[tuple[str, ...], int]) -> Tree:
    assert len(figure.items) in (0, figure.n) and len(figure.clusters) in (0, figure.n)
    return {
        "task": figure.task,
        "metric": figure.metric,
        "n": figure.n,
        "kind": statistic.kind,
        "parts": {name: _numbers(values) for name, values in statistic.parts.items()},
        "items": lists.setdefault(figure.items, len(lists)) if figure.items else None,
        "clusters": lists.setdefault(figure.clusters, len(lists)) if figure.clusters else None,
        "normalizer": figure.normalizer,
    }


def _numbers(values: np.ndarray) -> list[int] | list[float]:
    """Whole where all of them are: shorter."""
    whole = values.astype(np.int64)
    return whole.tolist() if np.array_equal(whole, values) else values.astype(np.float64).tolist()


def digest(names: Sequence[str]) -> str:
    return hashlib.blake2b(json.dumps(list(names)).encode(), digest_size=16).hexdigest()
