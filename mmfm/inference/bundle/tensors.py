"""The tensors of a bundle's files, each file verified before it is read."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mmfm.inference.bundle.contents import AGAIN, read_manifest
from mmfm.runtime.files import Manifest
from mmfm.runtime.tensor_files import SavedTensors

CORE = "core."  # before each name, which transformers' models have for ours


def read_weights(folder: Path, parts: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of these parts, by the names that they have in a model. Other files are not opened."""
    files, found = read_manifest(folder), {}
    for part in parts:
        found |= verified_tensors(folder, f"{part}.safetensors", files)
    return found


def verified_tensors(folder: Path, name: str, files: Manifest) -> dict[str, Tensor]:
    files.verify([name])
    return {name.removeprefix(CORE): tensor for name, tensor in SavedTensors([folder / name], AGAIN).read_all().items()}
