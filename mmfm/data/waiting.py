"""Waiting for a batch: for so long at most, and ready to be asked to end meanwhile."""

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mmfm.compat.torch import stop_workers
from mmfm.data.worker_transfer import taken
from mmfm.runtime import machine
from mmfm.runtime.process import Stopped

Item = TypeVar("Item")
STUCK_S = 1_800.0  # without a batch: a reader hangs, and an error is better
ASKED_S = 10.0  # so long a batch is waited for when the run is asked to end
LOOK_S = 1.0  # between two looks at what is asked while a batch is waited for


class StoppedWaiting(Stopped):
    """Asked to end while no batch came. What was trained so far is whole: it is between two steps.

    saved: the step of the checkpoint that was written then, or None.
    """

    saved: int | None = None

    def __str__(self) -> str:
        then = "" if self.saved is None else f", and saved at step {self.saved}"
        return f"{super().__str__()}{then}; {machine.RESUME}"


def next_batch(
    batches: Iterator[Item],
    asked: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Item | Exception | None:
    """The next of the loader's, None at the end. A loader process that died is an error of the machine.

    The loader gives up every LOOK_S seconds, and is asked again until STUCK_S, or for ASKED_S once the run is to end.
    """
    began, since = clock(), None
    while True:
        try:
            return taken(next(batches, None))
        except RuntimeError as why:
            if not str(why).startswith("DataLoader "):  # torch's words for a dead process, and for one that hangs
                raise
            since = clock() if since is None and asked() else since
            late = clock() - began >= STUCK_S
            if not str(why).startswith("DataLoader timed out") or late:
                return _gave_up(batches, str(why), late)
            if since is not None and clock() - since >= ASKED_S:
                stop_workers(batches)
                raise StoppedWaiting(f"stopped, as asked, while no batch came for {clock() - began:.0f} s") from None


def _gave_up(batches: Iterator[Any], why: str, late: bool) -> OSError:
    stop_workers(batches)  # else torch raises the same again wherever another child ends
    told = f"no batch came for {STUCK_S / 60:.0f} minutes: a disk or server hangs; see that it answers"
    return ChildProcessError(f"{told}, and {machine.RESUME}" if late else machine.worker_died(why))
