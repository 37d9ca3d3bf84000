"""Losses that compare two sets of embeddings, computed in tiles: no n x N square is ever held.

Letters: n local rows, N rows of all ranks, d embedding width. Each loss returns this rank's share: the shares of all
ranks add up to the loss of the whole batch in one process. How ranks are joined is an argument; alone, the share is the
loss. Gradients are made on the way, tile by tile, so that only sums of size N d leave the forward; one side alone is
gathered. What is asked of the shares in backward (a weight) must be the same on all ranks.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mmfm.runtime.distributed import Collective, SingleProcess
from mmfm.runtime.transfer import to_device

ALONE = SingleProcess()
TILE_MB = 32.0  # of one tile of scores; three of them live at a time


class Others(NamedTuple):
    """What a rank compares its rows with: b of all ranks, their groups, and which of them are its own. share: of each
    of a row's positives in its target."""

    b: Float[Tensor, "N d"]
    same: Int[Tensor, " N"]
    mine: slice
    share: Float[Tensor, " N"]
    counts: list[int]  # of rows, by rank


def softmax_contrast(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "n d"],
    same: Int[Tensor, " n"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""] | None = None,
    ranks: Collective = ALONE,
    tile_mb: float = TILE_MB,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020) of pairs (a_i, b_i); all rows of equal `same` are positives.

    A row's target is uniform over its positives (SupCon's L_out, arXiv 2004.11362, eq. 2), so that without repeats
    this is CLIP's loss. `bias` shifts every logit alike, which a softmax does not see; it is ignored.
    """
    return _Softmax.apply(a, b, scale, same, ranks, tile_mb)  # type: ignore[return-value]


def sigmoid_contrast(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "n d"],
    same: Int[Tensor, " n"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    ranks: Collective = ALONE,
    tile_mb: float = TILE_MB,
) -> Float[Tensor, ""]:
    """Every pair is its own yes/no question; yes where `same` agrees (SigLIP, arXiv 2303.15343, eq. 1)."""
    return _Sigmoid.apply(a, b, scale, bias, same, ranks, tile_mb)  # type: ignore[return-value]


class _Softmax(torch.autograd.Function):
    """The positives' term is symmetric, so that rows count it for columns too: equal groups are equally large."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, scale: Tensor, same: Tensor, ranks: Collective, tile_mb: float
    ) -> Tensor:
        others = _gathered(b, same, ranks)
        same, share = others.same[others.mine], others.share[others.mine]
        row, at = a.new_empty(len(a)), a.new_empty(len(a))
        column = a.new_full((len(others.b),), -torch.inf)
        for rows in _tiles(a, others, tile_mb):
            scores = (a[rows] * scale) @ others.b.T
            row[rows], column = scores.logsumexp(1), torch.logaddexp(column, scores.logsumexp(0))
            at[rows] = (scores * (same[rows, None] == others.same)).sum(1) * share[rows]
        column = ranks.all_gather(column[None], [1] * ranks.size).logsumexp(0)
        count = 2 * max(len(others.b), 1)
        loss = (row.sum() + column[others.mine].sum() - 2 * at.sum()) / count
        if not any(ctx.needs_input_grad):
            return loss
        da, db = torch.zeros_like(a), torch.zeros_like(others.b)
        for rows in _tiles(a, others, tile_mb):
            scores = (a[rows] * scale) @ others.b.T
            d = (scores - row[rows, None]).exp_().add_(scores.sub_(column).exp_())
            d -= 2 * share[rows, None] * (same[rows, None] == others.same)
            da[rows] = d @ others.b
            db.addmm_(d.T, a[rows])
        _keep(ctx, (da * scale, _own(db, others, ranks) * scale, (da * a).sum()), count)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_scaled(ctx, grads[0]), None, None, None


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, same: Tensor, ranks: Collective, tile_mb: float
    ) -> Tensor:
        others = _gathered(b, same, ranks)
        same = others.same[others.mine]
        loss, dbias = a.new_zeros(()), a.new_zeros(())
        da, db = torch.zeros_like(a), torch.zeros_like(others.b)
        for rows in _tiles(a, others, tile_mb):
            positive = same[rows, None] == others.same
            scores = torch.addmm(bias.expand(1, 1), a[rows] * scale, others.b.T)
            signed = torch.where(positive, scores, -scores)
            loss -= F.logsigmoid(signed).sum()
            d = signed.neg_().sigmoid_()
            d = torch.where(positive, -d, d)
            dbias += d.sum()
            da[rows] = d @ others.b
            db.addmm_(d.T, a[rows])
        count = max(len(others.b), 1)
        _keep(ctx, (da * scale, _own(db, others, ranks) * scale, (da * a).sum(), dbias), count)
        return loss / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_scaled(ctx, grads[0]), None, None, None


def _gathered(b: Tensor, same: Tensor, ranks: Collective) -> Others:
    """Groups are counted on the CPU, where the caller knows them: a device that is asked makes the CPU wait."""
    facts = ranks.all_gather(torch.stack([same, torch.full_like(same, ranks.rank)], 1).cpu())
    _, group, sizes = torch.unique(facts[:, 0], return_inverse=True, return_counts=True)
    counts = torch.bincount(facts[:, 1], minlength=ranks.size).tolist()
    start = sum(counts[: ranks.rank])
    groups, share = to_device(facts[:, 0].contiguous(), b.device), to_device(1 / sizes[group].to(b.dtype), b.device)
    return Others(ranks.all_gather(b, counts), groups, slice(start, start + len(b)), share, counts)


def _own(db: Tensor, others: Others, ranks: Collective) -> Tensor:
    """Of what all ranks ask of all rows, the sum of what they ask of this rank's."""
    return ranks.reduce_scatter_sum(db, others.counts)


def _tiles(a: Tensor, others: Others, tile_mb: float) -> Iterator[slice]:
    rows = max(1, int(tile_mb * 2**20 / max(1, len(others.b) * a.element_size())))
    return (slice(start, start + rows) for start in range(0, len(a), rows))


def _keep(ctx: Any, gradients: tuple[Tensor, ...], count: int) -> None:
    ctx.save_for_backward(*gradients)
    ctx.count = count


def _scaled(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return tuple(gradient * (grad / ctx.count) for gradient in ctx.saved_tensors)


CONTRAST = {"softmax": softmax_contrast, "sigmoid": sigmoid_contrast}
