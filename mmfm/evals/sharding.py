"""Work dealt to ranks in whole pieces: what a piece holds, and so every bit of what it gives, does not depend on how
many ranks there are. Results travel as strict JSON and tensors; at the end every rank has all of them.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from mmfm.models.checkpoint import join, split
from mmfm.runtime.distributed import Collective, together

Piece = TypeVar("Piece")
Result = TypeVar("Result")
Tree = Any  # dicts, lists, numbers, strings, tensors
ROUND = 8  # pieces of a rank between two meetings, where also a fault is told
HEAD_BYTES = 8


def shared(
    pieces: Sequence[Piece],
    work: Callable[[Piece], Result],
    ranks: Collective,
    *,
    pack: Callable[[Result], Tree],
    unpack: Callable[[Tree], Result],
    watch: Callable[[list[Piece]], Iterable[Piece]] = iter,
) -> list[Result]:
    """`work` of every piece, in order, on every rank. Piece i is done by rank i % size alone; `watch` sees its own go.

    All ranks must call with the same pieces. What one of them raises ends all, as `together` says.
    """
    if ranks.size == 1:
        return [work(piece) for piece in watch(list(pieces))]
    mine = iter(watch(list(pieces[ranks.rank :: ranks.size])))
    hands: list[list[Result]] = [[] for _ in range(ranks.size)]
    for _ in range(-(-len(pieces) // (ranks.size * ROUND))):
        made = together(ranks, lambda: packed([pack(work(piece)) for piece in islice(mine, ROUND)]))
        for hand, data in zip(hands, made, strict=True):
            hand.extend(unpack(tree) for tree in unpacked(data))
    next(mine, None)  # lets `watch` see the end
    return [hands[at % ranks.size][at // ranks.size] for at in range(len(pieces))]


def packed(tree: Tree) -> bytes:
    """As bytes: the length of the JSON, the JSON, and its tensors as safetensors. Tuples become lists."""
    plain, tensors = split(tree)
    head = json.dumps(plain).encode()
    own = {name: tensor.clone() for name, tensor in tensors.items()}  # safetensors refuses shared memory
    return len(head).to_bytes(HEAD_BYTES, "little") + head + save_tensors(own)


def unpacked(data: bytes) -> Tree:
    """The inverse of `packed`."""
    start = HEAD_BYTES + int.from_bytes(data[:HEAD_BYTES], "little")
    return join(json.loads(data[HEAD_BYTES:start]), load_tensors(data[start:]))
