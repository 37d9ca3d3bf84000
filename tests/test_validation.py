"""Validation losses are those of the objectives on the samples themselves; the best checkpoint is kept and named."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import toy_config

import mmfm
from mmfm.config import Contrastive, Data, Eval, Generative, Optim, Run, Source, UserError
from mmfm.models.checkpoint import steps_of
from mmfm.models.model import build
from mmfm.objectives.joint import Objectives
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.training import callbacks, fit
from mmfm.training.validation import validation_batches, validation_losses


@pytest.fixture
def run(tmp_path, write_shard, encode_image) -> Run:
    draw = np.random.default_rng(0)
    names = (b"zero", b"one", b"two", b"three")
    pictures = {
        f"{i:02d}": {"png": encode_image(draw.integers(0, 255, (8, 16), dtype=np.uint8)), "txt": names[i % 4]}
        for i in range(16)
    }
    texts = {f"{i:02d}": {"txt": names[i % 4]} for i in range(16, 20)}
    write_shard(tmp_path / "data" / "image.tar", pictures | texts)
    sources = Source(shards=str(tmp_path / "data" / "image.tar"), modalities=("text",))
    return Run(
        name="toy",
        out=str(tmp_path),
        model=toy_config(audio=None, dropout=0.3),
        data=Data(train=(sources,), val=str(tmp_path / "data"), batch_size=8),
        contrastive=(Contrastive(pair=("image", "text")),),
        generative=(Generative(task="image>text", weight=0.5), Generative(task=">text")),
        optim=Optim(steps=8, warmup_steps=1),
        eval=Eval(every_steps=2, samples=20, batch_size=20),
        save_every_steps=2,
        keep_checkpoints=1,
        accelerator="cpu",
    )


def test_validation_leaves_each_part_in_the_mode_that_it_had(run):
    """A part that was put to rest by hand among others that train still is."""
    tokenizer = load_tokenizer("bytes").limited(run)
    objectives = Objectives(build(run.model, tokenizer.size, run.contrastive), run).train()
    objectives.model.trunk.blocks[0].eval()
    before = [part.training for part in objectives.modules()]
    validation_losses(objectives, run, tokenizer)
    assert [part.training for part in objectives.modules()] == before and len(set(before)) == 2


def test_validation_losses_are_those_of_the_samples(run):
    """In one batch: those of the objectives without dropout; in several, means by samples that hold what is needed."""
    tokenizer = load_tokenizer("bytes").limited(run)
    objectives = Objectives(build(run.model, tokenizer.size, run.contrastive), run).train()
    found = validation_losses(objectives, run, tokenizer)
    (batch,) = validation_batches(run, tokenizer)
    assert objectives.training and batch.size == 20
    expected = {name: float(loss.detach()) for name, loss in objectives.eval()(batch).items()}
    assert {f"val_loss/{name}": pytest.approx(loss) for name, loss in expected.items()} == {
        name: loss for name, loss in found.items() if name != "val_loss"
    }
    total = expected["image-text"] + 0.5 * expected["image>text"] + expected[">text"]
    assert found["val_loss"] == pytest.approx(total)
    small = replace(run, eval=replace(run.eval, batch_size=12))
    first, second = (objectives(batch) for batch in validation_batches(small, tokenizer))
    split = validation_losses(objectives, small, tokenizer)
    mean = (12 * first["image>text"] + 4 * second["image>text"]) / 16  # the last four have no picture
    assert split["val_loss/image>text"] == pytest.approx(float(mean.detach()))


def test_the_best_checkpoint_is_kept(run, monkeypatch, capfd):
    """Planted losses: the second step scored is the best, and stays beside the newest; it can be opened by its name."""
    planted = iter([3.0, 1.0, 2.0, float("nan")])
    monkeypatch.setattr(callbacks, "validation_losses", lambda *_: {"val_loss": next(planted)})
    run = replace(run, best="val_loss")
    fit.train(run)
    assert "parameters, in fp32 on cpu" in capfd.readouterr().err
    assert steps_of(run.folder) == [4, 8]
    best = json.loads((run.folder / "checkpoints" / "best.json").read_text())
    assert best == {"step": 4, "metric": "val_loss", "value": 1.0}
    assert mmfm.load(run.folder, "best").checkpoint.name == "step-00000004"
    assert mmfm.load(run.folder).checkpoint.name == "step-00000008"


def test_a_best_that_is_not_measured(run):
    with pytest.raises(UserError, match="val_loss/image>text"):
        fit.train(replace(run, best="accuracy"))
    with pytest.raises(UserError, match="no best checkpoint"):
        mmfm.load(run.folder, "best")


def test_the_report_shows_them(run):
    from mmfm.report.report import write_report

    fit.train(run)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val_loss/>text" in line] == [2, 4, 6, 8]
    assert "Validation loss by objective" in write_report(run.folder).read_text()
    assert torch.isfinite(torch.tensor(lines[-1]["val_loss"]))
