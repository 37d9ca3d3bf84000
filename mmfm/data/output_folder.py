"""A data set's folder: made beside its place, under its own name only when whole, and kept when asked for again."""

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from mmfm.config import UserError, require
from mmfm.preprocessing import BadSample
from mmfm.runtime.folders import whole_folder


def complete(folder: Path, name: str, wanted: Mapping[str, Any]) -> bool:
    """Whether `folder` is just the set `name` as `wanted`, by its NAME.json; False if there is nothing.

    Raises UserError if it is something else, or if a file is missing or of another size.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    remedy = "choose another folder, or delete this one and build again"
    try:
        manifest = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        found, sizes = dict(manifest["arguments"]), {path: about["bytes"] for path, about in manifest["files"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{folder} exists and is no `{name}` data set; {remedy}") from None
    differing = [f"{key}={found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value]
    require(not differing, f"{folder} was built with {'; '.join(differing)}; {remedy}")
    for path, size in sizes.items():
        whole = (folder / path).is_file() and (folder / path).stat().st_size == size
        require(whole, f"{folder / path} is missing or was changed; {remedy}")
    return True


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """`whole_folder`, NAME.partial until then, with a UserError where it cannot be written.

    `complete` says whether what is there may be replaced.
    """
    name = f"{folder.resolve().name}.partial"
    try:
        with whole_folder(folder, name) as partial:
            yield partial
    except BadSample:
        raise
    except UserError as why:  # what it names is gone by now
        raise UserError(str(why).replace(str(folder.resolve().with_name(name)), str(folder))) from None
    except OSError as why:
        remedy = "make room or grant access there, or choose another folder"
        raise UserError(f"cannot write {folder}: {why.strerror or why}; {remedy}") from why


def prints(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of every file, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _print_of(path) for path in files}


def _print_of(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


EVERY_S = 10.0  # between two lines where there is no terminal


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
