"""Adapters of the trunk as a folder of PEFT, for transformers' Llama or Qwen, and back (`peft_config` says how)."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmfm.config import Model, Trunk, require
from mmfm.export.peft_config import CONFIG, FUSED, WEIGHTS, read_config
from mmfm.inference.load import load_model
from mmfm.models.adapters import LoraLinear, adapters_of
from mmfm.models.base_weights import sources_of
from mmfm.models.model import UnifiedModel
from mmfm.runtime.tensor_files import SavedTensors

BEFORE = "base_model.model.model.layers"
OURS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "lora_m": "lora_magnitude_vector"}
PLACE = re.compile(r"trunk\.blocks\.(\d+)\.(.+)")


def rows_of(cfg: Trunk, layer: str) -> Sequence[int]:
    """How many rows of our layer each of theirs has."""
    dim = cfg.head_dim or cfg.width // cfg.heads
    hidden = cfg.hidden or round(cfg.mlp_ratio * cfg.width)
    fused = {"attn.qkv": [cfg.heads * dim, *[cfg.kv_heads * dim] * 2], "mlp.gate_up": [hidden, hidden]}
    return fused.get(layer, [cfg.width])


def write(run: str | Path, folder: Path, step: int | None = None, ema: bool = False) -> dict[str, Any]:
    """Fills `folder`; returns what export.json should say: also what the run learned besides, which PEFT has no place
    for. UserError where the trunk has no adapters, or such as are no one choice of PEFT's."""
    model = load_model(run, step, ema=ema)
    found = {name: part for name, part in adapters_of(model.core) if PLACE.fullmatch(name)}
    told = f"{run} has no adapters of its trunk, which --to peft writes"
    require(bool(found), f"{told}; `mmfm export {run} FOLDER` writes the whole model")
    weights = dict[str, Tensor]()
    for name, part in found.items():
        weights |= _of_layer(name, part, model.config.trunk)
    kinds = sorted({PLACE.fullmatch(name)[2] for name in found})  # type: ignore[index]
    depth = len(model.core.trunk.blocks)
    told = f"{run} adapts some blocks of the trunk and not others, which --to peft cannot say"
    require(len(found) == depth * len(kinds), f"{told}; merge them: mmfm merge {run} FOLDER")
    config = _config(run, found, kinds, sources_of(model.run).get("trunk", ""))
    save_file({name: x.detach().contiguous().clone() for name, x in weights.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    mine = {f"{name}.{own}" for name in found for own in OURS}
    beside = {name.split(".")[0] for name, _ in model.core.named_parameters() if name not in mine} - {"trunk"}
    return {"layers": len(found), "not_written": sorted(beside)}


def _of_layer(name: str, part: LoraLinear, cfg: Trunk) -> dict[str, Tensor]:
    number, layer = PLACE.fullmatch(name).groups()  # type: ignore[union-attr]
    theirs, rows = FUSED[layer], rows_of(cfg, layer)
    made: dict[str, Tensor] = {f"{BEFORE}.{number}.{one}.{OURS['lora_a']}": part.lora_a for one in theirs}
    for own in ("lora_b", "lora_m"):
        whole = getattr(part, own)
        if whole is not None:
            pieces = zip(theirs, whole.split(rows), strict=True)
            made |= {f"{BEFORE}.{number}.{one}.{OURS[own]}": piece for one, piece in pieces}
    return made


def _config(run: str | Path, found: Mapping[str, LoraLinear], kinds: Sequence[str], base: str) -> dict[str, Any]:
    choices = {(part.cfg.rank, part.cfg.alpha, part.cfg.scaling, part.cfg.dora) for part in found.values()}
    told = f"{run} has adapters of several ranks, scales or kinds"
    require(len(choices) == 1, f"{told}, which --to peft cannot say; merge them: mmfm merge {run} FOLDER")
    ((rank, alpha, scaling, dora),) = choices
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": max(part.cfg.dropout for part in found.values()),
        "use_rslora": scaling == "rs",
        "use_dora": dora,
        "target_modules": [one.rpartition(".")[2] for kind in kinds for one in FUSED[kind]],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


@torch.no_grad()
def start(core: UnifiedModel, cfg: Model) -> None:
    """Adapters that name a PEFT folder begin as its. UserError where it adapts other layers, or of other sizes."""
    for folder in dict.fromkeys(lora.weights for lora in cfg.adapters if lora.weights):
        said, where = read_config(Path(folder)), Path(folder) / WEIGHTS
        tensors = SavedTensors([where], "give a folder that PEFT's save_pretrained wrote").read_all()
        for name, part in adapters_of(core):
            if part.cfg.weights == folder:
                _start_layer(name, part, cfg.trunk, tensors, f"{where}", said.rank)
        lost = sorted(tensors)
        told = f"{where} adapts {lost[0] if lost else ''}, and no pattern of Model.adapters takes it"
        require(not lost, f"{told}; set adapters=mmfm.from_peft({folder!r})")


def _start_layer(name: str, part: LoraLinear, cfg: Trunk, tensors: dict[str, Tensor], where: str, rank: int) -> None:
    """Takes the layer's tensors out of these; A below each other, B along a diagonal."""
    match = PLACE.fullmatch(name)
    require(match is not None, f"{where}: {name} is no layer of the trunk; leave out Lora.weights")
    number, layer = match.groups()  # type: ignore[union-attr]
    theirs, rows, at, first = FUSED[layer], rows_of(cfg, layer), 0, 0
    part.lora_b.zero_()
    for one, count in zip(theirs, rows, strict=True):
        before = f"{BEFORE}.{number}.{one}."
        if before + OURS["lora_a"] in tensors:
            a, b = (tensors.pop(before + OURS[own]) for own in ("lora_a", "lora_b"))
            fits = a.shape == (rank, part.in_features) and b.shape == (count, rank) and at + rank <= part.cfg.rank
            told = f"{where}: {one} of block {number} has an A of {tuple(a.shape)} and a B of {tuple(b.shape)}"
            require(fits, f"{told}, which {name} of rank {part.cfg.rank} cannot hold; see mmfm.from_peft")
            part.lora_a[at : at + rank], part.lora_b[first : first + count, at : at + rank] = a, b
            at += rank
            if part.lora_m is not None:
                part.lora_m[first : first + count] = tensors.pop(before + OURS["lora_m"]).flatten()
        first += count
    told = f"{where} fills {at} of the rank {part.cfg.rank} of {name}"
    require(at == part.cfg.rank, f"{told}; set adapters=mmfm.from_peft({part.cfg.weights!r})")
