"""`mmfm generate` once the model is loaded: texts to the standard output, pictures and sounds to files."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import Progress

from mmfm.config.task import parse_chain
from mmfm.inference.generate_args import GenerateArgs
from mmfm.inference.media_files import encoded, files_of, write_files
from mmfm.inference.processing import Made, Sound

AT_ONCE = 16  # of a folder, where nothing is said


@runtime_checkable
class Makes(Protocol):
    """What it asks of a model."""

    def generate_many(self, task: str, **given: Any) -> list[Made]: ...
    def generate_each(self, task: str, samples: Sequence[Mapping[str, Any]], **how: Any) -> list[Made]: ...
    def stream(self, task: str, **given: Any) -> Any: ...


def produce(model: Makes, args: GenerateArgs) -> None:
    """Make what is asked for and print or write it; a single text appears on a terminal as it is written."""
    if args.several:
        _each(model, args)
        return
    task, n, given, last = args.task, args.num_samples, args.given, parse_chain(args.task)[-1]
    writes = last.target == "text"
    if writes and not last.fill and n == 1 and not args.json and sys.stdout.isatty():
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
            print(_record(thing, {}) if args.json else shown(str(thing)), flush=True)
        _tell_cut(sum(getattr(thing, "finish", "stop") == "length" for thing in things), n)
        return
    files = files_of(things, args.out)
    write_files(files)
    for path, thing in zip(files, things, strict=False):
        print(f"{path}{told(thing)}")


def _each(model: Makes, args: GenerateArgs) -> None:
    """What was read, a tab, and its text on one line; or a file for each. They are there as soon as they are made."""
    samples, names, cut = args.samples(), args.names(), 0
    how = {name: value for name, value in args.how.items() if name != "batch_size"}
    step = args.batch_size or AT_ONCE
    for start in range(0, len(samples), step):
        some = samples[start : start + step]
        things = model.generate_each(args.task, [given for _, given in some], **how)
        if names:
            _write(names[start : start + step], things)
            continue
        for (source, _), thing in zip(some, things, strict=True):
            line = f"{_line(source) if args.several == 'text' else shown(source)}\t{_line(str(thing))}"
            print(_record(thing, {args.several: source}) if args.json else line, flush=True)
            cut += getattr(thing, "finish", "stop") == "length"
    _tell_cut(cut, len(samples))


def _write(names: Sequence[str], things: Sequence[Made]) -> None:
    made = [(Path(name), thing) for name, thing in zip(names, things, strict=True) if not isinstance(thing, str)]
    write_files({path: encoded(thing) for path, thing in made})
    for path, thing in made:
        print(f"{path}{told(thing)}", flush=True)


def _line(text: str) -> str:
    return shown(" ".join(text.split()))


def _record(thing: Made, source: Mapping[str, str]) -> str:
    chances = getattr(thing, "logprobs", None)
    rest = {} if chances is None else {"logprobs": chances}
    return json.dumps({**source, "text": str(thing), "finish": getattr(thing, "finish", "stop"), **rest})


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
