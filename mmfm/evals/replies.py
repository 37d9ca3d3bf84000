"""What a model says to the questions of a batch: the likelihood of the reference, what it writes, and what it chooses.

A question is read once, into a cache; the reference and all choices are continuations of it, scored by one pass. That
pass also tells what greedy writes, where this is one of them: only other texts are written, from the same cache. But
greedy may spell the reference in other tokens, so that exact match by one pass is a lower bound, close to it for short
answers. Letters: n questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch

from mmfm.data.batch import Batch, Conversations, Items, Tokens
from mmfm.data.conversations import conversations_of
from mmfm.generation import Begun, GenerationConfig, write_on
from mmfm.generation.chat import read_chats
from mmfm.generation.continuations import Scored, Tree, score_continuations
from mmfm.inference.interface import Interface
from mmfm.preprocessing.chat import PARTS, ChatIds

ROWS_AT_ONCE = 16  # questions of like length: what is padded costs what is read


@dataclass(frozen=True, kw_only=True)
class Replies:
    """Of the samples `rows` of a batch. choices: for each its choices' nats, end included, and numbers of tokens."""

    rows: list[int]
    nats: list[float]
    exact: list[bool]
    texts: list[str]
    cut: list[bool]
    choices: list[list[tuple[float, int]]]


class Asked(NamedTuple):
    """A question of the sample `row`. prompt: all before the answer, whose opening comes last. reference, choices: the
    local ids of answers, without their end."""

    row: int
    prompt: ChatIds
    reference: list[int]
    choices: list[list[int]]


class Reply(NamedTuple):
    """What a model says to one question; None is what it was not asked."""

    nats: float | None
    exact: bool | None
    text: str | None
    cut: bool
    choices: list[tuple[float, int]]


def replies(
    model: Interface, batch: Batch, choices: Sequence[Sequence[str]], *, one_pass: bool, max_tokens: int
) -> Replies:
    """To the conversations of a batch. choices: of each of its samples. max_tokens: of what is written; 0: nothing."""
    asked = questions(model, batch, choices)
    found: dict[int, Reply] = {}
    for some in in_groups(asked):
        said = _replies(model, batch, some, one_pass, max_tokens)
        found |= {one.row: reply for one, reply in zip(some, said, strict=True)}
    ordered = [found[one.row] for one in asked]
    return Replies(
        rows=[one.row for one in asked],
        nats=[one.nats for one in ordered if one.nats is not None],
        exact=[one.exact for one in ordered if one.exact is not None],
        texts=[one.text for one in ordered if one.text is not None],
        cut=[one.cut for one in ordered if one.text is not None],
        choices=[one.choices for one in ordered],
    )


def questions(model: Interface, batch: Batch, choices: Sequence[Sequence[str]]) -> list[Asked]:
    """The conversations of a batch, each up to what is learned of it, which is the reference and its end. Of one that
    begins with its answer, the first token is given: nothing stands before it that could foretell it."""
    chats, found = batch.chats, []
    for row, ids, learn, turns in [] if chats is None else _rows(chats):
        learned = [at for at, flag in enumerate(learn) if flag]
        start, end = max(1, learned[0]), learned[-1]
        prompt = ChatIds(ids[:start], [False] * start, turns[:start])
        found.append(Asked(row, prompt, ids[start:end], [model.tokenizer.encode(text) for text in choices[row]]))
    return found


def _rows(chats: Conversations) -> list[tuple[int, list[int], list[bool], list[int]]]:
    columns = (chats.rows, chats.ids, chats.learn, chats.turns)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def in_groups(asked: Sequence[Asked]) -> list[list[Asked]]:
    """Questions of like length together, after which as much is scored; those of a group in their order."""
    sizes = {one.row: (len(Tree.of([one.reference, *one.choices]).ids), len(one.prompt.ids)) for one in asked}
    order = sorted(asked, key=lambda one: sizes[one.row])
    starts = range(0, len(order), ROWS_AT_ONCE)
    return [sorted(order[start : start + ROWS_AT_ONCE], key=lambda one: one.row) for start in starts]


def _replies(model: Interface, batch: Batch, asked: Sequence[Asked], one_pass: bool, max_tokens: int) -> list[Reply]:
    trees = [Tree.of([*[one.reference] * one_pass, *one.choices]) for one in asked]
    room = max(max_tokens, *(tree.longest for tree in trees))
    begun = read(model, batch, asked, room)
    scored = score_continuations(begun.state, trees)
    texts: Sequence[tuple[str | None, bool]] = [(None, False)] * len(asked)
    if max_tokens:
        texts = written(model, begun, [one.greedy for one in scored], max_tokens)
    return [_reply(*each, one_pass) for each in zip(asked, scored, texts, strict=True)]


def _reply(asked: Asked, scored: Scored, text: tuple[str | None, bool], one_pass: bool) -> Reply:
    nats, rest = (scored.nats[0], scored.nats[1:]) if one_pass else (None, scored.nats)
    exact = scored.greedy == asked.reference if one_pass else None
    choices = [(own, len(ids) + 1) for own, ids in zip(rest, asked.choices, strict=True)]
    return Reply(nats, exact, *text, choices)


def read(model: Interface, batch: Batch, asked: Sequence[Asked], room: int) -> Begun:
    """The questions in a cache, up to the opening of the answer, of which so many tokens may follow."""
    prompts = replace(batch, chats=conversations_of([(one.row, one.prompt) for one in asked]))
    return read_chats(model.core, prompts, GenerationConfig(max_tokens=room), model.chatting.end)


def written(
    model: Interface, begun: Begun, known: Sequence[list[int] | None], max_tokens: int
) -> list[tuple[str, bool]]:
    """The text that is written greedily behind each row, and whether it was cut. known: its ids, where they are."""
    decode, how = model.tokenizer.decode, GenerationConfig(max_tokens=max_tokens)
    found = {at: (decode(ids), False) for at, ids in enumerate(known) if ids is not None and len(ids) < max_tokens}
    rest = [at for at in range(len(known)) if at not in found]
    if rest:
        index = torch.tensor(rest, device=begun.seeds.device)
        begun.state.select(index)
        said = write_on(Begun([begun.rows[at] for at in rest], begun.seeds[index], begun.state), how, decode=decode)
        assert said.texts is not None
        cut = [finish == "length" for finish in said.finish]
        found |= dict(zip(rest, zip(said.texts, cut, strict=True), strict=True))
    return [found[at] for at in range(len(known))]


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
