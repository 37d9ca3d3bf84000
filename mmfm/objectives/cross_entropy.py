"""The generative loss: cross-entropy of target tokens, computed in tiles of tokens.

Letters: n tokens, w width, v vocabulary. The logits of all tokens, n x v, are never held.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

TILE_MB = 32.0  # of one tile of logits; two of them live at a time


def linear_cross_entropy(
    states: Float[Tensor, "n w"],
    weight: Float[Tensor, "v w"],
    labels: Int[Tensor, " n"],
    tile_mb: float = TILE_MB,
    counts: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """The sum of the tokens' negative log-likelihoods, in nats, where `weight` maps a state to logits. Single precision
    or better, whatever the weights are. counts: how much each token counts; None: one each."""
    return _LinearCrossEntropy.apply(states, weight, labels, tile_mb, counts)  # type: ignore[return-value]


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward, where the logits are; the table's adds up in single
    precision or better, as adding tiles in bf16 would round each time."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, tile_mb: float, counts: Tensor | None
    ) -> Tensor:
        states = states.to(weight.dtype)
        exact = torch.promote_types(weight.dtype, torch.float32)
        loss, dweight = states.new_zeros((), dtype=exact), torch.zeros_like(weight, dtype=exact)
        dstates = torch.zeros_like(states)
        tile = max(1, int(tile_mb * 2**20 / (len(weight) * exact.itemsize)))
        for start in range(0, len(states), tile):
            x, at = states[start : start + tile], labels[start : start + tile, None]
            logits = (x @ weight.T).to(exact)
            d = logits.softmax(1)  # one fused pass; the largest is 1 over the sum of exponentials, and never 0
            each = logits.amax(1) - d.amax(1).log() - logits.gather(1, at)[:, 0]
            count = None if counts is None else counts[start : start + tile].to(exact)
            loss += (each if count is None else each * count).sum()
            del logits
            if not any(ctx.needs_input_grad):
                continue
            d.scatter_add_(1, at, d.new_full(at.shape, -1.0))
            d = d if count is None else d.mul_(count[:, None])
            dstates[start : start + tile] = d.to(weight.dtype) @ weight
            if dweight.dtype == weight.dtype:
                dweight.addmm_(d.T, x)
            else:
                dweight += d.to(weight.dtype).T @ x
        ctx.gradients, ctx.dtypes = (dstates, dweight), (states.dtype, weight.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Once: the gradients are scaled where they lie, as a second table of their size would be the largest."""
        assert ctx.gradients is not None, "a second backward of linear_cross_entropy: its gradients were given away"
        scaled = [x.mul_(grads[0]).to(kind) for x, kind in zip(ctx.gradients, ctx.dtypes, strict=True)]
        ctx.gradients = None
        return *scaled, None, None, None
