"""Processes that stop when asked and die with their parent. Standard library only.

A signal handler here does nothing but remember: what to do is decided by all ranks together, between two steps.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: a scheduler may start the same command again
ASKS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SAME_REQUEST_S = 1.0  # `timeout` and schedulers signal a process, then its group: one request that arrives twice
PARENT = "MMFM_PARENT"  # whose end is that of the ranks that it started
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
RANK_ENDS_S = 10.0


class Stopped(Exception):
    """Asked to end by the machine, and saved before it did. The command line exits with TRY_AGAIN."""


class Signals:
    """While open, SIGINT, SIGTERM and SIGUSR1 are remembered in `asked`; another, a second later, ends at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.asked: set[signal.Signals] = set()
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Signals":
        self._before = {name: signal.getsignal(name) for name in ASKS}
        self.install()
        return self

    def install(self) -> None:
        """Take the signals, from whoever has them now: Lightning's own SIGTERM handler runs a collective."""
        for name in ASKS:
            signal.signal(name, self._remember)

    def _remember(self, number: int, _: Any) -> None:
        if not self.asked:
            self._since = self.clock()
        elif self.clock() - self._since >= SAME_REQUEST_S:
            self.__exit__()
            signal.raise_signal(number)
        self.asked.add(signal.Signals(number))

    def obey(self) -> None:
        """Raises what was asked, for where nothing is lost by it: before the first step."""
        if signal.SIGINT in self.asked:
            raise KeyboardInterrupt
        if self.asked:
            raise Stopped("stopped before the first step, as asked; the same command starts again")

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)


def die_with_parent(parent: int | None = None) -> None:
    """SIGKILL for this process when the thread that started it ends (Linux; elsewhere nothing). At once, where
    `parent` is given and is the parent no more."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def loader_worker(_: int) -> None:
    """For a new loader process. What stops a run is often sent to all processes of its group; only the main one
    should answer, which still needs its workers for the step that it finishes. SIGTERM counts where it is the main
    one's own: so it ends workers at its exit, and waits for them."""
    parent = multiprocessing.parent_process()
    pid = os.getppid() if parent is None or parent.pid is None else parent.pid
    die_with_parent(pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_obey, args=(pid,), daemon=True).start()


def _obey(parent: int) -> None:
    if sys.platform == "linux":
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
            pass
        os._exit(0)
