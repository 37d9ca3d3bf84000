"""Numbers that look random and are a pure function of seeds, the same on every device (splitmix64)."""

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

GOLDEN = -7046029254386353131  # 2^64 over the golden ratio, as a signed number


def splitmix64(x: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), on int64 that wraps around."""
    x = (x ^ (x >> 30 & 2**34 - 1)) * -4658895280553007687
    x = (x ^ (x >> 27 & 2**37 - 1)) * -7723592293110705685
    return x ^ (x >> 31 & 2**33 - 1)


def hash_uniform(seeds: Int[Tensor, "*any"], salt: int) -> Float[Tensor, "*any"]:
    """A number in [0, 1) for each seed, another for each `salt`."""
    return (splitmix64(splitmix64(seeds) + salt) & (2**24 - 1)).float() / 2**24


def hash_int32(keys: Int[Tensor, "*any"], count: int) -> Int32[Tensor, "*any count"]:
    """So many numbers of 32 random bits for each key of 64, a hash already. In int32 that wraps around: for masks as
    large as what they mask, where int64 would take the time and the memory twice.

    The two rounds of the 32-bit finaliser with the least known bias of its size (C. Wellons, hash-prospector). The
    lower half of a key enters before the first and its upper half before the second, so that all of its bits count.
    """
    places = splitmix64(torch.arange(count, device=keys.device)).to(torch.int32)
    x = keys.to(torch.int32)[..., None] ^ places
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x21F0AAAD
    x = x + (keys >> 32).to(torch.int32)[..., None]
    x = (x ^ (x >> 15 & 0x1FFFF)) * 0x735A2D97
    return x ^ (x >> 15 & 0x1FFFF)
