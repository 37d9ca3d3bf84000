"""What a folder of PEFT says of its adapters, as ours of the trunk. Standard library only, for configurations.

PEFT adapts the layers of transformers' Llama, and ours are fused: q, k and v are one layer, gate and up another. Cut by
rows an adapter of ours is three of theirs with the same A. The other way their A lie one below the other, and their B
as blocks along a diagonal, so that the rank is that of all of them. Both are exact.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from mmfm.config import Lora, UserError, require

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FUSED = {
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": ("self_attn.o_proj",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}  # our layers of a block, and theirs
REFUSED = {
    "bias": "none", "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": None,
    "fan_in_fan_out": False, "lora_bias": False, "trainable_token_indices": None, "target_parameters": None,
    "exclude_modules": None, "layer_replication": None, "use_qalora": False,
}  # fmt: skip  # what else a folder may choose, and the choice that is read here


class Peft(NamedTuple):
    """The choices of a folder that are read. `targets`: the last names of the layers."""

    rank: int
    alpha: float
    rs: bool
    dora: bool
    dropout: float
    targets: frozenset[str]


def read_config(folder: Path) -> Peft:
    """Of adapter_config.json. UserError for what is no LoRA, or chooses what has no place here."""
    where = folder / CONFIG
    try:
        said = json.loads(where.read_text("utf-8"))
        kind, targets = said["peft_type"], said["target_modules"]
        found = Peft(
            rank=int(said["r"]),
            alpha=float(said["lora_alpha"]),
            rs=bool(said.get("use_rslora")),
            dora=bool(said.get("use_dora")),
            dropout=float(said.get("lora_dropout") or 0.0),
            targets=frozenset(targets if isinstance(targets, list) else ()),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as why:
        told = f"{where} cannot be read ({type(why).__name__}: {why})"
        raise UserError(f"{told}; give a folder that PEFT's save_pretrained wrote") from None
    require(kind == "LORA", f"{where} is of peft_type {kind!r}; read here is 'LORA'")
    for name, choice in REFUSED.items():
        told = f"{where}: {name}={said.get(name)!r} has no place here; merge it in PEFT, and import the merged model"
        require((said.get(name) or choice) == choice, told)
    known = {one.rpartition(".")[2] for parts in FUSED.values() for one in parts}
    others = sorted(found.targets - known) if found.targets else [str(targets)]
    told = f"{where}: target_modules names {others[0] if others else ''!r}; read here are {', '.join(sorted(known))}"
    require(not others, told)
    return found


def from_peft(folder: str | Path, base: Any = "fp32") -> tuple[Lora, ...]:
    """`Model.adapters` that begin as those of a PEFT folder: one for each of our layers that it adapts."""
    said, made = read_config(Path(folder)), []
    factor = said.alpha / (said.rank**0.5 if said.rs else said.rank)
    for ours, theirs in FUSED.items():
        count = sum(one.rpartition(".")[2] in said.targets for one in theirs)
        how = {"rank": count * said.rank, "alpha": count * said.rank * factor, "weights": str(folder)}
        if count:
            pattern = f"trunk.blocks.*.{ours}"
            made.append(Lora(pattern=pattern, dora=said.dora, dropout=said.dropout, base=base, **how))
    return tuple(made)
