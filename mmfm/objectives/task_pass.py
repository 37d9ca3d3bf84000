"""A pass is a sentence of segments: "image>text" reads a picture and writes its text, "text" only reads.

`forward_passes` runs any number of tasks over a batch, each tower once and the trunk once, and gives of each task both
what contrast needs (the embedding of the first source) and what writing needs (states and labels of the target). A
sample that holds fewer items than a task names may still take part, where its sound or text can be cut in two
(`mmfm.objectives.continuation`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmfm.config import Generative
from mmfm.config.task import Task
from mmfm.data.augment import hide_tokens
from mmfm.data.batch import Batch, Ids, Items
from mmfm.models.model import UnifiedModel
from mmfm.models.packing import real_places
from mmfm.models.token_dropout import keep_mask
from mmfm.models.transformer import Segment, Sentences
from mmfm.models.varlen import take
from mmfm.objectives.continuation import with_halves
from mmfm.objectives.conversation import Mention, PlannedChats, lay_out
from mmfm.objectives.task_rows import (
    BLIND,
    DIFFERENT,
    DROPPED,
    chosen_rows,
    item_places,
    masked_places,
    rows_with,
    task_seeds,
)
from mmfm.runtime.randomness import hash_uniform, splitmix64
from mmfm.runtime.transfer import to_device

TARGET = 1  # other tokens of a text are hidden where it is written than where it is read
Result = TypeVar("Result")


class PassOutput(NamedTuple):
    """What one pass gives. `tokens` counts the target tokens of all rows; `sample_ids` is the sample of each. It and
    `rows` lie on the CPU. counts: how much each token counts in a loss, those of one answer
    together as one, and answers how many there are; None: one each."""

    rows: Int[Tensor, " n"]
    embedding: Float[Tensor, "n dim"]
    states: Float[Tensor, "tokens width"]
    labels: Int[Tensor, " tokens"]
    sample_ids: Int[Tensor, " tokens"]
    counts: Float[Tensor, " tokens"] | None = None
    answers: int | None = None


class PlannedPass(NamedTuple):
    """A task over the samples of a batch that take part, before anything is computed. seeds: what is random in each.
    Both lie on the CPU, as all does that is planned: a device that is asked makes the CPU wait for all it has to do."""

    task: Task
    objective: Generative
    batch: Batch
    rows: Int[Tensor, " n"]
    seeds: Int[Tensor, " n"] | None

    def mentions(self) -> "list[Mention]":
        """What it reads."""
        return _mentions(self.task, self.batch, self.rows)


class Target(NamedTuple):
    """What a pass writes: its segment, the label of each of its places, and the places that are asked for it (on the
    CPU)."""

    segment: Segment
    labels: Int[Tensor, "n time"]
    asked: Bool[Tensor, "n time"]


def plan_task(
    model: UnifiedModel,
    task: Task,
    batch: Batch,
    objective: Generative | None = None,
    exclude: Int[Tensor, " m"] | None = None,
) -> PlannedPass | None:
    """The task over the samples that hold all that it names; None where there are none.

    objective: which samples take part, how often the target does not see the sources, what is masked; where the batch
    carries draws. exclude: samples to leave out.
    """
    objective, batch = objective or Generative(task=str(task)), with_halves(model, task, batch)
    rows = chosen_rows(batch, task, objective.sample_fraction, exclude)
    return None if rows is None else PlannedPass(task, objective, batch, rows, task_seeds(batch, task, rows))


def forward_task(
    model: UnifiedModel,
    task: Task,
    batch: Batch,
    objective: Generative | None = None,
    exclude: Int[Tensor, " m"] | None = None,
) -> PassOutput | None:
    """The pass of `plan_task` alone; None where no sample takes part."""
    planned = plan_task(model, task, batch, objective, exclude)
    return None if planned is None else forward_passes(model, [planned])[0]


def forward_passes(model: UnifiedModel, passes: Sequence[PlannedPass | PlannedChats]) -> list[PassOutput]:
    """All passes at once: no item enters a tower or a codec twice, and the trunk reads all sentences as one row."""
    if not passes:
        return []
    sources, targets = source_segments(model, passes), _targets(model, passes)
    read = [_read(model, *each) for each in zip(passes, sources, targets, strict=True)]
    states, where = model.trunk.packed([sentences for sentences, _ in read])
    return [output(states, places) for (_, output), places in zip(read, where, strict=True)]


Output = Callable[[Float[Tensor, "m width"], Int[Tensor, "n time"]], PassOutput]


def _read(
    model: UnifiedModel, one: PlannedPass | PlannedChats, sources: Sequence[Segment], target: "Target | None"
) -> tuple[Sentences, Output]:
    """What the trunk reads of a pass, and what makes of its states, and of where they stand, what the pass gives."""
    if isinstance(one, PlannedChats):
        laid = lay_out(model, one, sources)
        none = torch.zeros(0, model.embed_dim, dtype=model.exact_dtype, device=model.device)
        return laid.sentences, lambda states, where: PassOutput(one.rows[:0], none, *laid.asked(states, where))
    return _sentences(one, sources, target), lambda states, where: _output(model, one, states, where, sources, target)


def _sentences(one: PlannedPass, sources: Sequence[Segment], target: Target | None) -> Sentences:
    """What the trunk reads of a pass. Wanted are the pool token of its first source, and what its target is asked."""
    read = list(sources) if target is None else [*_dropped(list(sources), one), target.segment]
    wanted = torch.cat([torch.zeros(segment.tokens.keep.shape, dtype=torch.bool) for segment in read], dim=1)
    if sources:
        wanted[:, sources[0].tokens.keep.shape[1] - 1] = True
    if target is not None:
        wanted[:, -target.asked.shape[1] :] = target.asked
    return Sentences(read, one.seeds, wanted)


def _output(
    model: UnifiedModel,
    one: PlannedPass,
    states: Float[Tensor, "m width"],
    where: Int[Tensor, "n time"],
    sources: Sequence[Segment],
    target: Target | None,
) -> PassOutput:
    """What a pass gives, of the states of all: at the pool token of its first source, and where its target is asked."""
    embedding = torch.zeros(0, model.embed_dim, dtype=model.exact_dtype, device=model.device)
    if sources:
        pool = to_device(where[:, sources[0].tokens.keep.shape[1] - 1], states.device)
        embedding = model.head(one.task.sources[0], take(states, pool)[:, None])
    if target is None:
        none = torch.zeros(0, dtype=torch.int64, device=states.device)
        return PassOutput(one.rows, embedding, states[:0], none, one.rows[:0])
    asked = target.asked
    places = torch.stack([where[:, -asked.shape[1] :][asked], asked.flatten().nonzero().squeeze(1)])
    of_states, of_labels = to_device(places, states.device)
    owners = one.rows[:, None].expand_as(asked)[asked]
    return PassOutput(one.rows, embedding, take(states, of_states), target.labels.flatten()[of_labels], owners)


def sources_of(model: UnifiedModel, task: Task, batch: Batch) -> tuple[Int[Tensor, " n"], list[Segment]] | None:
    """The samples that hold what the task reads, and its segments, for a target to be written behind them."""
    only = Task(task.sources, None)
    rows = rows_with(batch, only)
    if rows is None:
        return None
    segments = [model.source(name, items.take(index)) for name, items, index in _mentions(only, batch, rows)]
    return to_device(rows, model.device), segments


def _mentions(task: Task, batch: Batch, rows: Int[Tensor, " n"]) -> list[Mention]:
    """What it reads; of a modality's mentions the last one, a target's included, is the last item."""
    seen: Counter[str] = Counter()
    mentions = []
    for name in task.sources:
        back = task.mentions(name) - seen[name]
        mentions.append(Mention(name, batch.items[name], item_places(batch.items[name], rows, back)))
        seen[name] += 1
    return mentions


def source_segments(model: UnifiedModel, passes: Sequence[PlannedPass | PlannedChats]) -> list[list[Segment]]:
    """Of each pass, those of what it reads; each tower is entered once."""
    mentions = [one.mentions() for one in passes]
    segments = iter(_once([each for some in mentions for each in some], model.source, [*model.towers]))
    return [[next(segments) for _ in some] for some in mentions]


def _targets(model: UnifiedModel, passes: Sequence[PlannedPass | PlannedChats]) -> list[Target | None]:
    """What each pass writes behind what it reads; None where it does not."""
    writing = [one for one in passes if isinstance(one, PlannedPass) and one.task.target is not None]
    mentions = [
        Mention(str(one.task.target), items := one.batch.items[str(one.task.target)], item_places(items, one.rows, 1))
        for one in writing
    ]
    written = _once(mentions, model.written)
    targets = iter(_target(model, *each) for each in zip(writing, mentions, written, strict=True))
    wrote = {id(one): target for one, target in zip(writing, targets, strict=True)}
    return [wrote.get(id(one)) for one in passes]


def _once(
    mentions: Sequence[Mention], compute: Callable[[str, Items], Result], order: Sequence[str] = ()
) -> list[Result]:
    """What `compute` makes of each mention's items, called once for all that are mentioned of the same items. Where
    none is mentioned one goes in and none comes out."""
    every: dict[tuple[str, int], list[Mention]] = {}
    for one in mentions:
        every.setdefault((one.modality, id(one.items)), []).append(one)
    made = {}
    place = {name: at for at, name in enumerate(order)}
    for key, same in sorted(every.items(), key=lambda each: place.get(each[0][0], 0)):
        index = same[0].places if len(same) == 1 else torch.cat([one.places for one in same]).unique()
        items, index = same[0].items, index if len(index) else torch.zeros_like(same[0].items.facts.rows[:1])
        made[key] = index, compute(key[0], items if len(index) == len(items.facts.rows) else items.take(index))
    return [_of_rows(one.places, *made[one.modality, id(one.items)]) for one in mentions]


def _of_rows(index: Int[Tensor, " m"], have: Int[Tensor, " n"], result: Result) -> Result:
    """The rows of `index` out of a result for those of `have`; both rise."""
    if len(have) == len(index):
        return result
    at = torch.searchsorted(have, index)

    def each(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.index_select(0, to_device(at, value.device))
        return type(value)(*map(each, value)) if isinstance(value, tuple) else value

    return each(result)


def _dropped(segments: list[Segment], one: PlannedPass) -> list[Segment]:
    """The sources, hidden from the target in rows drawn with this chance: one of several, some, or all alike often.

    Hidden and not left out, so that the pass still gives the embedding of what it reads.
    """
    seeds, chance = one.seeds, one.objective.condition_dropout
    if seeds is None or not chance or not segments:
        return segments
    subset = 1 + (hash_uniform(seeds, DROPPED + DIFFERENT) * (2 ** len(segments) - 1)).long()
    subset = subset * (hash_uniform(seeds, DROPPED) < chance)
    return [segment._replace(hidden=(subset >> at & 1).bool()) for at, segment in enumerate(segments)]


def _target(model: UnifiedModel, one: PlannedPass, mention: Mention, written: Ids) -> Target:
    modality, items = mention.modality, mention.items.take(mention.places)
    counts = model.written_counts(modality, items, written)
    if one.task.fill:
        known = real_places(written.keep, counts)
        hidden = masked_places(known, one.seeds, one.objective)
        labels = F.pad(model.vocabulary.shared(modality, written.ids), (1, 0), value=model.vocabulary.pad)
        segment = model.filled(modality, written.ids, to_device(hidden, written.ids.device), written.keep)
        segment = segment._replace(known=F.pad(known, (1, 0), value=True))
        return Target(segment, labels, F.pad(hidden, (1, 0), value=False))
    segment, labels = _continued(model, modality, written, items, one.objective.target_dropout)
    steps, ends = torch.arange(labels.shape[1]), counts[:, None]
    known, cut = steps <= ends, items.facts.cut
    asked = known if cut is None else known & ~((steps == ends) & cut[:, None])  # a text that was cut does not end
    return Target(segment._replace(known=known), labels, asked)


def _continued(
    model: UnifiedModel, modality: str, written: Ids, items: Items, blind: float
) -> tuple[Segment, Int[Tensor, "n time"]]:
    """Input ids (begin, t1, .., tn) and labels (t1, .., tn, end).

    In training some inputs may be masked, never labels: what follows must then be read from the sources.
    """
    vocabulary, chance, draws, seeds = model.vocabulary, model.augment.target_token_dropout, items.draws, items.seeds()
    ids, lengths = vocabulary.shared(modality, written.ids), written.keep.sum(1)
    steps = torch.arange(ids.shape[1] + 1, device=ids.device)
    seen = ids
    if modality == "text" and draws is not None and chance:
        seen = hide_tokens(ids, draws, chance, vocabulary.hidden, salt=TARGET)
    if seeds is not None and blind:
        seen = torch.where(keep_mask(splitmix64(seeds + BLIND), written.keep, blind), seen, vocabulary.hidden)
    begun = F.pad(seen, (1, 0), value=vocabulary.begin(modality))
    labels = torch.where(steps == lengths[:, None], vocabulary.end, F.pad(ids, (0, 1), value=vocabulary.pad))
    keep = steps <= lengths[:, None]
    return model.target(begun, keep), labels
