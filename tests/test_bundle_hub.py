"""The hub, played by a folder: only what is wanted travels, and each way of failing is one line."""

import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from test_bundle import trained

import mmfm
from mmfm.config import MODALITIES, UserError

AUDIO = {"config.json", "files.json", "golden.safetensors", "mmfm_tokenizer.json"}
AUDIO |= {"audio.safetensors", "trunk.safetensors"}


class Hub:
    """What huggingface_hub does, with a folder for the hub and another for the cache."""

    def __init__(self, folder: Path) -> None:
        self.there, self.cache, self.private = folder / "there", folder / "cache", False

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.private = private
        (self.there / repo_id).mkdir(parents=True, exist_ok=True)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, ignore_patterns: list[str]) -> str:
        shutil.copytree(
            folder_path, self.there / repo_id, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*ignore_patterns)
        )
        return f"hub://{repo_id}"

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str]) -> str:
        for path in (self.there / repo_id).iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                (self.cache / repo_id).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, self.cache / repo_id)
        return str(self.cache / repo_id)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    made = Hub(tmp_path)
    for name in ("create_repo", "upload_folder", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(made, name))
    return made


def raising(why: Exception) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise why

    return refuse


def test_a_model_goes_there_and_back(hub):
    """A model is pushed as a bundle; one encoder fetches its own files, the whole model fetches the others too."""
    model = trained()
    assert mmfm.push_to_hub(model, "lab/toy", private=True) == "hub://lab/toy" and hub.private
    encoder = mmfm.load_encoder("audio", "lab/toy")
    assert {path.name for path in (hub.cache / "lab/toy").iterdir()} == AUDIO
    wave = torch.randn(2, 3_200, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoder.embed(wave).detach(), model.encode_audio(wave), rtol=0, atol=0)
    whole = mmfm.from_pretrained("lab/toy")
    torch.testing.assert_close(dict(whole.core.state_dict()), dict(model.core.state_dict()), rtol=0, atol=0)
    assert "library_name: transformers" in (hub.there / "lab/toy/README.md").read_text()


def test_a_folder_goes_up_as_it_is(hub, tmp_path):
    """A bundle that was written before is uploaded to the byte; some of its modalities alone cannot be."""
    folder = mmfm.save_bundle(trained(), tmp_path / "toy", ("image",))
    mmfm.push_to_hub(folder, "lab/eyes")
    there = {path.name: path.read_bytes() for path in (hub.there / "lab/eyes").iterdir()}
    assert there == {path.name: path.read_bytes() for path in folder.iterdir()} and "audio.safetensors" not in there
    with pytest.raises(UserError, match="is a bundle already and goes up whole"):
        mmfm.push_to_hub(folder, "lab/eyes", ("image",))
    with pytest.raises(UserError, match="'eyes' is no name on the hub; give owner/name"):
        mmfm.push_to_hub(folder, "eyes")


def test_a_folder_here_comes_before_the_hub(hub, tmp_path, monkeypatch):
    """What exists on this machine is never asked of the hub, even where its name could be one there."""
    mmfm.save_bundle(trained(), tmp_path / "lab/toy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(AssertionError()))
    assert all(mmfm.load_encoder(modality, "lab/toy").width == 16 for modality in MODALITIES)


def test_without_a_network_it_says_what_to_fetch(monkeypatch, tmp_path):
    """HF_HUB_OFFLINE itself, unimitated: the files by name, and that their folder can be given."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    words = (
        r"lab/none is no folder here, and could not be fetched from the hub \(.*\); on a machine with a network get "
        r"config.json, .*image.safetensors, trunk.safetensors \(those that it has\), and give their folder here"
    )
    with pytest.raises(UserError, match=words) as told:
        mmfm.load_encoder("image", "lab/none")
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"lab/toy could not be written to the hub .*log in with"):
        mmfm.push_to_hub(trained(), "lab/toy")


def test_what_the_hub_refuses_is_told(hub, monkeypatch):
    """No such name, no right to write, and a repository of something else."""
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", raising(RepositoryNotFoundError.__new__(RepositoryNotFoundError))
    )
    with pytest.raises(UserError, match=r"lab/no .*: there is no such model, or it is private; check the name"):
        mmfm.from_pretrained("lab/no")
    monkeypatch.setattr(huggingface_hub, "create_repo", raising(HfHubHTTPError.__new__(HfHubHTTPError, "403")))
    with pytest.raises(UserError, match=r"lab/toy could not be written to the hub"):
        mmfm.push_to_hub(trained(), "lab/toy")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    (hub.there / "lab/bert").mkdir(parents=True)
    (hub.there / "lab/bert/config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"lab/bert is no model's folder: it has no files.json; convert it: mmfm import hf:lab"
    ):
        mmfm.load_encoder("text", "lab/bert")
