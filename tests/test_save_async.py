"""Checkpoints that are written while training goes on: what was there when they fell due, one at a time, and whatever
goes wrong is said by the step that finds out."""

import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import doomed
import pytest
import torch

from mmfm.config import Optim, Parallel, Run, UserError
from mmfm.config.serialization import from_json
from mmfm.models import checkpoint
from mmfm.runtime.files import Sum
from mmfm.runtime.tensor_files import Part
from mmfm.training import fit
from mmfm.training.saving import Staging

DUE, LONGEST_S = 2, 60.0


@pytest.fixture
def run(tmp_path: Path) -> Run:
    path = doomed.toy(tmp_path, optim=Optim(steps=6, warmup_steps=2), save_every_steps=DUE, keep_checkpoints=9)
    return replace(from_json(path.read_text()), parallel=Parallel(save_async=True))


def step_in(path: Path) -> int:
    """The step whose checkpoint a file is of; 0: of none."""
    name = path.parent.name
    return int(name[6:14]) if name.startswith(".step-") else 0


class Patched:
    """A training whose files wait, fail or are counted as the test has it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.went_on, self.fail, self.wait = threading.Event(), set[int](), set[int]()
        self.active: list[set[tuple[int, int]]] = []
        self.writing, self.threads = list[tuple[int, int]](), set[str]()
        patched, whole = self, checkpoint.write_file

        def write(path: Path, data: Any) -> Sum:
            step = step_in(path)
            if step and path.name != checkpoint.MANIFEST:
                patched.threads.add(threading.current_thread().name)
                if step in patched.wait:
                    assert patched.went_on.wait(LONGEST_S), "training did not go on meanwhile"
                if step in patched.fail:
                    raise OSError(28, os.strerror(28))
            patched.writing.append((step, threading.get_ident()))
            patched.active.append(set(patched.writing))
            written = whole(path, data)
            patched.writing.remove((step, threading.get_ident()))
            return written

        class Bar(fit.ProgressBar):
            def after_step(self, trainer: Any, module: Any, losses: Mapping[str, torch.Tensor]) -> None:
                super().after_step(trainer, module, losses)
                if trainer.global_step == DUE + 1:
                    patched.went_on.set()

        monkeypatch.setattr(checkpoint, "write_file", write)
        monkeypatch.setattr(fit, "ProgressBar", Bar)


def content(run: Run, step: int) -> dict[str, torch.Tensor]:
    found = checkpoint.verified(checkpoint.folder_of(run.folder, step))
    return {name: tensor for one in found.tensors.values() for name, tensor in one.read_all().items()}


def test_a_checkpoint_is_of_the_step_at_which_it_fell_due(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are not written before a further step is done, and still each number of weights and moments is that of
    a run that waits for its checkpoints; a thread wrote them, and the last one is there when training ends."""
    fit.train(plain := replace(run, name="plain", parallel=Parallel()))
    patched = Patched(monkeypatch)
    patched.wait = {DUE}
    fit.train(run)
    assert checkpoint.steps_of(run.folder) == checkpoint.steps_of(plain.folder) == [2, 4, 6]
    for step in (2, 4, 6):
        torch.testing.assert_close(content(run, step), content(plain, step), rtol=0, atol=0)
    assert threading.main_thread().name not in patched.threads and patched.threads


def test_one_is_written_at_a_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Due at every step: the one before is whole before the next begins."""
    patched = Patched(monkeypatch)
    fit.train(replace(run, save_every_steps=1))
    assert checkpoint.steps_of(run.folder) == [1, 2, 3, 4, 5, 6]
    assert max(len({step for step, _ in active if step}) for active in patched.active) == 1


def test_a_failure_is_said_and_training_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The thread's disk is full: the step that finds out says so, once, and the next checkpoint is whole; at the last
    step it ends the run, with the last good one named."""
    patched = Patched(monkeypatch)
    patched.fail = {DUE}
    fit.train(run)
    assert checkpoint.steps_of(run.folder) == [4, 6]
    said = " ".join(capfd.readouterr().err.split())
    assert said.count("could not save") == said.count("until then training goes on") == 1
    patched.fail, ending, ends = {6}, fit._ending, []
    monkeypatch.setattr(fit, "_ending", lambda *how: ends.append(ending(*how)) or ends[-1])
    with pytest.raises(
        UserError, match=r"could not save \S+6 \(No space left.*last good checkpoint is \S+step-00000004"
    ):
        fit.train(run, force=True)
    assert isinstance(ends[0], UserError)  # as of what all ranks know, so that the first alone says it
    assert not list(run.folder.rglob("*.tmp"))


def test_it_goes_on_from_one_to_the_bit(run: Run) -> None:
    fit.train(run)
    last = content(run, 6)
    checkpoint.shutil.rmtree(checkpoint.folder_of(run.folder, 6))
    fit.train(run, resume=True)
    torch.testing.assert_close(content(run, 6), last, rtol=0, atol=0)


def test_copies_are_of_then_and_their_memory_is_used_again() -> None:
    """A part keeps its place; what has another shape gets other memory."""
    staging, tensors = Staging(), {"a": torch.ones(3), "b": torch.ones(2, 2).T}
    held = {"model": {"a": tensors["a"], "b": Part(tensors["b"], (2, 0), (4, 2))}}
    first = staging.copies(held)
    places = {key: buffer.data_ptr() for key, buffer in staging.buffers.items()}
    for tensor in tensors.values():
        tensor.mul_(5)
    assert float(first["model"]["a"].sum()) == 3 and first["model"]["b"][1:] == ((2, 0), (4, 2))
    second = staging.copies(held)
    assert {key: buffer.data_ptr() for key, buffer in staging.buffers.items()} == places
    assert float(second["model"]["a"].sum()) == 15 and float(second["model"]["b"].tensor.sum()) == 20
    other = staging.copies({"model": {"a": torch.zeros(4)}})
    assert other["model"]["a"].shape == (4,) and len(staging.buffers) == 1
