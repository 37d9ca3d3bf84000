"""What a model says to the questions of a batch: the likelihood of the reference, what it writes, and what it chooses.

One pass over the references tells more than their likelihood: where every token, the end included, is the likeliest of
those that may be written, greedy writes exactly the reference. So exact match costs no writing; but greedy may spell
the same text in other tokens, so that it is a lower bound, close to it for short answers. Letters: n questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmfm.data.batch import Batch, Conversations, Items, Tokens
from mmfm.data.conversations import conversations_of
from mmfm.generation import GenerationConfig, write_on
from mmfm.generation.chat import read_chats
from mmfm.inference.interface import Interface
from mmfm.models.model import UnifiedModel
from mmfm.objectives.conversation import plan_chats
from mmfm.objectives.task_pass import forward_passes
from mmfm.preprocessing.chat import END, PARTS, ChatIds

STATES_AT_ONCE = 2_048  # times the vocabulary is what the logits take


class Likelihood(NamedTuple):
    """Of the learned tokens of each conversation: their nats, how many they are, and whether each is the likeliest."""

    nats: Float[Tensor, " n"]
    tokens: Int[Tensor, " n"]
    exact: Bool[Tensor, " n"]


@dataclass(frozen=True, kw_only=True)
class Replies:
    """Of the samples `rows` of a batch. choices: for each its choices' nats, end included, and numbers of tokens."""

    rows: list[int]
    nats: list[float]
    exact: list[bool]
    texts: list[str]
    cut: list[bool]
    choices: list[list[tuple[float, int]]]


def replies(
    model: Interface, batch: Batch, choices: Sequence[Sequence[str]], *, one_pass: bool, max_tokens: int
) -> Replies:
    """To the conversations of a batch. choices: of each of its samples. max_tokens: of what is written; 0: nothing."""
    if batch.chats is None:
        return Replies(rows=[], nats=[], exact=[], texts=[], cut=[], choices=[])
    rows = batch.chats.rows.tolist()
    found = likelihood(model, batch) if one_pass else None
    texts, cut = written(model, batch, max_tokens) if max_tokens else ([], [])
    return Replies(
        rows=rows,
        nats=[] if found is None else found.nats.tolist(),
        exact=[] if found is None else found.exact.tolist(),
        texts=texts,
        cut=cut,
        choices=chosen(model, batch, list(map(choices.__getitem__, rows))),
    )


@torch.no_grad()
def likelihood(model: Interface, batch: Batch) -> Likelihood:
    """Of what the conversations of a batch have learned, among the ids that an answer may have."""
    planned = plan_chats(batch)
    assert planned is not None
    (output,) = forward_passes(model.core, [planned])
    parts = [
        _compared(model.core, states, labels, may_follow(model))
        for states, labels in zip(output.states.split(STATES_AT_ONCE), output.labels.split(STATES_AT_ONCE), strict=True)
    ]
    nats, right = (torch.cat(column) for column in zip(*parts, strict=True))
    place = torch.searchsorted(planned.rows, output.sample_ids)
    zeros = torch.zeros(len(planned.rows), dtype=torch.float64)
    wrong = zeros.index_add(0, place, (~right).double())
    counts = zeros.index_add(0, place, torch.ones_like(nats))
    return Likelihood(zeros.index_add(0, place, nats), counts.long(), wrong == 0)


def _compared(
    core: UnifiedModel, states: Float[Tensor, "m width"], labels: Int[Tensor, " m"], allowed: Bool[Tensor, " v"]
) -> tuple[Float[Tensor, " m"], Bool[Tensor, " m"]]:
    """Nats of each label, and whether it is the likeliest that may follow; on the CPU."""
    logits = core.logits(states).float()
    nats = F.cross_entropy(logits, labels, reduction="none")
    right = logits.masked_fill(~allowed, -torch.inf).argmax(-1) == labels
    return nats.double().cpu(), right.cpu()


def may_follow(model: Interface) -> Bool[Tensor, " v"]:
    """The ids of the vocabulary that an answer may have: those of texts, and its end."""
    core, end = model.core, model.chatting.end
    span = core.vocabulary.span("text")
    allowed = torch.zeros(core.vocabulary.size, dtype=torch.bool, device=core.device)
    allowed[span.start : span.stop] = True
    allowed[core.vocabulary.end] |= end == END
    return allowed


def written(model: Interface, batch: Batch, max_tokens: int) -> tuple[list[str], list[bool]]:
    """What is written greedily for each conversation, and whether it was cut."""
    asked = replace(batch, chats=prompts(batch))
    begun = read_chats(model.core, asked, GenerationConfig(max_tokens=max_tokens), model.chatting.end)
    found = write_on(begun, GenerationConfig(max_tokens=max_tokens), decode=model.tokenizer.decode)
    assert found.texts is not None
    return list(found.texts), [finish == "length" for finish in found.finish]


def prompts(batch: Batch) -> Conversations | None:
    """The conversations up to what is learned of them: the opening of the answer comes last."""
    return conversations_of([(row, ChatIds(ids, [False] * len(ids), turns)) for row, ids, turns, _ in _asked(batch)])


def _asked(batch: Batch) -> list[tuple[int, list[int], list[int], int]]:
    """Of each conversation its sample, the ids before what is learned and their turns, and the id that ends it."""
    chats = batch.chats
    assert chats is not None
    found = []
    for row, ids, learn, turns in zip(chats.rows.tolist(), chats.ids, chats.learn, chats.turns, strict=True):
        learned = learn.nonzero().flatten().tolist()
        start, end = learned[0], int(ids[learned[-1]])
        found.append((row, ids[:start].tolist(), turns[:start].tolist(), end))
    return found


def chosen(model: Interface, batch: Batch, choices: Sequence[Sequence[str]]) -> list[list[tuple[float, int]]]:
    """The nats and tokens of each choice as the answer, its end included. choices: of each conversation."""
    found: list[list[tuple[float, int]]] = [[] for _ in choices]
    asked = _asked(batch) if any(choices) else []
    for number in range(max(map(len, choices), default=0)):
        places = [at for at, some in enumerate(choices) if number < len(some)]
        talks = [(asked[at][0], _answered(asked[at], model.tokenizer.encode(choices[at][number]))) for at in places]
        told = likelihood(model, replace(batch, chats=conversations_of(talks)))
        for at, nats, tokens in zip(places, told.nats.tolist(), told.tokens.tolist(), strict=True):
            found[at].append((nats, tokens))
    return found


def _answered(asked: tuple[int, list[int], list[int], int], answer: list[int]) -> ChatIds:
    _, ids, turns, end = asked
    own = [*answer, end]
    turn = max(turns, default=-1) + 1
    return ChatIds([*ids, *own], [False] * len(ids) + [True] * len(own), [*turns, *[turn] * len(own)])


def blinded(batch: Batch, how: Literal["zeros", "swapped"], media: Sequence[str]) -> tuple[Batch, int]:
    """A batch whose towers have read it, with the features of all pictures and sounds zero, or with those of another
    sample of the batch; and how many of these had no other to take. media: what each sample's are, by their bytes."""
    items, alone = dict(batch.items), 0
    for name in (name for name in PARTS if name in items):
        if how == "zeros":
            tokens = items[name].tokens
            assert tokens is not None
            items[name] = replace(items[name], tokens=Tokens(torch.zeros_like(tokens.x), tokens.keep))
        else:
            items[name], missing = _swapped(items[name], media)
            alone += missing
    return replace(batch, items=items), alone


def _swapped(items: Items, media: Sequence[str]) -> tuple[Items, int]:
    """Each item that of the next sample with others, in a circle."""
    rows = items.facts.rows.tolist()
    order = [
        next((at for at in (*range(i + 1, len(rows)), *range(i)) if media[rows[at]] != media[row]), i)
        for i, row in enumerate(rows)
    ]
    taken = replace(items.take(torch.tensor(order)), rows=items.rows, known=None)
    return taken, sum(at == i for i, at in enumerate(order))
