"""Work dealt to ranks in whole pieces, so that no bit of a result depends on how many ranks there are.

Results travel as strict JSON and tensors; at the end every rank has all of them.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load as load_tensors

from mmfm.runtime.distributed import Collective, together
from mmfm.runtime.tensor_files import pieces
from mmfm.runtime.tensor_tree import join, split

Piece = TypeVar("Piece")
Result = TypeVar("Result")
Tree = Any  # lists, numbers, strings, tensors
ROUND = 8  # pieces of a rank between two meetings, where also a fault is told
HEAD_BYTES = 8


def shared(
    pieces: Sequence[Piece],
    work: Callable[[Piece], Result],
    ranks: Collective,
    kind: Any,
    watch: Callable[[list[Piece]], Iterable[Piece]] = iter,
) -> list[Result]:
    """`work` of every piece, in order, on every rank. Piece i is done by rank i % size alone; `watch` sees its own go.

    All ranks must call with the same pieces; `kind` is the type of a result. What one of them raises ends all, as
    `together` says.
    """
    if ranks.size == 1:
        return [work(piece) for piece in watch(list(pieces))]
    mine = iter(watch(list(pieces[ranks.rank :: ranks.size])))
    hands: list[list[Result]] = [[] for _ in range(ranks.size)]
    for _ in range(-(-len(pieces) // (ranks.size * ROUND))):
        found = together(ranks, lambda: packed([to_tree(work(piece)) for piece in islice(mine, ROUND)]))
        for hand, data in zip(hands, found, strict=True):
            hand.extend(from_tree(kind, tree) for tree in unpacked(data))
    next(mine, None)  # lets `watch` see the end
    return [hands[at % ranks.size][at // ranks.size] for at in range(len(pieces))]


def to_tree(value: Any) -> Tree:
    """Lists of what JSON and tensors hold: dataclasses and tuples by the order of their fields,
    mappings whose keys are no texts by pairs."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if dataclasses.is_dataclass(value):
        return [to_tree(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: to_tree(one) for key, one in value.items()}
    if isinstance(value, dict):
        return [[to_tree(key), to_tree(one)] for key, one in value.items()]
    return [to_tree(one) for one in value] if isinstance(value, list | tuple) else value


def from_tree(kind: Any, tree: Tree) -> Any:
    """The inverse of `to_tree` for a value of this type; what is annotated as Any comes back as JSON has it."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if tree is None else from_tree(next(one for one in inside if one is not types.NoneType), tree)
    if origin is dict:
        pairs = tree.items() if isinstance(tree, dict) else tree
        return {from_tree(inside[0], key): from_tree(inside[1], one) for key, one in pairs}
    if origin is list:
        return [from_tree(inside[0], one) for one in tree]
    if origin is tuple:
        kinds = [inside[0]] * len(tree) if inside[-1] is Ellipsis else inside
        return tuple(from_tree(*pair) for pair in zip(kinds, tree, strict=True))
    if getattr(kind, "array_type", kind) is np.ndarray:
        return tree.numpy()
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        hints, make = typing.get_type_hints(kind), typing.cast(Any, kind)
        return make(**{name: from_tree(hints[name], one) for name, one in zip(hints, tree, strict=True)})
    return tree


def packed(tree: Tree) -> bytes:
    """As bytes: the length of the JSON, the JSON, and its tensors as safetensors."""
    plain, tensors = split(tree)
    head = json.dumps(plain).encode()
    return len(head).to_bytes(HEAD_BYTES, "little") + head + b"".join(pieces(tensors))


def unpacked(data: bytes) -> Tree:
    """The inverse of `packed`."""
    start = HEAD_BYTES + int.from_bytes(data[:HEAD_BYTES], "little")
    return join(json.loads(data[HEAD_BYTES:start]), load_tensors(data[start:]).__getitem__)
