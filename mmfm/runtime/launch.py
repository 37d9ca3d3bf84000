"""Ranks as processes: what a launcher has told this one of its place among them, and how others are started here.

Ranks of one command are not started by torchrun's agent: that would be a process above the first rank, which has to
answer signals, to end with an exit status of its own and to say one line for all.

Standard library only. Launchers are torchrun and its kin (RANK, WORLD_SIZE), srun, mpirun, mpiexec and jsrun, and our
own first process, which tells the others the same as torchrun would.
"""

import contextlib
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mmfm.config import UserError, require
from mmfm.runtime.process import PARENT, RANK_ENDS_S, die_with_parent

HERE = "127.0.0.1"
STARTED = "MMFM_STARTED"  # only in the environment of what `start_ranks` starts


class Names(NamedTuple):
    """The variables of a launcher: this process's number, how many there are (the first that is set counts), its number
    on its machine, how many machines there are, and what is this start's alone."""

    rank: str
    size: tuple[str, ...]
    local: str
    nodes: tuple[str, ...] = ()
    own: tuple[str, ...] = ()


LAUNCHERS = {
    "torchrun": Names("RANK", ("WORLD_SIZE",), "LOCAL_RANK", ("GROUP_WORLD_SIZE",)),
    "mpirun": Names(
        "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",), "OMPI_COMM_WORLD_LOCAL_RANK", own=("PMIX_NAMESPACE",)
    ),
    "jsrun": Names("JSM_NAMESPACE_RANK", ("JSM_NAMESPACE_SIZE",), "JSM_NAMESPACE_LOCAL_RANK", own=("LSB_JOBID",)),
    "mpiexec": Names("PMI_RANK", ("PMI_SIZE",), "MPI_LOCALRANKID"),
    "srun": Names(
        "SLURM_PROCID",
        ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"),
        "SLURM_LOCALID",
        ("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"),
        ("SLURM_JOB_ID", "SLURM_STEP_ID"),
    ),
}  # the first that names a rank counts: those below may be what the ones above were started by
SHELLS = ("bash", "interactive")  # names that srun gives to a job of a person's shell, which is no rank


class Launch(NamedTuple):
    """One of several ranks: number `rank` of `size`, number `local` of its machine; and where they meet.

    `address` is "" for torchrun, whose agent says where.
    """

    by: str
    rank: int
    size: int
    local: int
    address: str
    port: int
    nodes: int = 1  # machines, as far as the launcher tells


def launched(told: Mapping[str, str] = os.environ) -> Launch | None:
    """This process's place among several that a launcher has started; None: it is alone, and may start others.

    Raises UserError where what is told is half told, or does not agree: a guess could train twice into one folder.
    """
    by = next((by for by, names in LAUNCHERS.items() if names.rank in told and not _of_a_shell(by, told)), None)
    if by is None:
        _require_nothing(told)
        return None
    names = LAUNCHERS[by]
    rank, size, local = (_number(told, variables) for variables in ((names.rank,), names.size, (names.local,)))
    size = 1 if size is None and rank == 0 else size
    require(
        rank is not None and size is not None and 0 <= rank < size,
        f"{names.rank}={told[names.rank]} needs {names.size[0]}, and to be below it; set both as {by} does, or none",
    )
    assert rank is not None and size is not None
    world = _number(told, ("WORLD_SIZE",))
    require(world in (None, size), f"{by} started {size} ranks, but WORLD_SIZE={world}; unset it, or start that many")
    if size == 1:
        return None
    nodes = _number(told, names.nodes) or 1
    nodes = nodes if size % nodes == 0 else 1  # a launcher may put more on one than on another
    return Launch(by, rank, size, rank % (size // nodes) if local is None else local, *_place(by, told), nodes)


def first_process() -> bool:
    """Whether this is the first rank, or the only one: who speaks, and who writes."""
    launch = launched()
    return launch is None or launch.rank == 0


def follow() -> None:
    """For a rank that something else started, a first process or a launcher: an orphan would go on training beside
    the run that was started in its place."""
    parent = os.environ.get(PARENT) if STARTED in os.environ else None
    if launched() is not None:
        die_with_parent(None if parent is None else int(parent))


def _of_a_shell(by: str, told: Mapping[str, str]) -> bool:
    """Whether a person sits at a shell that srun has opened: what is started there is no task of it."""
    return by == "srun" and "SLURM_STEP_NUM_TASKS" not in told and told.get("SLURM_JOB_NAME") in SHELLS


def _require_nothing(told: Mapping[str, str]) -> None:
    """Without a rank nothing may say that there are several."""
    for name, least in (("WORLD_SIZE", 2), ("LOCAL_RANK", 1), ("NODE_RANK", 1), ("GROUP_RANK", 1)):
        found = _number(told, (name,))
        require(
            found is None or found < least,
            f"{name}={found} says that there are several ranks, but RANK is not set; "
            "start them with torchrun or srun, or unset it",
        )


def _number(told: Mapping[str, str], names: Sequence[str]) -> int | None:
    name = next((name for name in names if name in told), None)
    if name is None:
        return None
    try:
        return int(told[name])
    except ValueError:
        raise UserError(f"{name}={told[name]!r} is no whole number; it is for a launcher to set") from None


def _place(by: str, told: Mapping[str, str]) -> tuple[str, int]:
    """Where ranks meet: as MASTER_ADDR and MASTER_PORT say, else on this machine, at a port made of what is this
    start's alone, below those that systems hand out."""
    if by == "torchrun" and STARTED not in told:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in told]
        require(not missing, f"RANK and WORLD_SIZE are set, but not {' and '.join(missing)}; set them as torchrun does")
        return "", 0
    names = LAUNCHERS[by]
    nodes = _number(told, names.nodes) or 1
    told_where = "MASTER_ADDR" in told
    require(
        told_where or nodes == 1,
        f"{by} started ranks on {nodes} machines, which must be told where the first one is: "
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
    )
    own = [told[name] for name in names.own if name in told] or [str(os.getppid())]
    port = _number(told, ("MASTER_PORT",)) or 20_000 + zlib.crc32(".".join(own).encode()) % 12_000
    return told.get("MASTER_ADDR", HERE), port


def again() -> list[str]:
    """The command that started this process, to start another one like it."""
    import __main__

    spec = getattr(__main__, "__spec__", None)
    name = "" if spec is None else spec.name.removesuffix(".__main__")
    return [sys.executable, *(["-m", name] if name else [os.path.abspath(sys.argv[0])]), *sys.argv[1:]]


def start_ranks(command: Sequence[str], count: int, port: int) -> list["subprocess.Popen[bytes]"]:
    """Ranks 1 ... count-1 on this machine, told what torchrun would tell them.

    In process groups of their own, so that Ctrl-C reaches the first alone, whose end is theirs.
    """
    base = os.environ | {"MASTER_ADDR": HERE, "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    base |= {STARTED: "1", PARENT: str(os.getpid())}
    return [
        subprocess.Popen(
            command,
            env=base | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            process_group=0,
        )
        for rank in range(1, count)
    ]


def fallen(children: Sequence["subprocess.Popen[bytes]"], wait_s: float = RANK_ENDS_S) -> str:
    """How a rank that was started here has ended, if one did not end well; where several, one that was killed."""
    ended: dict[int, int] = {}
    for rank, child in enumerate(children, 1):
        with contextlib.suppress(subprocess.TimeoutExpired):
            ended[rank] = child.wait(wait_s / len(children)) if wait_s else child.poll() or 0
    rank, status = min(ended.items(), key=lambda item: (item[1] >= 0, item[1] == 0), default=(0, 0))
    if status < 0:
        return f"rank {rank} was killed by {signal.Signals(-status).name}"
    return f"rank {rank} ended with status {status}; what it said, if anything, stands above" if status else ""


def end_ranks(children: Sequence["subprocess.Popen[bytes]"], kill: bool = False) -> None:
    """Waits until they are gone; those that do not go are made to."""
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            if not kill:
                child.wait(RANK_ENDS_S)
        child.kill()
        child.wait()
