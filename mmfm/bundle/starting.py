"""Weights of bundles as the start of another model: towers, and a causal language model as the trunk.

What shapes the numbers must be as it was; what only shapes the input, such as the size of a picture, may be chosen.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from mmfm import config
from mmfm.bundle.contents import Bundle, Part, part_of, read_bundle
from mmfm.bundle.load import load_encoder, load_trunk
from mmfm.checkpoint import check_shapes
from mmfm.config import TextTower, Tower, UserError, Vit, require
from mmfm.encoders import Resolved
from mmfm.inputs.text import load_tokenizer
from mmfm.layouts.language import place_embeddings
from mmfm.model import UnifiedModel
from mmfm.towers.imported import ImportedTower
from mmfm.towers.vit import resize_positions
from mmfm.vocabulary import Vocabulary

TABLES = ("embedding.weight", "output.weight")
FREE = {"weights", "height_px", "width_px", "fit", "central", "interpolation", "resizer", "odd"}


def start_parts(core: UnifiedModel, cfg: config.Model, names: Sequence[str]) -> None:
    """Each of these parts begins with the weights of the bundle that it names, which must hold what it held."""
    for name in names:
        part = getattr(cfg, name)
        folder = Path(part.weights)
        bundle = read_bundle(folder)
        there = [held for held in bundle.holds if held != "vocabulary"]
        require(name in there, f"{folder} holds no {name} to start from; it holds {', '.join(there)}")
        _check_same(part, part_of(bundle, name), folder)
        if isinstance(part, TextTower) and part.words is None:
            _check_tokenizer(cfg.tokenizer, bundle, folder)
        if name == "trunk":
            trunk, tables = load_trunk(folder)
            core.trunk.load_state_dict(trunk.state_dict(), strict=True)
            _vocabulary(core, cfg, bundle, folder, tables)
        else:
            _start_tower(core, name, part, part_of(bundle, name), folder)


def resolved(tower: Tower, modality: str) -> Resolved:
    """Of a bundle that holds a tower of another library: its blueprint, weights and tokenizer."""
    folder = Path(tower.source)
    bundle = read_bundle(folder)
    there = ", ".join(bundle.modalities) or f"{' and '.join(bundle.holds)} alone"
    require(modality in bundle.modalities, f"{folder} holds no {modality} encoder; it holds {there}")
    part = part_of(bundle, modality)
    told = f"{folder} holds a {type(part).__name__}, a part of our own; give {modality}=mmfm.native({str(folder)!r})"
    require(isinstance(part, Tower), told)
    sizes = [name for name in ("height_px", "width_px", "window_seconds") if getattr(tower, name)]
    require(
        not sizes, f"Tower.{''.join(sizes[:1])}: a bundle's size is settled; leave it out, or give the first source"
    )
    encoder = load_encoder(modality, folder)
    inner, reader = encoder.core.towers[modality], encoder.tokenizer.reader
    assert isinstance(inner, ImportedTower)
    weights = dict(inner.encoder.state_dict()) if tower.weights == "pretrained" else None
    return Resolved(blueprint=inner.contract, weights=weights, tokenizer=None if reader is None else reader.to_json())


def _check_same(wanted: Part, there: Part, folder: Path) -> None:
    kind = type(wanted).__name__
    require(type(there) is type(wanted), f"{folder} holds a {type(there).__name__}, and no {kind} can start from it")
    for field in fields(wanted):
        mine, its = getattr(wanted, field.name), getattr(there, field.name)
        take = f"take it from there: mmfm.native({str(folder)!r})"
        require(mine == its or field.name in FREE, f"{kind}.{field.name}={mine!r} is {its!r} in {folder}; {take}")


def _start_tower(core: UnifiedModel, name: str, part: Part, there: Part, folder: Path) -> None:
    """The tower as it was, and a ViT's positions for its size of picture."""
    found = dict(load_encoder(name, folder).core.towers[name].state_dict())
    if isinstance(part, Vit) and isinstance(there, Vit) and part.grid != there.grid:
        found["position"] = resize_positions(found["position"], there.grid, part.grid)
    check_shapes(core.towers[name], found, str(folder))
    core.towers[name].load_state_dict(found, strict=True)


@torch.no_grad()
def _vocabulary(core: UnifiedModel, cfg: config.Model, bundle: Bundle, folder: Path, tables: dict[str, Tensor]) -> None:
    """Rows of the table: of a language model the text's; of a model of ours all of them."""
    if not tables:
        return
    _check_tokenizer(cfg.tokenizer, bundle, folder)
    for name in [name for name in TABLES if name in tables]:
        own, table = core.state_dict().get(name), tables[name]
        if own is None:
            raise UserError(f"{folder} writes with a table of its own, {name}, and this model with that of its input")
        if bundle.model is None:
            own.copy_(place_embeddings(table.to(own), own, core.vocabulary))
            continue
        codes = {"image": bundle.model.codes("image"), "audio": bundle.model.codes("audio")}
        its = Vocabulary(text=core.vocabulary.text, **codes)
        told = f"image_codes={its.image} and audio_codes={its.audio}"
        require(its == core.vocabulary, f"Model has other codes than {folder}; set {told}")
        own.copy_(table)


def _check_tokenizer(spec: str, bundle: Bundle, folder: Path) -> None:
    """By the hash of the file as it is, or of what is read of it."""
    shown = hashlib.sha256(load_tokenizer(spec).to_json().encode()).hexdigest()
    raw = "" if spec == "bytes" else hashlib.sha256(Path(spec).read_bytes()).hexdigest()
    told = f"Model.tokenizer={spec!r} is not the one that {folder} was trained with"
    remedy = (
        "'bytes'" if bundle.model is not None and bundle.model.tokenizer == "bytes" else str(folder / "tokenizer.json")
    )
    require(bundle.tokenizer in (shown, raw), f"{told}; set it to {remedy}")
