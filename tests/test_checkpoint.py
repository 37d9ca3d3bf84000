"""Checkpoints: what is written is what is read, or one line says why not, and the last good one stays."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import PAIRS, toy_config, toy_run

from mmfm.config import UserError, serialization
from mmfm.inference.load import load_model
from mmfm.models import checkpoint
from mmfm.models.model import build
from mmfm.models.weights import adopt
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.runtime.files import Sum, manifest
from mmfm.runtime.foreign import UNSAFE, refuse_foreign

TOKENIZER = load_tokenizer("bytes")


def small_model(**changes):
    torch.manual_seed(0)
    return build(toy_config(**changes), TOKENIZER.size, PAIRS)


def saved(folder: Path, step: int = 5, train=None) -> Path:
    return checkpoint.save(
        folder, step, toy_run(), TOKENIZER, small_model().state_dict(), train or {"global_step": step}
    )


def test_a_model_comes_back_bit_by_bit(tmp_path):
    """Weights, configuration and tokenizer, from the folder of the run and from that of the checkpoint."""
    folder = saved(tmp_path)
    for where in (tmp_path, folder):
        model = load_model(where)
        torch.testing.assert_close(dict(model.core.state_dict()), dict(small_model().state_dict()), rtol=0, atol=0)
        assert model.run == toy_run() and model.tokenizer.encode("é") == TOKENIZER.encode("é") and not model.training


def test_any_training_state_comes_back():
    """Nested dicts with integer keys, lists, None and tensors of every kind survive JSON and safetensors."""
    tree = {
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)}}, "flag": None}],
        "loops": {"epoch": {"done": True, "n": 2**40}, "empty": {}, "list": []},
        "bf16": torch.ones(2, dtype=torch.bfloat16),
    }
    json_tree, tensors = checkpoint.split(tree)
    back = checkpoint.join(json.loads(json.dumps(json_tree)), tensors.__getitem__)
    torch.testing.assert_close(back, tree, rtol=0, atol=0)
    assert list(back["optimizer_states"][0]["state"]) == [0]


def test_an_object_is_refused_by_name():
    with pytest.raises(TypeError, match=r"/callbacks/x: a PosixPath cannot be kept"):
        checkpoint.split({"callbacks": {"x": Path("a")}})


@pytest.mark.parametrize("name", ["model.safetensors", "run.json", "tokenizer.json"])
def test_a_cut_file_is_named(tmp_path, name):
    """One byte less: refused before anything is built from it."""
    path = saved(tmp_path) / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{name} is damaged: \d+ bytes where \d+ were written.*another step"):
        load_model(tmp_path)


def test_a_cut_state_of_training_stops_who_goes_on_training(tmp_path):
    """It is not read by who only uses the model."""
    path = saved(tmp_path) / "train.json"
    path.write_bytes(path.read_bytes()[:-1])
    load_model(tmp_path)
    with pytest.raises(UserError, match=r"train\.json is damaged"):
        checkpoint.newest_whole(tmp_path)


def test_one_flipped_bit_is_found(tmp_path):
    path = saved(tmp_path) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="is damaged"):
        load_model(tmp_path)


def test_the_newest_whole_one_is_chosen(tmp_path):
    """A damaged step 9 does not hide step 5; asked for by number, it is refused."""
    saved(tmp_path, 5)
    (saved(tmp_path, 9) / "model.safetensors").write_bytes(b"")
    assert checkpoint.newest_whole(tmp_path)[0] == 5
    with pytest.raises(UserError, match="damaged"):
        load_model(tmp_path, step=9)


def test_weights_of_another_configuration_are_refused_with_the_difference(tmp_path):
    """The first tensor that differs is named with both shapes."""
    folder = saved(tmp_path)
    _, found = checkpoint.read_model(folder)
    with pytest.raises(
        UserError, match=r"another configuration: heads.image.weight has shape \(8, 16\) there and \(4, 16\)"
    ):
        adopt(small_model(embed_dim=4), found, str(folder))


@pytest.mark.parametrize("where", ["nowhere", "empty"])
def test_no_run_there_says_what_to_do(tmp_path, where):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"(is no folder of a run|has no checkpoint); .*mmfm train"):
        load_model(tmp_path / where)


@pytest.mark.parametrize("failing", [0, 3, 5])
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, failing):
    """The disk fills at any of the files: one line with what is kept, no rubbish left, the old one loads."""
    saved(tmp_path, 5)
    calls = iter(range(100))
    whole = checkpoint.write_file

    def filling(path: Path, data: Any) -> Sum:
        if next(calls) == failing:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path, data)

    monkeypatch.setattr(checkpoint, "write_file", filling)
    with pytest.raises(UserError, match=r"No space left.*last good checkpoint is .*step-00000005; free some space"):
        saved(tmp_path, 9)
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000005"]
    assert checkpoint.newest_whole(tmp_path)[0] == 5


@pytest.mark.parametrize(("every", "left"), [(0, [4, 10]), (2, [2, 4, 10]), (3, [3, 4, 10]), (20, [4, 10])])
def test_pruning_keeps_the_newest_and_every_nth(tmp_path, every, left):
    for step in (1, 2, 3, 4, 10):
        checkpoint.folder_of(tmp_path, step).mkdir(parents=True)
    checkpoint.prune(tmp_path, 2, every)
    assert checkpoint.steps_of(tmp_path) == left


def test_the_newest_is_skipped_aloud(tmp_path, capsys):
    """Two damaged checkpoints are named before an older one is used; whoever asks for the whole one hears nothing."""
    saved(tmp_path, 5)
    assert checkpoint.newest_whole(tmp_path)[0] == 5 and not capsys.readouterr().err
    (saved(tmp_path, 8) / "train.json").unlink()
    (saved(tmp_path, 9) / "model.safetensors").write_bytes(b"")
    assert checkpoint.newest_whole(tmp_path)[0] == 5
    first, second = capsys.readouterr().err.splitlines()
    assert "step-00000009/model.safetensors is damaged" in first and first.endswith("step 5 is used instead")
    assert "step-00000008 is no whole checkpoint" in second


def test_a_checkpoint_of_the_same_step_is_put_aside(tmp_path):
    """A name is never written over: what had it is kept beside until the next time."""
    (saved(tmp_path) / "extra").touch()
    checkpoint.manifest_of(saved(tmp_path)).verify()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000005", "step-00000005.aside"] and checkpoint.steps_of(tmp_path) == [5]
    assert (tmp_path / "checkpoints" / names[1] / "extra").exists()


@pytest.mark.parametrize("name", ["../../secret", "/secret", "more.safetensors"])
def test_a_manifest_names_the_known_files_only(tmp_path, name):
    """A hostile list cannot make a checkpoint read outside of its folder."""
    folder = saved(tmp_path)
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    manifest["files"][name] = {"bytes": 1, "crc32": 0}
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"should not lack or list"):
        checkpoint.verified(folder)


@pytest.mark.parametrize("text", ["[", "{}", '{"map": [["a", {"tensor": "none"}]]}', '{"list": 5}', "[" * 100_000])
def test_a_hostile_state_is_refused(tmp_path, text):
    found = checkpoint.verified(saved(tmp_path))
    found.files[checkpoint.STATE] = text.encode()
    with pytest.raises(UserError, match=r"step-00000005/train.json holds no state of training"):
        found.tree()


def test_what_could_execute_is_refused_unopened(tmp_path):
    """Addresses, .ckpt files and the folders of torch.distributed.checkpoint, whose .metadata is a pickle."""
    (tmp_path / "last.ckpt").write_bytes(b"")
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded" / ".metadata").write_bytes(b"")
    words = {
        "last.ckpt": "last.ckpt is a file, and files such as .ckpt can execute",
        "sharded": "was written by torch.distributed.checkpoint, which is a pickle that can execute",
    }
    for name, told in words.items():
        with pytest.raises(UserError, match=told):
            load_model(tmp_path / name)
    for address in ("https://example.com/run", "s3://bucket/run", "hf://a/b"):
        with pytest.raises(UserError, match=r"is an address; give a local folder"):
            load_model(address)
        with pytest.raises(UserError, match=r"is an address; give a local folder"):
            refuse_foreign(Path(address))
    refuse_foreign(tmp_path)


def test_an_environment_that_unpickles_is_refused(tmp_path, monkeypatch):
    """TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD makes torch.load execute whatever its caller asked for."""
    saved(tmp_path)
    monkeypatch.setenv(UNSAFE, "1")
    with pytest.raises(UserError, match=r"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: .*; unset it"):
        load_model(tmp_path)


def test_nothing_is_unpickled(tmp_path):
    """A checkpoint folder holds safetensors and JSON only, and a pickle in place of either is refused unread."""
    folder = saved(tmp_path)
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (marker.touch, ())

    torch.save({"x": Evil()}, folder / checkpoint.MODEL)
    names = [path.name for path in folder.iterdir() if path.name != checkpoint.MANIFEST]
    (folder / checkpoint.MANIFEST).write_bytes(manifest({name: folder / name for name in names}))
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load_model(folder)
    assert not marker.exists()


def test_a_run_with_an_unknown_key_is_refused(tmp_path):
    """The run.json of a newer mmfm is not half understood."""
    text = serialization.to_json(replace(toy_run(), name="x")).replace('"seed"', '"sead"')
    with pytest.raises(UserError, match="unknown key sead"):
        serialization.from_json(text)
