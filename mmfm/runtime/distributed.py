"""How ranks are joined. This file and `mmfm.runtime.rendezvous` are the only ones that talk to torch.distributed.

Losses take a `Collective`. Alone it is the identity, so the single-process test is the whole truth. Joined, every rank
enters every collective whatever it holds, an empty share included. What is no tensor travels as bytes, which
`together` also uses to tell all ranks what went wrong on one of them.
"""

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mmfm.config import UserError
from mmfm.runtime.launch import fallen

LOOK_S = 0.2
LOST = ("gloo", "connection closed", "connection reset", "broken pipe", "nccl")  # in what torch raises of another's end
FOREVER = timedelta(days=7)  # one rank may work while the others wait; one that ended is noticed at once
AGAIN, SHOWN = "start the command again", 80
Result = TypeVar("Result")


@runtime_checkable
class Collective(Protocol):
    rank: int
    size: int

    def all_gather(self, x: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """The rows of all ranks, in the order of ranks; gradients flow back to their owners.

        counts: how many rows each rank has; None: the ranks tell each other, which is one more collective.
        """
        ...

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """The sum over ranks, without gradient."""
        ...

    def reduce_scatter_sum(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Of x, which has `counts` rows for each rank, the sum over ranks of this rank's rows, without gradient."""
        ...

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, in the order of ranks. Its group must take tensors of the CPU, as gloo's do."""
        ...


class Said(Exception):
    """What ended all ranks is said by the first; the others leave in silence."""


class SingleProcess:
    rank, size = 0, 1

    def all_gather(self, x: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        return x

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        return x.detach()

    def reduce_scatter_sum(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        return x.detach()

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        return [data]


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


def full_tensor(x: Tensor) -> Tensor:
    """All of a parameter that may be sharded over ranks: all of them must ask. Within a forward it is whole already."""
    whole = getattr(x, "full_tensor", None)  # a DTensor's, whose class takes a second to import
    return x if whole is None else whole()


def nothing() -> None:
    """Nothing is asked of who waits."""


class ProcessGroup:
    """Ranks of a process group. It should not be the group of DDP: its all-reduces run at the same time as ours.

    `children`: the ranks that this process started, to say of one that ended how it did. `heard` raises what is asked
    of this process while it waits for the others. `remedy`: what to do where one of them ended.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        children: Sequence[subprocess.Popen] = (),
        heard: Callable[[], None] = nothing,
        remedy: str = AGAIN,
    ) -> None:
        self.group, self.children, self.heard, self.remedy = group, children, heard, remedy
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def all_gather(self, x: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        counts = self._counts(len(x), x.device) if counts is None else counts
        longest = max(max(counts), 1)  # a collective of zero rows would have no gradient to run
        padded = torch.cat([x, x.new_zeros(longest - len(x), *x.shape[1:])])
        parts = Gathered.apply(padded, self.group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        out = x.detach().clone()
        dist.all_reduce(out, group=self.group)
        return out

    def reduce_scatter_sum(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Half of what an all-reduce moves."""
        longest = max(counts)
        parts = [torch.cat([p, p.new_zeros(longest - len(p), *p.shape[1:])]) for p in x.detach().split(list(counts))]
        out = x.new_zeros(longest, *x.shape[1:])
        if longest:
            scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)  # since torch 2.14; before
            scatter(out, torch.cat(parts), group=self.group)
        return out[: counts[self.rank]]

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        return self.attend(lambda: self._collect(data))

    def attend(self, call: Callable[[], Result]) -> Result:
        return attend(call, self.rank, self.children, self.heard, self.remedy)

    def _collect(self, data: bytes) -> list[bytes]:
        mine = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        counts = self._counts(len(mine), mine.device)
        padded = torch.cat([mine, mine.new_zeros(max(counts) - len(mine))])
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=self.group)
        return [part[:count].numpy().tobytes() for part, count in zip(parts, counts, strict=True)]

    def _counts(self, count: int, device: torch.device) -> list[int]:
        parts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(self.size)]
        dist.all_gather(parts, torch.tensor([count], device=device), group=self.group)
        return [int(part) for part in parts]


def attend(
    call: Callable[[], Result],
    rank: int,
    children: Sequence[subprocess.Popen] = (),
    heard: Callable[[], None] = nothing,
    remedy: str = AGAIN,
    limit_s: float = float("inf"),
) -> Result:
    """What `call` gives, a collective that may block for long: Ctrl-C is heard meanwhile, what `heard` raises, and a
    child that ended.

    Where the others are gone the first rank raises ChildProcessError, and the rest raise Said. TimeoutError: `call` did
    not return in time.
    """
    found: list[Result] = []
    faults: list[Exception] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as why:
            faults.append(why)

    thread, began = threading.Thread(target=run, daemon=True), time.monotonic()
    thread.start()
    while thread.is_alive():  # a join without an end would hold Ctrl-C back until the others answer
        thread.join(LOOK_S)
        if thread.is_alive():
            heard()
        if thread.is_alive() and (told := fallen(children, 0.0)):
            raise ChildProcessError(f"{told}; {remedy}")
        if thread.is_alive() and time.monotonic() - began > limit_s:
            raise TimeoutError
    if faults and not isinstance(faults[0], RuntimeError):  # which torch's DistBackendError and its kin are
        raise faults[0]
    if faults:
        raise parted(rank, children, remedy) from faults[0]
    return found[0]


def parted(rank: int, children: Sequence[subprocess.Popen], remedy: str) -> Exception:
    """What is raised where another rank is gone: the first one tells of it, the rest leave in silence."""
    if rank:
        return Said("another rank ended")
    return ChildProcessError(f"{fallen(children) or 'a rank ended early; what it said stands above'}; {remedy}")


def lost(why: BaseException) -> bool:
    """Whether this is how torch tells that another rank is gone."""
    if isinstance(why, dist.DistError):
        return True
    return isinstance(why, RuntimeError) and any(word in str(why).lower() for word in LOST)


def together(ranks: Collective, work: Callable[[], bytes]) -> list[bytes]:
    """What `work` gives on each rank. Where it fails on one, it fails on all: the first raises that rank's error, so
    that it is said once, and the others raise Said."""
    failure: Exception | None = None
    try:
        mine = b"+" + work()
    except Exception as why:
        failure, mine = why, b"-" + _told(why, ranks.rank)
    parts = ranks.all_gather_bytes(mine)
    failed = next((rank for rank, part in enumerate(parts) if part[:1] == b"-"), None)
    if failed is None:
        return [part[1:] for part in parts]
    if ranks.rank:
        raise Said(f"rank {failed} failed") from failure
    if failed == 0 and failure is not None:
        raise failure
    told = json.loads(parts[failed][1:])
    raise {"user": UserError, "machine": OSError}.get(told["kind"], RuntimeError)(told["message"])


def each(ranks: Collective, make: Callable[[], Result]) -> Result:
    """What `make` gives here, where it fails on no rank; else as `together`."""
    made: list[Result] = []

    def work() -> bytes:
        made.append(make())
        return b""

    together(ranks, work)
    return made[0]


def from_first(ranks: Collective, make: Callable[[], Any]) -> Any:
    """What `make` gives on the first rank, as JSON keeps it, on all of them: what must be decided once."""
    return json.loads(together(ranks, lambda: b"" if ranks.rank else json.dumps(make()).encode())[0])


def alike(ranks: Collective, work: Callable[[], Any]) -> list[Any]:
    """What `work` gives on each rank, as JSON keeps it. Where it fails on one, all raise the same: an OSError or a
    UserError, after which they may go on together."""
    if ranks.size == 1:
        return [work()]
    fault: Exception | None = None
    mine: dict[str, Any] = {}
    try:
        mine = {"made": work()}
    except Exception as why:
        fault = why
        number, told = (why.errno, why.strerror or str(why)) if isinstance(why, OSError) else (None, str(why))
        mine = {"failed": told if isinstance(why, OSError | UserError) else f"{type(why).__name__}: {why}"}
        mine |= {"errno": number}
    parts = [json.loads(part) for part in ranks.all_gather_bytes(json.dumps(mine).encode())]
    failed = next((rank for rank, part in enumerate(parts) if "failed" in part), None)
    if failed is None:
        return [part["made"] for part in parts]
    if fault is not None and not isinstance(fault, OSError | UserError):
        raise fault
    told, number = f"rank {failed}: {parts[failed]['failed']}", parts[failed]["errno"]
    raise (UserError(told) if number is None else OSError(number, told)) from fault


def agree(ranks: Collective, facts: Mapping[str, Any], remedy: str) -> None:
    """Raises UserError, on the first rank, that names the first of `facts` which another rank knows otherwise, and
    Said on the others."""
    mine = json.loads(json.dumps(facts))
    parts = [json.loads(part) for part in together(ranks, lambda: json.dumps(mine).encode())]
    for rank, part in enumerate(parts):
        if (found := difference(parts[0], part)) is not None:
            where, first, there = found
            told = f"{where} is {_short(first)} on the first rank and {_short(there)} on rank {rank}; {remedy}"
            raise Said(told) if ranks.rank else UserError(told)


def difference(one: Any, other: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """The name of the first value that differs between two trees of JSON, and both values; None where none does."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = (name for name in (*one, *other) if one.get(name) != other.get(name))
        name = next(names, None)
        return None if name is None else difference(one.get(name), other.get(name), f"{where}.{name}".strip("."))
    return None if one == other else (where, one, other)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _told(why: Exception, rank: int) -> bytes:
    kind = "user" if isinstance(why, UserError) else "machine" if isinstance(why, OSError) else "fault"
    message = f"rank {rank}: {why}" if kind == "user" else f"rank {rank}: {type(why).__name__}: {why}"
    return json.dumps({"kind": kind, "message": message}).encode()


def joined_if_many(backend: str | None = None) -> Collective:
    """The ranks of this run, over a process group of their own. `backend`: "gloo" to collect bytes."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        group = dist.new_group(backend=backend, timeout=FOREVER if backend == "gloo" else None)
        assert isinstance(group, dist.ProcessGroup)
        return ProcessGroup(group)
    return SingleProcess()


def leave(group: dist.ProcessGroup | None = None) -> None:
    """Close all groups, when every rank of this one has done its last collective."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier(group)
        dist.destroy_process_group()


def abandon() -> None:
    """Close the groups that were not left because of a mistake, asking no other rank: a process that ends with one open
    may abort, as gloo's threads run on while it is taken down."""
    if dist.is_available() and dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()
