"""Conversations that are answered: what was said is read into a cache, and the answer is written behind it."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmfm.config import require
from mmfm.config.chat import END
from mmfm.data.batch import Batch, Tokens
from mmfm.generation.decoding_state import DecodingState, check_room
from mmfm.generation.generate import Begun
from mmfm.generation.generation_config import GenerationConfig
from mmfm.generation.sampling import drawn_seeds
from mmfm.models.model import UnifiedModel
from mmfm.models.transformer import Segment
from mmfm.objectives.conversation import lay_out, plan_chats
from mmfm.objectives.task_pass import source_segments
from mmfm.runtime.transfer import to_device


@torch.no_grad()
def read_chats(
    model: UnifiedModel, batch: Batch, how: GenerationConfig, end: int, seeds: Int[Tensor, " size"] | None = None
) -> Begun:
    """The conversations of a batch, read but for the last token of each, which opens its answer. end: the local id that
    ends an answer, or `mmfm.preprocessing.chat.END`. seeds: one for each; None: `how.seed`.

    UserError where one holds no token of text to begin with, or leaves no room in the trunk's window.
    """
    planned = plan_chats(batch)
    assert planned is not None
    require(not how.guided, "guidance hides sources, and a conversation has none; leave guidance out")
    require(
        how.best_of == 1, "best_of compares what is made with its sources, and a conversation has none; leave it out"
    )
    (parts,) = source_segments(model, [planned])
    laid = lay_out(model, planned, parts)
    (segment,) = laid.sentences.segments
    assert segment.known is not None and segment.blocks is not None
    known = _but_last(segment.known)
    first = _opening(batch)
    keep = to_device(known, model.device)
    read = Segment(Tokens(segment.tokens.x, keep), causal=True, blocks=to_device(segment.blocks, model.device))
    check_room(model, [read], "text", how)
    cache = model.trunk.new_cache(known.shape[1] + how.max_tokens + 1)
    model.trunk([read], cache)
    shared = model.vocabulary.end if end == END else model.vocabulary.span("text").start + end
    state = DecodingState(
        model=model,
        target="text",
        cache=cache,
        weights=(1.0,),
        begin=to_device(model.vocabulary.shared("text", first), model.device),
        end=shared,
        read=_texts(batch),
    )
    rows = len(planned.rows)
    own = torch.full((rows,), how.seed) if seeds is None else seeds
    return Begun(planned.rows.tolist(), drawn_seeds(own.to(model.device), 1), state)


def _but_last(known: Bool[Tensor, "n time"]) -> Bool[Tensor, "n time"]:
    """`known` without the last real place of each row."""
    return known & (torch.arange(known.shape[1]) != (known.sum(1) - 1)[:, None])


def _opening(batch: Batch) -> Int[Tensor, " n"]:
    """The local id of the last token of each conversation."""
    chats = batch.chats
    assert chats is not None
    ids = chats.ids.gather(1, (chats.keep.sum(1) - 1)[:, None])[:, 0]
    told = "a conversation must end with a word before an answer can follow"
    require(not bool((ids < 0).any()), f"{told}; give a ChatTemplate whose assistant is opened by some text")
    return ids


def _texts(batch: Batch) -> Sequence[Sequence[int]]:
    """The ids of texts in each conversation."""
    assert batch.chats is not None
    both = zip(batch.chats.ids.tolist(), batch.chats.keep.sum(1).tolist(), strict=True)
    return [ids[:count] for ids, count in both]
