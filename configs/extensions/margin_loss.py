"""An objective of one's own: a hinge on how much nearer the right pair is than the wrong ones (VSE++, 1707.05612).

objectives=(MarginLoss(pair=("image", "text"), margin=0.2),)  # of a Run, or "margin_loss.py:MarginLoss"
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmfm.config import Objective
from mmfm.objectives.joint import StepOutputs


def margin_loss(a: Tensor, b: Tensor, all_a: Tensor, all_b: Tensor, wrong: Tensor, margin: float) -> Tensor:
    """The sum over local rows of how far the hardest wrong one comes within the margin of the right one, both ways."""
    right = (a * b).sum(1, keepdim=True)
    costs = [
        (margin + x @ others.T - right).clamp(min=0).masked_fill(~wrong, 0).amax(1)
        for x, others in ((a, all_b), (b, all_a))
    ]
    return torch.stack(costs).sum()


@dataclass(frozen=True, kw_only=True)
class MarginLoss(Objective):
    pair: tuple[str, str] = ("image", "text")
    margin: float = 0.2

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.pair

    def loss(self, step: StepOutputs) -> Tensor:
        a, b, same = step.pairs(*self.pair)
        all_a, all_b, all_same = (step.ranks.all_gather(x) for x in (a, b, same))
        if not len(a):
            return 0 * (all_a.sum() + all_b.sum())
        wrong = same[:, None] != all_same[None, :]
        return margin_loss(a, b, all_a, all_b, wrong, self.margin) / (2 * len(all_same))
