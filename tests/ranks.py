"""Several ranks as threads of one process, so that what they do together is tested in milliseconds."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmfm.runtime.distributed import SingleProcess

Result = TypeVar("Result")


class Desk:
    """Where threads meet: each puts down a thing, and all see the things of all."""

    def __init__(self, size: int) -> None:
        self.things: list[Any] = [None] * size
        self.gate = threading.Barrier(size, timeout=100.0)

    def exchange(self, rank: int, thing: Any) -> list[Any]:
        self.things[rank] = thing
        self.gate.wait()
        found = list(self.things)
        self.gate.wait()  # nobody writes anew while another still reads
        return found


class Gathered(torch.autograd.Function):
    """All ranks' rows. Backward sums what every rank asks of each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: "Threads") -> Tensor:
        parts = ranks.desk.exchange(ranks.rank, x.detach())
        ctx.ranks, ctx.counts = ranks, [len(part) for part in parts]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = torch.stack(ctx.ranks.desk.exchange(ctx.ranks.rank, gradients[0])).sum(0)
        return total.split(ctx.counts)[ctx.ranks.rank], None


class Threads(SingleProcess):
    """One of several ranks that are threads of this process."""

    def __init__(self, rank: int, size: int, desk: Desk) -> None:
        self.rank, self.size, self.desk = rank, size, desk

    def all_gather(self, x: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        return Gathered.apply(x, self)

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        return torch.stack(self.desk.exchange(self.rank, x.detach())).sum(0)

    def reduce_scatter_sum(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        return self.all_reduce_sum(x).split(list(counts))[self.rank]

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        return self.desk.exchange(self.rank, data)


def on_ranks(size: int, call: Callable[[Threads], Result]) -> list[Result | Exception]:
    """What `call` gives on each of so many ranks, or what it raises."""
    desk, found = Desk(size), dict[int, Any]()

    def run(rank: int) -> None:
        try:
            found[rank] = call(Threads(rank, size, desk))
        except Exception as why:
            found[rank] = why
            if isinstance(why, AssertionError):
                desk.gate.abort()  # nobody waits for a test that failed

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(size)]
