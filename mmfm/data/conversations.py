"""Conversations of a batch: ids with a place for each picture and sound that they mention. They lie on the CPU, where a
step is planned; the pictures and sounds are items like others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from mmfm.config import ChatTemplate, Model, UserError, require
from mmfm.config.chat import MESSAGES
from mmfm.data.batch import Conversations
from mmfm.data.documents import Example, items_of
from mmfm.data.sample import Sample, meta_of
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.chat import (
    PARTS,
    ChatIds,
    Message,
    check_mentions,
    encode_chat,
    parse_messages,
    require_learned,
)
from mmfm.preprocessing.tokenizer import Tokenizer


def conversations_of(
    chats: Sequence[tuple[int, ChatIds]], seeds: Int[Tensor, " size"] | None = None
) -> Conversations | None:
    """Those of these samples, padded to the longest; None where there is none. seeds: of all samples of the batch."""
    if not chats:
        return None
    rows, longest = torch.tensor([row for row, _ in chats]), max(len(chat.ids) for _, chat in chats)

    def table(values: Sequence[Sequence[int]], dtype: torch.dtype) -> Tensor:
        padded = [[*row, *[0] * (longest - len(row))] for row in values]
        return torch.tensor(padded, dtype=dtype).view(len(chats), longest)

    lengths = torch.tensor([len(chat.ids) for _, chat in chats])
    return Conversations(
        rows=rows,
        ids=table([chat.ids for _, chat in chats], torch.int64),
        keep=torch.arange(longest) < lengths[:, None],
        learn=table([chat.learn for _, chat in chats], torch.bool),
        turns=table([chat.turns for _, chat in chats], torch.int64),
        seeds=None if seeds is None else seeds[rows],
    )


def messages_of(sample: Sample) -> list[Message]:
    """Of the .json of a sample. Raises BadSample."""
    return parse_messages(meta_of(sample).get(MESSAGES), sample.where)


def with_chat(example: Example, model: Model, tokenizer: Tokenizer) -> Example:
    """The example with its conversation to be learned. Raises BadSample as `chat_of` does."""
    assert example.words is not None
    counts = {kind: sum(one.item(kind) is not None for one in items_of(example)) for kind in PARTS}
    counts |= {"image": len(example.tiles)} if model.tiles else {}
    chat, cut = chat_of(example.words, counts, model, tokenizer)
    return replace(example, chat=repeated(chat, example.tiles) if model.tiles else chat, chat_cut=cut)


def repeated(chat: ChatIds, tiles: Sequence[int]) -> ChatIds:
    """The conversation with each mention of a picture as often as it is read."""
    left = iter(tiles)
    times = [next(left) if token == PARTS["image"] else 1 for token in chat.ids]
    at = [place for place, count in enumerate(times) for _ in range(count)]
    return ChatIds([chat.ids[p] for p in at], [chat.learn[p] for p in at], [chat.turns[p] for p in at])


def chat_of(sample: Sample, counts: Mapping[str, int], model: Model, tokenizer: Tokenizer) -> tuple[ChatIds, bool]:
    """A sample's conversation, as much of it as the tokenizer's limits say, and whether that is not all of it.

    counts: of each kind, how many parts the sample holds. Raises BadSample where it mentions others, where nothing of
    it is learned, and where it is too long.
    """
    where = sample.where
    found = encode_chat(messages_of(sample), template_of(model), tokenizer, where=where)
    _check_towers(found, model, where)
    check_mentions(found, counts, where)
    most = tokenizer.limits.written
    if not most or len(found.ids) <= most:
        require_learned(found, found, where)
        return found, False
    told = f"{where}: a conversation of {len(found.ids)} tokens is longer than the {most} that are read"
    if tokenizer.limits.skip:
        raise BadSample("messages_too_long", f"{told}; {tokenizer.limits.remedy}, or set data.long_text='truncate'")
    kept = found.first(most)
    if any(kept.mentions(kind) < found.mentions(kind) for kind in PARTS):
        raise BadSample("messages_too_long", f"{told}, and mentions parts behind them; {tokenizer.limits.remedy}")
    require_learned(kept, found, where)
    return kept, True


def template_of(model: Model) -> ChatTemplate:
    """UserError where the model reads no conversations."""
    if model.chat is None:
        told = "this model has no chat template, and so reads no conversations"
        raise UserError(
            f"{told}: train it with model.chat, such as mmfm.config.CHATML; to go on with a text, --complete"
        )
    return model.chat


def _check_towers(found: ChatIds, model: Model, where: str) -> None:
    for kind in PARTS:
        told = f"{where}: its messages mention {kind}, and model.{kind} is None; give the model a tower for it"
        require(kind in model.towers or not found.mentions(kind), told)
