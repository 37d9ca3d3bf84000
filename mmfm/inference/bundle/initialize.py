"""Weights of bundles as the start of another model: towers, and a causal language model as the trunk.

What shapes the numbers must be as it was; what only shapes the input, such as the size of a picture, may be chosen.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from mmfm import config
from mmfm.config import TextTower, Tower, UserError, Vit, require
from mmfm.data.vocabulary import Vocabulary
from mmfm.inference.bundle.contents import Bundle, Part, is_bundle, part_of, read_bundle
from mmfm.inference.bundle.hub import NAME
from mmfm.inference.bundle.load import from_pretrained, load_encoder, load_trunk
from mmfm.inference.bundle.without_paths import TOKENIZER
from mmfm.models import checkpoint
from mmfm.models.checkpoint import MANIFEST, folder_of, newest_step, steps_of
from mmfm.models.imported import ImportedTower
from mmfm.models.mappings.language import place_embeddings
from mmfm.models.model import UnifiedModel
from mmfm.models.vit import resize_positions
from mmfm.models.weights import check_shapes
from mmfm.preprocessing.tokenizer import Tokenizer, load_tokenizer
from mmfm.pretrained import Resolved

TABLES = ("embedding.weight", "output.weight")
FREE = {"weights", "height_px", "width_px", "resize_mode", "crop_pct", "interpolation", "resizer", "odd"}


def start_parts(core: UnifiedModel, cfg: config.Model, names: Sequence[str]) -> None:
    """Each of these parts begins with the weights of the bundle that it names, which must hold what it held."""
    trunk = cfg.trunk.weights if "trunk" in names else ""
    for name in names:
        part = getattr(cfg, name)
        folder = Path(part.weights)
        bundle = read_bundle(folder)
        there = [held for held in bundle.components if held in (*config.MODALITIES, "trunk")]
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
            if part.weights == trunk and bundle.whole:
                _start_joint(core, name, folder)


def check_start(run: config.Run) -> None:
    """Raises UserError where `run.start` is not here, is no whole model, or was trained with another tokenizer; a model
    of the hub is fetched only when training begins, and asked nothing before."""
    folder = Path(run.start)
    if not folder.exists() and not folder.parent.is_dir() and NAME.fullmatch(run.start):
        return
    told = f"Run.start={run.start!r}"
    require(
        folder.is_dir(), f"{told} is no folder; give that of a run or of a whole model's bundle, or leave start out"
    )
    where = folder
    if is_bundle(folder):
        bundle = read_bundle(folder)
        alone = f"{told} holds {bundle.alone}, and no model"
        require(bundle.whole, f"{alone}; leave start out, and begin that part: native({str(folder)!r})")
    elif not (folder / MANIFEST).is_file():
        require(
            bool(steps_of(folder)), f"{told} holds no bundle and no checkpoint of a run; train it, or leave start out"
        )
        where = folder_of(folder, newest_step(folder))
    file = where / _tokenizer_of(where)
    _require_same(run, load_tokenizer(file if file.is_file() else "bytes"), load_tokenizer(run.model.tokenizer))


def _require_same(run: config.Run, theirs: Tokenizer, mine: Tokenizer) -> None:
    told = f"model.tokenizer={run.model.tokenizer!r} is not the one that {run.start} was trained with"
    file = _tokenizer_of(Path(run.start))
    require(theirs.to_json() == mine.to_json(), f"{told}; set it to the {file} there")


def _tokenizer_of(folder: Path) -> str:
    return TOKENIZER if is_bundle(folder) else checkpoint.TOKENIZER


def start_whole(core: UnifiedModel, run: config.Run, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Every parameter that the model of `run.start` has under the same name: towers, connectors, pools, heads, trunk,
    tables, scales, codecs. Of the tables the rows of each kind of token that both have. UserError where one has another
    shape, or the text another tokenizer; what one of them lacks is said."""
    other = from_pretrained(run.start)
    _require_same(run, other.tokenizer, tokenizer)
    mine, its = core.state_dict(), dict(other.core.state_dict())
    for name in [name for name in TABLES if name in mine and name in its]:
        its[name] = _rows(mine[name], its[name], core.vocabulary, other.core.vocabulary)
    grid, before = (part.grid if isinstance(part, Vit) else None for part in (run.model.image, other.config.image))
    if grid != before and grid and before and "towers.image.position" in its:
        its["towers.image.position"] = resize_positions(its["towers.image.position"], before, grid)
    shared = [name for name in mine if name in its]
    for name in shared:
        here, there = tuple(mine[name].shape), tuple(its[name].shape)
        told = f"{name} has shape {there} in {run.start} and {here} here"
        require(here == there, f"{told}; make that part of the model as it is in its run.json, or leave start out")
    require(bool(shared), f"{run.start} and this model have no parameter in common; leave start out")
    core.load_state_dict({name: its[name] for name in shared}, strict=False)
    fresh, unused = (_parts(set(a) - set(b)) for a, b in ((mine, its), (its, mine)))
    lines = [f"starts from {run.start}: {len(shared)} of {len(mine)} tensors"]
    lines += [f"begin anew, as {run.start} has none: {fresh}"] * bool(fresh)
    return (*lines, *[f"not taken of {run.start}, as this model has none: {unused}"] * bool(unused))


def _rows(mine: Tensor, its: Tensor, here: Vocabulary, there: Vocabulary) -> Tensor:
    """The table `mine` with those rows of `its` whose kind of token has as many ids in both."""
    made, marks = mine.clone(), here.span("text").start
    spans = [(range(marks), range(marks))]
    spans += [(here.span(name), there.span(name)) for name in config.MODALITIES]
    for to, of in spans:
        if len(to) == len(of) and mine.shape[1] == its.shape[1]:
            made[to.start : to.stop] = its[of.start : of.stop].to(made)
    return made if mine.shape[1] == its.shape[1] else its


def _parts(names: Collection[str]) -> str:
    return ", ".join(sorted({".".join(name.split(".")[:2]) for name in names}))


def resolved(tower: Tower, modality: str) -> Resolved:
    """Of a bundle that holds a tower of another library: its blueprint, weights and tokenizer."""
    folder = Path(tower.source)
    bundle = read_bundle(folder)
    there = ", ".join(bundle.modalities) or bundle.alone
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


def _start_joint(core: UnifiedModel, name: str, folder: Path) -> None:
    """What joins a tower and a trunk that come from one model: connector, pool, and the head, if it is as wide."""
    mine, its = core.state_dict(), load_encoder(name, folder).core.state_dict()
    joint = [key for key in mine if key.startswith((f"connectors.{name}.", f"heads.{name}.")) or key == f"pools.{name}"]
    same = {key: its[key] for key in joint if key in its and its[key].shape == mine[key].shape}
    core.load_state_dict(same, strict=False)


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
        if not bundle.whole:
            own.copy_(place_embeddings(table.to(own), own, core.vocabulary))
            continue
        codes = {name: bundle.run.model.codes(name) for name in ("image", "audio")}
        its = Vocabulary(text=core.vocabulary.text, **codes)
        told = f"image_codes={its.image} and audio_codes={its.audio}"
        require(its == core.vocabulary, f"Model has other codes than {folder}; set {told}")
        own.copy_(table)


def _check_tokenizer(spec: str, bundle: Bundle, folder: Path) -> None:
    """By the hash of the file as it is, or of what is read of it."""
    shown = hashlib.sha256(load_tokenizer(spec).to_json().encode()).hexdigest()
    raw = "" if spec == "bytes" else hashlib.sha256(Path(spec).read_bytes()).hexdigest()
    told = f"Model.tokenizer={spec!r} is not the one that {folder} was trained with"
    remedy = "'bytes'" if bundle.whole and bundle.run.model.tokenizer == "bytes" else str(folder / TOKENIZER)
    require(bundle.tokenizer in (shown, raw), f"{told}; set it to {remedy}")
