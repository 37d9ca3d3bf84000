"""Attention of packed sentences by a kernel that takes sentences of any lengths: no place is padded, no mask is made.

Letters: m tokens of the row. A segment's queries see the keys of its own segment and of those before it, so that one
call for each number of a segment is all: first all that is causal at once, each over its whole sentence, aligned to the
end, and then what is seen whole over what it sees. Segments that are hidden from the others are keys that a call leaves
out.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmfm.runtime.transfer import to_device

HALF = (torch.float16, torch.bfloat16)
CAPABILITY, STEP, WIDEST = (8, 0), 8, 256  # of the GPU; a head's size is a multiple of this, up to that


class Visibility(NamedTuple):
    """Who sees whom. segment: a number that rises from segment to segment; each sees itself and those before it.
    causal: whether its segment sees itself only backwards. hidden: whether other segments do not see it."""

    segment: Int[Tensor, "*places"]
    causal: Bool[Tensor, "*places"]
    hidden: Bool[Tensor, "*places"]


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


class Call(NamedTuple):
    """One call of the kernel. queries, keys: which tokens of the row, sentence by sentence. q_ends, k_ends: where each
    sentence ends among them, from 0. most: the longest of both. causal: aligned to the last key."""

    queries: Int[Tensor, " tq"]
    keys: Int[Tensor, " tk"]
    q_ends: Int[Tensor, " sentences+1"]
    k_ends: Int[Tensor, " sentences+1"]
    most: tuple[int, int]
    causal: bool


def takes_kernel(x: Tensor, head_dim: int) -> bool:
    """Whether attention of x goes by the kernel: on a GPU that has it, in half precision (autocast's counts)."""
    if x.device.type != "cuda" or head_dim % STEP or head_dim > WIDEST:
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    return dtype in HALF and torch.cuda.get_device_capability(x.device) >= CAPABILITY


def varlen_calls(
    sentence: Int[Tensor, " m"], seen: Visibility | None, device: torch.device | None = None
) -> Iterator[Call]:
    """The calls for tokens of these sentences, which lie side by side and rise; counted on the CPU."""
    device = device or sentence.device
    if not len(sentence):
        return
    plain = torch.zeros_like(sentence)
    segment, causal, hidden = seen or Visibility(plain, plain.bool(), plain.bool())
    number = int(sentence[-1]) + 1
    first = plain.new_full((number,), len(sentence)).scatter_reduce(
        0, sentence[causal], causal.nonzero().squeeze(1), "amin"
    )
    behind = torch.arange(len(sentence)) >= first[sentence]  # the first causal token of its sentence, or stands there
    if bool(causal.any()):
        if bool((hidden & behind).any()):  # then one call for each causal segment, as one would see what is hidden
            for one in segment[causal].unique().tolist():
                asks = causal & (segment == one)
                yield _of_segment(sentence, segment, hidden, asks, one, True, device)
        else:  # one for all: what it says of the others behind is overwritten
            keys = (first < len(sentence))[sentence] & (behind | ~hidden)
            yield _call(sentence, behind, keys, True, device)
    for one in segment[~causal].unique().tolist():
        yield _of_segment(sentence, segment, hidden, (segment == one) & ~causal, one, False, device)


def _of_segment(
    sentence: Int[Tensor, " m"],
    segment: Int[Tensor, " m"],
    hidden: Bool[Tensor, " m"],
    asks: Bool[Tensor, " m"],
    one: int,
    causal: bool,
    device: torch.device,
) -> Call:
    """That of one number of segments, over itself and what of those before it is not hidden."""
    involved = sentence.new_zeros(int(sentence[-1]) + 1).index_fill_(0, sentence[asks], 1).bool()[sentence]
    return _call(sentence, asks, involved & (asks | ((segment < one) & ~hidden)), causal, device)


def _call(
    sentence: Int[Tensor, " m"], asks: Bool[Tensor, " m"], keys: Bool[Tensor, " m"], causal: bool, device: torch.device
) -> Call:
    """Sentences without queries are left out."""
    counts = [torch.bincount(sentence[x], minlength=int(sentence[-1]) + 1) for x in (asks, keys)]
    counts = [x[counts[0] > 0] for x in counts]
    index = [x.nonzero().squeeze(1) for x in (asks, keys)]
    ends = torch.nn.functional.pad(torch.stack(counts).cumsum(1), (1, 0)).int()
    places = to_device(torch.cat(index), device).split([len(x) for x in index])
    most = (int(counts[0].max()), int(counts[1].max()))
    q_ends, k_ends = to_device(ends, device)
    return Call(places[0], places[1], q_ends, k_ends, most, causal)


Kernel = Callable[[Call, Tensor, Tensor, Tensor], Tensor]


def flash(
    call: Call, q: Float[Tensor, "tq heads dim"], k: Float[Tensor, "tk heads dim"], v: Float[Tensor, "tk heads dim"]
) -> Float[Tensor, "tq heads dim"]:
    """torch's: FlashAttention 2 (arXiv 2307.08691), or cuDNN's where that is as good."""
    from torch.nn.attention.varlen import varlen_attn  # not in every build of torch

    window = (-1, 0) if call.causal else (-1, -1)
    q, k = q.to(v.dtype), k.to(v.dtype)  # norms of heads may have given single precision
    out = varlen_attn(q, k, v, call.q_ends, call.k_ends, *call.most, window_size=window)
    assert isinstance(out, Tensor)
    return out


def attend_varlen(
    calls: Sequence[Call],
    q: Float[Tensor, "m heads dim"],
    k: Float[Tensor, "m kv_heads dim"],
    v: Float[Tensor, "m kv_heads dim"],
    kernel: Kernel = flash,
) -> Float[Tensor, "m heads dim"]:
    """Attention of each sentence over itself. Heads of keys are repeated for those of queries."""
    group = q.shape[1] // k.shape[1]
    k, v = (x if group == 1 else x.repeat_interleave(group, 1) for x in (k, v))
    parts = [kernel(call, take(q, call.queries), take(k, call.keys), take(v, call.keys)) for call in calls]
    out = parts[0].new_zeros(q.shape)
    for call, part in zip(calls, parts, strict=True):
        out = out.index_copy(0, call.queries, part)
    return out
