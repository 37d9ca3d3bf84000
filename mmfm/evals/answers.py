"""The questions of a suite, each answered with figures: one function for each kind of task, all over `Seen` data.

A data set is seen once, whatever is asked of it. What zero-shot classes are made of, and how items are ranked, is as in
`zeroshot` and `retrieval`; only where the classes and the captions come from differs. All ranks share what the model
does, and then call for nothing from each other: `Answer.result` is for the first of them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from mmfm.config import UserError, require
from mmfm.evals.captioning import caption_figures
from mmfm.evals.collection import Item, Opened
from mmfm.evals.coverage import told_of_texts
from mmfm.evals.examples import Gallery
from mmfm.evals.labels import SampleInfo, known_classes, known_labels, places_of
from mmfm.evals.metrics import Score
from mmfm.evals.multilabel import multilabel_figures
from mmfm.evals.probes import Predicted, cross_predicted, nearest_neighbours, probe_figures, regression
from mmfm.evals.retrieval import EmbeddingSet, retrieve
from mmfm.evals.run import EvalConfig
from mmfm.evals.split import Evaluable, Split, Vectors, Written, comparable, encode_texts, unknown
from mmfm.evals.suite import KNN, Caption, Classify, Key, LinearProbe, MultiLabel, Retrieve, Transcribe, keys_of
from mmfm.evals.text_generation import cut_off
from mmfm.evals.text_normalizers import Normalizer, normalizer
from mmfm.evals.word_error_rate import transcription_figures
from mmfm.evals.zero_shot import NONE, class_vectors, classify
from mmfm.runtime.distributed import Collective


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A data set, and what the model made of it."""

    opened: Opened
    split: Split

    @property
    def items(self) -> list[Item]:
        """What is known of each row of the split."""
        return [self.opened.items[place] for place in self.split.places]

    def vectors(self, modality: str) -> Vectors:
        found = self.split.vectors.get(modality)
        if found is None or len(found.rows) == 0:
            raise UserError(f"{self.opened.source}: not one {modality} of {len(self.split)} samples can be used")
        return found


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every answer needs. `see` gives what the model makes of a data set."""

    model: Evaluable
    how: EvalConfig
    root: Path
    see: Callable[[Key], Seen]
    ranks: Collective


class Result(NamedTuple):
    """Figures of one task, and what results.SUITE.details.json says of it."""

    figures: list[Score]
    details: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was seen for a task, and what makes its figures of it."""

    seen: tuple[Seen, ...]
    result: Callable[[], Result]


def owned(known: SampleInfo, seen: Seen) -> Int[np.ndarray, " samples"]:
    """The class of each row, NONE where it has no label. Raises UserError for several labels."""
    place, rows = places_of(known, seen.opened), []
    for item in seen.items:
        told = f"{seen.opened.source}: {item.key} has {len(item.labels)} labels; ask MultiLabel of such data"
        require(len(item.labels) <= 1, told)
        rows.append(place(item.labels[0]) if item.labels else NONE)
    return np.array(rows, int)


def heads(
    task: Classify | MultiLabel, known: SampleInfo, context: Context
) -> tuple[Float[Tensor, "classes d"], dict[str, Any]]:
    """A unit vector of each class, and how it was made."""
    templates = task.templates or context.how.templates or context.how.default_templates
    head = class_vectors(context.model, known.names, templates, context.ranks)
    return head, {"classes": list(known.names), "templates": list(templates)}


def answer_classify(task: Classify, context: Context) -> Answer:
    need_text(context.model, "Classify")
    seen = context.see(*keys_of(task))
    known = known_classes(task.classes, seen.opened, context.root)
    classes = owned(known, seen)
    asked = classes[seen.vectors(task.modality).rows] != NONE
    require(bool(asked.any()), f"{seen.opened.source}: no sample has a label; Classify needs them")
    head, details = heads(task, known, context)

    def result() -> Result:
        found = classify(seen.split, task.modality, classes, head)
        assert found is not None
        return Result(found.figures, {**details, "confusion": {f"{task.modality}->text": found.confusion}})

    return Answer(seen=(seen,), result=result)


def answer_multilabel(task: MultiLabel, context: Context) -> Answer:
    need_text(context.model, "MultiLabel")
    seen = context.see(*keys_of(task))
    vectors = seen.vectors(task.modality)
    known = known_classes(task.classes, seen.opened, context.root)
    place, items = places_of(known, seen.opened), seen.items
    truth = np.zeros((len(vectors.rows), len(known.names)), bool)
    for row, sample in enumerate(vectors.rows.tolist()):
        truth[row, [place(label) for label in items[sample].labels]] = True
    require(bool(truth.any()), f"{seen.opened.source}: no sample has a label; MultiLabel needs them")
    head, details = heads(task, known, context)

    def result() -> Result:
        names = seen.split.names(vectors.rows)
        why = "; ".join(filter(None, (unknown(task.modality, vectors.x), unknown("classes", head))))
        scores = (comparable(vectors.x) @ comparable(head).T).numpy()
        figures = [
            replace(figure, unknown=why)
            for figure in multilabel_figures(f"{task.modality}->text", scores, truth, names)
        ]
        return Result(figures, {**details, "classes_that_never_occur": int((~truth.any(0)).sum())})

    return Answer(seen=(seen,), result=result)


def answer_retrieve(task: Retrieve, context: Context) -> Answer:
    """Relevant is what belongs to the same item: each caption is an item of the text side, also where two are equal."""
    seen = context.see(*keys_of(task))
    sides = [side_of(name, seen, context) for name in task.pair]

    def result() -> Result:
        found = [retrieve(*pair) for pair in (sides, sides[::-1])]
        counts = Counter(len(item.captions) for item in seen.items)
        details = {"captions_per_item": {str(count): items for count, items in sorted(counts.items())}}
        return Result([figure for one in found for figure in one.figures()], details)

    return Answer(seen=(seen,), result=result)


def side_of(modality: str, seen: Seen, context: Context) -> EmbeddingSet:
    if modality != "text":
        vectors = seen.vectors(modality)
        every, names = np.ones(len(vectors.rows), bool), seen.split.names(vectors.rows)
        return EmbeddingSet(
            modality=modality, x=vectors.x, groups=vectors.rows, rows=vectors.rows, asks=every, names=names
        )
    need_text(context.model, "Retrieve")
    usable = set(range(len(seen.split))) - set(seen.split.bad)
    pairs = [
        (row, n, text) for row, item in enumerate(seen.items) if row in usable for n, text in enumerate(item.captions)
    ]
    require(bool(pairs), f"{seen.opened.source} has no captions; Retrieve with text needs them")
    rows, every = np.array([row for row, _, _ in pairs], int), np.ones(len(pairs), bool)
    keys = seen.split.names(rows)
    names = tuple(f"{key}, caption {n}" for key, (_, n, _) in zip(keys, pairs, strict=True))
    x = encode_texts(context.model, [text for _, _, text in pairs], context.ranks)
    return EmbeddingSet(modality="text", x=x, groups=rows, rows=np.arange(len(rows)), asks=every, names=names, of=keys)


def need_text(model: Evaluable, task: str) -> None:
    reads = ", ".join(model.modalities)
    require("text" in model.modalities, f"{task} needs a model with a text tower; this one reads {reads}")


def written_of(task: Caption | Transcribe, context: Context) -> tuple[Seen, list[Written]]:
    """What was written for each sample that could be read."""
    seen = context.see(*keys_of(task))
    written = seen.split.written.get(f"{task.modality}>text", [])
    told = f"no sample that can be used has a text; {type(task).__name__} needs it"
    require(bool(written), f"{seen.opened.source}: {told}")
    return seen, written


def answer_caption(task: Caption, context: Context) -> Answer:
    seen, written = written_of(task, context)
    name, items, names = f"{task.modality}>text", seen.items, seen.split.names([one.row for one in written])

    def result() -> Result:
        references, told = [items[one.row].captions for one in written], [one.text for one in written]
        figures = [*caption_figures(name, references, told, names), *cut_off(seen.split, name)]
        return Result(figures, shown(name, seen, context))

    return Answer(seen=(seen,), result=result)


def answer_transcribe(task: Transcribe, context: Context) -> Answer:
    seen, written = written_of(task, context)
    name, items, names = f"{task.modality}>text", seen.items, seen.split.names([one.row for one in written])

    def result() -> Result:
        said, heard = [items[one.row].captions[0] for one in written], [one.text for one in written]
        figures = transcription_figures(name, said, heard, rule_of(task, context.root), task.spelling, names)
        figures += cut_off(seen.split, name)
        return Result(figures, {"spelling": task.spelling, **shown(name, seen, context)})

    return Answer(seen=(seen,), result=result)


def rule_of(task: Transcribe, root: Path) -> Normalizer:
    """What both sides pass. UserError: its table of spellings cannot be read."""
    return normalizer(task.spelling, root / task.spellings if task.spellings else None)


def shown(task: str, seen: Seen, context: Context) -> dict[str, Any]:
    gallery = Gallery(split=seen.split, model=context.model, decode=context.how.decode)
    return {"writings": gallery.writings(task)}


def answer_knn(task: KNN, context: Context) -> Answer:
    def predict(x: Any, y: Any, asked: Any, classes: int) -> Predicted:
        return nearest_neighbours(x, y, asked, classes, k=task.k, temperature=task.temperature)

    return answer_probe(task, context, "knn", predict, {"k": task.k, "temperature": task.temperature})


def answer_linear(task: LinearProbe, context: Context) -> Answer:
    def predict(x: Any, y: Any, asked: Any, classes: int) -> Predicted:
        return regression(x, y, asked, classes, costs=task.costs, held_out=task.held_out)

    return answer_probe(task, context, "linear", predict, {"costs": list(task.costs), "held_out": task.held_out})


def answer_probe(
    task: KNN | LinearProbe, context: Context, kind: str, predict: Callable[..., Predicted], details: dict[str, Any]
) -> Answer:
    """Learnt on `train` and asked on `test`, or over the folds of `train`."""
    seen = tuple(context.see(key) for key in keys_of(task))
    train, test = seen[0], seen[-1]
    known = known_labels(train.opened)
    (x, y, folds, _), (asked, truth, _, names) = (labelled(known, one, task.modality) for one in (train, test))
    why = "; ".join(dict.fromkeys(filter(None, (unknown(task.modality, one) for one in (x, asked)))))
    x, asked = comparable(x).numpy(), comparable(asked).numpy()

    def result() -> Result:
        classes = len(known.names)
        if task.test is None:
            predicted = cross_predicted(x, y, folds, predict, classes, train.opened.source)
        else:
            predicted = predict(x, y, asked, classes)
        figures = [
            replace(figure, unknown=why)
            for figure in probe_figures(f"{task.modality}:{kind}", predicted.scores, truth, names)
        ]
        return Result(figures, {kind: {**details, **predicted.chosen}})

    return Answer(seen=seen, result=result)


def labelled(known: SampleInfo, seen: Seen, modality: str) -> tuple[Any, Any, Any, tuple[str, ...]]:
    """Features, classes, folds and names of the samples that have a label."""
    vectors = seen.vectors(modality)
    classes, items = owned(known, seen)[vectors.rows], seen.items
    have = classes != NONE
    require(bool(have.any()), f"{seen.opened.source}: no sample has a label; probes need them")
    folds = np.array([items[row].fold for row in vectors.rows.tolist()], int)
    return vectors.x[have], classes[have], folds[have], seen.split.names(vectors.rows[have])


ANSWERS: Mapping[type, Callable[[Any, Context], Answer]] = {
    Classify: answer_classify,
    MultiLabel: answer_multilabel,
    Retrieve: answer_retrieve,
    Caption: answer_caption,
    Transcribe: answer_transcribe,
    KNN: answer_knn,
    LinearProbe: answer_linear,
}


def left_out(seen: Sequence[Seen]) -> list[str]:
    """One line for each thing that the figures do not cover."""
    return [f"{one.split.name}: {line}" if len(seen) > 1 else line for one in seen for line in lines_of(one)]


def lines_of(seen: Seen) -> list[str]:
    split, total = seen.split, len(seen.split)
    lines = [*told_of_texts(split)]
    if total < len(seen.opened):
        lines.append(f"{total} of {len(seen.opened)} samples were read, evenly spread (the limit)")
    if split.bad:
        codes = ", ".join(f"{code} ({count})" for code, count in sorted(Counter(split.bad.values()).items()))
        named = ", ".join(split.keys[row] for row in list(split.bad)[:5])
        more = ", ..." if len(split.bad) > 5 else ""
        lines.append(f"{len(split.bad)} of {total} samples cannot be used: {codes}; they are {named}{more}")
    if seen.opened.mended:
        lines.append(f"{seen.opened.mended} texts hold half of a surrogate pair, which is read as U+FFFD")
    if seen.opened.absent:
        lines.append(f"{len(seen.opened.absent)} files that are listed are not there, such as {seen.opened.absent[0]}")
    if seen.opened.ignored:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(seen.opened.ignored.items()))
        lines.append(f"files that are not read: {kinds}")
    return lines
