"""The locked weights under a checkpoint's adapters, from where the run took them, by their names in the model.

They are read and not computed: what gives other numbers than the first start of the run is found by its SHA-256.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmfm.config import MODALITIES, Lora, Model, Run, Tower, UserError, Vit, require
from mmfm.config.adapters import same_adapters
from mmfm.config.serialization import from_json
from mmfm.data.vocabulary import Vocabulary
from mmfm.inference.bundle.contents import is_bundle, read_bundle
from mmfm.inference.bundle.hub import find
from mmfm.inference.bundle.tensors import read_weights
from mmfm.models import base_weights
from mmfm.models.adapters import merged_state
from mmfm.models.base_weights import NEW, TABLES, Bases, load_over, missing, sources_of, verify
from mmfm.models.checkpoint import BASE, MANIFEST, RUN, newest_model, read_model, read_text
from mmfm.models.model import UnifiedModel
from mmfm.models.vit import resize_positions
from mmfm.pretrained import resolve

Weights = dict[str, Tensor]
POSITION = "towers.image.position"


def made_of(run: Run) -> dict[str, str]:
    """What the bundles that parts begin with were imported from."""
    folders = {part: Path(source) for part, source in sources_of(run).items()}
    return {part: read_bundle(folder).source for part, folder in folders.items() if is_bundle(folder)}


def restore(core: UnifiedModel, run: Run, files: Mapping[str, bytes], where: Path) -> Bases:
    """Loads what the run began with. UserError where it cannot be had."""
    bases = base_weights.read_bases(files[BASE], str(where / BASE))
    try:
        found = begun_with(run, core.vocabulary)
    except (UserError, OSError) as why:
        raise base_weights.lost(bases, str(where), why) from None
    place_tables(core, found)
    mine = core.state_dict()
    core.load_state_dict({name: x for name, x in found.items() if name in mine}, strict=False)
    return bases


def load(core: UnifiedModel, run: Run, files: Mapping[str, bytes], found: Mapping[str, Tensor], where: Path) -> None:
    """The base, verified, and over it the tensors of the checkpoint."""
    bases = restore(core, run, files, where)
    verify(core, core.vocabulary, missing(core, found, bases, str(where)), bases, str(where))
    load_over(core, found, core.vocabulary)


@torch.no_grad()
def place_tables(core: UnifiedModel, found: Weights) -> None:
    """A language model's rows of text."""
    span = core.vocabulary.span("text")
    for name in [name for name in TABLES if name in found]:
        rows = found.pop(name)
        if name in core.state_dict():
            core.get_parameter(name)[span.start : span.stop] = rows


def begun_with(run: Run, vocabulary: Vocabulary) -> Weights:
    """All that a run took of others when it began; of tables the rows of text."""
    found: Weights = {}
    for name in MODALITIES:
        part = getattr(run.model, name)
        if isinstance(part, Tower):
            found |= _imported(part, name, vocabulary)
        elif getattr(part, "weights", ""):
            found |= _of(part.weights, run.model, vocabulary, f"towers.{name}.")
    if run.model.trunk.weights:
        found |= _of(run.model.trunk.weights, run.model, vocabulary, "trunk.", *TABLES)
    if run.start:
        found |= _of(str(find(run.start, "")), run.model, vocabulary, "", adapters=run.model.adapters)
    return found


def _imported(part: Tower, name: str, vocabulary: Vocabulary) -> Weights:
    if is_bundle(part.source):
        return {} if part.weights != "pretrained" else _of(part.source, None, vocabulary, f"towers.{name}.")
    weights = resolve(part, name).weights
    return {f"towers.{name}.encoder.{key}": tensor for key, tensor in (weights or {}).items()}


def _of(
    source: str, model: Model | None, vocabulary: Vocabulary, *prefixes: str, adapters: tuple[Lora, ...] = ()
) -> Weights:
    """The tensors of a bundle or of a run's newest checkpoint whose names begin so. Other adapters than these are
    merged."""
    folder = Path(source)
    if is_bundle(folder):
        bundle = read_bundle(folder)
        found, its, whole = read_weights(folder, bundle.components), bundle.run.model, bundle.whole
    else:
        found, its = _of_run(folder, vocabulary)
        found, whole = (found if same_adapters(its.adapters, adapters) else merged_state(found, its.adapters)), True
    codes = {name: its.codes(name) for name in ("image", "audio")} if whole else {}
    text = Vocabulary(text=vocabulary.text, **codes).span("text") if whole else range(vocabulary.text)
    found = {name: tensor for name, tensor in found.items() if name.startswith(prefixes)}
    for name in [name for name in TABLES if name in found]:
        found[name] = found[name][text.start : text.stop]
    grids = [part.image.grid for part in (its, model) if part is not None and isinstance(part.image, Vit)]
    if POSITION in found and len(grids) == 2 and grids[0] != grids[1]:
        found[POSITION] = resize_positions(found[POSITION], grids[0], grids[1])
    return found


def _of_run(folder: Path, vocabulary: Vocabulary) -> tuple[Weights, Model]:
    """All tensors of a run, those under its own adapters too."""
    require((folder / MANIFEST).is_file() or (folder / "checkpoints").is_dir(), f"there is no {folder}")
    if (folder / MANIFEST).is_file():
        (files, own), where = read_model(folder), folder
    else:
        (_, (files, own)), where = newest_model(folder), folder
    run = from_json(read_text(files, RUN, where), str(where / RUN))
    if BASE not in files:
        return own, run.model
    found = begun_with(run, vocabulary)
    for name in [name for name in own if name.endswith(NEW)]:
        table, new = name.removesuffix(NEW), own.pop(name)
        codes = {name: run.model.codes(name) for name in ("image", "audio")}
        start = Vocabulary(text=vocabulary.text, **codes).span("text").start
        found[table] = torch.cat([new[:start], found[table], new[start:]])
    return found | own, run.model
