"""Which parameters learn and decay, how fast, and what the learning rate is at a step."""

import difflib
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from mmfm.config import Optim, Rate, require


def factors(model: nn.Module, rates: Sequence[Rate]) -> dict[str, float]:
    """Each parameter's factor of the learning rate: that of the last pattern that matches its name, else 1.

    Raises UserError for a pattern that matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    found = dict.fromkeys(names, 1.0)
    for rate in rates:
        matching = [name for name in names if fnmatchcase(name, rate.of)]
        near = difflib.get_close_matches(rate.of, names, n=1, cutoff=0.0)
        require(bool(matching), f"optim.rates: no parameter is called {rate.of!r}; the nearest is {''.join(near)}")
        found |= dict.fromkeys(matching, rate.lr)
    require(any(found.values()), "optim.rates lock every parameter, so that nothing learns; leave some out")
    return found


def parameter_groups(model: nn.Module, optim: Optim, factor: Mapping[str, float] | None = None) -> list[dict]:
    """Matrices decay; vectors, scalars, embedding tables and positions do not. Checked to be a partition.

    `factor`: of `factors`; what learns at another rate is in a group of its own.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    live = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, p in live:
        decays = p.ndim >= 2 and id(p) not in tables and "weight" in name.rpartition(".")[2]
        groups.setdefault(((factor or {}).get(name, 1.0), decays), []).append(p)
    assert sum(map(len, groups.values())) == len(live)
    return [
        {"params": groups[of, decays], "weight_decay": optim.weight_decay * decays, "lr": optim.lr * of}
        for of, decays in sorted(groups, reverse=True)
    ]


def adamw(model: nn.Module, optim: Optim, factor: Mapping[str, float] | None = None) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) as one fused kernel per group, each at its own rate."""
    groups = parameter_groups(model, optim, factor)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)


def warm_cosine(step: int, *, warmup: int, total: int, floor: float) -> float:
    """Factor of the peak rate: 0 -> 1 over `warmup` steps, then half a cosine down to `floor` at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(total - warmup, 1))
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
