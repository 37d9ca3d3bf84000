"""How ranks are joined: the only file that talks to torch.distributed.

Losses take a `Ranks`. Alone it is the identity, so the single-process test is the whole truth. Joined, every rank
enters every collective whatever it holds, an empty share included. What is no tensor travels as bytes, which
`together` also uses to tell all ranks what went wrong on one of them.
"""

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mmfm.config import UserError, require
from mmfm.process import STARTED, end_ranks, fallen, follow, lead, start_ranks

HERE = "127.0.0.1"
FOREVER = timedelta(days=7)  # one rank may work while the others wait; one that ended is noticed at once
LOOK_S = 0.2
Result = TypeVar("Result")


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

    def collect(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, in the order of ranks. Its group must take tensors of the CPU, as gloo's do."""
        ...


class Said(Exception):
    """What ended all ranks is said by the first; the others leave in silence."""


class Alone:
    rank, size = 0, 1

    def gather(self, x: Tensor) -> Tensor:
        return x

    def total(self, x: Tensor) -> Tensor:
        return x.detach()

    def collect(self, data: bytes) -> list[bytes]:
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


class Joined:
    """Ranks of a process group. It should not be the group of DDP: its all-reduces run at the same time as ours.

    `children`: the ranks that this process started, to say of one that ended how it did.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, children: Sequence[subprocess.Popen] = ()) -> None:
        self.group, self.children = group, children
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

    def collect(self, data: bytes) -> list[bytes]:
        return attend(lambda: self._collect(data), self.rank, self.children)

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


def attend(call: Callable[[], Result], rank: int, children: Sequence[subprocess.Popen] = ()) -> Result:
    """What `call` gives, a collective that may block for long: Ctrl-C is heard meanwhile, and a child that ended.

    Where the others are gone the first rank raises ChildProcessError, and the rest raise Said.
    """
    found: list[Result] = []
    faults: list[Exception] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as why:
            faults.append(why)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():  # a join without an end would hold Ctrl-C back until the others answer
        thread.join(LOOK_S)
        if thread.is_alive() and (told := fallen(children, 0.0)):
            raise ChildProcessError(told)
    if faults and not isinstance(faults[0], RuntimeError):  # which torch's DistBackendError and its kin are
        raise faults[0]
    if faults and rank:
        raise Said("the first rank ended") from faults[0]
    if faults:
        ended = fallen(children) or "a rank ended early; what it said stands above"
        raise ChildProcessError(ended) from faults[0]
    return found[0]


def together(ranks: Ranks, work: Callable[[], bytes]) -> list[bytes]:
    """What `work` gives on each rank. Where it fails on one, it fails on all: the first raises that rank's error, so
    that it is said once, and the others raise Said."""
    failure: Exception | None = None
    try:
        mine = b"+" + work()
    except Exception as why:
        failure, mine = why, b"-" + _told(why, ranks.rank)
    parts = ranks.collect(mine)
    failed = next((rank for rank, part in enumerate(parts) if part[:1] == b"-"), None)
    if failed is None:
        return [part[1:] for part in parts]
    if ranks.rank:
        raise Said(f"rank {failed} failed") from failure
    if failed == 0 and failure is not None:
        raise failure
    told = json.loads(parts[failed][1:])
    raise {"user": UserError, "machine": OSError}.get(told["kind"], RuntimeError)(told["message"])


def each(ranks: Ranks, make: Callable[[], Result]) -> Result:
    """What `make` gives here, where it fails on no rank; else as `together`."""
    made: list[Result] = []

    def work() -> bytes:
        made.append(make())
        return b""

    together(ranks, work)
    return made[0]


def _told(why: Exception, rank: int) -> bytes:
    kind = "user" if isinstance(why, UserError) else "machine" if isinstance(why, OSError) else "fault"
    message = str(why) if kind == "user" else f"rank {rank}: {type(why).__name__}: {why}"
    return json.dumps({"kind": kind, "message": message}).encode()


@contextlib.contextmanager
def assembled(count: int, command: Sequence[str]) -> Iterator[Ranks]:
    """The ranks of this command: those of a launcher (torchrun) where RANK and WORLD_SIZE speak of one, else `count`
    processes of this machine, of which the others are started with the words of `command`; 0: one.

    They die with the first, and the first waits for them. Over gloo, also where models are on GPUs: what is exchanged
    is on the CPU. UserError: `count` is not what was launched.
    """
    world = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    require(count >= 0, f"--ranks {count} must not be negative")
    require(world == 1 or count in (0, world), f"--ranks {count}, but {world} were launched; leave --ranks out")
    if max(world, count) <= 1:
        yield Alone()
        return
    children: list[subprocess.Popen] = []
    try:
        yield _meet(world, count, command, children)
        attend(leave, dist.get_rank(), children)
    except (Said, UserError, KeyboardInterrupt) as why:
        end_ranks(children, kill=True)
        if world > 1 and os.environ["RANK"] != "0":  # the first finds the same mistake, and hears of Ctrl-C too
            raise SystemExit(1) from why
        raise
    except BaseException:
        end_ranks(children, kill=True)
        raise
    end_ranks(children)


def _meet(world: int, count: int, command: Sequence[str], children: list[subprocess.Popen]) -> Joined:
    """Joins the ranks of a launcher, or those that the first one has started; or starts some, adds them to `children`,
    and joins those."""
    if world > 1:
        follow()
        rank = int(os.environ["RANK"])
        if STARTED in os.environ:  # by one who listens on a port of the system's choice
            _join(rank, world, _store(world, int(os.environ["MASTER_PORT"]), False))
        else:
            attend(lambda: dist.init_process_group("gloo", timeout=FOREVER), rank)
        return Joined()
    lead()
    store = _store(count, 0, True)
    children += start_ranks(command, count, HERE, store.port)
    _join(0, count, store, children)
    return Joined(None, children)


def _store(world: int, port: int, listens: bool) -> Any:
    """Where ranks of this machine find each other. Port 0: any that is free."""
    return dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        HERE, port, world, is_master=listens, wait_for_workers=False, timeout=FOREVER
    )


def _join(rank: int, world: int, store: Any, children: Sequence[subprocess.Popen] = ()) -> None:
    attend(
        lambda: dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=FOREVER),
        rank,
        children,
    )


def device_of_rank(accelerator: str) -> torch.device:
    """A GPU of its own for each rank of a machine; else the CPU. UserError: there are fewer GPUs than ranks."""
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    place, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    require(place < gpus, f"rank {place} of this machine has no GPU of its own: there are {gpus}; lower --ranks")
    return torch.device("cuda", place)


def joined_if_many(backend: str | None = None) -> Ranks:
    """The ranks of this run, over a process group of their own. `backend`: "gloo" to collect bytes."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        group = dist.new_group(backend=backend)
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
