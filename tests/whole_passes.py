"""What a model says to questions the long way: each answer scored by a pass over the whole conversation of its own."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from mmfm.data.batch import Batch
from mmfm.data.conversations import conversations_of
from mmfm.evals.records import Scores
from mmfm.evals.replies import Asked, questions
from mmfm.generation import GenerationConfig, write_on
from mmfm.generation.chat import read_chats
from mmfm.inference.interface import Interface
from mmfm.objectives.conversation import plan_chats
from mmfm.objectives.task_pass import forward_passes
from mmfm.preprocessing.chat import ChatIds


@torch.no_grad()
def slow_nats(model: Interface, batch: Batch, asked: Asked, answer: Sequence[int]) -> float:
    """Of these local ids and the end behind a question."""
    ids, learn, turns = asked.prompt
    own = [*answer, model.chatting.end]
    chat = ChatIds([*ids, *own], [*learn, *[True] * len(own)], [*turns, *[turns[-1] + 1] * len(own)])
    planned = plan_chats(replace(batch, chats=conversations_of([(asked.row, chat)])))
    assert planned is not None
    (output,) = forward_passes(model.core, [planned])
    return float(F.cross_entropy(model.core.logits(output.states), output.labels, reduction="sum"))


def slow_texts(model: Interface, batch: Batch, most: int) -> list[tuple[str, bool]]:
    """What is written greedily to each question of a batch, and whether it was cut."""
    asked, how = questions(model, batch, [()] * batch.size), GenerationConfig(max_tokens=most)
    chats = conversations_of([(one.row, one.prompt) for one in asked])
    found = write_on(
        read_chats(model.core, replace(batch, chats=chats), how, model.chatting.end), how, decode=model.tokenizer.decode
    )
    assert found.texts is not None
    return [(text, finish == "length") for text, finish in zip(found.texts, found.finish, strict=True)]


def shaken(other: Interface, model: Interface, by: float) -> Interface:
    """`other` with the weights of the model, off by so much where the trunk is; by: also its seed."""
    other.load_state_dict(model.state_dict())
    torch.manual_seed(round(100 * by))
    with torch.no_grad():
        for weight in other.core.trunk.parameters():
            weight += by * torch.randn_like(weight)
    return other


def by_key(scores: Scores) -> dict[str, str]:
    """What was written to each question."""
    return {one.key: one.written for one in scores.details.answers}
