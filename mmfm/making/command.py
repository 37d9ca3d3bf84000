"""`mmfm generate` once the model is loaded: texts to the standard output, pictures and sounds to files."""

import sys
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import Progress

from mmfm.grammar import parse_chain
from mmfm.making.files import files_of, write_files
from mmfm.making.things import Made, Sound


@runtime_checkable
class Makes(Protocol):
    """What it asks of a model."""

    def generate_many(self, task: str, **given: Any) -> list[Made]: ...
    def stream(self, task: str, **given: Any) -> Any: ...


def produce(model: Makes, task: str, out: str, n: int, given: Mapping[str, Any]) -> None:
    """Make n things and print or write them; a single text appears on a terminal as it is written."""
    last = parse_chain(task)[-1]
    writes = last.target == "text"
    if writes and not last.fill and n == 1 and sys.stdout.isatty():
        for piece in model.stream(task, **given):
            print(piece, end="", flush=True)
        print()
        return
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task(task, total=None)
        watch = {} if writes else {"tick": lambda made, most: bar.update(row, completed=made, total=most)}
        things = model.generate_many(task, n=n, **watch, **given)
    if writes:
        for thing in things:
            print(thing, flush=True)
        return
    files = files_of(things, out)
    write_files(files)
    for path, thing in zip(files, things, strict=False):
        print(f"{path}{told(thing)}")


def told(thing: Made) -> str:
    """How long a sound is, and where it begins to be new."""
    if not isinstance(thing, Sound):
        return ""
    start = f", new from {thing.start / thing.rate_hz:.2f} s on" if thing.start else ""
    return f" ({thing.seconds:.2f} s{start})"
