"""Which sample comes at which position: pure functions, so that the state of a stream is one integer.

No rank, worker or restart can change what a position means. Letters: n samples of a source, k draws.
"""

import hashlib
from collections.abc import Sequence

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
        """Blocks in permuted order, each permuted inside; the last block may be short."""
        n = self.sizes[source]
        blocks = self._permutation(source, epoch, -1, -(-n // BLOCK))
        ends = np.cumsum(np.minimum(n - blocks.astype(np.int64) * BLOCK, BLOCK))
        slot = int(np.searchsorted(ends, place, side="right"))
        block, length = int(blocks[slot]), int(np.diff(ends, prepend=0)[slot])
        inside = self._permutation(source, epoch, block, length)
        return block * BLOCK + int(inside[place - int(ends[slot]) + length])

    def _permutation(self, source: int, epoch: int, block: int, n: int) -> Int[np.ndarray, " n"]:
        """Drawn once and kept while it is in use: two epochs of each source, their blocks and the order of these."""
        name = (source, epoch, block)
        if name not in self._recent:
            if len(self._recent) >= 4 * len(self.sizes):
                self._recent.pop(next(iter(self._recent)))
            self._recent[name] = generator(self.seed, "order", *name).permutation(n).astype(np.int32)
        return self._recent[name]


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
