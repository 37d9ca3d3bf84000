"""Files that are kept open between reads: those used last, and no more than this process may have open."""

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from mmfm.runtime import machine

Key = tuple[int, int]  # owner, and its number of the file
SHARE = 4  # one in so many of the files that may be open; the rest is for batches in flight, pipes, libraries


class OpenFiles:
    """Descriptors by owner and number. `most` is found at the first use; a file that is lent is never closed."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self._open: dict[Key, int] = {}  # the one used last stands last
        self._lent: Counter[Key] = Counter()
        self._lock = threading.RLock()
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        """Of the threads that had lent a file only the one that forked is here."""
        self._lock, self._lent = threading.RLock(), Counter()

    @contextmanager
    def lent(self, key: Key, open_file: Callable[[], int]) -> Iterator[int]:
        """The open file, opened if it is not. Where the system has no more, those at rest are closed first.

        One that could not be read is opened anew the next time: a server may have forgotten it.
        """
        with self._lock:
            file = self._take(key, open_file)
            self._lent[key] += 1
        broken = False
        try:
            yield file
        except OSError:
            broken = True
            raise
        finally:
            with self._lock:
                self._lent[key] -= 1
                if broken and not self._lent[key]:
                    self._close([key])

    def _take(self, key: Key, open_file: Callable[[], int]) -> int:
        if key in self._open:
            self._open[key] = file = self._open.pop(key)
            return file
        if self.most is None:
            self.most = max(8, machine.open_files() // SHARE)
        self._close_to(self.most - 1)
        try:
            file = open_file()
        except OSError as why:
            if why.errno not in (errno.EMFILE, errno.ENFILE) or not self._close_to(0):
                raise
            file = open_file()
        self._open[key] = file
        return file

    def _close_to(self, count: int) -> int:
        """Closes those used longest ago until `count` are left; says how many it closed."""
        idle = [key for key in self._open if not self._lent[key]]
        gone = idle[: max(0, len(self._open) - count)]
        self._close(gone)
        return len(gone)

    def _close(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self._lent.pop(key, None)
            with suppress(OSError):  # of a server that has forgotten it
                os.close(self._open.pop(key))

    def forget(self, owner: int) -> None:
        """Closes all of an owner."""
        with self._lock:
            self._close([key for key in self._open if key[0] == owner])

    def __len__(self) -> int:
        return len(self._open)


OPEN = OpenFiles()
