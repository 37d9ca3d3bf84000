"""Locks of files that are being fetched: one process fetches, the others wait, and a dead one's part is removed."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def flock(path: Path, flags: int, wait: bool = True) -> Iterator[int]:
    """A descriptor of the file, locked against other threads and processes. Without `wait`: BlockingIOError."""
    file = os.open(path, flags, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        try:
            yield file
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough: a forked worker may have the same descriptor
    finally:
        os.close(file)


def is_still(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def locked_part(part: Path) -> Iterator[int | None]:
    """The file being written, empty and for us alone; None where it was replaced while we waited. Never left behind."""
    with flock(part, os.O_RDWR | os.O_CREAT) as file:
        if not is_still(file, part):
            yield None
            return
        try:
            os.ftruncate(file, 0)
            yield file
        finally:
            if is_still(file, part):
                part.unlink()


def remove_forsaken(part: Path) -> None:
    """If nobody writes this file any more: the lock of a process that died is free."""
    with suppress(BlockingIOError), flock(part, os.O_RDWR, wait=False) as file:
        if is_still(file, part):
            part.unlink()
