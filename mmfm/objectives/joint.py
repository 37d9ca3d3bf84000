"""The losses of one step, by name: one pass per task, and what each gives goes to contrast and to writing alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmfm.config import Chat, Contrastive, Distil, Generative, Objective, Reconstruction, Run, require
from mmfm.config.task import Task, parse, parse_writing
from mmfm.data.batch import Batch, Raw
from mmfm.models.codecs import Trainable
from mmfm.models.model import UnifiedModel
from mmfm.models.varlen import take
from mmfm.objectives.contrastive_loss import CONTRAST
from mmfm.objectives.conversation import PlannedChats, plan_chats
from mmfm.objectives.cross_entropy import linear_cross_entropy
from mmfm.objectives.distil import (
    Taught,
    Teacher,
    embedded_items,
    embedding_loss,
    logits_loss,
    taught_chats,
    taught_text,
)
from mmfm.objectives.roll_call import roll_call
from mmfm.objectives.task_pass import PassOutput, PlannedPass, forward_passes, plan_task
from mmfm.objectives.task_rows import check_codecs, check_towers, embeds
from mmfm.runtime.distributed import Collective, SingleProcess
from mmfm.runtime.transfer import to_device

ALONE = SingleProcess()
Result = TypeVar("Result")
Embedded = tuple[Float[Tensor, "n dim"], Int[Tensor, " n"]]  # embeddings, and on the CPU the samples that they are of


class Pairs(NamedTuple):
    """Unit embeddings of the same samples, row by row; `same` is equal where two samples of all ranks say the same."""

    a: Float[Tensor, "n dim"]
    b: Float[Tensor, "n dim"]
    same: Int[Tensor, " n"]


@dataclass(frozen=True)
class StepOutputs:
    """What the passes of one step gave, for the losses: `outputs` by task, `embedded` by modality."""

    model: UnifiedModel
    batch: Batch
    ranks: Collective
    outputs: Mapping[str, PassOutput | None]
    embedded: Mapping[str, Embedded]

    def pairs(self, one: str, other: str) -> Pairs:
        """The embeddings of the samples that hold both modalities; no rows where there are none."""
        (a, a_rows), (b, b_rows) = self.embedded[one], self.embedded[other]
        both = torch.isin(a_rows, b_rows)
        same = positive_group_ids(self.batch, self.ranks)[a_rows[both]]
        return Pairs(_rows(a, both), _rows(b, torch.isin(b_rows, a_rows)), same)


class PassOutputs(NamedTuple):
    """What the passes over a batch gave, by task and by modality. reached: no rows of what else was computed, so that
    a backward reaches on this rank all that it reaches on another. chat: of the conversations."""

    outputs: Mapping[Task, PassOutput | None]
    embedded: Mapping[str, Embedded]
    reached: Sequence[Tensor] = ()
    chat: PassOutput | None = None


class Objectives(nn.Module):
    """`forward(batch)` gives each objective's share of its loss, unweighted; the shares of all ranks add up.

    It owns the model, so that DistributedDataParallel sees every parameter through one forward. teachers: by the names
    of `run.distil`, no part of it; an objective without its teacher is left out, which is for plans alone.
    """

    def __init__(
        self, model: UnifiedModel, run: Run, ranks: Collective = ALONE, teachers: Mapping[str, Teacher] | None = None
    ) -> None:
        super().__init__()
        self.model, self.ranks = model, ranks
        self.sharded = False  # whether weights come by collectives, so that all ranks must enter all towers alike
        self.contrast, self.reconstruct, self.own = run.contrastive, run.reconstruction, run.objectives
        self.chat, self.teachers = run.chat, dict(teachers or {})
        self.distil = [item for item in run.distil if item.name in self.teachers]
        self.write = {parse_writing(item.task): item for item in run.generative}
        others = (task for item in run.objectives for task in map(parse, item.tasks) if task not in self.write)
        self.passes = {**self.write, **{task: Generative(task=str(task)) for task in others}}
        self.tile_mb = run.parallel.loss_tile_mb
        terms = (item for item in run.terms if not isinstance(item, Distil) or item.name in self.teachers)
        self.weights = {item.name: item.weight for item in terms}
        self.alone = [Task((name,), None) for name in embedded_modalities(run, list(model.towers))]
        self.one_pass = run.passes == "one"  # else embeddings come from passes of their own (experiments/001-one-pass)
        self.embedded = [task.sources[0] for task in self.alone]
        for task in (*self.alone, *self.passes):
            check_towers(task, list(model.towers))
            check_codecs(task, list(model.codecs))

    def forward(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        read = self.run_passes(batch)
        counts = self.all_reduce_counts(self.loss_counts(batch, read))
        with torch.autocast(self.model.device.type, enabled=False):  # a softmax over the batch needs fp32
            losses = self.contrastive_losses(batch, read.embedded) | self.summed_losses(batch, read, counts)
            losses |= {item.name: _own_loss(item, self._step(batch, read)) for item in self.own}
            return {name: losses[name] + self.zero(read) for name in self.weights}

    def inside(self, work: Callable[[], Result]) -> Result:
        """What `work` gives; weights that are sharded are whole meanwhile, as in `forward`."""
        return work()

    def run_passes(self, batch: Batch) -> PassOutputs:
        """What all passes of a step give."""
        planned = {task: plan_task(self.model, task, batch, item) for task, item in self.passes.items()}
        rest = {task: plan_task(self.model, task, batch, exclude=self._covered(task, planned)) for task in self.alone}
        talk = None if self.chat is None else plan_chats(batch, self.chat)
        passes = [one for one in (*planned.values(), *rest.values(), talk) if one is not None]
        absent, reached = self._roll_call(passes, batch) if self.sharded else ([], [])
        passes += absent
        made = {id(one): output for one, output in zip(passes, forward_passes(self.model, passes), strict=True)}
        outputs = {task: made.get(id(one)) for task, one in planned.items()}
        embedded = {
            task.sources[0]: self._embedded(
                [outputs[other] for other in self._embedding(task)]
                + [made.get(id(one)), *(made[id(other)] for other in absent if other.task == task)]
            )
            for task, one in rest.items()
        }
        empty = [one.states[:0] for one in made.values() if self.sharded]
        return PassOutputs(outputs, embedded, [*reached, *empty], made.get(id(talk)))

    def _roll_call(
        self, passes: Sequence[PlannedPass | PlannedChats], batch: Batch
    ) -> tuple[list[PlannedPass], list[Tensor]]:
        """What this rank lacks of the passes of others; and no rows of the weights outside of towers and trunk that
        only others use, as their gradient must be a zero here."""
        codecs = {f"codec {item.modality}": int(item.modality in batch.items) for item in self.reconstruct}
        facts = {"writes": int(any(one.task.target is not None for one in passes)), **codecs}
        called = roll_call(self.model, passes, facts, self.ranks)
        used = [self.model.embedding.weight] if called.facts["writes"] else []
        for item in self.reconstruct:
            used += [*self.model.codecs[item.modality].parameters()] if called.facts[f"codec {item.modality}"] else []
        return called.absent, [x.flatten()[:0] for x in used if x.requires_grad]

    def loss_counts(self, batch: Batch, read: PassOutputs) -> dict[str, int]:
        """What losses that are means divide by: target tokens, and items for a codec."""
        tokens = {
            item.name: 0 if (one := read.outputs[task]) is None else len(one.labels)
            for task, item in self.write.items()
        }
        if self.chat is not None:
            tokens[self.chat.name] = _answers(self.chat, read.chat)
        items = {item.name: batch.items.get(item.modality) for item in self.reconstruct}
        for item in (item for item in self.distil if item.logits):
            tokens[item.name] = sum(len(taught.places) for _, taught in self._taught(item, batch, read))
        return tokens | {name: 0 if one is None else len(one.rows) for name, one in items.items()}

    def all_reduce_counts(self, counts: Mapping[str, int]) -> dict[str, Tensor]:
        """The counts of all ranks."""
        total = self.ranks.all_reduce_sum(torch.tensor([*counts.values()], dtype=torch.int64, device=self.model.device))
        return dict(zip(counts, total.clamp(min=1), strict=True))

    def contrastive_losses(self, batch: Batch, embedded: Mapping[str, Embedded]) -> dict[str, Float[Tensor, ""]]:
        step = self._step(batch, PassOutputs({}, embedded))
        losses = {item.name: self._contrast(item, step) for item in self.contrast}
        return losses | {item.name: self._near(item, step) for item in self.distil if item.embeds}

    def summed_losses(
        self, batch: Batch, read: PassOutputs, counts: Mapping[str, Tensor]
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses that add up over samples, so that parts of a batch may be read one by one."""
        losses = {item.name: self._write(read.outputs[task]) for task, item in self.write.items()}
        losses |= {} if self.chat is None else {self.chat.name: self._write(read.chat)}
        losses |= {item.name: self._reconstruct(item, batch) for item in self.reconstruct}
        losses |= {item.name: self._likely(item, batch, read) for item in self.distil if item.logits}
        return {name: loss / counts[name].to(loss.dtype) for name, loss in losses.items()}

    def _step(self, batch: Batch, read: PassOutputs) -> StepOutputs:
        return StepOutputs(
            self.model, batch, self.ranks, {str(task): o for task, o in read.outputs.items()}, read.embedded
        )

    def total(self, losses: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """What to run backward on. DDP averages gradients over ranks, so this rank's share counts `size` times."""
        nothing = torch.zeros((), device=self.model.device)
        return sum((self.weights[name] * loss for name, loss in losses.items()), nothing) * self.ranks.size

    def zero(self, read: PassOutputs) -> Float[Tensor, ""]:
        """A rank whose share of the batch is empty still has a gradient to reduce: that of a parameter that all ranks
        train. Here and not in `total`: DDP must see in its forward all that its backward will reach."""
        mine = self.model.trunk.norm.weight
        learned = (p for p in (mine, *self.model.parameters()) if p.requires_grad and not hasattr(p, "full_tensor"))
        return sum((x.sum() for x in read.reached), next(learned, mine).flatten()[:0].sum())

    def _embedding(self, alone: Task) -> list[Task]:
        """The tasks whose pass embeds the source of `alone`, as it reads nothing else of it."""
        return [task for task in self.passes if self.one_pass and embeds(task) and task.sources == alone.sources]

    def _covered(self, alone: Task, planned: Mapping[Task, PlannedPass | None]) -> Int[Tensor, " n"] | None:
        """The samples that need no pass of their own to be embedded."""
        rows = [one.rows for task in self._embedding(alone) if (one := planned[task]) is not None]
        return torch.cat(rows) if rows else None

    def _embedded(self, outputs: Sequence[PassOutput | None]) -> Embedded:
        """Of every sample with the modality, the embedding of the first pass that gives it."""
        found = [one for one in outputs if one is not None]
        if not found:
            return self._nothing()
        rows, x = torch.cat([one.rows for one in found]), torch.cat([one.embedding for one in found])
        order = rows.argsort(stable=True)
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = rows[order][1:] != rows[order][:-1]
        return take(x, to_device(order[first], x.device)), rows[order][first]

    def _nothing(self) -> Embedded:
        """No embeddings, of no samples."""
        exact, device = self.model.exact_dtype, self.model.device
        z = torch.zeros(0, self.model.embed_dim, dtype=exact, device=device, requires_grad=True)
        return z, torch.zeros(0, dtype=torch.int64)

    def _contrast(self, item: Contrastive, step: StepOutputs) -> Float[Tensor, ""]:
        scale, bias = self.model.scale(item.name), self.model.bias(item.name)
        pairs = step.pairs(*item.pair)
        self.model.read_counts.add_contrast(len(pairs.a), len(pairs.a) * self.ranks.size)
        return CONTRAST[item.loss](*pairs, scale, bias, self.ranks, self.tile_mb)

    def _near(self, item: Distil, step: StepOutputs) -> Float[Tensor, ""]:
        """How far embeddings are from the teacher's vectors of the same items."""
        teacher, (mine, rows) = self.teachers[item.name].on(self.model.device), step.embedded[item.modality]
        items, said = embedded_items(step.batch, item.modality, rows), step.batch.texts
        theirs = mine.new_zeros(0, teacher.width(item.modality))
        if items is not None:
            theirs = teacher.embed(item.modality, items, [said[row] for row in rows.tolist()] if said else ())
        return embedding_loss(item, mine, theirs, self.ranks, self.tile_mb)

    def _taught(self, item: Distil, batch: Batch, read: PassOutputs) -> list[tuple[PassOutput, Taught]]:
        """The student's passes of whose next tokens this teacher has an opinion."""
        output = read.outputs.get(Task((), "text"))
        found = [(output, taught_text(batch, output, self.teachers[item.name]))]
        found.append((read.chat, taught_chats(batch, read.chat)))
        return [(one, taught) for one, taught in found if one is not None and taught is not None]

    def _likely(self, item: Distil, batch: Batch, read: PassOutputs) -> Float[Tensor, ""]:
        """The sum over next tokens of how far they are from as likely as to the teacher."""
        teacher, loss = self.teachers[item.name].on(self.model.device), self.model.output_weight[:0].sum()
        for output, taught in self._taught(item, batch, read):
            if taught.items is not None:
                known = teacher.next_states(taught.items)
            else:
                assert taught.chats is not None and self.chat is not None
                known = teacher.answer_states(batch, taught.chats, self.chat)
            loss = loss + logits_loss(item, self.model, teacher, output.states, known, taught, self.tile_mb)
        return loss

    def _reconstruct(self, item: Reconstruction, batch: Batch) -> Float[Tensor, ""]:
        """The sum over items of what the codec's losses add up to."""
        items = batch.items.get(item.modality)
        share = 0 * next(self.model.codecs[item.modality].parameters()).sum()
        if items is not None:
            raw = items.raw or Raw(items.x, items.keep)
            codec = cast(Trainable, self.model.codec(item.modality))
            share = share + sum(codec.losses(raw.x, raw.keep, items.draws).values())
        return share

    def _write(self, output: PassOutput | None) -> Float[Tensor, ""]:
        weight = self.model.output_weight
        states = weight[:0] if output is None else output.states
        labels = torch.zeros(0, dtype=torch.int64, device=self.model.device) if output is None else output.labels
        self.model.read_counts.add("target", tokens=len(labels))
        counts = None if output is None else output.counts
        return linear_cross_entropy(states, weight, labels, self.tile_mb, counts)


def _answers(chat: Chat, output: PassOutput | None) -> int:
    """What the loss of conversations divides by: their learned tokens, or their answers."""
    if output is None:
        return 0
    return len(output.labels) if output.answers is None else output.answers


def embedded_modalities(run: Run, towers: Sequence[str]) -> list[str]:
    """Those whose embeddings an objective compares; one of one's own, those of its modalities that have a tower."""
    wanted = dict.fromkeys(name for item in run.objectives for name in item.modalities if name in towers)
    wanted |= dict.fromkeys(name for item in run.contrastive for name in item.pair)
    wanted |= dict.fromkeys(item.modality for item in run.distil if item.embeds)
    return sorted(wanted, key=[*towers, *wanted].index)


def _own_loss(item: Objective, step: StepOutputs) -> Float[Tensor, ""]:
    loss = item.loss(step)
    told = f"objective {item.name} returned {type(loss).__name__}, but should return a scalar tensor"
    require(isinstance(loss, Tensor) and loss.ndim == 0, told)
    return loss


def positive_group_ids(batch: Batch, ranks: Collective = ALONE) -> Int[Tensor, " size"]:
    """Equal where two samples of all ranks carry the same text; a sample without text is like none but itself.

    Its number is its own on all ranks, whatever each of them holds: -2 and below, as hashes of texts are 0 and above.
    """
    own, given = -2 - (ranks.rank + ranks.size * torch.arange(batch.size)), batch.positive_ids.cpu()
    return torch.where(given >= 0, given, own)


def _rows(x: Float[Tensor, "n dim"], chosen: Bool[Tensor, " n"]) -> Float[Tensor, "m dim"]:
    """The chosen rows, where the choice is known on the CPU."""
    return x if bool(chosen.all()) else take(x, to_device(chosen.nonzero().squeeze(1), x.device))
