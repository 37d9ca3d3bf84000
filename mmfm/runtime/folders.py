"""A folder that is there whole or not at all, and that is replaced without ever being lost. Standard library only."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(folder: str | Path, beside: str = "") -> Iterator[Path]:
    """An empty folder beside `folder`, which takes its name at the end, from what has it now, if anything.

    beside: its name until then; else one of this process alone.

    After an error, Ctrl-C included, what was there is there as before, and nothing else. A process that dies between
    the two renames leaves the old one beside, and the next call brings it back. OSError as it comes: the caller knows
    what to say, and whether anything may be replaced.
    """
    target = Path(folder).resolve()
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    temporary = target.with_name(beside or f".{target.name}.{os.getpid()}.tmp")
    _recover(target)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        _swap(temporary, target, aside)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, target: Path, aside: Path) -> None:
    """The old one is removed last, when the new one has its name and the disk knows it."""
    try:
        if target.exists():
            os.replace(target, aside)
        os.replace(new, target)
        sync_folder(target.parent)
    except BaseException:
        if aside.exists():
            if target.exists():
                os.replace(target, new)
            os.replace(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _recover(target: Path) -> None:
    left = sorted(target.parent.glob(f".{target.name}.*.old")) if target.parent.is_dir() else []
    if left and not target.exists():
        os.replace(left[-1], target)


def sync_folder(folder: Path) -> None:
    """The names in it are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
