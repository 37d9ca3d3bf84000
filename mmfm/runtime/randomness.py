"""Numbers that look random and are a pure function of seeds, the same on every device (splitmix64)."""

from jaxtyping import Float, Int
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
