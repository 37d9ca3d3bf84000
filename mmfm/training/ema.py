"""The exponential moving average of what is learned, kept beside the optimizer's moments: in its state, sharded and
saved as they are."""

import torch
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mmfm.config import Ema

AVERAGE = "ema"  # its name in a parameter's state


@torch.no_grad()
def update_ema(optimizer: Optimizer, cfg: Ema, step: int) -> None:
    """After step number `step`, counted from 1. What no step has moved yet has no average: it would be itself."""
    if step <= cfg.start_step or step % cfg.every:
        return
    averages, weights = [], []
    for weight in (p for group in optimizer.param_groups for p in group["params"] if optimizer.state.get(p)):
        state = optimizer.state[weight]
        if AVERAGE not in state:
            state[AVERAGE] = weight.detach().clone()
        averages.append(state[AVERAGE])
        weights.append(weight.detach())
    if averages:
        get_ema_multi_avg_fn(cfg.decay**cfg.every)(averages, weights, step)
