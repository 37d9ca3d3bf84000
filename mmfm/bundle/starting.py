"""Weights of bundles as the start of another model: towers, and a causal language model as the trunk.

What shapes the numbers must be as it was; what only shapes the input, such as the size of a picture, may be chosen.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor, nn

from mmfm import config
from mmfm.bundle.contents import Bundle, Part, part_of, read_bundle, read_manifest
from mmfm.bundle.load import read_tensors, read_weights
from mmfm.checkpoint import refuse_unsafe
from mmfm.config import MODALITIES, Tower, UserError, Vit, require
from mmfm.inputs.text import load_tokenizer
from mmfm.model import UnifiedModel
from mmfm.towers.vit import resize_positions
from mmfm.vocabulary import Vocabulary

FREE = {"weights", "height_px", "width_px", "fit", "central", "interpolation", "mlp_ratio"}


def start_all(core: UnifiedModel, cfg: config.Model) -> None:
    """Each part of `cfg` whose `weights` names a bundle begins with them. Raises UserError where they do not fit."""
    for name in (*MODALITIES, "trunk"):
        part = getattr(cfg, name)
        if part is None or isinstance(part, Tower) or not part.weights:
            continue
        refuse_unsafe()
        folder = Path(part.weights)
        bundle = read_bundle(folder)
        there = [held for held in bundle.holds if held != "vocabulary"]
        require(name in there, f"{folder} holds no {name} to start from; it holds {', '.join(there)}")
        _check_same(part, part_of(bundle, name), folder)
        if name == "trunk":
            _fill(core.trunk, _own(folder, name), folder)
            _vocabulary(core, cfg, bundle, folder)
        else:
            _fill(core.towers[name], _resized(_own(folder, name), part, part_of(bundle, name)), folder)


def _own(folder: Path, name: str) -> dict[str, Tensor]:
    """The part's own tensors, under the names that they have in it."""
    start = "trunk." if name == "trunk" else f"towers.{name}."
    found = read_weights(folder, [name])
    return {key.removeprefix(start): tensor for key, tensor in found.items() if key.startswith(start)}


def _check_same(wanted: Part, there: Part, folder: Path) -> None:
    kind = type(wanted).__name__
    require(type(there) is type(wanted), f"{folder} holds a {type(there).__name__}, and no {kind} can start from it")
    for field in fields(wanted):
        mine, its = getattr(wanted, field.name), getattr(there, field.name)
        same = mine == its or field.name in FREE
        take = f"take it from there: native({str(folder)!r})"
        require(same, f"{kind}.{field.name}={mine!r} is {its!r} in {folder}; {take}")


def _fill(module: nn.Module, found: Mapping[str, Tensor], folder: Path) -> None:
    for name, tensor in module.state_dict().items():
        there = tuple(found[name].shape) if name in found else "none"
        require(there == tuple(tensor.shape), f"{folder}: {name} has shape {there}, not {tuple(tensor.shape)}")
    extra = sorted(found.keys() - module.state_dict().keys())
    require(not extra, f"{folder} has {extra[:1]}, for which this configuration has no place")
    module.load_state_dict(dict(found), strict=True)


def _resized(found: dict[str, Tensor], part: Part, there: Part) -> dict[str, Tensor]:
    """A ViT's positions for another size of picture."""
    if not isinstance(part, Vit) or not isinstance(there, Vit) or part.grid == there.grid:
        return found
    return found | {"position": resize_positions(found["position"], there.grid, part.grid)}


def _vocabulary(core: UnifiedModel, cfg: config.Model, bundle: Bundle, folder: Path) -> None:
    """Rows of the table: of a language model the text's; of one of ours the marks' too, and those of equal codes."""
    if "vocabulary" not in bundle.holds:
        return
    _check_tokenizer(cfg.tokenizer, bundle, folder)
    found = read_tensors(folder, "vocabulary.safetensors", read_manifest(folder))["embedding.weight"]
    here, text = core.vocabulary, core.vocabulary.span("text")
    with torch.no_grad():
        if bundle.model is None:
            require(len(found) >= len(text), f"{folder} has {len(found)} rows of text, of {len(text)} that are wanted")
            core.embedding.weight[text.start : text.stop] = found[: len(text)].to(core.dtype)
            return
        its = Vocabulary(text=here.text, image=bundle.model.image_codes, audio=bundle.model.audio_codes)
        codes = f"image_codes={its.image} and audio_codes={its.audio}"
        require(its == here, f"Model has other codes than {folder}; set {codes}")
        core.embedding.weight[:] = found.to(core.dtype)


def _check_tokenizer(spec: str, bundle: Bundle, folder: Path) -> None:
    """By the hash of the file as it is, or of what is read of it."""
    told = f"Model.tokenizer={spec!r} is not the one that the trunk of {folder} was trained with"
    shown = hashlib.sha256(load_tokenizer(spec).to_json().encode()).hexdigest()
    raw = "" if spec == "bytes" else hashlib.sha256(Path(spec).read_bytes()).hexdigest()
    if bundle.tokenizer not in (shown, raw):
        raise UserError(f"{told}; set it to {str(folder / 'tokenizer.json')!r}")
