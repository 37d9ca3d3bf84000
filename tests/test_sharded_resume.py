"""`mmfm train` with sharded weights, killed after a checkpoint: as many ranks go on to the bit, one up to rounding,
and whoever uses the model reads the same folder."""

import signal
from dataclasses import replace
from pathlib import Path

import doomed
import pytest
import torch
from doomed import Life

import mmfm
from mmfm.config import Ema, Optim, Parallel
from mmfm.config.serialization import from_json
from mmfm.inference import bundle
from mmfm.models import checkpoint
from mmfm.models.model import build

STEPS, SAVE = 6, 3
GO_ON = {"two": 2, "one": 1}
KILLED = Life(devices=2, step=SAVE, moment="saved")
LIVES = [Life(name="whole", devices=2)]
for name, ranks in GO_ON.items():
    LIVES += [replace(KILLED, name=name), Life(name=name, devices=ranks)]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lives")
    parallel = Parallel(strategy="fsdp")
    optim = Optim(steps=STEPS, lr=3e-3, warmup_steps=2, optimizer="muon", ema=Ema(decay=0.9))
    doomed.toy(folder, optim=optim, save_every_steps=SAVE, parallel=parallel)
    statuses = doomed.live(folder, LIVES)
    assert statuses == [0, *[-signal.SIGKILL, 0] * len(GO_ON)], [doomed.said(folder, n) for n in range(len(LIVES))]
    return folder


def newest(folder: Path, name: str) -> Path:
    return checkpoint.folder_of(folder / "runs" / name, STEPS)


@pytest.mark.parametrize("name", GO_ON)
def test_a_killed_run_goes_on_with_any_number_of_ranks(lived: Path, name: str) -> None:
    """From files of two ranks: two have the bits of a run that was never killed, one has its weights up to
    rounding, in single precision. Each writes as many files as it has ranks."""
    _, found = checkpoint.read_model(newest(lived, name))
    _, expected = checkpoint.read_model(newest(lived, "whole"))
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if name == "two" else 1e-3)
    assert len(list(newest(lived, name).glob("model*.safetensors"))) == GO_ON[name]
    if name == "two":
        assert doomed.final_weights(lived, name) == doomed.final_weights(lived, "whole")
        assert doomed.mismatches(doomed.diary(lived, "whole"), doomed.diary(lived, name)) == 0


def test_the_model_is_used_and_started_from_as_any_other(lived: Path) -> None:
    """`mmfm.load` of the run, its moving average, and another model that starts with its weights."""
    folder = lived / "runs" / "two"
    model = mmfm.load(folder)
    assert model.checkpoint == newest(lived, "two") and model.encode_text(["one"]).isfinite().all()
    average = mmfm.load(folder, ema=True).core.state_dict()
    moved = [name for name, tensor in model.core.state_dict().items() if not torch.equal(tensor, average[name])]
    assert len(moved) > len(average) / 2 and all(tensor.isfinite().all() for tensor in average.values())
    run = from_json((folder / "run.json").read_text())
    other = build(run.model, model.tokenizer.size, run.contrastive)
    (line,) = bundle.start_whole(other, replace(run, name="other", start=str(folder)), model.tokenizer)
    assert line.startswith(f"starts from {folder}")
    torch.testing.assert_close(dict(other.state_dict()), dict(model.core.state_dict()), rtol=0, atol=0)
