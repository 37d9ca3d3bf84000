"""Losses as pure functions of tensors. Letters: n local rows, N rows of all ranks, d embedding width, v vocabulary.

Each returns this rank's share: the shares of all ranks add up to the loss of the whole batch in one process. How ranks
are joined is an argument; alone, the share is the loss.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mmfm.runtime.distributed import Collective, SingleProcess

ALONE = SingleProcess()


def softmax_contrast(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "n d"],
    same: Int[Tensor, " n"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""] | None = None,
    ranks: Collective = ALONE,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020) of pairs (a_i, b_i); all rows of equal `same` are positives.

    A row's target is uniform over its positives (SupCon's L_out, arXiv 2004.11362, eq. 2), so that without repeats
    this is CLIP's loss. `bias` shifts every logit alike, which a softmax does not see; it is ignored.
    """
    all_a, all_b, all_same = ranks.all_gather(a), ranks.all_gather(b), ranks.all_gather(same)
    positive = same[:, None] == all_same[None, :]
    target = positive / positive.sum(1, keepdim=True)
    forward = -(target * F.log_softmax(scale * a @ all_b.T, dim=1)).sum()
    backward = -(target * F.log_softmax(scale * b @ all_a.T, dim=1)).sum()
    return (forward + backward) / (2 * max(len(all_same), 1))


def sigmoid_contrast(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "n d"],
    same: Int[Tensor, " n"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    ranks: Collective = ALONE,
) -> Float[Tensor, ""]:
    """Every pair is its own yes/no question; yes where `same` agrees (SigLIP, arXiv 2303.15343, eq. 1)."""
    all_b, all_same = ranks.all_gather(b), ranks.all_gather(same)
    sign = 2 * (same[:, None] == all_same[None, :]).to(a.dtype) - 1
    return -F.logsigmoid(sign * (scale * a @ all_b.T + bias)).sum() / max(len(all_same), 1)


CONTRAST = {"softmax": softmax_contrast, "sigmoid": sigmoid_contrast}
