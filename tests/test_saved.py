"""A run that is exported, trained further and saved by transformers comes back whole, and a run goes on with it."""

import shutil
from pathlib import Path

import pytest
import torch
from test_bundle import trained
from toys import toy_run
from transformers import AutoModel, AutoProcessor

import mmfm
from mmfm.__main__ import main
from mmfm.config import UserError
from mmfm.export import hf
from mmfm.export.saved import import_saved
from mmfm.inference import bundle
from mmfm.inference.bundle.without_paths import TOKENIZER
from mmfm.preprocessing.tokenizer import train_tokenizer

TEXTS = ["a b", "forty-two"]
LETTERS = train_tokenizer(["a b forty two abc"] * 9, 260)


def tuned(folder: Path, out: Path) -> torch.nn.Module:
    """A step of gradient descent in transformers' own class, and what its Trainer saves."""
    hf.register()
    face, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    given = processor(text=TEXTS, return_tensors="pt", padding=True)
    face.train()
    face.get_text_features(given["input_ids"]).pooler_output.sum().backward()
    with torch.no_grad():
        for parameter in face.parameters():
            parameter -= 0.1 * (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    for part in (face, processor):
        part.save_pretrained(out)
    return face.eval()


def test_a_model_that_transformers_trained_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = trained()
    start = mmfm.save_bundle(before, tmp_path / "start")
    face = tuned(start, tmp_path / "tuned")
    with pytest.raises(
        UserError, match=r"tuned has no files.json: .*; `mmfm import \S+tuned OUT` makes a bundle of it"
    ):
        mmfm.load(tmp_path / "tuned")
    assert main(["import", str(tmp_path / "tuned"), str(tmp_path / "back")]) == 0
    assert capsys.readouterr().out.strip().endswith("back")
    model = mmfm.load(tmp_path / "back", device="cpu")
    theirs = {name.removeprefix("core."): value for name, value in face.state_dict().items()}
    mine = model.core.state_dict()
    assert mine.keys() == before.core.state_dict().keys()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert not torch.equal(mine["heads.text.weight"], before.core.state_dict()["heads.text.weight"])
    run = toy_run(start=str(tmp_path / "back"))
    bundle.check_start(run)
    core = trained().core
    bundle.start_whole(core, run, model.tokenizer)
    assert all(torch.equal(value, mine[name]) for name, value in core.state_dict().items())


def test_its_tokenizer_is_copied_beside_it(tmp_path: Path) -> None:
    """transformers saves a tokenizer of other ids; without ours, or with another, nothing is written."""
    letters = tmp_path / "letters.json"
    letters.write_text(LETTERS.to_json())
    start = mmfm.save_bundle(trained(LETTERS, tokenizer=str(letters)), tmp_path / "start")
    tuned(start, tmp_path / "tuned")
    with pytest.raises(UserError, match=rf"{TOKENIZER} is missing, .*; copy it from the exported folder"):
        import_saved(tmp_path / "tuned", tmp_path / "back")
    (tmp_path / "tuned" / TOKENIZER).write_text(LETTERS.to_json() + " ")
    with pytest.raises(UserError, match=rf"{TOKENIZER} is not the file that the model was exported with"):
        import_saved(tmp_path / "tuned", tmp_path / "back")
    shutil.copy(start / TOKENIZER, tmp_path / "tuned")
    assert not (tmp_path / "back").exists()
    model = mmfm.load(import_saved(tmp_path / "tuned", tmp_path / "back"), device="cpu")
    assert model.tokenizer.encode("forty-two") == LETTERS.encode("forty-two")
    (tmp_path / "tuned" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no \*.safetensors"):
        import_saved(tmp_path / "tuned", tmp_path / "again")
