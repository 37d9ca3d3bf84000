"""A trained model from its run folder."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from mmfm.config import Contrastive, KnownCodec, Model, Run, Tower, require
from mmfm.config.serialization import from_json
from mmfm.inference import base
from mmfm.inference.bundle.contents import require_folder
from mmfm.inference.interface import Interface
from mmfm.models.base_weights import NEW
from mmfm.models.best import best_step
from mmfm.models.checkpoint import (
    BASE,
    MANIFEST,
    RUN,
    TRAIN,
    Checkpoint,
    folder_of,
    newest_model,
    read_model,
    read_text,
    read_tokenizer,
    steps_of,
)
from mmfm.models.model import UnifiedModel, build
from mmfm.models.weights import adopt, check_size, extent
from mmfm.preprocessing.tokenizer import Tokenizer
from mmfm.runtime.foreign import refuse_foreign, refuse_unsafe

AVERAGE = re.compile(r"/optimizer_states/0/state/(.+)/ema")  # of a parameter, in the state of training
MATRICES = 64  # of a layer, those of all towers together, at the most
SMALL = 1 << 26  # numbers that a model may have to be built in memory


def checkpoint_of(run_folder: Path, step: int) -> Path:
    """The folder of this step's checkpoint, or a UserError that names the steps that there are."""
    kept = steps_of(run_folder)
    told = f"it has those of {', '.join(map(str, kept))}" if kept else "it has none: train it first"
    require(step in kept, f"{run_folder} has no checkpoint of step {step}; {told}")
    return folder_of(run_folder, step)


def built(cfg: Model, text_size: int, contrastive: Sequence[Contrastive] = ()) -> UnifiedModel:
    """`build` for weights that are to be adopted: without memory, where all parts are our own, which know that.

    What is small is initialised all the same, since torch takes a second to import its meta device; nobody else's
    random numbers are taken for it.
    """
    parts = [getattr(cfg, field.name) for field in fields(cfg)]
    foreign = bool(cfg.modalities) or any(isinstance(part, Tower | KnownCodec) for part in parts)
    matrix, depth = extent(cfg)
    small = not cfg.codecs and MATRICES * depth * matrix <= SMALL
    with torch.random.fork_rng(devices=()) if foreign or small else torch.device("meta"):
        return build(cfg, text_size, contrastive)


def moving_average(checkpoint: Path, weights: Collection[str]) -> dict[str, Tensor]:
    """Of the weights of these names what `Optim.ema` keeps in the state of training: of all that some step moved. Of a
    table whose new rows alone are among the names it is the whole table."""
    found = Checkpoint(checkpoint)
    state = found.tensors[TRAIN]
    found.listed.verify([path.name for path in state.paths])
    kept = {
        match[1]: path
        for path in state.parts
        if (match := AVERAGE.fullmatch(path)) and {match[1], match[1] + NEW} & set(weights)
    }
    require(bool(kept), f"{checkpoint} keeps no moving average; train with optim.ema, or leave out --ema")
    return {name: state.read(path) for name, path in kept.items()}


def _core(
    cfg: Run, tokenizer: Tokenizer, files: Mapping[str, bytes], weights: Mapping[str, Tensor], where: Path
) -> UnifiedModel:
    """The model with a checkpoint's weights, and where these are adapters with those that they adapt."""
    if BASE in files:
        with torch.random.fork_rng(devices=()):
            core = build(cfg.model, tokenizer.size, cfg.contrastive)
        base.load(core, cfg, files, weights, where)
        return core
    check_size(cfg.model, weights, str(where))
    core = built(cfg.model, tokenizer.size, cfg.contrastive)
    adopt(core, weights, str(where))
    return core


def load_model(
    run: str | Path, step: int | str | None = None, device: str | torch.device = "cpu", *, ema: bool = False
) -> Interface:
    """The model of a run's folder, or of one checkpoint's, in evaluation mode. step: "best" is what `Run.best` kept.
    ema: its weights' moving average."""
    folder = Path(run)
    refuse_unsafe()
    refuse_foreign(run)
    if (folder / MANIFEST).is_file():
        (files, weights), where = read_model(folder), folder
    else:
        require_folder(folder)
        if step is None:
            step, (files, weights) = newest_model(folder)
        else:
            step = best_step(folder) if step == "best" else int(step)
            files, weights = read_model(checkpoint_of(folder, step))
        where = folder_of(folder, step)
    if ema:
        averages = moving_average(where, weights)
        weights = {name: x for name, x in weights.items() if name.removesuffix(NEW) not in averages} | averages
    cfg = from_json(read_text(files, RUN, where), str(where / RUN))
    tokenizer = read_tokenizer(files, cfg.model, where)
    core = _core(cfg, tokenizer, files, weights, where)
    model = Interface(core.to(device).eval(), cfg, tokenizer).eval()
    model.checkpoint = where
    return model
