"""Which sample comes at which position: pure functions, so that the state of a stream is one integer.

No rank, worker or restart can change what a position means. Letters: n samples of a source, k draws.
"""

import functools
import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from jaxtyping import Float, Int

BLOCK = 1 << 20  # a permutation this long is drawn at once; a larger source is shuffled block by block


class Order:
    """position -> (source, sample), endless. `shares[s]` of every sum(shares) positions come from source s.

    Each epoch of each source is a fresh permutation of all its `sizes[s]` samples.
    """

    def __init__(self, seed: int, sizes: Sequence[int], shares: Sequence[int]) -> None:
        assert len(sizes) == len(shares) and min(*sizes, *shares) > 0
        self.seed, self.sizes, self.shares = seed, tuple(sizes), tuple(shares)
        self.pattern = spread(shares)
        self.before = [self.pattern[:at].count(source) for at, source in enumerate(self.pattern)]
        self._recent: dict[tuple[int, int, int], Int[np.ndarray, " n"]] = {}

    def __call__(self, position: int) -> tuple[int, int]:
        period, at = divmod(position, len(self.pattern))
        source = self.pattern[at]
        epoch, place = divmod(period * self.shares[source] + self.before[at], self.sizes[source])
        return source, self._sample(source, epoch, place)

    def _sample(self, source: int, epoch: int, place: int) -> int:
        """Blocks in permuted order, each permuted inside."""
        blocks, ends = _blocks(self.seed, source, epoch, self.sizes[source])
        slot = bisect_right(ends, place)
        start = ends[slot - 1] if slot else 0
        inside = self._permutation(source, epoch, blocks[slot], ends[slot] - start)
        return blocks[slot] * BLOCK + int(inside[place - start])

    def _permutation(self, source: int, epoch: int, block: int, n: int) -> Int[np.ndarray, " n"]:
        """Drawn once and kept while it is in use: two epochs of each source meet in a batch, seldom more."""
        name = (source, epoch, block)
        if name not in self._recent:
            if len(self._recent) >= 3 * len(self.sizes):
                self._recent.pop(next(iter(self._recent)))
            self._recent[name] = generator(self.seed, "order", *name).permutation(n).astype(np.int32)
        return self._recent[name]


@functools.lru_cache(maxsize=256)
def _blocks(seed: int, source: int, epoch: int, n: int) -> tuple[list[int], list[int]]:
    """The order of this epoch's blocks, and where each ends in it; the last block of the source may be short."""
    blocks = generator(seed, "blocks", source, epoch).permutation(-(-n // BLOCK)).tolist()
    return blocks, list(accumulate(min(BLOCK, n - block * BLOCK) for block in blocks))


def spread(shares: Sequence[int]) -> list[int]:
    """One period of sum(shares) turns, each source's turns as even as can be (smooth weighted round robin)."""
    credit, turns = [0] * len(shares), []
    for _ in range(sum(shares)):
        credit = [have + share for have, share in zip(credit, shares, strict=True)]
        turns.append(max(range(len(shares)), key=lambda source: credit[source]))
        credit[turns[-1]] -= sum(shares)
    return turns


def draws(seed: int, position: int, k: int) -> Float[np.ndarray, " k"]:
    """k uniform float32 numbers in [0, 1) that belong to this position."""
    return generator(seed, "draws", position).random(k, dtype=np.float32)


def generator(seed: int, *path: int | str) -> np.random.Generator:
    """A counter-based stream of its own for (seed, path)."""
    name = repr((seed, *path)).encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))
