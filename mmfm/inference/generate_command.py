"""`mmfm generate` once the model is loaded: texts to the standard output, pictures and sounds to files."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import Progress

from mmfm.config.task import parse_chain
from mmfm.inference.media_files import files_of, write_files
from mmfm.inference.processing import Made, Sound


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
        cut = _printed(model.stream(task, **given)) == "length"
        print()
        _tell_cut(int(cut), 1)
        return
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task(task, total=None)
        watch = {} if writes else {"tick": lambda made, most: bar.update(row, completed=made, total=most)}
        things = model.generate_many(task, n=n, **watch, **given)
    if writes:
        for thing in things:
            print(shown(str(thing)), flush=True)
        _tell_cut(sum(getattr(thing, "finish", "stop") == "length" for thing in things), n)
        return
    files = files_of(things, out)
    write_files(files)
    for path, thing in zip(files, things, strict=False):
        print(f"{path}{told(thing)}")


def _printed(pieces: Iterator[str]) -> str | None:
    """Each as soon as it is there; why they ended."""
    while True:
        try:
            print(shown(next(pieces)), end="", flush=True)
        except StopIteration as end:
            return end.value


def shown(text: str) -> str:
    """What the standard output can hold: in an encoding of few characters the others are ?, and no error at the end."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, errors="replace").decode(encoding)


def _tell_cut(cut: int, n: int) -> None:
    """On the standard error, as the standard output is the texts alone."""
    if cut:
        which = "the text was" if n == 1 else f"{cut} of {n} texts were"
        print(f"mmfm: {which} cut before the end; give a larger --max-tokens", file=sys.stderr)


def told(thing: Made) -> str:
    """How long a sound is, where it begins to be new, and whether it was cut."""
    if not isinstance(thing, Sound):
        return ""
    start = f", new from {thing.start / thing.rate_hz:.2f} s on" if thing.start else ""
    cut = ", cut there: --max-tokens allows more" if thing.finish == "length" else ""
    return f" ({thing.seconds:.2f} s{start}{cut})"
