"""How ranks are joined: the only file that talks to torch.distributed.

Losses take a `Ranks`. Alone it is the identity, so the single-process test is the whole truth. Joined, every rank
enters every collective whatever it holds, an empty share included.
"""

import os
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor


@runtime_checkable
class Ranks(Protocol):
    rank: int
    size: int

    def gather(self, x: Tensor) -> Tensor:
        """The rows of all ranks, in the order of ranks; gradients flow back to their owners. Counts may differ."""
        ...

    def total(self, x: Tensor) -> Tensor:
        """The sum over ranks, without gradient."""
        ...


class Alone:
    rank, size = 0, 1

    def gather(self, x: Tensor) -> Tensor:
        return x

    def total(self, x: Tensor) -> Tensor:
        return x.detach()


class Gathered(torch.autograd.Function):
    """All ranks' tensors of one shape, stacked. Backward sums what every rank asks of each."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous()
        dist.all_reduce(total, group=ctx.group)
        return total[dist.get_rank(ctx.group)], None


class Joined:
    """Ranks of a process group. It should not be the group of DDP: its all-reduces run at the same time as ours."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def gather(self, x: Tensor) -> Tensor:
        counts = self._counts(len(x), x.device)
        longest = max(max(counts), 1)  # a collective of zero rows would have no gradient to run
        padded = torch.cat([x, x.new_zeros(longest - len(x), *x.shape[1:])])
        parts = Gathered.apply(padded, self.group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def total(self, x: Tensor) -> Tensor:
        out = x.detach().clone()
        dist.all_reduce(out, group=self.group)
        return out

    def _counts(self, count: int, device: torch.device) -> list[int]:
        parts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(self.size)]
        dist.all_gather(parts, torch.tensor([count], device=device), group=self.group)
        return [int(part) for part in parts]


def joined_if_many() -> Ranks:
    """The ranks of this run, over a process group of their own."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        group = dist.new_group()
        assert isinstance(group, dist.ProcessGroup)
        return Joined(group)
    return Alone()


def leave() -> None:
    """Close all groups, when every rank has done its last collective."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def first_process() -> bool:
    """Whether this is the process that people started, and not one that Lightning started beside it."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
