"""Writing a target token by token over the trunk's cache. The sources are read once; a grammar keeps every token
inside the target's own range of the vocabulary, so that what is written can always be decoded.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmfm.batch import Batch, Tokens
from mmfm.grammar import Task
from mmfm.model import UnifiedModel
from mmfm.tasks import sources_of
from mmfm.trunk import Segment

Choose = Callable[[Float[Tensor, "n vocabulary"]], Int[Tensor, " n"]]


def greedy(logits: Float[Tensor, "n vocabulary"]) -> Int[Tensor, " n"]:
    return logits.argmax(-1)


def sampled(temperature: float, top_k: int, generator: torch.Generator) -> Choose:
    """Draw from the softmax at this temperature, among the `top_k` likeliest (0: among all)."""

    def choose(logits: Float[Tensor, "n vocabulary"]) -> Int[Tensor, " n"]:
        if top_k:
            least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(-1)

    return choose


@torch.no_grad()
def write(
    model: UnifiedModel, task: Task, batch: Batch, *, max_tokens: int, choose: Choose = greedy
) -> tuple[list[int], list[list[int]]]:
    """The samples that have every source of the task, and the local ids written for each, without the end mark.

    A task without sources (">text") writes one continuation per sample of the batch.
    """
    assert task.target is not None
    found = sources_of(model, task, batch) if task.sources else (torch.arange(batch.size, device=model.device), [])
    if found is None:
        return [], []
    rows, sources = found
    cache = model.trunk.new_cache()
    token = torch.full((len(rows),), model.vocabulary.begin(task.target), device=model.device)
    ids = continue_target(model, sources, token, task.target, cache, max_tokens, choose)
    return rows.tolist(), [_until_end(row, model, task.target) for row in ids.tolist()]


def continue_target(
    model: UnifiedModel, sources: list[Segment], token: Tensor, target: str, cache, max_tokens: int, choose: Choose
) -> Int[Tensor, "n time"]:
    """Ids of the vocabulary, one column a step, until every row has ended."""
    allowed = torch.zeros(model.vocabulary.size, dtype=torch.bool, device=token.device)
    span = model.vocabulary.span(target)
    allowed[span.start : span.stop] = allowed[model.vocabulary.end] = True
    ended, out = torch.zeros_like(token, dtype=torch.bool), []
    if sources:
        model.trunk(sources, cache)
    for _ in range(max_tokens):
        step = Segment(Tokens(model.embedding(token[:, None]), torch.ones_like(ended[:, None])), causal=True)
        states = model.trunk([step], cache)[-1][:, -1]
        token = choose(model.logits(states).float().masked_fill(~allowed, -torch.inf))
        token = torch.where(ended, model.vocabulary.end, token)
        ended = ended | (token == model.vocabulary.end)
        out.append(token)
        if bool(ended.all()):
            break
    return torch.stack(out, dim=1)


def _until_end(row: list[int], model: UnifiedModel, target: str) -> list[int]:
    end, start = model.vocabulary.end, model.vocabulary.span(target).start
    return [token - start for token in (row[: row.index(end)] if end in row else row)]
