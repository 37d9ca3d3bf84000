"""The grammar of tasks: "image,audio>text" reads an image and a sound and writes text. Standard library only."""

from typing import NamedTuple

from mmfm.config import MODALITIES, require

TARGETS = ("text",)  # images and audio need codes first
FORM = "write sources>target in quotes, such as 'image>text', 'image,audio>text' or '>text'"


class Task(NamedTuple):
    """What is read and what is written; `target` None: only read."""

    sources: tuple[str, ...]
    target: str | None

    def __str__(self) -> str:
        return ",".join(self.sources) + ("" if self.target is None else f">{self.target}")


def parse(text: str) -> Task:
    """The task that this text names, one that only reads included ("image"). Raises UserError with what is wrong."""
    left, arrow, right = text.partition(">")
    sources = tuple(left.split(",")) if left else ()
    for name in sources:
        require(name in MODALITIES, f"task {text!r}: no modality called {name!r}; there are {', '.join(MODALITIES)}")
    require(len(set(sources)) == len(sources), f"task {text!r} names a source twice; name each once")
    if not arrow:
        require(bool(sources), f"task {text!r} reads nothing and writes nothing; {FORM}")
        return Task(sources, None)
    require(right in TARGETS, f"task {text!r}: cannot write {right!r}; targets are {', '.join(TARGETS)}; {FORM}")
    require(right not in sources, f"task {text!r} reads the very {right} that it should write; {FORM}")
    return Task(sources, right)


def parse_writing(text: str) -> Task:
    """A task that has a target."""
    task = parse(text)
    require(task.target is not None, f"task {text!r} has no '>' and so no target; {FORM}")
    return task
