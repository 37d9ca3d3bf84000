"""Work shared out to processes, its results in the order of the jobs, so that one process gives the same as many."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

from mmfm.runtime import machine

Job = TypeVar("Job")
Result = TypeVar("Result")
AHEAD = 2  # jobs handed out per process


def in_order(work: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """work(job) for every job. 0 workers: as many as this process has cores; 1: here, without another process.

    Processes are started afresh (spawn): a program that is a script must call this under `if __name__ == "__main__"`.
    """
    workers = workers or machine.cores()
    if workers == 1:
        yield from map(work, jobs)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start) as pool:
        running: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                running.append(pool.submit(work, job))
                if len(running) >= AHEAD * workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        except BrokenProcessPool:
            raise ChildProcessError(
                "a worker process was killed, perhaps for lack of memory; use fewer workers"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start() -> None:
    """Ctrl-C ends a worker without a word, and the parent's end, however it came, ends it too. One thread each."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # in time: torch is not imported yet
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_follow, args=(multiprocessing.parent_process(),), daemon=True).start()


def _follow(parent: Any) -> None:
    wait([parent.sentinel])
    os._exit(1)
