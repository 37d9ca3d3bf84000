"""How ranks come together, by whatever launcher, and what they must have in common before they work.

What a launcher has started meets; else the first process starts the others, who meet it. Nobody waits for ever: a rank
that does not come, or comes from another start, is told in one line, and signals are heard meanwhile.
"""

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mmfm.config import UserError, require
from mmfm.runtime.distributed import (
    AGAIN,
    FOREVER,
    Collective,
    ProcessGroup,
    Said,
    SingleProcess,
    abandon,
    agree,
    attend,
    leave,
    lost,
    nothing,
    parted,
)
from mmfm.runtime.launch import RANK_ENDS_S, Launch, end_ranks, fallen, follow, launched, start_ranks

MEET_S = 600.0  # programs may be read from a slow disk by many at once
READ_S = timedelta(seconds=10)  # that the first rank stays for one that is to read why both end
GPUS = "cpu:gloo,cuda:nccl"
BROKEN_S = timedelta(hours=1)  # of a collective among GPUs; a dead one is not noticed by the others


@contextlib.contextmanager
def assembled(
    count: int,
    command: Sequence[str],
    *,
    heard: Callable[[], None] = nothing,
    gpus: bool = False,
    option: str = "--ranks",
    remedy: str = AGAIN,
    own: bool = False,
) -> Iterator[Collective]:
    """The ranks of this command: those of a launcher, else `count` processes of this machine, of which the others are
    started by `command`, words of a command line; 0: one. What is collected travels over gloo, also where models are on
    GPUs.

    own: whether a rank may make a mistake that the first does not, and tells it. heard: raises what is asked of this
    process while it waits. Ranks die with the first, and the first waits for them.
    UserError: `count` is not what was launched, or one rank does not come or runs another program.
    """
    launch = launched()
    require(count >= 0, f"{option} {count} must not be negative")
    if launch is not None:
        told = f"{option} {count}, but {launch.size} were launched; leave {option} out"
        require(count in (0, launch.size), told)
    if launch is None and count <= 1:
        yield SingleProcess()
        return
    children: list[subprocess.Popen[bytes]] = []
    rank, ended = 0 if launch is None else launch.rank, threading.Event()
    try:
        ranks = _meet(launch, count, command, children, heard, gpus, remedy)
        _watch(children, ended, remedy)
        agree(ranks, {"the program": program()}, "give all ranks the same one")
        yield ranks
        attend(lambda: leave(ranks.group), rank, children, remedy=remedy)
    except (Said, UserError, KeyboardInterrupt) as why:
        end_ranks(children, kill=True)
        if rank and not (own and isinstance(why, UserError)):  # the first finds the same, and hears of Ctrl-C too
            raise SystemExit(1) from why
        raise
    except BaseException as why:
        gone = parted(rank, children, remedy) if lost(why) else None
        end_ranks(children, kill=True)
        if gone is None:
            raise
        if rank:
            raise SystemExit(1) from why
        raise gone from why
    finally:
        ended.set()
        abandon()
    end_ranks(children)


def program() -> dict[str, Any]:
    """What is executed here: this project's code, and the versions of what it stands on."""
    return {
        "code": code(Path(__file__).parent),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def code(folder: Path) -> str:
    """Equal where all files of code in a folder are."""
    found = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.rglob("*.py")):
        found.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def _meet(
    launch: Launch | None,
    count: int,
    command: Sequence[str],
    children: "list[subprocess.Popen[bytes]]",
    heard: Callable[[], None],
    gpus: bool,
    remedy: str,
) -> ProcessGroup:
    """Joins the ranks of a launcher, or those that the first one has started; or starts some, adds them to `children`,
    and joins those."""
    place, store = launch or Launch("mmfm", 0, count, 0, "", 0), None
    if launch is None:
        store = _store(place._replace(address="127.0.0.1"))
        children += start_ranks(command, count, store.port)
    else:
        follow()

    def join() -> None:
        found = _counted(place, store or _store(place), "GPUs" if gpus else "the CPU")
        how = {"backend": GPUS, "timeout": BROKEN_S} if gpus else {"backend": "gloo", "timeout": FOREVER}
        dist.init_process_group(store=found, rank=place.rank, world_size=place.size, **how)

    try:
        attend(join, place.rank, children, heard, remedy, MEET_S)
    except TimeoutError:
        told = f"rank {place.rank} waited {MEET_S:.0f} s for all of the {place.size} ranks that {place.by} told of"
        raise UserError(f"{told}; start that many, or see what ended the others") from None
    group = dist.new_group(backend="gloo", timeout=FOREVER) if gpus else None
    assert not isinstance(group, int)
    return ProcessGroup(group, children, heard, remedy)


def _store(place: Launch) -> Any:
    """Where ranks find each other. Port 0: any that is free."""
    if not place.address:
        meet = dist.rendezvous  # pyright: ignore[reportPrivateImportUsage]
        return next(meet("env://", place.rank, place.size, timeout=FOREVER))[0]
    try:
        return dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            place.address, place.port, place.size, place.rank == 0, wait_for_workers=False, timeout=FOREVER
        )
    except RuntimeError as why:
        told = f"rank {place.rank} cannot meet the others at {place.address}:{place.port} ({_line(why)})"
        raise UserError(f"{told}; set MASTER_ADDR to the first rank's machine and MASTER_PORT to a free port") from why


def _line(why: Exception) -> str:
    return str(why).strip().splitlines()[0][:120] if str(why).strip() else type(why).__name__


def _counted(place: Launch, store: Any, devices: str) -> Any:
    """The store, once all who come are known to be of one start: as many as each was told, each number once, and on
    devices that can talk to each other."""
    known = store.add(f"mmfm/rank/{place.rank}", 1)
    require(known == 1, f"two processes were told that they are rank {place.rank}; start all ranks with one launcher")
    mine = f"{place.size} ranks on {devices}"
    store.set(f"mmfm/told/{place.rank}", mine)
    for rank in range(place.size) if place.rank == 0 else (0,):
        there = store.get(f"mmfm/told/{rank}").decode()
        if place.rank:
            store.set(f"mmfm/read/{place.rank}", "")
        elif there != mine:  # the store goes with the first rank: the other one reads before that
            with contextlib.suppress(RuntimeError):
                store.wait([f"mmfm/read/{rank}"], READ_S)
        told = f"rank {rank} knows of {there}, and rank {place.rank} of {mine}"
        require(there == mine, f"{told}; start all of them with one command")
    return store


def _watch(children: "Sequence[subprocess.Popen[bytes]]", ended: threading.Event, remedy: str) -> None:
    """Ends this process where a rank that it started is gone and it does not notice: it may wait in a collective of
    the GPU, which nothing interrupts."""

    def look() -> None:
        while not ended.wait(1.0):
            if not (told := fallen(children, 0.0)):
                continue
            if not ended.wait(RANK_ENDS_S):
                print(f"mmfm: {told}; {remedy}", file=sys.stderr, flush=True)
                os._exit(1)

    if children:
        threading.Thread(target=look, daemon=True).start()


def device_of_rank(accelerator: str) -> torch.device:
    """A GPU of its own for each rank of a machine; else the CPU. UserError: a GPU is asked for and there is none, or
    there are fewer than ranks."""
    there = torch.cuda.is_available()
    told = 'accelerator is "gpu", and torch finds no GPU here'
    require(
        accelerator != "gpu" or there,
        f"{told}; give --accelerator cpu to mmfm train, and --device cpu to other commands",
    )
    if accelerator == "cpu" or not there:
        return torch.device("cpu")
    launch = launched()
    place, gpus = 0 if launch is None else launch.local, torch.cuda.device_count()
    require(place < gpus, f"rank {place} of this machine has no GPU of its own: there are {gpus}; start fewer ranks")
    return torch.device("cuda", place)
