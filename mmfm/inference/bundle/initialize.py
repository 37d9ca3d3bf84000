"""Weights of bundles and of runs as the start of another model: towers, and a causal language model as the trunk.

What shapes the numbers must be as it was; what only shapes the input, such as the size of a picture, may be chosen.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mmfm import config
from mmfm.config import TextTower, Tower, UserError, Vit, require
from mmfm.config.adapters import same_adapters
from mmfm.data.vocabulary import Vocabulary
from mmfm.inference.bundle.contents import READER, Part, check_same, is_bundle, is_run, parts_in, read_bundle
from mmfm.inference.bundle.hub import NAME
from mmfm.inference.bundle.load import from_pretrained, load_encoder, load_trunk
from mmfm.inference.bundle.without_paths import TOKENIZER
from mmfm.inference.load import load_model
from mmfm.models import checkpoint
from mmfm.models.adapters import is_adapter, merge, plain_state
from mmfm.models.checkpoint import MANIFEST, folder_of, newest_step, steps_of
from mmfm.models.imported import ImportedTower
from mmfm.models.mappings.language import place_embeddings
from mmfm.models.model import UnifiedModel
from mmfm.models.vit import resize_positions
from mmfm.models.weights import check_shapes
from mmfm.preprocessing.tokenizer import Tokenizer, load_tokenizer
from mmfm.pretrained import Resolved

TABLES = ("embedding.weight", "output.weight")


class Origin(NamedTuple):
    """Where parts come from: a bundle, or a run. `joined`: they were trained with each other, as one model."""

    folder: Path
    model: config.Model
    joined: bool
    tokenizer: str  # the file with which it was trained, or "bytes"
    same_tokenizer: Callable[[str], bool]
    core: Callable[[str], UnifiedModel]  # which holds the tower of this modality, and what joins it to the trunk
    trunk: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]  # weights, and tables by their names


def start_parts(core: UnifiedModel, cfg: config.Model, names: Sequence[str]) -> None:
    """Each of these parts begins with the weights of what it names, which must hold what it held."""
    parts = {name: getattr(cfg, name) for name in names}
    before = {name: check_same(part, name, Path(part.weights)) for name, part in parts.items()}
    origins = {folder: origin(Path(folder)) for folder in {part.weights for part in parts.values()}}
    trunk = cfg.trunk.weights if "trunk" in names else ""
    for name, part in parts.items():
        there, its = before[name], origins[part.weights]
        if isinstance(part, TextTower) and part.words is None:
            _check_tokenizer(cfg.tokenizer, its)
        if name == "trunk":
            weights, tables = its.trunk()
            core.trunk.load_state_dict(weights, strict=True)
            _vocabulary(core, cfg, its, tables)
        else:
            found = its.core(name)
            _start_tower(core, name, part, there, found, its.folder)
            if part.weights == trunk and its.joined:
                _start_joint(core, name, found)


def origin(folder: Path) -> Origin:
    """Of a bundle, whose files are read when they are asked for, or of a run's newest checkpoint, or of one."""
    if is_run(folder):
        return _of_run(folder)
    bundle = read_bundle(folder)
    plain = bundle.whole and bundle.run.model.tokenizer == "bytes"

    def trunk() -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        module, tables = load_trunk(folder)
        return module.state_dict(), tables

    return Origin(
        folder=folder,
        model=bundle.run.model,
        joined=bundle.whole,
        tokenizer="bytes" if plain else str(folder / TOKENIZER),
        same_tokenizer=lambda spec: bundle.tokenizer in _hashes(spec),
        core=lambda name: load_encoder(name, folder).core,
        trunk=trunk,
    )


def _of_run(folder: Path) -> Origin:
    model = load_model(folder)
    merge(model.core)
    core, text = model.core, model.tokenizer.to_json()
    tables = {name: tensor for name, tensor in core.state_dict().items() if name in TABLES}
    assert model.checkpoint is not None
    return Origin(
        folder=folder,
        model=model.config,
        joined=True,
        tokenizer="bytes" if model.config.tokenizer == "bytes" else str(model.checkpoint / checkpoint.TOKENIZER),
        same_tokenizer=lambda spec: load_tokenizer(spec).to_json() == text,
        core=lambda name: core,
        trunk=lambda: (core.trunk.state_dict(), tables),
    )


def reader_of(folder: str | Path) -> Path:
    """The tokenizer.json of a text tower that has its own, in a bundle or in a run's newest checkpoint."""
    folder = Path(folder)
    if not is_run(folder):
        return folder / READER
    return _checkpoint(folder) / checkpoint.READER


def _checkpoint(folder: Path) -> Path:
    """The folder itself, or that of the run's newest checkpoint."""
    return folder if (folder / MANIFEST).is_file() else folder_of(folder, newest_step(folder))


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
        where = _checkpoint(folder)
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
    if not same_adapters(other.config.adapters, run.model.adapters):
        merge(other.core)
    _require_same(run, other.tokenizer, tokenizer)
    mine, its = core.state_dict(), dict(other.core.state_dict())
    for name in [name for name in TABLES if name in mine and name in its]:
        its[name] = _rows(mine[name], its[name], core.vocabulary, other.core.vocabulary)
    grid, before = (part.grid if isinstance(part, Vit) else None for part in (run.model.image, other.config.image))
    if grid != before and grid and before and "towers.image.position" in its:
        its["towers.image.position"] = resize_positions(its["towers.image.position"], before, grid)
    shared = [name for name in mine if name in its]
    shapes = {} if any(map(is_adapter, its)) else plain_state(core)
    for name in shared:
        here, there = tuple(shapes.get(name, mine[name]).shape), tuple(its[name].shape)
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
    """Of a bundle or a run that holds a tower of another library: its blueprint, weights and tokenizer."""
    folder = Path(tower.source)
    held = parts_in(folder)
    require(modality in held, f"{folder} holds no {modality} encoder; it holds {', '.join(held)}")
    told = f"{folder} holds a {type(held[modality]).__name__}, a part of our own"
    require(isinstance(held[modality], Tower), f"{told}; give {modality}=mmfm.native({str(folder)!r}, {modality!r})")
    sizes = [name for name in ("height_px", "width_px", "window_seconds") if getattr(tower, name)]
    told = f"Tower.{''.join(sizes[:1])}: the size of what was imported is settled"
    require(not sizes, f"{told}; leave it out, or give the first source")
    encoder = load_encoder(modality, folder)
    inner, reader = encoder.core.towers[modality], encoder.tokenizer.reader
    assert isinstance(inner, ImportedTower)
    weights = dict(inner.encoder.state_dict()) if tower.weights == "pretrained" else None
    return Resolved(blueprint=inner.contract, weights=weights, tokenizer=None if reader is None else reader.to_json())


def _start_tower(core: UnifiedModel, name: str, part: Part, there: Part, found: UnifiedModel, folder: Path) -> None:
    """The tower as it was, and a ViT's positions for its size of picture."""
    weights = dict(found.towers[name].state_dict())
    if isinstance(part, Vit) and isinstance(there, Vit) and part.grid != there.grid:
        weights["position"] = resize_positions(weights["position"], there.grid, part.grid)
    check_shapes(core.towers[name], weights, str(folder))
    core.towers[name].load_state_dict(weights, strict=True)


def _start_joint(core: UnifiedModel, name: str, found: UnifiedModel) -> None:
    """What joins a tower and a trunk that come from one model: connector, pool, and the head, if it is as wide."""
    mine, its = core.state_dict(), found.state_dict()
    joint = [key for key in mine if key.startswith((f"connectors.{name}.", f"heads.{name}.")) or key == f"pools.{name}"]
    same = {key: its[key] for key in joint if key in its and its[key].shape == mine[key].shape}
    core.load_state_dict(same, strict=False)


@torch.no_grad()
def _vocabulary(core: UnifiedModel, cfg: config.Model, its: Origin, tables: Mapping[str, Tensor]) -> None:
    """Rows of the table: of a language model the text's; of a model of ours all of them."""
    if not tables:
        return
    _check_tokenizer(cfg.tokenizer, its)
    for name in [name for name in TABLES if name in tables]:
        own, table = core.state_dict().get(name), tables[name]
        if own is None:
            told = f"{its.folder} writes with a table of its own, {name}, and this model with that of its input"
            raise UserError(f"{told}; take the trunk from there: mmfm.native({str(its.folder)!r}, 'trunk')")
        if not its.joined:
            own.copy_(place_embeddings(table.to(own), own, core.vocabulary))
            continue
        codes = {name: its.model.codes(name) for name in ("image", "audio")}
        theirs = Vocabulary(text=core.vocabulary.text, **codes)
        told = f"image_codes={theirs.image} and audio_codes={theirs.audio}"
        require(theirs == core.vocabulary, f"Model has other codes than {its.folder}; set {told}")
        own.copy_(table)


def _check_tokenizer(spec: str, its: Origin) -> None:
    told = f"Model.tokenizer={spec!r} is not the one that {its.folder} was trained with"
    remedy = repr(its.tokenizer) if its.tokenizer == "bytes" else its.tokenizer
    require(its.same_tokenizer(spec), f"{told}; set it to {remedy}")


def _hashes(spec: str) -> tuple[str, str]:
    """Of the file as it is, and of what is read of it."""
    shown = hashlib.sha256(load_tokenizer(spec).to_json().encode()).hexdigest()
    return shown, "" if spec == "bytes" else hashlib.sha256(Path(spec).read_bytes()).hexdigest()
