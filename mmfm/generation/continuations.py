"""Several continuations of what a cache holds, all scored by one pass: behind each row a tree of their tokens.

    ... assistant:  top     left      A node sees what was read before, the nodes above it and itself, so that what
                            right     continuations share is read once. What follows a node is scored over the whole
                    bottom  left      vocabulary: the tree also tells what greedy writes, as long as it stays inside.

Letters: n rows, m nodes of all rows, k pairs of a node and what follows it.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmfm.generation.decoding_state import DecodingState
from mmfm.runtime.transfer import to_device

STATES_AT_ONCE = 2_048  # times the vocabulary is what the logits take
NOTHING = -1  # where scores are no numbers, so that no id is the likeliest


class Tree(NamedTuple):
    """The continuations of one row. ids: of the nodes, local; the first is what opens all continuations, and has none
    here. paths: of each continuation its nodes, from the first on."""

    ids: list[int]
    paths: list[list[int]]

    @staticmethod
    def of(continuations: Sequence[Sequence[int]]) -> "Tree":
        """Of local ids without the end, which follows each."""
        numbers: dict[tuple[int, ...], int] = {(): 0}
        begun = [[tuple(ids[:count]) for count in range(len(ids) + 1)] for ids in continuations]
        paths = [[numbers.setdefault(one, len(numbers)) for one in some] for some in begun]
        return Tree([NOTHING, *(one[-1] for one in numbers if one)], paths)

    @property
    def longest(self) -> int:
        """Nodes of the longest continuation."""
        return max(map(len, self.paths), default=1)

    def sees(self, size: int) -> Bool[Tensor, "size size"]:
        """Which node sees which. Places beyond the last node see themselves, lest they be no numbers."""
        table = torch.eye(size, dtype=torch.bool)
        for path in self.paths:
            at = torch.tensor(path)
            table[at[:, None], at] = torch.ones(len(at), len(at), dtype=torch.bool).tril()
        return table


class Scored(NamedTuple):
    """What is known of one row. nats: of each continuation, its end included. greedy: the local ids that are written
    greedily, without the end; None: this leaves the tree."""

    nats: list[float]
    greedy: list[int] | None


@torch.no_grad()
def score_continuations(state: DecodingState, trees: Sequence[Tree]) -> list[Scored]:
    """Of every row of what was read. It stays as it is, so that another target may be written behind it.

    UserError where a continuation leaves the window of the trunk.
    """
    start = state.model.vocabulary.span(state.target).start
    firsts = [0, *accumulate(len(tree.ids) for tree in trees)]
    follow = [_follow(tree, first, start, state.end) for tree, first in zip(trees, firsts, strict=False)]
    pairs = sorted({pair for some in follow for one in some for pair in one})
    nats, likeliest = _predicted(state, _states(state, trees), pairs)
    known = dict(zip(pairs, nats, strict=True))
    return [
        Scored(
            [sum(map(known.__getitem__, one)) for one in some],
            _greedy(tree, likeliest[first : first + len(tree.ids)], start, state.end),
        )
        for tree, first, some in zip(trees, firsts, follow, strict=False)
    ]


def _follow(tree: Tree, first: int, start: int, end: int) -> list[list[tuple[int, int]]]:
    """Of each continuation its nodes, counted from `first` on, and the id of the vocabulary that follows each; start:
    of its local ids."""
    each = ((path, [*(start + tree.ids[node] for node in path[1:]), end]) for path in tree.paths)
    return [[(first + node, id) for node, id in zip(path, ids, strict=True)] for path, ids in each]


def _states(state: DecodingState, trees: Sequence[Tree]) -> Float[Tensor, "m width"]:
    """Of all nodes, read behind the cache and forgotten."""
    model, cache = state.model, state.cache
    assert cache.past is not None and cache.count is not None
    model.trunk.check_window(cache.most + max(tree.longest for tree in trees))
    size = max(len(tree.ids) for tree in trees)
    local = torch.tensor([[*tree.ids[1:], *[0] * (size - len(tree.ids))] for tree in trees], dtype=torch.int64)
    ids = model.vocabulary.shared(state.target, local.view(len(trees), size - 1))
    ids = torch.cat([state.begin[:, None], to_device(ids, model.device)], dim=1)
    sees = to_device(torch.stack([tree.sees(size) for tree in trees]), model.device)
    mask = torch.cat([cache.past[:, None].expand(-1, size, -1), sees], dim=2)[:, None]
    positions = cache.count[:, None] + sees.sum(2) - 1
    mark = cache.snapshot()
    states = model.trunk.run(model.embedding(ids), mask, positions, cache.layers)
    cache.rollback(mark)
    return torch.cat([own[: len(tree.ids)] for own, tree in zip(states, trees, strict=True)])


def _predicted(
    state: DecodingState, states: Float[Tensor, "m width"], pairs: Sequence[tuple[int, int]]
) -> tuple[list[float], list[int]]:
    """The nats of each pair of a state and what follows it, by rising states; and of each state the likeliest of the
    ids that writing chooses among."""
    model = state.model
    allowed = torch.zeros(model.vocabulary.size, dtype=torch.bool, device=model.device)
    allowed[state.at(0).ids] = True
    places, ids = to_device(torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T, model.device)
    nats, likeliest = [], []
    for start in range(0, len(states), STATES_AT_ONCE):
        scores = model.logits(states[start : start + STATES_AT_ONCE]).float()
        inside = (places >= start) & (places < start + len(scores))
        at, total = places[inside] - start, scores.logsumexp(-1)
        nats.append(total[at].double() - scores[at, ids[inside]].double())
        best = scores.masked_fill(~allowed, -torch.inf).argmax(-1)
        likeliest.append(torch.where(total.isfinite(), best, NOTHING))
    return torch.cat(nats).tolist(), torch.cat(likeliest).tolist()


def _greedy(tree: Tree, likeliest: Sequence[int], start: int, end: int) -> list[int] | None:
    """From node to node by the likeliest id; start: of the local ids in the vocabulary."""
    after = {(path[at], tree.ids[node]): node for path in tree.paths for at, node in enumerate(path[1:])}
    node, said = 0, []
    while likeliest[node] != end:
        local = likeliest[node] - start
        if (node, local) not in after:
            return None
        node = after[node, local]
        said.append(local)
    return said
