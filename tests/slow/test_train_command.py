"""`mmfm train` under torchrun, as people start it: one run, and one that stops when it is asked to."""

import os
import subprocess
import sys
from pathlib import Path

import doomed
import pytest
from launchers import plain_environment

from mmfm.config import Optim

TORCHRUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def torchrun(folder: Path, ranks: int, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [*TORCHRUN, str(ranks), "-m", "mmfm", "train", str(folder / "toy.json"), *words]
    environment = plain_environment() | {"PYTHONWARNINGS": "ignore", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


@pytest.mark.parametrize("more", [(), ("--devices", "2")])
def test_two_ranks_are_one_run(tmp_path: Path, more: tuple[str, ...]) -> None:
    """With --devices or without: it is told once, and its weights are those of a run that started its own ranks."""
    doomed.toy(tmp_path, optim=Optim(steps=6, lr=3e-3, warmup_steps=2), save_every_steps=3)
    done = torchrun(tmp_path, 2, *more)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/runs/toy\n"
    assert doomed.live(tmp_path, [doomed.Life(name="own", devices=2)]) == [0]
    assert doomed.final_weights(tmp_path, "toy") == doomed.final_weights(tmp_path, "own")


def test_another_number_is_refused(tmp_path: Path) -> None:
    doomed.toy(tmp_path)
    done = torchrun(tmp_path, 2, "--devices", "4")
    assert done.returncode == 1 and "devices=4, but torchrun started 2 ranks; give --devices 2" in done.stderr
    assert not (tmp_path / "runs").exists()
