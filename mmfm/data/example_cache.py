"""Decoded samples that a worker keeps, so that a small set is decoded once."""

import sys

from mmfm.data.documents import Example

OF_AN_EXAMPLE = 1_000  # bytes of its objects, and of each tensor's and part's


class Cache:
    """Decoded samples by place, until `limit_mb` is reached; then what is there stays and nothing more is kept."""

    def __init__(self, limit_mb: int) -> None:
        self.left_bytes = limit_mb * 2**20
        self.found: dict[tuple[int, int], Example] = {}

    def keep(self, place: tuple[int, int], example: Example) -> Example:
        size = bytes_of(example)
        if size <= self.left_bytes:
            self.left_bytes -= size
            self.found[place] = example
        return example


def bytes_of(example: Example) -> int:
    """What keeping an example takes: its tensors, by all that lies behind them, its texts, and its words as bytes."""
    size = 0
    for one in (*example.before, example):
        tensors = [one.image, one.audio, *one.own.values(), *one.raw.values(), *one.codes.values()]
        size += sum(x.untyped_storage().nbytes() for x in tensors if x is not None)
        words = {} if one.words is None else one.words.parts
        size += sys.getsizeof(one.text) + sum(map(sys.getsizeof, words.values()))
        size += OF_AN_EXAMPLE * (1 + len(words) + len(one.raw) + len(one.codes))
    return size
