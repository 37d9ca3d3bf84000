"""How far a work of minutes is: a bar on a terminal, lines elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

EVERY_S = 10.0  # between two lines where there is no terminal
Item = TypeVar("Item")


class _Speed(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} {self.unit}/s")


class Pace:
    """How far a work is, in a line: what is done of how much, how quickly, and what is left at that pace."""

    def __init__(self, name: str, total: int, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.total, self.unit, self.clock = name, total, unit, clock
        self.done, self.what, self.began = 0, "", clock()

    def tick(self, what: str, count: int = 1) -> None:
        self.done, self.what = self.done + count, what

    def line(self) -> str:
        seconds = max(self.clock() - self.began, 1e-9)
        speed = self.done / seconds
        left = f", {(self.total - self.done) / speed:,.0f} s left" if self.done else ""
        told = f"{self.name}: {self.done:,} of {self.total:,} {self.unit} in {seconds:,.0f} s ({speed:,.1f}/s{left})"
        return f"{told}: {self.what}" if self.what else told


@contextmanager
def _lines(name: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """Of a thread of its own, so that one that works for minutes at one thing says that it does."""
    pace, ended = Pace(name, total, unit), threading.Event()

    def tell() -> None:
        while not ended.wait(EVERY_S):
            print(pace.line(), file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield pace.tick
    finally:
        ended.set()
        thread.join()


@contextmanager
def ticker(name: str, total: int, shown: bool, unit: str = "samples") -> Iterator[Callable[..., None]]:
    """A bar with what is at work, the speed and the time left. What it gives is called as tick(what, count=1).

    It is drawn on stderr, and where that is no terminal a line is written every EVERY_S seconds, done or not.
    """
    console = Console(stderr=True)
    if shown and not console.is_terminal:
        with _lines(name, total, unit) as tick:
            yield tick
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(unit), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal), transient=True) as bar:
        task = bar.add_task(name, total=total)

        def tick(what: str, count: int = 1) -> None:
            bar.update(task, advance=count, description=f"{name}: {what}" if what else name)

        yield tick


def watched(name: str, shown: bool, unit: str = "samples") -> Callable[[Sequence[Item]], Iterator[Item]]:
    """What goes through pieces of a work, and ticks when each is done."""

    def watch(pieces: Sequence[Item]) -> Iterator[Item]:
        with ticker(name, len(pieces), shown, unit) as tick:
            for one in pieces:
                yield one
                tick("")

    return watch
