"""Token dropout (FLIP, PatchDropout): which places of a source a tower or the transformer sees in a training step."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmfm.models.layers import positions_of
from mmfm.runtime.randomness import GOLDEN, splitmix64

PATCHES = 7 << 32  # its draws are no other's


def keep_mask(
    seeds: Int[Tensor, " batch"], keep: Bool[Tensor, "batch time"], chance: float
) -> Bool[Tensor, "batch time"]:
    """`keep` less each real token with this chance, by a hash of its row's seed and its place: no rank changes it."""
    drawn = splitmix64(splitmix64(seeds)[:, None] + positions_of(keep) * GOLDEN)
    return keep & ((drawn & (2**24 - 1)) >= chance * 2**24)


def patch_subset(seeds: Int[Tensor, " batch"], patches: int, chance: float) -> Int[Tensor, "batch kept"]:
    """Which of a picture's patches are read, rising: of all pictures equally many, as a part of them is left out (FLIP,
    arXiv 2212.00794), by a hash of the picture's seed and the place."""
    drawn = splitmix64(splitmix64(seeds + PATCHES)[:, None] + torch.arange(patches, device=seeds.device) * GOLDEN)
    return drawn.argsort(dim=1, stable=True)[:, : max(1, round((1 - chance) * patches))].sort(dim=1).values
