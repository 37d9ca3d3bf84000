"""Dropout of a sample, a place, a channel and a layer: packed, padded, alone or resumed, it drops the same."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmfm.runtime.randomness import GOLDEN, hash_int32, splitmix64


class DropoutKey(NamedTuple):
    """Whose randomness a pass takes: a number for each row, and each token's place among the real ones of its row.

    Of packed sentences each token has the number of its own.
    """

    rows: Int[Tensor, "batch #time"]
    places: Int[Tensor, "batch time"]

    def of(self, only: Int[Tensor, " some"] | None) -> "DropoutKey":
        """That of these tokens alone, which stand in one row; None: of all."""
        return self if only is None else DropoutKey(self.rows[:, only], self.places[:, only])


class Dropout(nn.Module):
    """Dropout whose mask is a hash of row, place, channel and layer: no rank, padding or neighbour can change it.

    Without `noise` it draws from the global generator, as torch's does.
    """

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance
        # `number_dropouts` tells layers apart. A tensor, as compilers make code of its own for each number; a real one
        # even in a model that is built on the meta device, as no checkpoint gives it.
        self.layer = nn.Buffer(torch.tensor(0, device="cpu"), persistent=False)

    def forward(
        self, x: Float[Tensor, "batch time width"], noise: DropoutKey | None
    ) -> Float[Tensor, "batch time width"]:
        if not self.training or self.chance == 0:
            return x
        if noise is None:
            return F.dropout(x, self.chance)
        keep = keep_channels(splitmix64(splitmix64(noise.rows) + self.layer), noise.places, x.shape[2], self.chance)
        return torch.where(keep, x * (1 / (1 - self.chance)), 0)


def keep_channels(
    rows: Int[Tensor, "batch #time"], places: Int[Tensor, "batch time"], width: int, chance: float
) -> Bool[Tensor, "batch time width"]:
    """Which channels of which places stay. The chance is that of a number of 16 bits, two of which a hash gives."""
    bits = hash_int32(splitmix64(rows + places * GOLDEN), (width + 1) // 2).view(torch.int16)
    return bits[..., :width] >= min(round(chance * 2**16), 2**16 - 1) - 2**15


def number_dropouts(model: nn.Module) -> None:
    """Each of the model's dropouts gets a number of its own, by its place, those of adapters after all others: when the
    model is built, and again after `to_empty`, which forgets them."""
    found = [part for part in model.modules() if isinstance(part, Dropout)]
    for number, module in enumerate(sorted(found, key=lambda part: type(part) is not Dropout)):
        module.layer = nn.Buffer(torch.full_like(module.layer, number), persistent=False)
