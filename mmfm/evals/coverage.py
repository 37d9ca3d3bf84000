"""What an evaluation does not cover, in lines: texts that are others than training reads, tasks without a figure."""

from collections.abc import Collection, Iterator

from mmfm.config import MODALITIES
from mmfm.config.task import Task, parse
from mmfm.evals.split import Evaluable, Split


def told_of_texts(split: Split) -> Iterator[str]:
    """Where texts are others than training would read, or were cut while they were written."""
    total = len(split)
    if split.plain:
        told = "no text at a field that a source of the run names, so that their .txt or caption is their text"
        yield f"{split.plain} of {total} samples have {told}"
    if split.chosen:
        told = "the first of the likeliest field is read; a suite's Retrieve and Caption take all that a field holds"
        yield f"{split.chosen} of {total} samples have several texts: {told}"
    for name, count in split.several.items():
        yield f"{count} of {total} samples hold several items of {name}: the last one is embedded, as in training"
    for task, items in split.written.items():
        if cut := sum(item.cut for item in items):
            told = f"{cut} of {len(items)} texts were cut after {split.most_written} tokens"
            yield f"{task}: {told}; --max-tokens allows more"


def not_scored(model: Evaluable, done: Collection[str], *, during_training: bool) -> list[str]:
    """The tasks of the run that have no figure, and why."""
    return [f"{name} is not scored: {_why(parse(name), during_training)}" for name in model.tasks if name not in done]


def _why(task: Task, during_training: bool) -> str:
    if task.target != "text" and not task.fill:
        return "judges read what it makes, and none was named (--judges)"
    if during_training and (task.fill or not task.sources):
        return "mmfm eval scores it, as that takes long"
    names = [name for name in MODALITIES if task.mentions(name)]
    return f"no sample holds {' and '.join(_some(task.mentions(name), name) for name in names)}"


def _some(count: int, name: str) -> str:
    if count > 1:
        return f"{count} items of {name}"
    return "a text" if name == "text" else f"{'an image' if name == 'image' else 'a sound'}"
