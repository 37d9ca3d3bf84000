"""Zero-shot classification: an image or a sound is of the class whose prompts lie nearest in the shared space.

The head of a class is the mean of its prompts' unit vectors, scaled back to length one (CLIP, arXiv 2103.00020, 3.1.4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mmfm.config import RemoteCache, UserError, require
from mmfm.evals.beside import texts_beside
from mmfm.evals.metrics import (
    Ranks,
    Score,
    Statistic,
    chance_recall,
    hits,
    joined,
    mean,
    mean_per_class,
    normalised,
    ranks,
)
from mmfm.evals.split import Evaluable, Split, comparable, encode_texts, slices, unknown
from mmfm.runtime.distributed import Collective as Processes
from mmfm.runtime.distributed import SingleProcess

ROWS_AT_ONCE = 512
CLASSES_AT_ONCE = 256
NONE = -1
STORE = RemoteCache()
ALONE = SingleProcess()


@dataclass(frozen=True, kw_only=True)
class ClassSet:
    """The names to choose from. `listed`: they come from a file, so that a number can mean a place in it."""

    names: tuple[str, ...]
    listed: bool
    where: str


def find_classes(split_captions: Sequence[str], spec: str, file: Path | None, store: RemoteCache = STORE) -> ClassSet:
    """Those of `file`; else of classnames.txt beside the shards; else the distinct captions, sorted."""
    found = [(str(file), None)] if file is not None else texts_beside(spec, "classnames.txt", store)
    if not found:
        return ClassSet(names=tuple(sorted(set(split_captions))), listed=False, where="the distinct captions")
    lists = [_lines(where, text, "class") for where, text in found]
    require(
        all(names == lists[0] for names in lists),
        f"{found[0][0]} and {found[-1][0]} list different classes; choose one by --classes FILE",
    )
    return ClassSet(names=lists[0], listed=True, where=found[0][0])


def find_templates(
    spec: str, given: tuple[str, ...], default: tuple[str, ...], store: RemoteCache = STORE
) -> tuple[str, ...]:
    """Prompts with {} for the name: those given; else of templates.txt beside the shards; else `default`."""
    if given:
        return given
    found = [(where, _lines(where, text, "template")) for where, text in texts_beside(spec, "templates.txt", store)[:1]]
    return _templates(found) or default


def _lines(where: str, text: str | None, what: str) -> tuple[str, ...]:
    return read_lines(Path(where), what) if text is None else lines_of(text, where, what)


def given_templates(items: Sequence[str]) -> tuple[str, ...]:
    """Each item is a template, or without {} the path of a file with one template a line."""
    for item in items:
        told = f"the template {item!r} has no {{}} for the class's name, and there is no file of that name"
        require("{}" in item or Path(item).exists(), f"{told}; add {{}}, or give a text file with one template a line")
    return _templates([(item, (item,) if "{}" in item else read_lines(Path(item), "template")) for item in items])


def _templates(found: Sequence[tuple[str, tuple[str, ...]]]) -> tuple[str, ...]:
    """Those of all places, each of which has room for a name."""
    for where, templates in found:
        for template in templates:
            require("{}" in template, f"{where}: the template {template!r} has no {{}} for the class's name; add it")
    return tuple(template for _, templates in found for template in templates)


def read_lines(path: Path, what: str) -> tuple[str, ...]:
    """The lines of a text file that are not blank, without the white space around them."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # whose ends of lines are all \n
    except OSError as why:
        raise UserError(f"{path}: {why.strerror or why}; give a text file with one {what} a line") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8 text; give a text file with one {what} a line") from None
    return lines_of(text, str(path), what)


def lines_of(text: str, where: str, what: str) -> tuple[str, ...]:
    """The lines that are not blank, without the white space around them."""
    lines = tuple(line.strip() for line in text.split("\n") if line.strip())
    require(bool(lines), f"{where} is empty; give a text file with one {what} a line")
    return lines


def class_of_samples(split: Split, classes: ClassSet) -> Int[np.ndarray, " samples"]:
    """The class of each sample, NONE where it has none. In this order: its .cls, its json "label", its text.

    A number in .cls or "label" is a place in the listed classes, from 0; "label" and text may name a class, and are
    compared like written texts.
    """
    places = {normalised(name): place for place, name in reversed(list(enumerate(classes.names)))}

    def place_of(row: int) -> int:
        number = next((found for mark in split.labels[row] if (found := _number(mark)) is not None), None)
        if number is not None and classes.listed:
            return _listed(number, classes, split.keys[row])
        names = [mark for mark in (split.labels[row][1], split.texts[row]) if isinstance(mark, str)]
        return next((places[normalised(name)] for name in names if normalised(name) in places), NONE)

    return np.array([place_of(row) for row in range(len(split.keys))], int)


def _number(mark: Any) -> int | None:
    return mark if isinstance(mark, int) and not isinstance(mark, bool) else None


def _listed(number: int, classes: ClassSet, key: str) -> int:
    count = len(classes.names)
    rule = f"none of the {count} of {classes.where} (0 to {count - 1}); give the right list by --classes FILE"
    require(0 <= number < count, f"sample {key}: class {number} is {rule}")
    return number


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
    """What one modality gave: figures, and how often each true class was taken for each other."""

    figures: list[Score]
    confusion: list[list[int]]  # [true, predicted, count]


def classes_of(split: Split, classes: ClassSet, modality: str) -> Int[np.ndarray, " some"]:
    """The places of the classes that a sample of this modality is one of: all that are listed, else the captions of the
    split's samples of this modality."""
    if classes.listed or modality not in split.vectors:
        return np.arange(len(classes.names))
    own = {split.texts[row] for row in split.vectors[modality].rows.tolist()}
    return np.array([place for place, name in enumerate(classes.names) if name in own], int)


def classify(
    split: Split,
    modality: str,
    owned: Int[np.ndarray, " samples"],
    head: Float[Tensor, "classes d"],
    among: Int[np.ndarray, " some"] | None = None,
) -> Classified | None:
    """acc@1, acc@5 and mean per class of the samples of this modality that have a class, each chosen `among` these
    places of the head, or all; None where there are no such samples."""
    vectors = split.vectors.get(modality)
    if vectors is None:
        return None
    among = np.arange(len(head)) if among is None else among
    chosen = np.flatnonzero(np.isin(owned[vectors.rows], among) & (vectors.rows < len(split)))
    if len(chosen) == 0:
        return None
    truth = owned[vectors.rows[chosen]]
    found, guesses = [], []
    for some in slices(len(chosen), ROWS_AT_ONCE):
        scores = (comparable(vectors.x[chosen[some]]) @ comparable(head[among]).T).numpy()
        found.append(ranks(scores, truth[some, None] == among))
        guesses.append(among[scores.argmax(1)])
    pairs, counts = np.unique(np.stack([truth, np.concatenate(guesses)], 1), axis=0, return_counts=True)
    confusion = np.concatenate([pairs, counts[:, None]], 1).tolist()
    own = vectors.rows[chosen]
    told = {"items": split.names(own), "clusters": split.clusters(own)}
    why = "; ".join(filter(None, (unknown(modality, vectors.x[chosen]), unknown("classes", head[among]))))
    figures = _figures(f"{modality}->text", joined(found), truth, len(among), {**told, "unknown": why})
    return Classified(figures=figures, confusion=confusion)


def _figures(task: str, found: Ranks, truth: Int[np.ndarray, " n"], classes: int, told: dict[str, Any]) -> list[Score]:
    def figure(metric: str, statistic: Statistic, chance: float) -> Score:
        return Score(task=task, metric=metric, statistic=statistic, n=len(truth), chance=chance, **told)

    accuracy = [figure(f"acc@{k}", mean(hits(found, k)), chance_recall(found.relevant, classes, k)) for k in (1, 5)]
    return [*accuracy, figure("mean_per_class", mean_per_class(hits(found, 1), truth), 1 / classes)]
