"""Attention of packed sentences by a kernel of sentences of any lengths, which only a GPU has: here a plain one that
states its semantics takes its place, so that which calls are made of whom is tested to rounding in float64."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from test_packing import WRITING, check_same, gradients, planned
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from toys import random_batch, toy_model

from mmfm.models import packing, text_transformer, transformer, varlen
from mmfm.models.packing import Places, pack
from mmfm.models.varlen import Call, Visibility, attend_varlen, takes_kernel, varlen_calls
from mmfm.objectives.task_pass import forward_passes


def plain(call: Call, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What `varlen_attn` documents: sentence by sentence; of a causal one the last query sees the last key."""
    assert q.shape[1:] == k.shape[1:] == v.shape[1:] and call.q_ends.dtype == call.k_ends.dtype == torch.int32
    assert call.q_ends[-1] == len(q) and call.k_ends[-1] == len(k)
    longest = [int(ends.diff().max()) for ends in (call.q_ends, call.k_ends)]
    assert tuple(longest) == call.most
    out = []
    for (q0, q1), (k0, k1) in zip(
        call.q_ends.unfold(0, 2, 1).tolist(), call.k_ends.unfold(0, 2, 1).tolist(), strict=True
    ):
        queries, keys = q1 - q0, k1 - k0
        seen = torch.ones(queries, keys, dtype=torch.bool)
        seen = seen.tril(keys - queries) if call.causal else seen
        x = (part.transpose(0, 1) for part in (q[q0:q1], k[k0:k1], v[k0:k1]))
        out.append(F.scaled_dot_product_attention(*x, attn_mask=seen).transpose(0, 1))
    return torch.cat(out)


@pytest.fixture
def kernel(monkeypatch) -> list[Call]:
    """The trunk and the towers take the plain kernel, as they would take torch's on a GPU; gives the calls."""
    seen: list[Call] = []

    def attend(calls, q, k, v):
        seen.extend(calls)
        return attend_varlen(calls, q, k, v, plain)

    monkeypatch.setattr(packing, "attend_varlen", attend)
    for module in (transformer, text_transformer):
        monkeypatch.setattr(module, "takes_kernel", lambda x, dim: True)
    return seen


@pytest.mark.parametrize("seed", range(2))
def test_a_step_by_the_kernel_gives_what_masks_give(seed: int, request) -> None:
    """Nine tasks in one pass, dropout and hidden sources among them: embeddings, states, gradients."""
    model, batch = toy_model(dropout=0.3).train(), random_batch(24, seed)
    expected = forward_passes(model, planned(model, batch))
    theirs = gradients(model, expected)
    calls: list[Call] = request.getfixturevalue("kernel")
    found = forward_passes(model, planned(model, batch))
    ours = gradients(model, found)
    assert len(found) > len(WRITING) and any(call.causal for call in calls) and not all(call.causal for call in calls)
    check_same(found, expected, ours, theirs)


def seen_by(row_length: int, calls: list[Call]) -> Tensor:
    """Which token sees which, by the calls: from attention whose values are unit vectors."""
    q = torch.zeros(row_length, 1, row_length, dtype=torch.float64)
    v = torch.eye(row_length, dtype=torch.float64)[:, None]
    return attend_varlen(calls, q, q, v, plain)[:, 0] > 0


def test_who_sees_whom_in_two_calls() -> None:
    """Planted: a sentence of two source tokens and two of a target, one of a hidden source and a target."""
    sentence = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    seen = Visibility(
        segment=torch.tensor([0, 0, 1, 1, 0, 0, 1]),
        causal=torch.tensor([0, 0, 1, 1, 0, 0, 1]).bool(),
        hidden=torch.tensor([0, 0, 0, 0, 1, 1, 0]).bool(),
    )
    calls = list(varlen_calls(sentence, seen))
    assert [call.causal for call in calls] == [True, False]
    assert [call.most for call in calls] == [(2, 4), (2, 2)]
    expected = torch.tensor(
        [
            [1, 1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0],
            [0, 0, 0, 0, 1, 1, 0],
            [0, 0, 0, 0, 1, 1, 0],
            [0, 0, 0, 0, 0, 0, 1],
        ]
    ).bool()
    assert torch.equal(seen_by(7, calls), expected)


@pytest.mark.parametrize(
    "sources, target, number", [(1, False, 1), (1, True, 2), (2, True, 3), (3, True, 4), (0, True, 1)]
)
def test_one_call_for_each_source_and_one_for_all_targets(sources: int, target: bool, number: int) -> None:
    parts = [2, 3, 1][:sources] + [2] * target
    segment = torch.cat([torch.full((length,), at) for at, length in enumerate(parts)]).expand(4, -1)
    causal = (segment == sources) if target else torch.zeros_like(segment).bool()
    places = Places(torch.ones_like(segment).bool(), Visibility(segment, causal, torch.zeros_like(causal)))
    assert len(pack([places], kernel=True).packed.calls) == number


def test_tokens_without_segments_and_an_empty_row() -> None:
    real = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    (call,) = pack([Places(real)], kernel=True).packed.calls
    assert call.q_ends.tolist() == call.k_ends.tolist() == [0, 1, 3] and not call.causal
    assert pack([Places(torch.zeros(2, 3, dtype=torch.bool))], kernel=True).packed.calls == ()


def test_torchs_kernel_is_asked_as_it_is_declared() -> None:
    """It cannot run here: what is passed by position and by name is there, and the call reaches the CUDA kernel."""
    names = list(inspect.signature(varlen_attn).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"] and "window_size" in names
    (call,) = varlen_calls(torch.tensor([0, 0, 1]), None)
    x = torch.zeros(3, 2, 8, dtype=torch.bfloat16)
    with pytest.raises(NotImplementedError, match="flash_attention_forward"):
        varlen.flash(call, x, x, x)


def test_no_kernel_but_on_a_gpu_in_half_precision() -> None:
    assert not takes_kernel(torch.zeros(1, dtype=torch.bfloat16), 64)
