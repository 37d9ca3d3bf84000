"""Retrieval both ways between any two modalities, also between two that no sample has together.

An item of the gallery is relevant to a query if both carry the same text, or come from one sample; of a sample with
several captions each is right (CLIP). Text is on neither side a sample's own: its gallery and its queries are the
distinct texts of the split. A query that has no relevant item
in the gallery cannot be answered; it is left out and counted. What only widens a split's galleries never asks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmfm.config import Metric, media_names
from mmfm.evals.metrics import (
    Ranks,
    Score,
    chance_median_rank,
    chance_recall,
    expected_ranks,
    hits,
    joined,
    mean,
    median,
    ranks,
)
from mmfm.evals.own_metrics import own_scores
from mmfm.evals.split import ALONE, Evaluable, Split, comparable, encode_texts, slices, unknown
from mmfm.runtime.distributed import Collective as Processes

QUERIES_AT_ONCE = 256
NOBODY = -1
RECALL_AT = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class EmbeddingSet:
    """Items to ask with or to choose from. `groups`: items that share a number are relevant to each other; NOBODY: an
    item has no more of them.

    `rows`: the sample of each item, or for text the place of the caption among the split's distinct captions.
    """

    modality: str
    x: Float[Tensor, "n d"]
    groups: Int[np.ndarray, "n most"]
    rows: Int[np.ndarray, " n"]
    asks: Bool[np.ndarray, " n"]
    names: tuple[str, ...] = ()  # of the items, by which two runs are paired
    of: tuple[str, ...] = ()  # the sample of each item, where several are of one and resampled together

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """One direction. `asked`: the queries that have an answer in the gallery; only they are ranked."""

    query: EmbeddingSet
    gallery: EmbeddingSet
    asked: Int[np.ndarray, " asked"]
    found: Ranks

    @property
    def left_out(self) -> int:
        return int(self.query.asks.sum()) - len(self.asked)

    @property
    def task(self) -> str:
        return f"{self.query.modality}->{self.gallery.modality}"

    def similarity(self, places: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n gallery"]:
        """Similarity of these queries, by their place in `asked`, to everything in the gallery."""
        return (comparable(self.query.x[self.asked[places]]) @ comparable(self.gallery.x).T).numpy()

    def relevant(self, places: Int[np.ndarray, " n"]) -> np.ndarray:
        return akin(self.query.groups[self.asked[places]], self.gallery.groups)

    def scores(self, own: Sequence[Metric] = ()) -> list[Score]:
        """`own`: metrics of one's own."""
        items, relevant = len(self.gallery), self.found.relevant
        names, clusters = (
            tuple(every[place] for place in self.asked) if every else () for every in (self.query.names, self.query.of)
        )
        told = {"task": self.task, "n": len(self.asked), "items": names, "clusters": clusters}
        told["unknown"] = unknown(*((side.modality, side.x) for side in (self.query, self.gallery)))
        recalls = [(f"R@{k}", mean(hits(self.found, k)), chance_recall(relevant, items, k)) for k in RECALL_AT]
        middle = ("median_rank", median(expected_ranks(self.found)), chance_median_rank(relevant, items))
        plain = [Score(metric=name, statistic=made, chance=chance, **told) for name, made, chance in (*recalls, middle)]
        return plain + own_scores(own, self.parts, **told)

    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Similarity and relevance of everything in the gallery, to some queries at a time."""
        for part in slices(len(self.asked), QUERIES_AT_ONCE):
            places = np.arange(len(self.asked))[part]
            yield self.similarity(places), self.relevant(places)


def akin(queries: Int[np.ndarray, "n most"], gallery: Int[np.ndarray, "items more"]) -> Bool[np.ndarray, "n items"]:
    """Which share a number."""
    relevant = np.zeros((len(queries), len(gallery)), bool)
    for own in queries.T:
        for other in gallery.T:
            relevant |= (own[:, None] == other) & (own[:, None] != NOBODY)
    return relevant


def padded(groups: Sequence[Sequence[int]]) -> Int[np.ndarray, "n most"]:
    """Rows of like length, filled up with NOBODY."""
    most = max(map(len, groups), default=1)
    return np.array([[*row, *[NOBODY] * (most - len(row))] for row in groups], int).reshape(len(groups), most)


def sides_of(split: Split, model: Evaluable, processes: Processes = ALONE) -> list[EmbeddingSet]:
    """The sides that this split has, in the order image, audio, text. Ranks share the encoding of texts."""
    captions = {caption: number for number, caption in enumerate(split.captions)}
    alone = len(captions)  # a sample without a text is relevant to itself only
    groups = padded([[captions[t] for t in info.texts] or [alone + row] for row, info in enumerate(split.infos)])
    own = {text for info in split.infos[: len(split)] for text in info.texts}
    sides = [
        EmbeddingSet(
            modality=name,
            x=split.vectors[name].x,
            groups=groups[split.vectors[name].rows],
            rows=split.vectors[name].rows,
            asks=split.vectors[name].rows < len(split),
            names=split.names(split.vectors[name].rows),
            of=split.clusters(split.vectors[name].rows),
        )
        for name in media_names()
        if name in split.vectors
    ]
    if captions and "text" in model.modalities:
        places = np.arange(len(captions))
        asks = np.array([caption in own for caption in captions])
        x = encode_texts(model, list(captions), processes)
        first = {text: row for row, info in reversed(list(enumerate(split.infos))) for text in info.texts}
        of = split.clusters([first[caption] for caption in captions])  # captions of one picture are of one item
        sides.append(
            EmbeddingSet(
                modality="text", x=x, groups=places[:, None], rows=places, asks=asks, names=tuple(captions), of=of
            )
        )
    return sides


def retrieve(query: EmbeddingSet, gallery: EmbeddingSet) -> Retrieved:
    """Rank the gallery for each query that has an answer in it."""
    known = np.isin(query.groups, gallery.groups) & (query.groups != NOBODY)
    asked = np.flatnonzero(known.any(1) & query.asks)
    nobody = np.empty(0, int)
    pair = Retrieved(query=query, gallery=gallery, asked=asked, found=Ranks(*[nobody] * 4))
    parts = [ranks(*part) for part in pair.parts()]
    return replace(pair, found=joined(parts)) if parts else pair


def retrieve_all(split: Split, model: Evaluable, processes: Processes = ALONE) -> list[Retrieved]:
    """Every direction between two different sides, also those where no query has an answer; all from the first rank."""
    sides = sides_of(split, model, processes)
    return [retrieve(query, gallery) for query, gallery in permutations(sides, 2)] if processes.rank == 0 else []
