"""The tasks of a suite, each answered with scores: one function for each kind, all over splits that were read once.

What zero-shot classes are made of, and how items are ranked, is as in `zero_shot` and `retrieval`; only where the
classes and the captions come from differs. All ranks share what the model does, and then call for nothing from each
other: `Answer.result` is for the first of them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from mmfm.config import UserError, require
from mmfm.evals import suite
from mmfm.evals.answering import answer_questions, check_chats
from mmfm.evals.answers import Answer, Context, Result
from mmfm.evals.classes import NONE, ClassSet, known_classes, known_labels, places_of
from mmfm.evals.collection import Item, Opened
from mmfm.evals.everything import answer_everything
from mmfm.evals.examples import Gallery
from mmfm.evals.metrics import Score
from mmfm.evals.own_metrics import known as known_metrics
from mmfm.evals.own_metrics import own_scores
from mmfm.evals.retrieval import EmbeddingSet, retrieve
from mmfm.evals.retrieval_augmented import answer_with_documents
from mmfm.evals.split import Evaluable, Split, Vectors, Written, comparable, encode_texts, unknown
from mmfm.evals.suite import (
    KNN,
    Caption,
    Classify,
    Everything,
    LinearProbe,
    MultiLabel,
    Retrieve,
    Suite,
    Task,
    Transcribe,
    keys_of,
    task_name,
)
from mmfm.evals.text_normalizers import Normalizer, normalizer
from mmfm.evals.text_pairs import answer_pairs, check_pairs, reads_pairs
from mmfm.evals.writing import cut, transcription_scores
from mmfm.evals.zero_shot import class_scores, class_vectors, classify
from mmfm.runtime.limited import refuse_unconfined


def items_of(split: Split) -> list[Item]:
    """What is known of each row of a split whose data set a suite declares."""
    return [opened_of(split).items[place] for place in split.places]


def opened_of(split: Split) -> Opened:
    assert isinstance(split.samples, Opened)
    return split.samples


def vectors_of(split: Split, modality: str) -> Vectors:
    found = split.vectors.get(modality)
    if found is None or len(found.rows) == 0:
        raise UserError(f"{split.source}: not one {modality} of {len(split)} samples can be used")
    return found


def classes_of_rows(classes: ClassSet, split: Split) -> Int[np.ndarray, " samples"]:
    """The class of each row, NONE where it has no label. Raises UserError for several labels."""
    place, rows = places_of(classes, opened_of(split)), []
    for item in items_of(split):
        told = f"{split.source}: {item.key} has {len(item.labels)} labels; ask MultiLabel of such data"
        require(len(item.labels) <= 1, told)
        rows.append(place(item.labels[0]) if item.labels else NONE)
    return np.array(rows, int)


def heads_of(
    task: Classify | MultiLabel, classes: ClassSet, context: Context
) -> tuple[Float[Tensor, "classes d"], dict[str, Any]]:
    """A unit vector of each class, and how it was made."""
    templates = task.templates or context.config.templates or context.config.default_templates
    heads = class_vectors(context.model, classes.names, templates, context.ranks)
    return heads, {"classes": classes.names, "templates": templates}


def answer_classify(task: Classify, context: Context) -> Answer:
    split = context.see(*keys_of(task))
    known = known_classes(task.classes, opened_of(split), context.root)
    classes = classes_of_rows(known, split)
    labelled = classes[vectors_of(split, task.modality).rows] != NONE
    require(bool(labelled.any()), f"{split.source}: no sample has a label; Classify needs them")
    heads, details = heads_of(task, known, context)

    def result() -> Result:
        found = classify(split, task.modality, classes, heads, metrics=task.metrics)
        assert found is not None
        confusion = {f"{task.modality}->text": found.confusion}
        own = {"metrics": known_metrics(task.metrics)}
        return Result(scores=found.scores, details={**details, **own, "confusion": confusion})

    return Answer(splits=(split,), result=result)


def answer_multilabel(task: MultiLabel, context: Context) -> Answer:
    split = context.see(*keys_of(task))
    vectors, known = vectors_of(split, task.modality), known_classes(task.classes, opened_of(split), context.root)
    place, items = places_of(known, opened_of(split)), items_of(split)
    truth = np.zeros((len(vectors.rows), len(known.names)), bool)
    for row, sample in enumerate(vectors.rows.tolist()):
        truth[row, [place(label) for label in items[sample].labels]] = True
    require(bool(truth.any()), f"{split.source}: no sample has a label; MultiLabel needs them")
    heads, details = heads_of(task, known, context)

    def result() -> Result:
        from mmfm.evals.multilabel import mean_average_precision

        why = unknown((task.modality, vectors.x), ("classes", heads))
        statistic = mean_average_precision((comparable(vectors.x) @ comparable(heads).T).numpy(), truth)
        told = {"items": split.names(vectors.rows), "unknown": why, "n": len(truth)}
        chance = float(truth[:, truth.any(0)].mean())  # the mean share of the items that have a class that occurs
        score = Score(task=f"{task.modality}->text", metric="mAP", statistic=statistic, chance=chance, **told)
        return Result(scores=[score], details={**details, "classes_that_never_occur": int((~truth.any(0)).sum())})

    return Answer(splits=(split,), result=result)


def answer_retrieve(task: Retrieve, context: Context) -> Answer:
    """Relevant is what belongs to the same item: each caption is an item of the text side, also where two are equal."""
    split = context.see(*keys_of(task))
    sides = [side_of(name, split, context) for name in task.pair]

    def result() -> Result:
        found = [retrieve(*pair) for pair in (sides, sides[::-1])]
        counts = Counter(len(item.captions) for item in items_of(split))
        details: dict[str, Any] = {"captions_per_item": {str(count): items for count, items in sorted(counts.items())}}
        details |= {"metrics": known_metrics(task.metrics)}
        return Result(scores=[score for one in found for score in one.scores(task.metrics)], details=details)

    return Answer(splits=(split,), result=result)


def side_of(modality: str, split: Split, context: Context) -> EmbeddingSet:
    if modality != "text":
        vectors = vectors_of(split, modality)
        told = {"groups": vectors.rows[:, None], "rows": vectors.rows, "names": split.names(vectors.rows)}
        return EmbeddingSet(modality=modality, x=vectors.x, asks=np.ones(len(vectors.rows), bool), **told)
    usable = [(row, item) for row, item in enumerate(items_of(split)) if row not in split.bad]
    pairs = [(row, n, text) for row, item in usable for n, text in enumerate(item.captions)]
    require(bool(pairs), f"{split.source} has no captions; Retrieve with text needs them")
    rows, every = np.array([row for row, _, _ in pairs], int), np.ones(len(pairs), bool)
    keys = split.names(rows)
    names = tuple(f"{key}, caption {n}" for key, (_, n, _) in zip(keys, pairs, strict=True))
    x = encode_texts(context.model, [text for _, _, text in pairs], context.ranks)
    return EmbeddingSet(
        modality="text", x=x, groups=rows[:, None], rows=np.arange(len(rows)), asks=every, names=names, of=keys
    )


def written_of(task: Caption | Transcribe, context: Context) -> tuple[Split, list[Written]]:
    """What was written for each sample that could be read."""
    split = context.see(*keys_of(task))
    written = split.written.get(f"{task.modality}>text", [])
    told = f"no sample that can be used has a text; {type(task).__name__} needs it"
    require(bool(written), f"{split.source}: {told}")
    return split, written


def answer_caption(task: Caption, context: Context) -> Answer:
    split, written = written_of(task, context)
    name, items, names = f"{task.modality}>text", items_of(split), split.names([one.row for one in written])

    def result() -> Result:
        from mmfm.evals.captioning import caption_scores

        references = [items[one.row].captions for one in written]
        said = [one.text for one in written]
        scores = caption_scores(name, references, said, names) + own_texts(task, name, references, said, names)
        details = {"metrics": known_metrics(task.metrics), **writings(name, split, context)}
        return Result(scores=[*scores, *cut(split, name)], details=details)

    return Answer(splits=(split,), result=result)


def answer_transcribe(task: Transcribe, context: Context) -> Answer:
    split, written = written_of(task, context)
    name, items, names = f"{task.modality}>text", items_of(split), split.names([one.row for one in written])

    def result() -> Result:
        said, heard = [items[one.row].captions[0] for one in written], [one.text for one in written]
        scores = transcription_scores(name, said, heard, rule_of(task, context.root), task.spelling, names)
        scores += own_texts(task, name, [(text,) for text in said], heard, names)
        own = {"metrics": known_metrics(task.metrics)}
        details = {"spelling": task.spelling, **own, **writings(name, split, context)}
        return Result(scores=[*scores, *cut(split, name)], details=details)

    return Answer(splits=(split,), result=result)


def own_texts(
    task: Caption | Transcribe,
    name: str,
    references: Sequence[Sequence[str]],
    written: Sequence[str],
    names: tuple[str, ...],
) -> list[Score]:
    """Of metrics of one's own, over the texts as they are."""
    return own_scores(task.metrics, lambda: [(references, written)], task=name, n=len(written), items=names)


def rule_of(task: Transcribe, root: Path) -> Normalizer:
    """What both sides pass. UserError: its table of spellings cannot be read."""
    return normalizer(task.spelling, root / task.spellings if task.spellings else None)


def writings(task: str, split: Split, context: Context) -> dict[str, Any]:
    gallery = Gallery(split=split, model=context.model, decode=context.config.decode)
    return {"writings": gallery.writings(task)}


def answer_probe(task: KNN | LinearProbe, context: Context) -> Answer:
    """Learnt on `train` and asked on `test`, or over the folds of `train`."""
    splits = tuple(context.see(key) for key in keys_of(task))
    train, test = splits[0], splits[-1]
    known = known_labels(opened_of(train))
    (x, y, folds, _), (asked, truth, _, names) = (labelled(known, one, task.modality) for one in (train, test))
    why = unknown((task.modality, x), (task.modality, asked))
    x, asked = comparable(x).numpy(), comparable(asked).numpy()

    def result() -> Result:
        from mmfm.evals.probes import cross_predicted, predictor, probe_ranks  # scikit-learn's, slow to import

        predict, details = predictor(task)
        kind, classes = "knn" if isinstance(task, KNN) else "linear", len(known.names)
        if task.test is None:
            predicted = cross_predicted(x, y, folds, predict, classes, train.source)
        else:
            predicted = predict(x, y, asked, classes)
        told = {"task": f"{task.modality}:{kind}", "items": names, "unknown": why}
        scores = class_scores(probe_ranks(predicted.scores, truth), truth, classes, **told)
        return Result(scores=scores, details={kind: {**details, **predicted.chosen}})

    return Answer(splits=splits, result=result)


def labelled(known: ClassSet, split: Split, modality: str) -> tuple[Any, Any, Any, tuple[str, ...]]:
    """Features, classes, folds and names of the samples that have a label."""
    vectors = vectors_of(split, modality)
    classes, items = classes_of_rows(known, split)[vectors.rows], items_of(split)
    have = classes != NONE
    require(bool(have.any()), f"{split.source}: no sample has a label; probes need them")
    folds = np.array([items[row].fold for row in vectors.rows.tolist()], int)
    return vectors.x[have], classes[have], folds[have], split.names(vectors.rows[have])


def answer_conversations(task: suite.Answer, context: Context) -> Answer:
    """By a model that reads conversations, or one that reads a text and writes one."""
    if reads_pairs(context.model):
        return answer_pairs(task, context)
    return answer_with_documents(task, context) if task.documents else answer_questions(task, context)


ANSWERS: Mapping[type, Callable[[Any, Context], Answer]] = {
    Everything: answer_everything,
    Classify: answer_classify,
    MultiLabel: answer_multilabel,
    Retrieve: answer_retrieve,
    Caption: answer_caption,
    suite.Answer: answer_conversations,
    Transcribe: answer_transcribe,
    KNN: answer_probe,
    LinearProbe: answer_probe,
}


def check_able(model: Evaluable, asked: Suite, task: Task) -> None:
    """Raises UserError where the model lacks a tower or a way of writing that the task is about."""
    if isinstance(task, Everything):
        return
    told = f"suite {asked.name}: {type(task).__name__} {task_name(asked, task)}"
    if isinstance(task, suite.Answer):
        if reads_pairs(model):
            check_pairs(told, task)
        else:
            check_chats(told, model)
        if "pass" in task.metrics and task.write:
            refuse_unconfined()
        return
    needs = task.pair if isinstance(task, Retrieve) else (task.modality,)
    needs = (*needs, "text") if isinstance(task, Classify | MultiLabel) else needs
    for name in needs:
        reads = ", ".join(model.modalities)
        require(name in model.modalities, f"{told} needs a model that reads {name}; this one reads {reads}")
    if isinstance(task, Caption | Transcribe):
        wanted, writes = f"{task.modality}>text", ", ".join(model.tasks) or "nothing"
        require(wanted in model.tasks, f"{told} needs a model that writes {wanted}; this one writes {writes}")
