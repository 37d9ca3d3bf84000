"""How a loader process hands a batch over: in shared memory, or where that is full through its pipe, which is slower.

A container has 64 MB of shared memory by default. Torch shares tensors in a thread of its own, whose error nobody
hears: the batch would never come.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Piped(NamedTuple):
    """A tree whose tensors did not fit into shared memory, taken apart into what a pipe carries by its bytes."""

    tree: Any


class _Part(NamedTuple):
    """A dataclass, tuple or mapping in parts."""

    kind: type
    parts: tuple[Any, ...]
    names: tuple[Any, ...] = ()


def handed_over(tree: Any) -> Any:
    """The tree with all tensors in shared memory; or `Piped`, where they do not fit."""
    try:
        for tensor in tensors(tree):
            tensor.share_memory_()
    except (RuntimeError, OSError) as why:
        if isinstance(why, RuntimeError) and "shared memory" not in str(why):
            raise
        return Piped(_apart(tree, lambda tensor: tensor.numpy().copy()))  # what was shared already is freed with it
    return tree


def taken(tree: Any) -> Any:
    """What was handed over, as it was."""
    return _together(tree.tree) if isinstance(tree, Piped) else tree


def tensors(tree: Any) -> list[Tensor]:
    """All of a tree of dataclasses, tuples and mappings."""
    found: list[Tensor] = []
    _apart(tree, found.append)
    return found


def _apart(tree: Any, each: Callable[[Tensor], Any]) -> Any:
    if isinstance(tree, Tensor):
        return each(tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        names = tuple(item.name for item in fields(tree))
        return _Part(type(tree), tuple(_apart(getattr(tree, name), each) for name in names), names)
    if isinstance(tree, tuple):
        return _Part(type(tree), tuple(_apart(part, each) for part in tree))
    if isinstance(tree, Mapping):
        return _Part(dict, tuple(_apart(part, each) for part in tree.values()), tuple(tree))
    return tree


def _together(tree: Any) -> Any:
    if isinstance(tree, np.ndarray):
        return torch.from_numpy(tree)
    if not isinstance(tree, _Part):
        return tree
    parts = [_together(part) for part in tree.parts]
    if tree.names or tree.kind is dict:
        return tree.kind(**dict(zip(tree.names, parts, strict=True)))
    return tree.kind(*parts) if hasattr(tree.kind, "_fields") else tree.kind(parts)
