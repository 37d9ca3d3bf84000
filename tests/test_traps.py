"""The traps that training under Lightning 2.6 sets for whoever is interrupted: one test each, named in its docstring.

All lives are lived once, by `doomed`, in real processes: what is killed here is killed by the kernel.
"""

import errno
import json
import os
import re
import signal
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import doomed
import lightning as L
import pytest
import torch
from doomed import Life
from lightning.pytorch.callbacks import Checkpoint
from toys import toy_run

from mmfm.config import Eval, Optim, Parallel, Run, UserError
from mmfm.config.serialization import from_json
from mmfm.models import checkpoint
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.runtime import process
from mmfm.runtime.files import Sum
from mmfm.training import callbacks, fit, module

STEPS, SAVE = 16, 5
LIVES = [
    Life(name="whole"),
    Life(name="killed", step=3, workers=2),  # before the first checkpoint
    Life(name="killed", step=SAVE, moment="saved"),  # at a boundary
    Life(name="killed", step=7, moment="saving", workers=1),  # half way through step 10's checkpoint
    Life(name="killed", step=13, workers=2),
    Life(name="killed", workers=1),
    Life(name="asked", step=7, what="group", workers=2),
    Life(name="asked"),
    Life(name="estimate", step=7, patch="estimate"),
    Life(name="estimate", patch="estimate"),
    Life(name="failing", step=3, what="error", workers=2),
    Life(name="pair", devices=2, workers=1, step=2, what="usr1"),
    Life(name="pair", devices=2, step=12, what="kill"),
    Life(name="pair", devices=2),
    Life(name="nan", devices=2, patch="nan"),
    Life(name="error", devices=2, step=3, what="error"),
    Life(name="orphan", devices=2, workers=1, step=3, what="orphan"),
    Life(name="pair-whole", devices=2, workers=1),
]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    folder, evaluation = tmp_path_factory.mktemp("lives"), Eval(every_steps=SAVE, samples=8, max_tokens=4)
    doomed.toy(folder, optim=Optim(steps=STEPS, lr=3e-3, warmup_steps=5), save_every_steps=SAVE, eval=evaluation)
    return folder, doomed.live(folder, LIVES)


def status(lived: tuple[Path, list[int]], name: str) -> list[int]:
    return [status for life, status in zip(LIVES, lived[1], strict=True) if life.name == name]


def words(lived: tuple[Path, list[int]], name: str) -> str:
    said = "".join(doomed.said(lived[0], i) for i, life in enumerate(LIVES) if life.name == name)
    return re.sub(r"^(training |step \d).*\n", "", said, flags=re.MULTILINE)  # how far it is


def metrics(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return from_json(doomed.toy(tmp_path, optim=Optim(steps=8, warmup_steps=2), save_every_steps=4).read_text())


# Resuming


def test_kill_9_changes_nothing(lived):
    """Trap: a killed run resumes elsewhere. Killed before, at, in the middle of and after saving, with 0 to 2 loader
    processes: every step had the samples and the losses, as hex, of the run that was never killed, and the weights at
    the end are the same bits."""
    folder, _ = lived
    assert status(lived, "whole") == [0] and status(lived, "killed") == [-signal.SIGKILL] * 4 + [0]
    whole, killed = (doomed.diary(folder, name) for name in ("whole", "killed"))
    assert len(killed) > len(whole) == STEPS
    assert doomed.mismatches(whole, killed) == 0
    assert doomed.final_weights(folder, "killed") == doomed.final_weights(folder, "whole")


def test_the_comparison_would_notice(lived):
    """Else the test above would not test: a batch less, another loss and a lost step are mismatches."""
    whole = doomed.diary(lived[0], "whole")
    assert doomed.mismatches(whole, whole) == 0 and doomed.mismatches(whole, whole[:-1]) == 1
    shifted = [replace(entry, keys=after.keys) for entry, after in pairwise(whole)]
    assert doomed.mismatches(whole, [*shifted, whole[-1]]) == STEPS - 1
    assert doomed.mismatches(whole, [replace(whole[0], losses=("0x0p+0",) * 4), *whole[1:]]) == 1
    assert len({entry.keys for entry in whole}) == STEPS


def test_no_batch_is_lost_to_prefetching(lived):
    """Trap: a loader without a length is asked for one batch more, and its saved state is one ahead. The step after a
    checkpoint has the samples that follow those of the checkpoint, though two loader processes had read on."""
    table = {entry.step: entry.keys for entry in doomed.diary(lived[0], "whole")}
    firsts = {entry.life: entry for entry in reversed(doomed.diary(lived[0], "killed"))}
    assert [entry.step for entry in firsts.values()][::-1] == [1, 1, SAVE + 1, SAVE + 1, 2 * SAVE + 1]
    assert all(table[entry.step] == entry.keys for entry in firsts.values())


def test_a_rate_that_asks_for_the_length_of_the_run_changes_nothing(lived):
    """Trap: `estimated_stepping_batches` loads the data early, and a loader's state is forgotten then."""
    assert status(lived, "estimate") == [-signal.SIGKILL, 0]
    found = doomed.diary(lived[0], "estimate")
    assert doomed.mismatches(doomed.diary(lived[0], "whole"), found) == 0


def test_the_state_is_one_integer_of_the_data_and_nothing_of_the_loader(lived):
    """Trap: one rank's loader state is saved for all. The checkpoint has the count of batches, what it counts, and the
    health, all of which are the same on every rank; Lightning's place for loaders is empty."""
    folder = checkpoint.folder_of(lived[0] / "runs" / "whole", 3 * SAVE)
    state = checkpoint.verified(folder).tree()
    assert state["StreamData"].keys() == {"consumed", "fingerprint", "health"}
    assert state["StreamData"]["consumed"] == state["global_step"] == 3 * SAVE
    assert not any(state["loops"]["fit_loop"]["state_dict"].get("combined_loader", ()))


def test_scores_and_journal_are_written_once(lived):
    """Trap: what was logged after the last checkpoint is logged again. Each step has one line of each kind, as in the
    run that was never killed, and scores come to the same values."""
    tables = []
    for name in ("whole", "killed", "asked"):
        lines = metrics(lived[0], name)
        scores = [line for line in lines if any(key.startswith("score/") for key in line)]
        assert [line["step"] for line in scores] == [5, 10, 15]
        assert [line["step"] for line in lines if "loss" in line] == [10, 16]
        tables.append([{k: v for k, v in line.items() if k != "seconds"} for line in scores])
    assert tables[0] == tables[1] == tables[2]


def test_a_resume_rewrites_no_checkpoint(run):
    """Trap: the first step after a resume saves again, over the good checkpoint, from the middle of an accumulation.
    Steps accumulate nothing, and the checkpoint that was resumed from stays as it was."""
    stopped(run, at=3)
    before = {path: path.stat().st_mtime_ns for path in checkpoint.folder_of(run.folder, 4).iterdir()}
    fit.train(run, resume=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    files = module.FolderCheckpoints(run, load_tokenizer("bytes"))
    assert fit._trainer(run, None, [], files).accumulate_grad_batches == 1


def stopped(run: Run, at: int) -> None:
    """Train until a signal after step `at`."""

    class Interrupt(callbacks.ProgressBar):
        def after_step(self, trainer, *rest) -> None:
            super().after_step(trainer, *rest)
            if trainer.global_step == at:
                signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(process.Stopped, match=f"stopped at step {at + 1}, as"):
        patch.setattr(fit, "ProgressBar", Interrupt)
        fit.train(run)


def test_a_run_killed_before_its_first_checkpoint_begins_again(lived):
    """Trap: whoever restarts with --resume, as a scheduler does, is refused for want of a checkpoint."""
    first, second = (doomed.diary(lived[0], "killed")[i] for i in (0, 3))
    assert (first.life, first.step) == (1, 1) and (second.life, second.step) == (2, 1)
    assert first.keys == second.keys and first.losses == second.losses


# Ending


def test_sigterm_to_the_group_saves_and_exits_with_75(lived):
    """Trap: after SIGTERM Lightning exits with 0, as if it had finished; and a group's SIGTERM, which `timeout` and
    schedulers send, ends the loader processes that the last step needs."""
    assert status(lived, "asked") == [process.TRY_AGAIN, 0]
    assert "mmfm: stopped at step 7, as asked, and saved; --resume continues" in words(lived, "asked")
    steps = [entry.step for entry in doomed.diary(lived[0], "asked")]
    assert steps == list(range(1, STEPS + 1))
    assert doomed.final_weights(lived[0], "asked") == doomed.final_weights(lived[0], "whole")


def test_a_signal_to_one_rank_stops_all_at_the_same_step(lived):
    """Trap: Lightning's SIGTERM handler runs a collective, which meets those of the step: some runs hang and save
    nothing. Here SIGUSR1 reaches the last rank alone; both stop at the same step, at once, and go on from it."""
    assert status(lived, "pair") == [process.TRY_AGAIN, -signal.SIGKILL, 0]
    assert words(lived, "pair").count("stopped at step 2, as asked") == 1
    found = doomed.diary(lived[0], "pair")
    first = [entry for entry in found if entry.life == found[0].life]
    assert {max(entry.step for entry in first if entry.rank == rank) for rank in (0, 1)} == {2}


def test_two_ranks_killed_are_two_ranks_never_killed(lived):
    """Trap: DDP forms its buckets anew after the first step of a process, and sums in another order. After SIGUSR1 and
    after kill -9 both ranks had the samples and losses of the uninterrupted pair, with the same weights at the end."""
    assert status(lived, "pair-whole") == [0]
    whole, found = (doomed.diary(lived[0], name) for name in ("pair-whole", "pair"))
    assert doomed.mismatches(whole, found) == 0 and len(whole) == 2 * STEPS
    assert doomed.final_weights(lived[0], "pair") == doomed.final_weights(lived[0], "pair-whole")


def test_ddp_keeps_its_buckets(run):
    """Trap: the same, of three ranks and more, where the order of sums shows: the flag that prevents it is set."""
    _, owner = agreeing(run := replace(run, devices=2, parallel=Parallel(strategy="ddp")), Two())
    strategy = fit._strategy(run, owner, Two(), torch.device("cpu"))
    assert strategy._ddp_kwargs == {"find_unused_parameters": True}


def test_each_rank_has_the_threads_that_were_asked_for(run):
    """Trap: with several ranks, and no OMP_NUM_THREADS, Lightning gives each of them all cores."""
    _, owner = agreeing(replace(run, threads=1), Two())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        owner.trainer = fit._trainer(run, None, [], module.FolderCheckpoints(run, load_tokenizer("bytes")))
        owner.setup("fit")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_nan_on_one_rank_stops_both_with_one_line(lived):
    """Trap: parameters become nan and training goes on, or one rank stops and the other waits for ever. The gradient
    is that of all ranks, so both leave the weights alone, and stop at the tenth step; exit status 2, told once."""
    assert status(lived, "nan") == [2]
    assert words(lived, "nan").count("the gradient was not finite 10 steps in a row, by step 9; lower") == 1
    found = doomed.diary(lived[0], "nan")
    assert [sorted(e.step for e in found if e.rank == rank) for rank in (0, 1)] == [list(range(1, 11))] * 2
    before = checkpoint.folder_of(lived[0] / "runs" / "nan", SAVE)
    _, weights = checkpoint.read_model(before)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_an_error_on_one_rank_does_not_hang_the_other(lived):
    """Trap: one rank raises, the other waits in a collective. All processes ended, not with 0, and the one who knows
    why has said so, and the first what to do."""
    assert status(lived, "error") == [1]
    assert "mmfm: as planned" in (said := words(lived, "error"))
    assert "mmfm: rank 1 ended with status 2; what it said, if anything, stands above; --resume continues" in said
    assert max(entry.step for entry in doomed.diary(lived[0], "error")) == 3


def test_an_error_ends_the_loaders(lived):
    """Trap: loader processes that ignore SIGTERM keep a failed run from ending, which waits for them at its exit."""
    assert status(lived, "failing") == [2] and words(lived, "failing") == "mmfm: as planned\n"


def test_no_orphans(lived):
    """Trap: when the first process is killed the other ranks and all loader processes live on, and write into the
    folder beside the run that took its place. Here the other rank is busy for ever; still all output was closed, or
    the lives after this one would never have been lived."""
    assert status(lived, "orphan") == [-signal.SIGKILL]
    assert {entry.rank for entry in doomed.diary(lived[0], "orphan")} == {0, 1}


def test_nothing_of_lightnings_saves(run):
    """Trap: `save_on_exception` hangs with two ranks, `OnExceptionCheckpoint` deletes its file."""
    trainer = fit._trainer(run, None, [], module.FolderCheckpoints(run, load_tokenizer("bytes")))
    assert not [item for item in trainer.callbacks if isinstance(item, Checkpoint)]


# Files


def test_a_checkpoint_is_written_where_it_will_be(run, tmp_path, monkeypatch):
    """Trap: Lightning writes into $TMPDIR and moves, without fsync: on another file system a kill leaves a part. Here
    no temporary folder exists, every file and the folder are synchronised, and only then there is a new name."""
    synced: list[str] = []
    fsync = os.fsync

    def noting(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        assert not checkpoint.steps_of(tmp_path) or synced[-1].endswith("checkpoints")
        fsync(handle)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    monkeypatch.setattr(os, "fsync", noting)
    model = {"x": torch.zeros(2)}
    checkpoint.save(tmp_path, 3, toy_run(), load_tokenizer("bytes"), model, {"global_step": 3})
    names = [Path(name).name for name in synced]
    assert names[-3:] == [checkpoint.MANIFEST, ".step-00000003.tmp", "checkpoints"] and len(names) == 8
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_full_disk_does_not_end_training(run, monkeypatch, capfd):
    """Trap: a checkpoint that cannot be written ends the run. Training goes on to the next, and says so each time; at
    the last step nothing more is to come, and the error is raised."""
    whole, failing = checkpoint.write_file, {4}

    def filling(path: Path, data: Any) -> Sum:
        if any(f"step-{step:08d}" in str(path) for step in failing):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path, data)

    monkeypatch.setattr(checkpoint, "write_file", filling)
    fit.train(run)
    assert checkpoint.steps_of(run.folder) == [8]
    said = capfd.readouterr().err
    assert "could not save" in said and "there is no earlier one" in said and "training goes on" in said
    failing |= {8}
    with pytest.raises(UserError, match=r"could not save .*step-00000008 \(No space left.*free some space"):
        fit.train(run, force=True)


def test_older_checkpoints_stay_until_a_new_one_is_verified(run, monkeypatch, capfd):
    """Trap: the good one is gone before the new one is known to be good. Of `keep_checkpoints=1` the older stays where
    the bytes of the newer do not come back from the disk as they were written, which is no checkpoint then."""
    run = replace(run, keep_checkpoints=1)
    write = checkpoint.write_file

    def rotting(path: Path, data: Any) -> Sum:
        written = write(path, data)
        if path.name == checkpoint.MODEL and "step-00000008" in str(path):
            flip(path)
        return written

    monkeypatch.setattr(checkpoint, "write_file", rotting)
    with pytest.raises(UserError, match=r"could not save \S+8 \(\S+step-00000008/model.safetensors is damaged"):
        fit.train(run)
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-00000004"]
    monkeypatch.undo()
    fit.train(run, resume=True)
    assert checkpoint.newest_whole(run.folder)[0] == 8


def test_a_checkpoint_that_rots_is_told_and_set_aside(run, capfd):
    """One bit of the newest changes later: a resume says so and uses the one before."""
    fit.train(run)
    flip(checkpoint.folder_of(run.folder, 8) / checkpoint.MODEL)
    capfd.readouterr()
    fit.train(run, resume=True)
    assert "step-00000008/model.safetensors is damaged" in (said := capfd.readouterr().err)
    assert "step 4 is used instead" in said
    assert checkpoint.newest_whole(run.folder)[0] == 8
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == [
        "step-00000004",
        "step-00000008",
        "step-00000008.aside",
    ]


def flip(path: Path) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_a_killed_process_left_is_removed_at_the_next_start(lived, run):
    """Trap: half a checkpoint stays for ever. Under the lock whatever is temporary is a dead process's; the run that
    was killed while it saved has nothing left of it."""
    assert not list((lived[0] / "runs" / "killed").rglob("*.tmp"))
    left = [run.folder / "checkpoints" / ".step-00000004.99.tmp" / "model.safetensors", run.folder / ".run.json.9.tmp"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    fit.train(run)
    assert not any(path.exists() for path in left)


def test_saving_by_the_clock(run, monkeypatch):
    """Of a clock that moves a minute for each look, a checkpoint falls due after every second step; one written for
    its number of steps counts, too."""
    minutes = iter(range(1_000))

    class Ticking(callbacks.StopConsensus):
        def __init__(self, *parts) -> None:
            super().__init__(*parts, clock=lambda: 60.0 * next(minutes))

    monkeypatch.setattr(fit, "StopConsensus", Ticking)
    fit.train(replace(run, save_every_steps=5, save_every_minutes=2.0, keep_checkpoints=100))
    assert checkpoint.steps_of(run.folder) == [2, 4, 5, 7, 8]


def test_a_longer_schedule_is_another_run(run):
    """Trap: a resume with more steps silently bends the rate's schedule. It is refused, with the reason."""
    stopped(run, at=3)
    with pytest.raises(UserError, match=r"optim.steps was 8 and is 9 now \(the rate's schedule ends there; --resume"):
        fit.train(replace(run, optim=replace(run.optim, steps=9)), resume=True)


class Two:
    """The first of two ranks; `other` gives what the second one says."""

    rank, size = 0, 2

    def __init__(self, *other: list[int]) -> None:
        self.other, self.asked = list(other), 0

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("not here")

    def reduce_scatter_sum(self, x: torch.Tensor, counts: list[int]) -> torch.Tensor:
        raise AssertionError("nor here")

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        raise AssertionError("nor here")

    def all_reduce_sum(self, x: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        return x + torch.tensor(self.other.pop(0))


class Steps(L.Trainer):
    """As much of a Trainer as `StopConsensus` asks for."""

    global_step, should_stop = 0, False

    def __init__(self) -> None:
        pass


def agreeing(run: Run, ranks: Two) -> tuple[callbacks.StopConsensus, module.JointModule]:
    tokenizer = load_tokenizer("bytes")
    owner = module.JointModule(run, fit.build(run.model, tokenizer.size, run.contrastive))
    owner.objectives.ranks = ranks
    return callbacks.StopConsensus(run, module.StreamData(run, tokenizer), process.Signals(), clock=lambda: 0.0), owner


def silence(agree: callbacks.StopConsensus, first: int = 0) -> list[int]:
    """What a rank says that was asked nothing and read nothing, with one number changed."""
    return [0] * first + [1] + [0] * (3 + len(agree.data.open().health.drain()) - first)


def test_ranks_meet_after_every_step(run):
    """Trap: who asks for an end waits for ten steps, and a scheduler kills first. There is one small sum in each step;
    a checkpoint is written where one falls due, and at the step at which the other rank was asked to stop."""
    run = replace(run, optim=Optim(steps=30, warmup_steps=2), save_every_steps=8)
    ranks, trainer = Two(*[[0]] * 10), Steps()
    agree, owner = agreeing(run, ranks)
    quiet = [0] * len(silence(agree))
    ranks.other = [quiet] * 12 + [silence(agree, 1)]
    saved = []
    for trainer.global_step in range(1, 14):
        assert not trainer.should_stop
        agree.after_step(trainer, owner, {})
        saved += [trainer.global_step] * agree.save
    assert ranks.asked == 13 and saved == [8, 13] and trainer.should_stop and agree.stop == signal.SIGTERM


@pytest.mark.parametrize(("place", "stop"), [(0, signal.SIGINT), (1, signal.SIGTERM), (2, None)])
def test_what_the_other_rank_asks_is_done(run, place, stop):
    """Trap: one rank stops or saves, the other does not know. Ctrl-C, SIGTERM or a clock there saves here, too."""
    ranks = Two()
    agree, owner = agreeing(run, ranks)
    said = silence(agree, place)
    said[1] |= place == 0
    ranks.other.append(said)
    trainer = Steps()
    trainer.global_step = callbacks.LOG_EVERY_STEPS
    agree.after_step(trainer, owner, {})
    assert agree.save and agree.stop == stop and trainer.should_stop == (stop is not None)


def test_what_the_other_rank_could_not_read_stops_this_one(run):
    """Trap: a rank is over the budget and leaves, the others wait for it. What counts is the sum, and all stop."""
    ranks = Two()
    agree, owner = agreeing(replace(run, data=replace(run.data, max_bad_fraction=0.001)), ranks)
    said = silence(agree)
    said[0], said[3], said[5] = 0, 100, 11  # samples of the first source, and those of its first code
    ranks.other.append(said)
    trainer = Steps()
    trainer.global_step = callbacks.LOG_EVERY_STEPS
    agree.after_step(trainer, owner, {})
    assert "11 of the last 100 samples of 'image' cannot be used" in str(owner.failure)
    assert trainer.should_stop and not agree.save
