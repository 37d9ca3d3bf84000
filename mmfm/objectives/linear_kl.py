"""How far one softmax over many rows of a table is from another's, in tiles: no square of scores is ever held.

Letters: n tokens or items, w and u widths of student and teacher, v words or items that both give scores to.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmfm.objectives.cross_entropy import TILE_MB


def linear_kl(
    states: Float[Tensor, "n w"],
    weight: Float[Tensor, "v w"],
    teacher_states: Float[Tensor, "n u"],
    teacher_weight: Float[Tensor, "v u"],
    temperature: float = 1.0,
    tile_mb: float = TILE_MB,
    own: int | None = None,
) -> Float[Tensor, ""]:
    """The sum over rows of KL(teacher || student), in nats, of softmaxes of scores divided by `temperature`
    (arXiv 1503.02531, section 2, without its factor of temperature squared). The teacher gets no gradient.

    own: where columns are rows, the column of the first row; a row's own column has no part in its softmax.
    """
    return _LinearKl.apply(  # type: ignore[return-value]
        states, weight, teacher_states.detach(), teacher_weight.detach(), temperature, tile_mb, own
    )


class _LinearKl(torch.autograd.Function):
    """Gradients are made in the forward, where the scores are, as those of `linear_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        teacher_states: Tensor,
        teacher_weight: Tensor,
        temperature: float,
        tile_mb: float,
        own: int | None,
    ) -> Tensor:
        dtypes, states = (states.dtype, weight.dtype), states.to(weight.dtype)
        teacher_states = teacher_states.to(teacher_weight.dtype)
        exact = torch.promote_types(weight.dtype, torch.float32)
        loss, dweight = states.new_zeros((), dtype=exact), torch.zeros_like(weight, dtype=exact)
        dstates = torch.zeros_like(states)
        tile = max(1, int(tile_mb * 2**20 / (max(1, len(weight)) * exact.itemsize)))
        for start in range(0, len(states), tile):
            rows = slice(start, start + tile)
            student = _log_softmax(states[rows] @ weight.T, temperature, exact, own, start)
            teacher = _log_softmax(teacher_states[rows] @ teacher_weight.T, temperature, exact, own, start)
            p = teacher.exp()
            loss += (p * (teacher - student)).sum()
            if any(ctx.needs_input_grad):
                d = student.exp_().sub_(p).div_(temperature)
                dstates[rows] = d.to(weight.dtype) @ weight
                dweight += d.to(weight.dtype).T @ states[rows]
        ctx.dtypes = dtypes
        ctx.save_for_backward(dstates, dweight)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        each = ((x * grads[0]).to(kind) for x, kind in zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        return *each, None, None, None, None, None


def _log_softmax(scores: Tensor, temperature: float, exact: torch.dtype, own: int | None, start: int) -> Tensor:
    scores = scores.to(exact) / temperature
    if own is not None:
        at = torch.arange(len(scores), device=scores.device)
        columns = torch.arange(scores.shape[1], device=scores.device)
        mine = (at + own + start)[:, None] == columns
        scores = scores.masked_fill(mine, torch.finfo(exact).min / 4)  # finite: its difference times 0 is 0
    return scores.log_softmax(1)
