"""How long a step's operations take on this machine: each distinct one runs by itself, with made-up numbers."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

SMALL = 1 << 16  # bytes of all tensors of an operation, below which it takes about as long as calling it does
CALL_S = 15e-6  # that calling one takes in a step, autograd and Python included
REPEATS = 2


class Shape(NamedTuple):
    """A tensor without numbers."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def made(self) -> Tensor:
        """Of ordinary numbers, or zeros, which are valid places of anything; masks show all."""
        if self.dtype.is_floating_point or self.dtype.is_complex:
            rows = torch.empty_strided(self.sizes, self.strides, dtype=self.dtype)
            return rows if 0 in self.strides else rows.normal_()
        return torch.zeros(self.sizes, dtype=self.dtype) if self.dtype != torch.bool else torch.ones(self.sizes) > 0


class Calls:
    """Distinct calls of operations, and how often each is made."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.ways: dict[str, tuple[Callable[..., Any], Any, Any, int]] = {}

    def add(self, func: Callable[..., Any], args: Any, kwargs: Any, size: int) -> None:
        """size: bytes that the call reads and writes."""
        shapes = tree_map(lambda x: shape_of(x) if isinstance(x, Tensor) else x, (args, kwargs))
        key = f"{func} {shapes}"
        self.counts[key] += 1
        self.ways.setdefault(key, (func, *shapes, size))

    def seconds(self) -> float:
        """Of all of them."""
        return sum(count * self._once(*self.ways[key]) for key, count in self.counts.items())

    def _once(self, func: Callable[..., Any], args: Any, kwargs: Any, size: int) -> float:
        if size < SMALL:
            return CALL_S
        made = tree_map(lambda x: x.made() if isinstance(x, Shape) else x, (args, kwargs), is_leaf=_is_shape)
        try:
            return CALL_S + min(_seconds(func, *made) for _ in range(REPEATS))
        except (RuntimeError, IndexError, ValueError):  # numbers that this one does not take
            return CALL_S


def shape_of(x: Tensor) -> Shape:
    return Shape(tuple(x.shape), tuple(x.stride()), x.dtype)


def _is_shape(x: Any) -> bool:
    return isinstance(x, Shape)


def _seconds(func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> float:
    """By the clock, or where others had the processor meanwhile by what this process had of it."""
    start, used = time.perf_counter(), time.process_time()
    func(*args, **kwargs)
    return min(time.perf_counter() - start, time.process_time() - used)
