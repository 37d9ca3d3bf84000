"""Finite scalar quantisation: a few bounded numbers, each rounded to one of its levels (arXiv 2309.15505).

There is no codebook to learn, to collapse or to keep equal across ranks: a code is its place in a grid.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

MARGIN = 1e-3  # how far beyond its outermost level a number may go; with two levels, less would reach neither


class Quantiser(nn.Module):
    """Vectors -> places in a grid of `levels` and back; prod(levels) codes."""

    def __init__(self, width: int, levels: Sequence[int]) -> None:
        super().__init__()
        self.size = math.prod(levels)
        self.enter, self.leave = nn.Linear(width, len(levels)), nn.Linear(len(levels), width)
        with torch.device("cpu"):  # constants are real even in a model that is built on the meta device
            steps = [math.prod(levels[:place]) for place in range(len(levels))]
            self.levels = nn.Buffer(torch.tensor(levels), persistent=False)
            self.steps = nn.Buffer(torch.tensor(steps), persistent=False)

    def forward(self, x: Float[Tensor, "*any width"]) -> tuple[Float[Tensor, "*any width"], Int[Tensor, "*any"]]:
        """The vectors of the nearest grid points, and their codes. Gradients pass the rounding as if it were not."""
        with torch.autocast(x.device.type, enabled=False):  # bf16 cannot tell apart what stands beside a border
            bounded = self._bounded(self.enter(x.to(self.enter.weight.dtype)))
            grid = bounded + (bounded.round() - bounded).detach()
        return self._vectors(grid), self._codes(grid.detach().round().long())

    def vectors(self, codes: Int[Tensor, "*any"]) -> Float[Tensor, "*any width"]:
        """The vectors of codes 0 .. size - 1."""
        grid = codes.unsqueeze(-1) // self.steps % self.levels - self.levels // 2
        return self._vectors(grid.to(self.leave.weight.dtype))

    def _bounded(self, z: Tensor) -> Tensor:
        """Into the grid by tanh; an even number of levels has no middle one, so its grid stands half a step aside."""
        reach = (self.levels - 1) * (1 + MARGIN) / 2
        aside = torch.where(self.levels % 2 == 0, 0.5, 0.0).to(z.dtype)
        return torch.tanh(z + torch.atanh(aside / reach)) * reach - aside

    def _codes(self, grid: Int[Tensor, "*any dims"]) -> Int[Tensor, "*any"]:
        return ((grid + self.levels // 2) * self.steps).sum(-1)

    def _vectors(self, grid: Tensor) -> Tensor:
        return self.leave(grid / (self.levels // 2).to(grid.dtype))
