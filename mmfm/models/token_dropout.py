"""Token dropout (FLIP, PatchDropout): which places of a source a tower or the transformer sees in a training step."""

from jaxtyping import Bool, Int
from torch import Tensor

from mmfm.models.layers import positions_of
from mmfm.runtime.randomness import GOLDEN, splitmix64


def keep_mask(
    seeds: Int[Tensor, " batch"], keep: Bool[Tensor, "batch time"], chance: float
) -> Bool[Tensor, "batch time"]:
    """`keep` less each real token with this chance, by a hash of its row's seed and its place: no rank changes it."""
    drawn = splitmix64(splitmix64(seeds)[:, None] + positions_of(keep) * GOLDEN)
    return keep & ((drawn & (2**24 - 1)) >= chance * 2**24)
