"""From what labels say to classes: by names, marks, numbers, or folders in their order.

Nothing is guessed: a label that is none of the classes is an error, before the model works.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmfm.config import UserError, require
from mmfm.evals.collection import Label, Opened
from mmfm.evals.metrics import normalised
from mmfm.evals.suite import Classify, MultiLabel, Names
from mmfm.evals.tables import read_names, read_names_table

LABELS = "the labels to learn from"


@dataclass(frozen=True, kw_only=True)
class SampleInfo:
    """Classes: what labels say of them, and what prompts call them."""

    marks: tuple[str, ...]
    names: tuple[str, ...]
    where: str


def known_classes(classes: str | tuple[str, ...] | Names, opened: Opened, root: Path) -> SampleInfo:
    """Those that are given; else of classnames.txt in the root; else the labels, with spaces for underscores."""
    if isinstance(classes, tuple):
        require(bool(classes), "a task's classes are an empty list; name some, or leave them out")
        return SampleInfo(marks=classes, names=classes, where="the suite's list")
    if isinstance(classes, Names):
        table = root / classes.table
        require(table.is_file(), f"there is no table of classes {table}; {opened.hint}")
        marks, names = read_names_table(classes, table)
        return SampleInfo(marks=marks, names=names, where=str(table))
    file = root / (classes or "classnames.txt")
    told = f"there is no list of classes {file}; give a text file with one class a line"
    require(file.is_file() or not classes, told)
    if file.is_file():
        marks, names = read_names(file)
        return SampleInfo(marks=marks, names=names, where=str(file))
    return known_labels(opened)


def known_labels(opened: Opened) -> SampleInfo:
    """What labels say, in order, numbers by their value; names have spaces for underscores."""
    labels = {str(label) for item in opened.items for label in item.labels}
    marks = opened.marks or tuple(sorted(labels, key=lambda mark: (not mark.isdecimal(), mark.zfill(20))))
    require(bool(marks), f"{opened.source} has no labels; name the classes by `classes`, or label the samples")
    return SampleInfo(marks=marks, names=tuple(mark.replace("_", " ") for mark in marks), where=LABELS)


def places_of(known: SampleInfo, opened: Opened) -> Callable[[Label], int]:
    """From a label to its class. Raises UserError for one that is none of the classes.

    By what it says, as a mark or as a name; else, where all are numbers, by place from 0; else the folders of classes,
    of which there must be as many as classes, in their order.
    """
    labels = {label for item in opened.items for label in item.labels}
    if known.where == LABELS:
        exact = {mark: place for place, mark in enumerate(known.marks)}
        strange = sorted(str(label) for label in labels if str(label) not in exact)
        require(not strange, f"{opened.source}: {strangers(strange, labels, known)}")
        return lambda label: exact[str(label)]
    places = {spoken(name): place for place, name in reversed(list(enumerate(known.names)))}
    places.update({spoken(mark): place for place, mark in reversed(list(enumerate(known.marks)))})
    if all(isinstance(label, str) and spoken(label) in places for label in labels):
        return lambda label: places[spoken(str(label))]
    if all(str(label).isdecimal() for label in labels):
        wrong = next((label for label in labels if int(label) >= len(known.names)), 0)
        rule = f"label {wrong} is none of the {len(known.names)} classes of {known.where}, which count from 0"
        require(int(wrong) < len(known.names), f"{opened.source}: {rule}")
        return int
    if opened.marks and len(opened.marks) == len(known.names):
        order = {mark: place for place, mark in enumerate(opened.marks)}
        return lambda label: order[str(label)]
    strange = sorted(str(label) for label in labels if spoken(str(label)) not in places)
    raise UserError(f"{opened.source}: {strangers(strange, labels, known)}")


def strangers(strange: Sequence[str], labels: Collection[Label], known: SampleInfo) -> str:
    first = strange[0] if strange else ""
    rule = f"{len(strange)} of {len(labels)} labels, such as {first!r}, are none of the {len(known.names)} classes"
    return f"{rule} of {known.where}; correct the list or the labels"


def spoken(label: str) -> str:
    return normalised(label.replace("_", " "))


def check_labels(task: Classify | MultiLabel, opened: Opened, root: Path) -> None:
    """Raises UserError where the list of classes cannot be read, or has not all that labels say."""
    places_of(known_classes(task.classes, opened, root), opened)
