"""A small run on disk, as if trained, as `mmfm.load` gives it, and the folder that `mmfm.save_bundle` makes of it."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import torch
from toys import PAIRS, toy_config, toy_run

import mmfm
from mmfm.config import Generative, Run, Vit
from mmfm.config.serialization import to_json
from mmfm.export import hf
from mmfm.inference.interface import Interface
from mmfm.models.checkpoint import save
from mmfm.models.model import build
from mmfm.preprocessing.tokenizer import Tokenizer, load_tokenizer
from mmfm.training.initialize import begin, prepare

TASKS = (">text", "image>text", "audio>text", "image,audio>text")
IMAGE = Vit(height_px=8, width_px=16, patch_px=4, channels=3, width=16, depth=1, heads=2)


class Exported(NamedTuple):
    run: Path
    model: Interface
    folder: Path


def export(where: Path, run: Run | None = None, tokenizer: Tokenizer | None = None, seed: int = 0) -> Exported:
    """Every parameter lies away from its neutral start, and what is read matters much more than at a fresh start."""
    run = run or full_run()
    tokenizer = tokenizer or load_tokenizer("bytes")
    torch.manual_seed(seed)
    core = build(run.model, tokenizer.size, run.contrastive)
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if "scales" not in name:
                parameter += (1.0 if "connectors" in name else 0.3) * torch.randn_like(parameter)
    (where / "run").mkdir(parents=True)
    (where / "run" / "run.json").write_text(to_json(run))
    save(where / "run", 7, run, tokenizer, core.state_dict(), {})
    model = mmfm.load(str(where / "run"))
    hf.register()
    mmfm.save_bundle(model, where / "hf")
    return Exported(where / "run", model, where / "hf")


def adopt(where: Path, run: Run) -> Exported:
    """A run whose towers come from elsewhere, with the weights of their sources."""
    prepared = prepare(run)
    torch.manual_seed(1)
    core = build(prepared.run.model, prepared.tokenizer.size, run.contrastive)
    begin(core, prepared)
    save(where / "run", 7, prepared.run, prepared.tokenizer, core.state_dict(), {})
    model = mmfm.load(str(where / "run"))
    hf.register()
    mmfm.save_bundle(model, where / "hf")
    return Exported(where / "run", model, where / "hf")


def full_run(**model: object) -> Run:
    run = toy_run(
        model=toy_config(**({"image": IMAGE} | model)), generative=tuple(Generative(task=task) for task in TASKS)
    )
    have = {name for name in ("image", "audio", "text") if getattr(run.model, name) is not None}
    return dataclasses.replace(
        run,
        contrastive=tuple(pair for pair in PAIRS if set(pair.pair) <= have),
        generative=tuple(item for item in run.generative if set(item.task.split(">")[0].split(",")) - {""} <= have),
    )
