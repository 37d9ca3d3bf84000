"""How well masked places are filled in: a bound on the likelihood of the whole target, and the share of right ids.

A model of masked places defines a likelihood for every order in which the places could be written one by one; the mean
over all orders of the negative log-likelihood is no less than that of the mixture of all orders (Jensen). Since the
order of what is known does not matter, that mean is, of n places (arXiv 2110.02037, eq. 5; the same bound as that of
masked diffusion in arXiv 2406.07524 and 2406.03736):

    -log p(x)  <=  E_m E_S [ n / m  sum over i in S of -log p(x_i | what is not in S) ],   m uniform in 1..n, |S| = m

Both means are drawn: some numbers m, from equal parts of 1..n, and a set S for each. The length n is given.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmfm.config.task import Task, parse
from mmfm.data.batch import Batch, Ids
from mmfm.data.vocabulary import CodeFormat
from mmfm.evals.metrics import Score, bits_per_byte, ratio
from mmfm.evals.split import Evaluable, Filled, Split
from mmfm.inference.interface import Interface
from mmfm.inference.pipeline import holding, of_rows, without_last
from mmfm.models.model import UnifiedModel
from mmfm.models.transformer import Segment
from mmfm.objectives.task_pass import sources_of
from mmfm.runtime.randomness import hash_uniform, splitmix64

DRAWS = 8  # sets of masked places, for the bound
PART = 0.15  # masked, for the share of right ids (arXiv 1810.04805)
COUNT, PLACES = 101, 102  # what the draws decide
AT_ONCE = 4_096  # places that are scored together: each has a score for every id of the vocabulary


class Given(NamedTuple):
    """The samples that hold all of a task, the segments that it reads, and the local ids of its target."""

    rows: Int[Tensor, " n"]
    sources: list[Segment]
    target: Ids


def given(model: UnifiedModel, task: Task, batch: Batch) -> Given | None:
    """None where no sample has all that the task names."""
    rows, name = holding(batch, task), str(task.target)
    if len(rows) == 0:
        return None
    rest, items = without_last(of_rows(batch, rows), name)
    found = sources_of(model, task, rest) if task.sources else (rows, [])
    assert found is not None
    return Given(rows, found[1], model.written(name, items))


@torch.no_grad()
def filling_nats(
    model: UnifiedModel, task: Task, batch: Batch, *, draws: int = DRAWS, seeds: Int[Tensor, " size"]
) -> Float[Tensor, " size"]:
    """For each sample a number of nats that is in expectation the bound; nan where a source or the target is missing.

    Other `seeds`, one for each sample, give other draws. Softmaxes are over the whole vocabulary, as in `nats`.
    """
    found, out = given(model, task, batch), torch.full((batch.size,), torch.nan, dtype=torch.float64)
    if found is None:
        return out
    own, keep = seeds.to(found.rows.device)[found.rows], found.target.keep
    total, count = torch.zeros(len(own), dtype=torch.float64, device=own.device), keep.sum(1)
    for draw in range(draws):
        hidden = masked(keep, counts(count, own, draw, draws), own, draw)
        nats = -log_likelihoods(model, task, found, hidden)
        total += (nats * hidden).sum(1) * count / hidden.sum(1).clamp(min=1) / draws
    out[found.rows.cpu()] = total.cpu()
    return out


@torch.no_grad()
def filling_right(
    model: UnifiedModel, task: Task, batch: Batch, *, part: float = PART, seeds: Int[Tensor, " size"]
) -> tuple[Int[Tensor, " size"], Int[Tensor, " size"]]:
    """Of each sample, how many masked places get the right id as the likeliest one of those that may stand there, and
    how many are masked: this part of them, at least one."""
    found = given(model, task, batch)
    right, asked = (torch.zeros(batch.size, dtype=torch.int64) for _ in range(2))
    if found is None:
        return right, asked
    own, (ids, keep) = seeds.to(found.rows.device)[found.rows], found.target
    hidden = masked(keep, (part * keep.sum(1)).round().long().clamp(min=1), own, DRAWS)
    name, form = str(task.target), model.forms[str(task.target)]
    states, start = _states(model, task, found, hidden), model.vocabulary.span(name).start
    best = torch.zeros_like(ids)
    turns = torch.arange(ids.shape[1], device=ids.device) % len(form.sizes)
    for book in range(len(form.sizes)):
        span, mine = form.candidates(book), hidden & (turns == book)
        allowed = slice(start + span.start, start + span.stop)
        parts = [model.logits(part)[:, allowed].argmax(-1) for part in states[mine].split(AT_ONCE)]
        best[mine] = torch.cat(parts) + span.start
    rows = found.rows.cpu()
    right[rows], asked[rows] = ((best == ids) & hidden).sum(1).cpu(), hidden.sum(1).cpu()
    return right, asked


def counts(length: Int[Tensor, " n"], seeds: Int[Tensor, " n"], draw: int, draws: int) -> Int[Tensor, " n"]:
    """How many places are masked: over all draws uniform in 1..length, one draw from each of equal parts."""
    part = (draw + hash_uniform(seeds, COUNT).double()) / draws
    return (part * length).long().clamp(max=length - 1) + 1


def masked(
    keep: Bool[Tensor, "n t"], count: Int[Tensor, " n"], seeds: Int[Tensor, " n"], draw: int
) -> Bool[Tensor, "n t"]:
    """So many of the real places of each row, every set of them equally likely."""
    own = splitmix64(splitmix64(seeds) + draw)[:, None] + torch.arange(keep.shape[1], device=keep.device)
    order = hash_uniform(own, PLACES).masked_fill(~keep, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    return (order < count[:, None]) & keep


def log_likelihoods(model: UnifiedModel, task: Task, found: Given, hidden: Bool[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """log p of the true id at each masked place, given the sources and what is not masked; 0 elsewhere."""
    states = _states(model, task, found, hidden)[hidden]
    labels = model.vocabulary.shared(str(task.target), found.target.ids)[hidden]
    parts = zip(states.split(AT_ONCE), labels.split(AT_ONCE), strict=True)
    nats = [F.cross_entropy(model.logits(x).float(), y, reduction="none") for x, y in parts]
    each = -torch.cat(nats).double()
    return torch.zeros(hidden.shape, dtype=torch.float64, device=each.device).masked_scatter(hidden, each)


def _states(model: UnifiedModel, task: Task, found: Given, hidden: Bool[Tensor, "n t"]) -> Float[Tensor, "n t width"]:
    target = model.filled(str(task.target), found.target.ids, hidden, found.target.keep)
    return model.trunk([*found.sources, target])[-1][:, 1:]


def fill_tasks(model: object) -> list[str]:
    """The tasks of the model that fill in what is masked."""
    return [task for task in model.tasks if parse(task).fill] if isinstance(model, Interface) else []


def fill(model: Evaluable, task: Task, batch: Batch, rows: Sequence[int], draws: int = DRAWS) -> list[Filled]:
    """What is asked of the samples of a batch that hold all that the task names. `rows` seed draws."""
    assert isinstance(model, Interface)
    found, seeds = given(model.core, task, batch), torch.tensor(rows)
    if found is None:
        return []
    have = found.rows.tolist()
    nats = filling_nats(model.core, task, batch, draws=draws, seeds=seeds)[have].tolist()
    right, asked = (part[have].tolist() for part in filling_right(model.core, task, batch, seeds=seeds))
    told = zip(have, nats, found.target.keep.sum(1).tolist(), right, asked, strict=True)
    return [Filled(rows[at], *values) for at, *values in told]


def filling_scores(model: object, split: Split) -> list[Score]:
    """Of all tasks that were asked of the split."""
    if not isinstance(model, Interface):
        return []
    forms = model.core.forms
    return [score for task in split.filled for score in task_scores(split, task, forms[str(parse(task).target)])]


def task_scores(split: Split, task: str, form: CodeFormat) -> list[Score]:
    """The bound in bits for a byte of text, or for a code; and the share of right ids of all that were masked."""
    items, ids = split.filled.get(task, []), sum(form.sizes) / len(form.sizes)  # at a place, in the mean over codebooks
    if not items:
        return []
    rows, nats = [item.row for item in items], np.array([item.nats for item in items])
    if parse(task).target == "text":
        metric, chance = "nelbo_bits_per_byte", 8.0
        bound = bits_per_byte(nats, [split.infos[row].text or "" for row in rows])
    else:
        metric, chance = "bits_per_code_bound", math.log2(ids)
        bound = ratio(nats / math.log(2), np.array([item.places for item in items]))
    right, asked = (np.array([getattr(item, name) for item in items]) for name in ("right", "asked"))
    lost = int((~np.isfinite(nats)).sum())
    why = f"{lost} of {len(nats)} surprises are not finite" if lost else ""
    told = {"task": task, "n": len(items), "unknown": why}
    told |= {"items": split.names(rows), "clusters": split.clusters(rows)}
    return [
        Score(metric=metric, statistic=bound, chance=chance, **told),
        Score(metric=f"masked_acc@{PART * 100:.0f}", statistic=ratio(right, asked), chance=1 / ids, **told),
    ]
