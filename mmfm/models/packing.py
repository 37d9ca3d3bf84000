"""Sentences of different lengths as one row of their real tokens: attention alone sees sentences, all else sees tokens.

Padding costs what tokens cost, and most places of a batch of mixed tasks are padding. Letters: n sentences, m tokens.
"""

import bisect
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmfm.models.varlen import Call, Visibility, attend_varlen, take, varlen_calls
from mmfm.runtime.transfer import to_device

PADDING = 1 << 62  # its segment
SLACK, SPARE = 1.1, 2  # a sentence joins a group whose longest is at most so many times, or so many tokens, longer


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
    """Where the sentences of a row stand. It takes the place of a key mask.

    calls: of the kernel for sentences of any lengths, where there is one; else attention is of padded groups.
    """

    groups: tuple[Group, ...]
    calls: tuple[Call, ...] = ()

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
        if self.calls:
            return attend_varlen(self.calls, q, k, v).transpose(0, 1)[None]
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


class Places(NamedTuple):
    """Padded sentences, before the padding goes. real: where a token stands that any sees. visibility None: all see
    all."""

    real: Bool[Tensor, "n time"]
    visibility: Visibility | None = None


class Row(NamedTuple):
    """source: which of all places, flattened and laid end to end, each token of the row is; known: the same on the CPU.
    where: for each table of `Places` the number of its token in the row, 0 where there is none; on the CPU. lengths:
    tokens of each sentence, rising."""

    packed: Packed
    source: Int[Tensor, " m"]
    known: Int[Tensor, " m"]
    where: list[Int[Tensor, "n time"]]
    lengths: list[int]

    def of(self, values: Shaped[Tensor, "n time"]) -> Shaped[Tensor, "1 m"]:
        """Of each token what a table says of its place."""
        return values.flatten()[self.source][None]


def worth_packing(keep: Bool[Tensor, "n time"]) -> bool:
    """Not for one sentence, nor for a program that is traced for any lengths."""
    return keep.shape[0] > 1 and not torch.compiler.is_compiling()


def real_places(keep: Bool[Tensor, "n time"], lengths: Int[Tensor, " n"] | None) -> Bool[Tensor, "n time"]:
    """`keep` as the CPU knows it by the lengths of its rows, or asks for it where it does not know them."""
    return keep.cpu() if lengths is None else torch.arange(keep.shape[1]) < lengths[:, None]


def pack(tables: Sequence[Places], device: torch.device | None = None, kernel: bool = False) -> Row:
    """The row of all real tokens, sentence by sentence, the shortest first.

    The tables lie on the CPU, where all is counted; where the tokens are goes to `device` at once. kernel: whether
    attention is that of `mmfm.models.varlen`, which needs no masks.
    """
    device = device or tables[0].real.device
    real = torch.cat([table.real.flatten() for table in tables])
    lengths = torch.cat([table.real.sum(1) for table in tables])
    order = lengths.argsort(stable=True)
    rank = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)))
    sizes = [table.real.shape for table in tables]
    ranks = rank.split([n for n, _ in sizes])
    of = torch.cat([part[:, None].expand(size).flatten() for part, size in zip(ranks, sizes, strict=True)])
    kept = real.nonzero().squeeze(1)
    sentence, by_sentence = of[kept].sort(stable=True)
    index = kept[by_sentence]
    where = torch.zeros_like(of).index_copy_(0, index, torch.arange(len(index)))
    parts = where.split([n * time for n, time in sizes])
    known = [table.visibility for table in tables if table.visibility is not None]
    assert len(known) in (0, len(tables))
    each = [torch.cat([x.flatten() for x in fact])[index] for fact in zip(*known, strict=True)]
    seen, rising = Visibility(*each) if each else None, lengths[order].tolist()
    spans = list(_spans(rising))
    sent = to_device(torch.stack([index, _in_groups(sentence, rising, spans), *(x.long() for x in seen or ())]), device)
    there = Visibility(sent[2], sent[3].bool(), sent[4].bool()) if seen else None
    calls = tuple(varlen_calls(sentence, seen, device)) if kernel else ()
    groups = tuple(_group(span, sent[1], None if kernel else there, masked=not kernel) for span in spans)
    views = [part.view(size) for part, size in zip(parts, sizes, strict=True)]
    return Row(Packed(groups, calls), sent[0], index, views, rising)


class _Span(NamedTuple):
    """Sentences of one group, their tokens, and the shortest and the longest of them."""

    sentences: range
    tokens: range
    shortest: int
    longest: int


def _spans(lengths: list[int]) -> Iterator[_Span]:
    """Sentences of rising lengths, cut where one is much longer than the first of its group."""
    first, stop = lengths.count(0), 0
    while first < len(lengths):
        most = max(SLACK * lengths[first], lengths[first] + SPARE)
        last = bisect.bisect_right(lengths, most)
        start, stop = stop, stop + sum(lengths[first:last])
        yield _Span(range(first, last), range(start, stop), lengths[first], lengths[last - 1])
        first = last


def _in_groups(sentence: Int[Tensor, " m"], lengths: list[int], spans: list[_Span]) -> Int[Tensor, " m"]:
    """Of each token its place in the padded table of its group. A sentence's tokens lie side by side."""
    each = torch.tensor(lengths, dtype=torch.int64)
    within = torch.arange(len(sentence)) - (each.cumsum(0) - each)[sentence]
    row = torch.zeros_like(each)
    for span in spans:
        row[span.sentences.start : span.sentences.stop] = torch.arange(len(span.sentences)) * span.longest
    return row[sentence] + within


def _group(span: _Span, places: Int[Tensor, " m"], seen: Visibility | None, masked: bool) -> Group:
    """One group; masked: with its mask, made where the places lie."""
    start, stop, size = span.tokens.start, span.tokens.stop, (len(span.sentences), span.longest)
    places = places[start:stop]

    def table(x: Tensor, elsewhere: int) -> Tensor:
        return x.new_full((size[0] * size[1],), elsewhere).index_copy_(0, places, x).view(size)

    if not masked or (seen is None and span.shortest == span.longest):
        return Group(start, stop, size, places, None)
    real = table(torch.ones_like(places, dtype=torch.bool), 0)
    if seen is None:
        return Group(start, stop, size, places, real[:, None, None])
    segment = table(seen.segment[start:stop], PADDING)  # which so sees all that is real, lest its softmax be no number
    causal, hidden = table(seen.causal[start:stop], 0), table(seen.hidden[start:stop], 0)
    earlier = (segment[:, None, :] < segment[:, :, None]) & ~hidden[:, None, :]
    back = torch.ones(size[1], size[1], dtype=torch.bool, device=places.device).tril()
    own = (segment[:, None, :] == segment[:, :, None]) & (back | ~causal[:, :, None])
    return Group(start, stop, size, places, ((earlier | own) & real[:, None, :])[:, None])
