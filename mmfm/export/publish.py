"""Bundles to the hub, through huggingface_hub. It finds the token of `hf auth login`; none passes here."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub

from mmfm.config import UserError, require
from mmfm.export.bundle import save_bundle
from mmfm.inference.bundle.contents import is_bundle
from mmfm.inference.bundle.hub import FAILURES, NAME, first_line
from mmfm.inference.interface import Interface

SCORES = ["results*.json", "report.html"]  # which show the data that they are of


def push_to_hub(
    run: str | Path | Interface, repo_id: str, modalities: Sequence[str] | None = None, *, private: bool = False
) -> str:
    """A bundle's folder as it is, or a bundle of a run's folder or model, as "owner/name". Returns the address.

    Raises UserError when the name is none, or when the hub cannot be reached or refuses.
    """
    require(bool(NAME.fullmatch(repo_id)), f"{repo_id!r} is no name on the hub; give owner/name")
    if not isinstance(run, Interface) and is_bundle(run):
        require(modalities is None, f"{run} is a bundle already and goes up whole; leave the modalities out")
        return _upload(Path(run), repo_id, private)
    with tempfile.TemporaryDirectory() as folder:
        return _upload(save_bundle(run, Path(folder) / "bundle", modalities), repo_id, private)


def _upload(folder: Path, repo_id: str, private: bool) -> str:
    try:
        huggingface_hub.create_repo(repo_id, private=private, exist_ok=True)
        info = huggingface_hub.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="A bundle of mmfm", ignore_patterns=SCORES
        )
    except FAILURES as why:
        remedy = f"log in with `hf auth login`, check the network, or upload the files of {folder} by hand"
        raise UserError(f"{repo_id} could not be written to the hub ({first_line(why)}); {remedy}") from None
    return str(info)
