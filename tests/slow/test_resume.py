"""Runs killed at many random places, and runs that change their number of ranks: tools/bench_resume.py's own cases."""

from pathlib import Path

import doomed
import pytest

from mmfm.config import Parallel


@pytest.mark.parametrize(("devices", "workers", "kills"), doomed.CASES)
def test_a_killed_run_is_a_run_never_killed(tmp_path: Path, devices: int, workers: int, kills: int) -> None:
    """kill -9 of the whole process tree at random steps: the same samples, the same losses as hex, equal weights."""
    outcome = doomed.kill_and_compare(tmp_path, kills=kills, seed=devices, devices=devices, workers=workers)
    assert (outcome.kills, outcome.mismatches, outcome.equal_weights) == (kills, 0, True)


@pytest.mark.parametrize(("devices", "strategy"), [(1, "auto"), (2, "ddp"), (2, "fsdp")])
def test_a_run_killed_while_threads_write_its_checkpoint(tmp_path: Path, devices: int, strategy: str) -> None:
    """The same of one whose checkpoints are written while it goes on, whole and in parts."""
    parallel = Parallel(strategy=strategy, save_async=True)
    outcome = doomed.kill_and_compare(tmp_path, kills=12, seed=devices, devices=devices, parallel=parallel)
    assert (outcome.kills, outcome.mismatches, outcome.equal_weights) == (12, 0, True)


@pytest.mark.parametrize("devices", [1, 2])
def test_steps_of_a_token_budget_are_killed_too(tmp_path: Path, devices: int) -> None:
    """How many samples a step takes differs, and each start finds its place again."""
    outcome = doomed.kill_and_compare(tmp_path, kills=3, seed=devices, devices=devices, workers=1, tokens=60)
    assert (outcome.kills, outcome.mismatches, outcome.equal_weights) == (3, 0, True)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_may_come_and_go(tmp_path: Path, strategy: str) -> None:
    """1 -> 2 -> 4 -> 1 ranks with 0 to 3 loader processes: the global order of one rank, and its losses within 1e-5."""
    outcome = doomed.move_and_compare(tmp_path, parallel=Parallel(strategy=strategy))
    assert outcome.other_samples == 0 and outcome.largest_difference < 1e-5
