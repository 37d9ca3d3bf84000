"""Filling in what is masked, many places a round, the surest first (MaskGIT, arXiv 2202.04200, section 3.2).

A round reads the whole target, both ways, behind sources that are read once; chooses an id for every masked place; and
keeps the surest of them. After round r of R a row of T masked places has floor(T cos(pi r / 2R)) left, and at least one
fewer than before: with as many rounds as places it fills one a round. n rows, t places.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmfm.config import require
from mmfm.config.task import Task
from mmfm.data.batch import Batch, Ids
from mmfm.generation.decoding_state import CandidateLogits, DecodingState, read_sources
from mmfm.generation.generation_config import GenerationConfig
from mmfm.generation.sampling import sample, waits
from mmfm.models.model import UnifiedModel
from mmfm.objectives.task_pass import sources_of
from mmfm.runtime.randomness import GOLDEN, splitmix64

KEPT = 1  # what tells the noise of what is kept from that of the ids


def fill(
    model: UnifiedModel,
    task: Task,
    batch: Batch,
    given: Ids,
    hidden: Bool[Tensor, "size time"],
    how: GenerationConfig,
    *,
    seeds: Int[Tensor, " size"] | None = None,
) -> tuple[list[int], Int[Tensor, "n time"]]:
    """The samples that have every source, and for each the given local ids with the hidden places filled.

    given, hidden: a row for each sample of the batch; ids at hidden places do not matter. A place that is not kept is
    padding, and is given back as it came. UserError: a hidden place that is padding, beams, draws, stop strings.
    """
    assert task.target is not None and task.fill
    told = "filling in has no beams, draws or stop strings; leave them out"
    require(how.num_beams == how.best_of == 1 and not how.stop, told)
    require(not bool((hidden & ~given.keep).any()), "a place to fill in is padding; keep it")
    with torch.no_grad():
        found = sources_of(model, task, batch) if task.sources else (torch.arange(batch.size, device=model.device), [])
        if found is None:
            return [], given.ids[:0]
        rows, sources = found
        own = torch.full((batch.size,), how.seed, device=rows.device) if seeds is None else seeds.to(rows.device)
        pen = read_sources(model, sources, task.sources, task.target, how, len(rows))
        ids, keep, masked = (part[rows] for part in (*given, hidden))
        return rows.tolist(), _rounds(pen, ids, keep, masked, own[rows], how)


def _rounds(
    pen: DecodingState,
    ids: Int[Tensor, "n time"],
    keep: Bool[Tensor, "n time"],
    hidden: Bool[Tensor, "n time"],
    seeds: Int[Tensor, " n"],
    how: GenerationConfig,
) -> Int[Tensor, "n time"]:
    total, mark = hidden.sum(1), pen.cache.snapshot()
    for number in range(1, how.num_steps + 1):
        left = hidden.sum(1)
        if not bool(left.any()):
            break
        found, sure = _guess(pen, ids.masked_fill(hidden, 0), keep, hidden, seeds, number, how)
        pen.cache.rollback(mark)
        if how.temperature > 0:
            places = torch.arange(ids.shape[1], device=ids.device)
            noise = -waits(splitmix64(seeds) + KEPT, number, places).log()
            sure = sure + how.temperature * (1 - number / how.num_steps) * noise
        goal = (total * math.cos(math.pi * number / (2 * how.num_steps)) + 1e-9).floor().long()
        goal = torch.minimum(goal, left - 1).clamp(min=0) if number < how.num_steps else torch.zeros_like(left)
        order = sure.masked_fill(~hidden, -torch.inf).sort(dim=1, descending=True, stable=True).indices.argsort(dim=1)
        now = hidden & (order < (left - goal)[:, None])
        ids, hidden = torch.where(now, found, ids), hidden & ~now
    return ids


def _guess(
    pen: DecodingState,
    ids: Int[Tensor, "n time"],
    keep: Bool[Tensor, "n time"],
    hidden: Bool[Tensor, "n time"],
    seeds: Int[Tensor, " n"],
    number: int,
    how: GenerationConfig,
) -> tuple[Int[Tensor, "n time"], Float[Tensor, "n time"]]:
    """An id for every place, of its book, and its log-likelihood."""
    passes, books = len(pen.weights), len(pen.form.sizes)
    segment = pen.model.filled(pen.target, *(part.repeat(passes, 1) for part in (ids, hidden, keep)))
    states = pen.model.trunk([segment], pen.cache)[0][:, 1:]
    found, sure = torch.zeros_like(ids), torch.zeros(ids.shape, device=ids.device, dtype=torch.float64)
    for book in range(min(books, ids.shape[1])):
        scorer = CandidateLogits.of(pen.model, pen.target, pen.form.candidates(book), False, pen.end)
        scores = pen.guided(scorer(states[:, book::books]).flatten(1)).unflatten(1, (-1, scorer.size))
        count = scores.shape[1]
        places = book + books * torch.arange(count, device=ids.device)
        each = splitmix64(splitmix64(seeds)[:, None] + (places + 1) * GOLDEN).flatten()  # another noise at each place
        column = sample(scores.flatten(0, 1), scorer.ids, each, number, how)
        chance = scores.flatten(0, 1).double().log_softmax(-1).gather(1, column[:, None])
        found[:, book::books] = column.view(-1, count) + scorer.first
        sure[:, book::books] = chance.view(-1, count)
    return found, sure
