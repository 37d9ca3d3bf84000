"""Ranks as launchers start them, on one machine: what torchrun, srun and others tell a process, and nothing else.

    python tests/launchers.py FOLDER

starts the ranks of each of FOLDER/starts.json at once, one start after the other, each rank as `mmfm train` with the
environment that it is given, and writes their exit statuses. One process imports everything and is forked for each.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from doomed import import_once, plain_environment


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One process: what its launcher tells it, its words after `mmfm train CONFIG`, what is odd about it, and what is
    removed of the folder before it starts."""

    told: Mapping[str, str]
    words: Sequence[str] = ()
    odd: str = ""
    gone: str = ""


def torchrun(rank: int, size: int, port: int, **more: str) -> dict[str, str]:
    """One machine for each rank, where more says so: LOCAL_RANK="0"."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)} | place | more


def srun(rank: int, size: int, job: int) -> dict[str, str]:
    tasks = {"SLURM_NTASKS": str(size), "SLURM_STEP_NUM_TASKS": str(size), "SLURM_NNODES": "1"}
    ours = {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "mmfm"}
    return {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} | tasks | ours


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(folder: Path, starts: Sequence[Sequence[Rank]]) -> list[list[tuple[int, str, str]]]:
    """Exit status, output and words on the screen of each rank of each start."""
    told = [[asdict(rank) for rank in ranks] for ranks in starts]
    (folder / "starts.json").write_text(json.dumps(told))
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    subprocess.run(command, check=True, timeout=900, env=plain_environment())
    statuses = json.loads((folder / "statuses.json").read_text())
    return [
        [(status, *(read(folder, kind, number, at) for kind in ("out", "said"))) for at, status in enumerate(found)]
        for number, found in enumerate(statuses)
    ]


def read(folder: Path, kind: str, number: int, at: int) -> str:
    return (folder / f"{kind}-{number}-{at}.txt").read_text()


def one_rank(folder: Path, number: int, at: int, rank: dict[str, Any]) -> int:
    os.environ.update(rank["told"])
    os.environ["STARTED_AS"] = f"{number} {at}"
    for name, handle in (("out", 1), ("said", 2)):
        os.dup2(os.open(folder / f"{name}-{number}-{at}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), handle)
    return work(folder, rank)


def work(folder: Path, rank: dict[str, Any]) -> int:
    from mmfm.__main__ import main

    ODD[rank["odd"]]()
    return main(["train", str(folder / "toy.json"), *rank["words"]])


def no_disk() -> None:
    """Another disk lies where the run's checkpoints are."""
    from mmfm.models import checkpoint

    manifest_of = checkpoint.manifest_of
    checkpoint.manifest_of = lambda where: manifest_of(where.parent / "elsewhere")


def late_disk() -> None:
    """The newest checkpoint is not seen in the folder's listing yet."""
    from mmfm.models import checkpoint
    from mmfm.training import resume

    steps_of = checkpoint.steps_of
    checkpoint.steps_of = resume.steps_of = lambda folder: steps_of(folder)[:-1]


def other_code() -> None:
    from mmfm.runtime import rendezvous

    rendezvous.code = lambda folder: "another"


ODD: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "no disk": no_disk,
    "late disk": late_disk,
    "other code": other_code,
}


def main(folder: Path) -> None:
    starts = json.loads((folder / "starts.json").read_text())
    if "STARTED_AS" in os.environ:  # by a rank that started others
        number, at = map(int, os.environ["STARTED_AS"].split())
        sys.exit(work(folder, starts[number][at]))
    import_once()
    statuses: list[list[int]] = []
    for number, ranks in enumerate(starts):
        children: list[int] = []
        for gone in (rank["gone"] for rank in ranks if rank["gone"]):
            shutil.rmtree(folder / gone)
        for at, rank in enumerate(ranks):
            if not (child := os.fork()):
                os.setsid()
                sys.exit(one_rank(folder, number, at, rank))
            children.append(child)
        statuses.append([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
    (folder / "statuses.json").write_text(json.dumps(statuses))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
