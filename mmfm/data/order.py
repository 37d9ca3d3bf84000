"""Which sample comes at which position: pure functions, so that the state of a stream is one integer.

No rank, worker or restart can change what a position means. Letters: n samples of a source, k draws.
"""

import hashlib
import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

MOST_REDRAWS = 8
WIDTH = 256  # numbers of a position
OF_COUNTER = 8  # float32 numbers from one value of Philox's counter


class Place(NamedTuple):
    """A source, its epoch, and how many of its samples came before in this epoch."""

    source: int
    epoch: int
    at: int


class Epoch(NamedTuple):
    """The tars of a source in the order of one epoch, where each ends in it, and the order of its blocks."""

    shards: Int[np.ndarray, " shards"]
    ends: Int[np.ndarray, " shards"]
    blocks: Int[np.ndarray, " blocks"]
    block_ends: list[int]


class Order:
    """position -> (source, sample), endless. `shares[s]` of every sum(shares) turns come from source s.

    A turn is one sample, or with `unit` > 1 so many in a row: a whole batch of one source. `counts[s]` are the samples
    in each tar of source s. Each epoch of each source takes all its samples once: tars in a fresh order, cut into
    blocks of `block` samples, the blocks in a fresh order, and each of them shuffled.
    """

    def __init__(
        self, seed: int, counts: Sequence[Sequence[int]], shares: Sequence[int], *, block: int = 65_536, unit: int = 1
    ) -> None:
        assert len(counts) == len(shares) and min(shares) > 0 and block > 0 and unit > 0
        self.seed, self.shares, self.block, self.unit = seed, tuple(shares), block, unit
        self.counts = [np.asarray(of_source, dtype=np.int64) for of_source in counts]
        self.starts = [of_source.cumsum() - of_source for of_source in self.counts]
        self.sizes = tuple(int(of_source.sum()) for of_source in self.counts)
        assert min(self.sizes) > 0
        self.pattern = spread(shares)
        self.before = _before(self.pattern)
        self._epochs: dict[tuple[int, int], Epoch] = {}
        self._permutations: dict[tuple[int, int, int], Int[np.ndarray, " n"]] = {}

    def __call__(self, position: int) -> tuple[int, int]:
        place = self.place(position)
        return place.source, self._sample(place)

    def place(self, position: int) -> Place:
        turn, inside = divmod(position, self.unit)
        period, at = divmod(turn, len(self.pattern))
        source = self.pattern[at]
        own = (period * self.shares[source] + self.before[at]) * self.unit + inside
        return Place(source, *divmod(own, self.sizes[source]))

    def _sample(self, place: Place) -> int:
        if self.sizes[place.source] <= self.block:  # one block: the order of its tars would change nothing
            return int(self._permutation(place.source, place.epoch, 0, self.sizes[place.source])[place.at])
        epoch = self._epoch(place.source, place.epoch)
        slot = bisect_right(epoch.block_ends, place.at)
        start = epoch.block_ends[slot - 1] if slot else 0
        block = int(epoch.blocks[slot])
        inside = self._permutation(place.source, place.epoch, block, epoch.block_ends[slot] - start)
        among = block * self.block + int(inside[place.at - start])
        turn = int(epoch.ends.searchsorted(among, "right"))
        shard = int(epoch.shards[turn])
        own = among - (int(epoch.ends[turn]) - int(self.counts[place.source][shard]))
        return int(self.starts[place.source][shard]) + own

    def shards_soon(self, position: int) -> list[int]:
        """The tars that this block of the position's source needs, and then those of the next: to fetch ahead."""
        place = self.place(position)
        if self.sizes[place.source] <= self.block:
            return list(range(len(self.counts[place.source])))
        epoch = self._epoch(place.source, place.epoch)
        slot = bisect_right(epoch.block_ends, place.at)
        turns = [turn for block in epoch.blocks[slot : slot + 2] for turn in self._turns(epoch, int(block))]
        return list(dict.fromkeys(int(epoch.shards[turn]) for turn in turns))

    def room(self, source: int, sizes: Sequence[int]) -> int:
        """The most bytes of tars, of which each has so many, that one block of the source's first epoch needs."""
        if self.sizes[source] <= self.block:
            return sum(sizes)
        epoch = self._epoch(source, 0)
        blocks = (self._turns(epoch, block) for block in range(len(epoch.block_ends)))
        return max(sum(sizes[int(epoch.shards[turn])] for turn in turns) for turns in blocks)

    def _turns(self, epoch: Epoch, block: int) -> range:
        first, last = block * self.block, min((block + 1) * self.block, int(epoch.ends[-1])) - 1
        return range(int(epoch.ends.searchsorted(first, "right")), int(epoch.ends.searchsorted(last, "right")) + 1)

    def _epoch(self, source: int, epoch: int) -> Epoch:
        name = (source, epoch)
        if name not in self._epochs:
            _drop_oldest(self._epochs, 2 * len(self.sizes))
            self._epochs[name] = self._draw_epoch(source, epoch)
        return self._epochs[name]

    def _draw_epoch(self, source: int, epoch: int) -> Epoch:
        n = self.sizes[source]
        shards = generator(self.seed, "shards", source, epoch).permutation(len(self.counts[source]))
        blocks = generator(self.seed, "blocks", source, epoch).permutation(-(-n // self.block))
        lengths = np.minimum(self.block, n - blocks * self.block)  # the last block may be short
        return Epoch(shards, self.counts[source][shards].cumsum(), blocks, lengths.cumsum().tolist())

    def _permutation(self, source: int, epoch: int, block: int, n: int) -> Int[np.ndarray, " n"]:
        """Drawn once and kept while it is in use: two epochs of each source meet in a batch, seldom more."""
        name = (source, epoch, block)
        if name not in self._permutations:
            _drop_oldest(self._permutations, 3 * len(self.sizes))
            drawn = generator(self.seed, "order", *name).permutation(n)
            self._permutations[name] = drawn.astype(np.int32)
        return self._permutations[name]

    def others(self, position: int, least: int) -> Iterator[int]:
        """Different samples of the position's source, never the one that comes at it, in an order of its own.

        They are of the block in which it lies, whose tars are at hand; of the whole source where that has not `least`.
        """
        place = self.place(position)
        first, stop = self._bounds(place)
        if stop - first <= least:
            first, stop = 0, self.sizes[place.source]
        drawn, seen = generator(self.seed, "others", position), {place.at}
        while len(seen) < stop - first:
            at = int(drawn.integers(first, stop))
            if at not in seen:
                seen.add(at)
                yield self._sample(place._replace(at=at))

    def _bounds(self, place: Place) -> tuple[int, int]:
        """Where the block of this place begins and ends in its epoch."""
        if self.sizes[place.source] <= self.block:
            return 0, self.sizes[place.source]
        ends = self._epoch(place.source, place.epoch).block_ends
        slot = bisect_right(ends, place.at)
        return (ends[slot - 1] if slot else 0), ends[slot]

    def redraw(self, position: int, attempt: int) -> int:
        """Another sample of the position's source, for one that cannot be read: the shares stay what they are."""
        source = self.place(position).source
        return int(generator(self.seed, "redraw", position, attempt).integers(self.sizes[source]))


def _drop_oldest(kept: dict, most: int) -> None:
    while len(kept) >= most:
        kept.pop(next(iter(kept)))


def spread(shares: Sequence[int]) -> list[int]:
    """One period of sum(shares) turns, each source's turns as even as can be (smooth weighted round robin)."""
    credit, turns = [0] * len(shares), []
    for _ in range(sum(shares)):
        credit = [have + share for have, share in zip(credit, shares, strict=True)]
        turns.append(max(range(len(shares)), key=lambda source: credit[source]))
        credit[turns[-1]] -= sum(shares)
    return turns


def _before(turns: Sequence[int]) -> list[int]:
    """How many earlier turns each turn's source had."""
    counters = [itertools.count() for _ in range(max(turns) + 1)]
    return [next(counters[source]) for source in turns]


def deal(lengths: Sequence[float | int], world: int, alike: bool = True) -> list[list[int]]:
    """The places 0 ... n-1 for each of `world` ranks, of near-equal total length. alike: equally many; n % world == 0.

    The longest first, each to the rank with the least so far that has room: within one longest item of even.
    """
    most = len(lengths) // world if alike else len(lengths)
    hands: list[list[int]] = [[] for _ in range(world)]
    totals = [0.0] * world
    for at in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        rank = min((rank for rank in range(world) if len(hands[rank]) < most), key=lambda rank: (totals[rank], rank))
        hands[rank].append(at)
        totals[rank] += lengths[at]
    return [sorted(hand) for hand in hands]


def within(first: int, budget: int, most: int, cost: Callable[[int], int]) -> range:
    """The positions of a batch that begins at `first`: as many as cost no more than the budget together, and `most` at
    the most. One that costs more than the budget is a batch of its own."""
    stop, left = first + 1, budget - cost(first)
    while stop < first + most and (left := left - cost(stop)) >= 0:
        stop += 1
    return range(first, stop)


def once(n: int, batch: int, *, rank: int = 0, world: int = 1) -> list[list[int | None]]:
    """The batches of a rank such that all ranks together see each of 0 ... n-1 once, in equally many batches.

    Ranks take contiguous parts of each batch of all; None fills up what is missing at the end.
    """
    mine = batch // world
    assert mine * world == batch and 0 <= rank < world
    firsts = range(rank * mine, -(-n // batch) * batch, batch)
    return [[at if at < n else None for at in range(first, first + mine)] for first in firsts]


def draws(seed: int, positions: Sequence[int], k: int) -> Float[np.ndarray, "n k"]:
    """k uniform float32 numbers in [0, 1) that belong to each position; the first ones do not depend on k.

    All positions' numbers are one long stream, WIDTH for each; a batch's positions follow each other, so that one
    generator, begun at their place in it, gives all of theirs.
    """
    assert k <= WIDTH
    runs = np.split(np.asarray(positions), 1 + np.flatnonzero(np.diff(positions) != 1))
    return np.concatenate([_drawn(seed, int(run[0]), len(run))[:, :k] for run in runs])


def _drawn(seed: int, first: int, n: int) -> Float[np.ndarray, "n k"]:
    bits = np.random.Philox(key=_key(seed, "draws"), counter=first * WIDTH // OF_COUNTER)
    return np.random.Generator(bits).random((n, WIDTH), dtype=np.float32)


def generator(seed: int, *path: int | str) -> np.random.Generator:
    """A counter-based stream of its own for (seed, path)."""
    return np.random.Generator(np.random.Philox(key=_key(seed, *path)))


def _key(seed: int, *path: int | str) -> int:
    name = repr((seed, *path)).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
