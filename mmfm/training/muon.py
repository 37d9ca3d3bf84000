"""Muon for the matrices of blocks, AdamW for all else, in one optimizer (K. Jordan et al., 2024; arXiv 2502.16982)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

MOMENTUM, STEPS = 0.95, 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # of Jordan's: fastest from small singular values to those near 1
LIKE_ADAMW = 0.2  # the size of an entry of AdamW's update, which a matrix's is given (arXiv 2502.16982, eq. 4)


def orthogonal(x: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """The nearest matrix whose singular values are about 1 (between 0.7 and 1.2): Newton and Schulz's iteration."""
    a, b, c = QUINTIC
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if x.shape[0] <= x.shape[1] else wide.T


class Muon(torch.optim.AdamW):
    """Groups with `muon=True` take the orthogonal part of their momentum, of Nesterov's kind; others are AdamW's.

    A sharded matrix is gathered for it, on each rank: sharded or whole, the update is the same.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        groups, loss = self.param_groups, None
        if closure is not None:  # before any group is left out: it may set gradients to zero
            with torch.enable_grad():
                loss = closure()
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            for parameter in group["params"] if group["muon"] else ():
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group["lr"], group["weight_decay"])
        return loss

    def _step(self, weight: Tensor, gradient: Tensor, lr: float, decay: float) -> None:
        state = self.state[weight]
        if "momentum" not in state:
            state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(weight)}  # AdamW looks for the first
        state["step"] += 1
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        update = gradient.lerp(momentum, MOMENTUM)
        whole = orthogonal(update.full_tensor() if isinstance(update, DTensor) else update)
        whole = whole * (LIKE_ADAMW * max(weight.shape) ** 0.5)
        if isinstance(weight, DTensor):
            whole = distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
        weight.mul_(1 - lr * decay).add_(whole, alpha=-lr)
