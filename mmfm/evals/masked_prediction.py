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
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmfm.config.task import Task, parse
from mmfm.data.batch import Batch, Ids
from mmfm.data.decode import collate
from mmfm.evals.metrics import Score, bits_per_byte, ratio
from mmfm.evals.sharding import shared
from mmfm.evals.split import Split, Watch, batches, device_of
from mmfm.inference.interface import Interface
from mmfm.inference.pipeline import holding, of_rows, without_last
from mmfm.models.model import UnifiedModel
from mmfm.models.transformer import Segment
from mmfm.objectives.task_pass import sources_of
from mmfm.runtime.distributed import Collective, SingleProcess
from mmfm.runtime.randomness import hash_uniform, splitmix64

DRAWS = 8  # sets of masked places, for the bound
PART = 0.15  # masked, for the share of right ids (arXiv 1810.04805)
COUNT, PLACES = 101, 102  # what the draws decide
AT_ONCE = 4_096  # places that are scored together: each has a score for every id of the vocabulary
ALONE = SingleProcess()


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


# Of a whole split


class Filled(NamedTuple):
    """What was asked of one sample, by its row of the split."""

    row: int
    nats: float
    places: int
    right: int
    asked: int


@dataclass(frozen=True, kw_only=True)
class Filling:
    """By task, the samples that hold all of it, and the chance of a right id."""

    found: dict[str, list[Filled]] = field(default_factory=dict)
    ids: dict[str, float] = field(default_factory=dict)  # how many may stand at a place, in the mean over books

    def figures(self, split: Split) -> list[Score]:
        return [figure for task, items in self.found.items() if items for figure in self._of(split, task, items)]

    def _of(self, split: Split, task: str, items: Sequence[Filled]) -> list[Score]:
        """The bound in bits for a byte of text, or for a code; and the share of right ids of all that were masked."""
        rows, ids = [item.row for item in items], self.ids[task]
        nats = np.array([item.nats for item in items])
        if parse(task).target == "text":
            metric, chance = "nelbo_bits_per_byte", 8.0
            bound = bits_per_byte(nats, [split.texts[item.row] or "" for item in items])
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


def fill_split(
    model: object,
    split: Split,
    *,
    batch: int,
    draws: int = DRAWS,
    watch: Watch = iter,
    ranks: Collective = ALONE,
) -> Filling:
    """All tasks with "~" of the model over a split that it has read, which must be at rest. Ranks share the batches."""
    tasks = [task for task in getattr(model, "tasks", ()) if parse(task).fill]
    if not tasks or not isinstance(model, Interface):
        return Filling()

    def ask(rows: list[int]) -> dict[str, list[Filled]]:
        return _ask(model, split, rows, tasks, draws)

    runs = batches(0, len(split), batch)
    parts = shared(runs, ask, ranks, pack=_pack, unpack=_unpack, watch=watch)
    forms = {task: model.core.forms[str(parse(task).target)] for task in tasks}
    return Filling(
        found={task: [item for part in parts for item in part[task]] for task in tasks},
        ids={task: sum(form.sizes) / len(form.sizes) for task, form in forms.items()},
    )


def _ask(
    model: Interface, split: Split, rows: Sequence[int], tasks: Sequence[str], draws: int
) -> dict[str, list[Filled]]:
    held = [split.example(row) for row in rows]
    whole, seeds = collate(held, model.tokenizer).to(device_of(model)), torch.tensor(rows)
    found: dict[str, list[Filled]] = {}
    for name in tasks:
        task = parse(name)
        have = holding(whole, task).tolist()
        nats = filling_nats(model.core, task, whole, draws=draws, seeds=seeds)
        right, asked = filling_right(model.core, task, whole, seeds=seeds)
        target = given(model.core, task, whole)
        places = [] if target is None else target.target.keep.sum(1).tolist()
        told = zip(nats[have].tolist(), places, right[have].tolist(), asked[have].tolist(), strict=True)
        found[name] = [Filled(rows[at], *values) for at, values in zip(have, told, strict=True)]
    return found


def _pack(found: dict[str, list[Filled]]) -> dict[str, Any]:
    return {task: [list(item) for item in items] for task, items in found.items()}


def _unpack(tree: dict[str, Any]) -> dict[str, list[Filled]]:
    return {task: [Filled(*item) for item in items] for task, items in tree.items()}
