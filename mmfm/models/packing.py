"""Sentences of different lengths as one row of their real tokens: attention alone sees sentences, all else sees tokens.

Padding costs what tokens cost, and most places of a batch of mixed tasks are padding. Letters: n sentences, m tokens.
"""

import bisect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

PADDING = 1 << 62  # its segment
SLACK, SPARE = 1.25, 4  # a sentence joins a group whose longest is at most so many times, or so many tokens, longer


class Group(NamedTuple):
    """Sentences of similar lengths, padded to their longest for attention alone.

    start, stop: their tokens in the row. size: how many sentences, and the longest. places: of the tokens in the
    padded table, flattened. mask: which key each query sees; None: every one.
    """

    start: int
    stop: int
    size: tuple[int, int]
    places: Int[Tensor, " tokens"]
    mask: Bool[Tensor, "sentences 1 #query key"] | None


class Packed(NamedTuple):
    """Where the sentences of a row stand. It takes the place of a key mask."""

    groups: tuple[Group, ...]

    @property
    def places(self) -> int:
        """Of all groups, padding included."""
        return sum(sentences * time for sentences, time in (group.size for group in self.groups))

    def attend(
        self,
        q: Float[Tensor, "1 heads m dim"],
        k: Float[Tensor, "1 kv_heads m dim"],
        v: Float[Tensor, "1 kv_heads m dim"],
    ) -> Float[Tensor, "1 heads m dim"]:
        """Attention of each sentence over itself."""
        if not self.groups:
            return q
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        return torch.cat([_attend(group, q, k, v) for group in self.groups]).transpose(0, 1)[None]

    def over_time(
        self, x: Float[Tensor, "1 m width"], each: Callable[[Float[Tensor, "n time width"]], Tensor]
    ) -> Float[Tensor, "1 m width"]:
        """What `each` makes of padded sentences, with zeros beyond their ends."""
        parts = [
            take(each(pad_packed(x[0, group.start : group.stop], group.places, group.size)).flatten(0, 1), group.places)
            for group in self.groups
        ]
        return torch.cat(parts)[None] if parts else x


def _attend(
    group: Group,
    q: Float[Tensor, "m heads dim"],
    k: Float[Tensor, "m kv_heads dim"],
    v: Float[Tensor, "m kv_heads dim"],
) -> Float[Tensor, "tokens heads dim"]:
    padded = (pad_packed(x[group.start : group.stop], group.places, group.size).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(*padded, attn_mask=group.mask, enable_gqa=q.shape[1] != k.shape[1])
    return take(out.transpose(1, 2).flatten(0, 1), group.places)


def pad_packed(
    x: Float[Tensor, "tokens *rest"], places: Int[Tensor, " tokens"], size: tuple[int, int]
) -> Float[Tensor, "sentences time *rest"]:
    """Tokens at their places of a padded table, with zeros between."""
    sentences, time = size
    return x.new_zeros(sentences * time, *x.shape[1:]).index_copy(0, places, x).unflatten(0, size)


class _Take(torch.autograd.Function):
    """`x[index]` of an index that names nothing twice: its gradient is copied, where torch's own would be added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = x.shape
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,), (grad,) = ctx.saved_tensors, grads
        return grad.new_zeros(ctx.shape).index_copy_(0, index, grad), None


def take(x: Float[Tensor, "many *rest"], index: Int[Tensor, " m"]) -> Float[Tensor, "m *rest"]:
    """Rows of x, none of them twice."""
    return _Take.apply(x, index)  # type: ignore[return-value]


class Visibility(NamedTuple):
    """Who sees whom. segment: a number that rises from segment to segment; each sees itself and those before it.
    causal: whether its segment sees itself only backwards. hidden: whether other segments do not see it."""

    segment: Int[Tensor, "*places"]
    causal: Bool[Tensor, "*places"]
    hidden: Bool[Tensor, "*places"]


class Places(NamedTuple):
    """Padded sentences, before the padding goes. real: where a token stands that any sees. visibility None: all see
    all."""

    real: Bool[Tensor, "n time"]
    visibility: Visibility | None = None


class Row(NamedTuple):
    """source: which of all places, flattened and laid end to end, each token of the row is. where: for each table of
    `Places` the number of its token in the row, 0 where there is none. lengths: tokens of each sentence, rising."""

    packed: Packed
    source: Int[Tensor, " m"]
    where: list[Int[Tensor, "n time"]]
    lengths: list[int]

    def of(self, values: Shaped[Tensor, "n time"]) -> Shaped[Tensor, "1 m"]:
        """Of each token what a table says of its place."""
        return values.flatten()[self.source][None]


def worth_packing(keep: Bool[Tensor, "n time"]) -> bool:
    """Not for one sentence, nor for a program that is traced for any lengths."""
    return keep.shape[0] > 1 and not torch.compiler.is_compiling()


def pack(tables: Sequence[Places]) -> Row:
    """The row of all real tokens, sentence by sentence, the shortest first."""
    real = torch.cat([table.real.flatten() for table in tables])
    lengths = torch.cat([table.real.sum(1) for table in tables])
    order = lengths.argsort(stable=True)
    rank = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
    sizes = [table.real.shape for table in tables]
    ranks = rank.split([n for n, _ in sizes])
    of = torch.cat([part[:, None].expand(size).flatten() for part, size in zip(ranks, sizes, strict=True)])
    kept = real.nonzero().squeeze(1)
    sentence, by_sentence = of[kept].sort(stable=True)
    index = kept[by_sentence]
    where = torch.zeros_like(of).index_copy_(0, index, torch.arange(len(index), device=index.device))
    parts = where.split([n * time for n, time in sizes])
    known = [table.visibility for table in tables if table.visibility is not None]
    assert len(known) in (0, len(tables))
    each = [torch.cat([x.flatten() for x in fact])[index] for fact in zip(*known, strict=True)]
    rising = lengths[order].tolist()
    groups = tuple(_groups(rising, sentence, Visibility(*each) if each else None))
    return Row(Packed(groups), index, [part.view(size) for part, size in zip(parts, sizes, strict=True)], rising)


def _groups(lengths: list[int], sentence: Int[Tensor, " m"], visibility: Visibility | None) -> Iterator[Group]:
    """Sentences of rising lengths, cut where one is much longer than the first of its group."""
    first, stop = lengths.count(0), 0
    while first < len(lengths):
        most = max(SLACK * lengths[first], lengths[first] + SPARE)
        last = bisect.bisect_right(lengths, most)
        start, stop = stop, stop + sum(lengths[first:last])
        here = Visibility(*(fact[start:stop] for fact in visibility)) if visibility else None
        yield _group(start, stop, lengths[first:last], sentence[start:stop] - first, here)
        first = last


def _group(start: int, stop: int, lengths: list[int], sentence: Int[Tensor, " t"], seen: Visibility | None) -> Group:
    """One group. A sentence's tokens lie side by side."""
    size, token = (len(lengths), lengths[-1]), torch.arange(stop - start, device=sentence.device)
    begins = torch.searchsorted(sentence, token[: size[0]])
    places = sentence * size[1] + token - begins[sentence]

    def table(x: Tensor, elsewhere: int) -> Tensor:
        return x.new_full((size[0] * size[1],), elsewhere).index_copy_(0, places, x).view(size)

    real = table(torch.ones_like(sentence, dtype=torch.bool), 0)
    if seen is None:
        return Group(start, stop, size, places, None if lengths[0] == lengths[-1] else real[:, None, None])
    segment = table(seen.segment, PADDING)  # which so sees all that is real, lest its softmax be no number
    causal, hidden = table(seen.causal, 0), table(seen.hidden, 0)
    earlier = (segment[:, None, :] < segment[:, :, None]) & ~hidden[:, None, :]
    back = torch.ones(size[1], size[1], dtype=torch.bool, device=token.device).tril()
    own = (segment[:, None, :] == segment[:, :, None]) & (back | ~causal[:, :, None])
    return Group(start, stop, size, places, ((earlier | own) & real[:, None, :])[:, None])
