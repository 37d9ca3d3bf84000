"""The generative loss: cross-entropy of target tokens, a mean over all ranks' targets."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mmfm.objectives.contrastive_loss import ALONE
from mmfm.runtime.distributed import Collective


def token_cross_entropy(
    logits: Float[Tensor, "n v"], labels: Int[Tensor, " n"], ranks: Collective = ALONE
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood per token, in nats, over the tokens of all ranks."""
    count = ranks.all_reduce_sum(torch.tensor(len(labels), device=logits.device)).clamp(min=1)
    return F.cross_entropy(logits, labels, reduction="sum") / count.to(logits.dtype)
