"""Which parameters decay, and how fast the learning rate is at a step."""

import math

import torch
from torch import nn

from mmfm.config import Optim


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; vectors, scalars, embedding tables and positions do not. Checked to be a partition."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    live = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decays = {name for name, p in live if p.ndim >= 2 and id(p) not in tables and not name.endswith("position")}
    groups = [
        {"params": [p for name, p in live if name in decays], "weight_decay": weight_decay},
        {"params": [p for name, p in live if name not in decays], "weight_decay": 0.0},
    ]
    assert sum(len(group["params"]) for group in groups) == len(live)
    return [group for group in groups if group["params"]]


def adamw(model: nn.Module, optim: Optim) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) as one fused kernel per group."""
    groups = parameter_groups(model, optim.weight_decay)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)


def warm_cosine(step: int, *, warmup: int, total: int, floor: float) -> float:
    """Factor of the peak rate: 0 -> 1 over `warmup` steps, then half a cosine down to `floor` at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(total - warmup, 1))
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
