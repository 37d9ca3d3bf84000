"""The grammar of tasks: "image,audio>text" reads an image and a sound and writes text, "text>image~" reads a text and
fills in what is masked of an image. Standard library only.
"""

from itertools import pairwise
from typing import NamedTuple

from mmfm.config import MODALITIES, require
from mmfm.config.modalities import modality_names

FORM = "write sources>target in quotes, such as 'image>text', 'image,audio>text' or '>text', or 'image~' to fill in"


class Task(NamedTuple):
    """What is read and what is written; `target` None: only read. A source may be named again: as an example before
    ("image,text,image>text"), or with itself as the target, to continue it ("audio>audio").

    fill: the target is given but for its masked places, and seen from both sides.
    """

    sources: tuple[str, ...]
    target: str | None
    fill: bool = False

    def __str__(self) -> str:
        arrow = ">" if self.target is not None and (self.sources or not self.fill) else ""
        return f"{','.join(self.sources)}{arrow}{self.target or ''}{'~' if self.fill else ''}"

    def mentions(self, modality: str) -> int:
        """How many items of this modality a sample must hold."""
        return self.sources.count(modality) + (modality == self.target)


def parse(text: str) -> Task:
    """The task that this text names, one that only reads included ("image"). Raises UserError with what is wrong."""
    plain, fill = text.removesuffix("~"), text.endswith("~")
    if fill and ">" not in plain:
        plain = f">{plain}"
    left, arrow, right = plain.partition(">")
    sources = tuple(left.split(",")) if left else ()
    for name in sources:
        known = modality_names()
        require(name in known, f"task {text!r}: no modality called {name!r}; there are {', '.join(known)}")
    if not arrow:
        require(bool(sources), f"task {text!r} reads nothing and writes nothing; {FORM}")
        return Task(sources, None)
    require(right in MODALITIES, f"task {text!r}: cannot write {right!r}; targets are {', '.join(MODALITIES)}; {FORM}")
    return Task(sources, right, fill)


def parse_writing(text: str) -> Task:
    """A task that has a target."""
    task = parse(text)
    require(task.target is not None, f"task {text!r} has no '>' and so no target; {FORM}")
    return task


def parse_chain(text: str) -> list[Task]:
    """The tasks of a chain such as "image>text>audio": each reads what the one before has written."""
    first, *rest = text.split(">")
    if len(rest) < 2:
        return [parse_writing(text)]
    stops = [first, *rest]
    require(all(stops[1:-1]), f"task {text!r} has an empty link; {FORM}")
    return [parse_writing(f"{a}>{b}") for a, b in pairwise(stops)]
