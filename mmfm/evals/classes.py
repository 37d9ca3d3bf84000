"""From what labels, texts and lists say to classes: by names, marks, numbers, or folders in their order."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from mmfm.config import RemoteCache, UserError, require
from mmfm.data import remote_cache
from mmfm.data.remote_servers import Absent, Denied
from mmfm.data.shard_specs import expand, patterns
from mmfm.data.splits import asked_and_more, is_remote
from mmfm.data.urls import beside, folder_of, shown
from mmfm.evals.collection import Label, Opened
from mmfm.evals.metrics import normalised
from mmfm.evals.split import Split
from mmfm.evals.suite import Classify, MultiLabel
from mmfm.evals.suite_data import Names
from mmfm.evals.tables import read_names, read_names_table

MOST_BYTES = 1 << 24  # of a list
NONE = -1
LABELS = "the labels to learn from"


@dataclass(frozen=True, kw_only=True)
class ClassSet:
    """The names to choose from, and what labels say of them. `listed`: they come from a file, so that a number can mean
    a place in it."""

    names: tuple[str, ...]
    where: str
    marks: tuple[str, ...] = ()
    listed: bool = True


def find_classes(split_captions: Sequence[str], spec: str, file: Path | None, store: RemoteCache) -> ClassSet:
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


def find_templates(spec: str, given: tuple[str, ...], default: tuple[str, ...], store: RemoteCache) -> tuple[str, ...]:
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
        number = next((found for mark in split.infos[row].labels if (found := _number(mark)) is not None), None)
        if number is not None and classes.listed:
            return _listed(number, classes, split.infos[row].key)
        names = [mark for mark in (split.infos[row].labels[1], split.infos[row].text) if isinstance(mark, str)]
        return next((places[normalised(name)] for name in names if normalised(name) in places), NONE)

    return np.array([place_of(row) for row in range(len(split.infos))], int)


def _number(mark: Any) -> int | None:
    return mark if isinstance(mark, int) and not isinstance(mark, bool) else None


def _listed(number: int, classes: ClassSet, key: str) -> int:
    count = len(classes.names)
    rule = f"none of the {count} of {classes.where} (0 to {count - 1}); give the right list by --classes FILE"
    require(0 <= number < count, f"sample {key}: class {number} is {rule}")
    return number


def texts_beside(spec: str, name: str, store: RemoteCache) -> list[tuple[str, str | None]]:
    """Where files of this name lie beside the shards of "A" or "A+B", whose B has no say; with their text, where that
    had to be fetched. A folder of folders of shards may hold the list itself."""
    asked = asked_and_more(spec)[0]
    if is_remote(asked):
        folders = dict.fromkeys(folder_of(url)[0] for url in patterns(asked))
        found = [_fetched(beside(folder, name), remote_cache.ShardCache(store)) for folder in folders]
        return [one for one in found if one is not None]
    named = [Path(pattern).expanduser() for pattern in patterns(asked)]
    folders = dict.fromkeys([*filter(Path.is_dir, named), *(shard.parent for shard in expand(asked))])
    return [(str(folder / name), None) for folder in folders if (folder / name).is_file()]


def _fetched(url: str, store: remote_cache.ShardCache) -> tuple[str, str] | None:
    """None where there is none; some servers deny what is not there."""
    try:
        return shown(url), store.text(url, MOST_BYTES)
    except (Absent, Denied):
        return None


def known_classes(classes: str | tuple[str, ...] | Names, opened: Opened, root: Path) -> ClassSet:
    """Those that are given; else of classnames.txt in the root; else the labels, with spaces for underscores."""
    if isinstance(classes, tuple):
        require(bool(classes), "a task's classes are an empty list; name some, or leave them out")
        return ClassSet(marks=classes, names=classes, where="the suite's list")
    if isinstance(classes, Names):
        table = root / classes.table
        require(table.is_file(), f"there is no table of classes {table}; {opened.hint}")
        marks, names = read_names_table(classes, table)
        return ClassSet(marks=marks, names=names, where=str(table))
    file = root / (classes or "classnames.txt")
    told = f"there is no list of classes {file}; give a text file with one class a line"
    require(file.is_file() or not classes, told)
    if file.is_file():
        marks, names = read_names(file)
        return ClassSet(marks=marks, names=names, where=str(file))
    return known_labels(opened)


def known_labels(opened: Opened) -> ClassSet:
    """What labels say, in order, numbers by their value; names have spaces for underscores."""
    labels = {str(label) for item in opened.items for label in item.labels}
    marks = opened.marks or tuple(sorted(labels, key=lambda mark: (not mark.isdecimal(), mark.zfill(20))))
    require(bool(marks), f"{opened.source} has no labels; name the classes by `classes`, or label the samples")
    return ClassSet(marks=marks, names=tuple(mark.replace("_", " ") for mark in marks), where=LABELS)


def places_of(known: ClassSet, opened: Opened) -> Callable[[Label], int]:
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


def strangers(strange: Sequence[str], labels: Collection[Label], known: ClassSet) -> str:
    first = strange[0] if strange else ""
    rule = f"{len(strange)} of {len(labels)} labels, such as {first!r}, are none of the {len(known.names)} classes"
    return f"{rule} of {known.where}; correct the list or the labels"


def spoken(label: str) -> str:
    return normalised(label.replace("_", " "))


def check_labels(task: Classify | MultiLabel, opened: Opened, root: Path) -> None:
    """Raises UserError where the list of classes cannot be read, or has not all that labels say."""
    places_of(known_classes(task.classes, opened, root), opened)
