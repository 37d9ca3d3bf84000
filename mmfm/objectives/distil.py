"""What a model learns from another one: the place of items in its space, and which token it expects next.

A teacher is at rest. It belongs to no module of the student, so that neither an optimiser nor a checkpoint nor the
ranks' reduction sees it, and it reads the same items: of texts what they say, by its own tokenizer; of pictures what
the student sees, resized where it takes another size (the same view for both, arXiv 2106.05237), without the
augmentation that the student's tower makes of it. Letters: n items or tokens, d and u dims of student and teacher.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from mmfm.config import Chat, Distil, require
from mmfm.config.chat import PARTS
from mmfm.config.task import Task
from mmfm.data.batch import Batch, Conversations, ItemFacts, Items, Tokens
from mmfm.models.imported import Kept, mean
from mmfm.models.model import UnifiedModel
from mmfm.models.packing import real_places
from mmfm.models.transformer import Segment, Sentences
from mmfm.models.varlen import take
from mmfm.objectives.conversation import plan_chats
from mmfm.objectives.linear_kl import linear_kl
from mmfm.objectives.task_pass import PassOutput, forward_passes, forward_task
from mmfm.objectives.task_rows import item_places
from mmfm.runtime.distributed import Collective
from mmfm.runtime.transfer import to_device

LEAST = 1e-4  # of the length of a vector without the mean of all


@dataclass(frozen=True, eq=False)
class Teacher:
    """A model that is only read. items_of: texts, as it reads them; None: it takes the student's ids. size_px: height
    and width of its pictures; None: the student's. marked: whether a text that it writes begins with the mark of the
    vocabulary, as after training here; a language model's bundle never saw that mark."""

    core: UnifiedModel
    items_of: Callable[[Sequence[str]], Items] | None = None
    size_px: tuple[int, int] | None = None
    marked: bool = True
    kept: Kept | None = None

    def __post_init__(self) -> None:
        self.core.eval().requires_grad_(False)

    def width(self, modality: str) -> int:
        """Of its vectors: an embedding's, or those of the tokens of a tower alone."""
        return self.core.embed_dim if modality in self.core.heads else int(self.core.towers[modality].width)  # type: ignore[arg-type]

    def on(self, device: torch.device) -> "Teacher":
        """It moves to the student when it is first asked there."""
        if self.core.device != device:
            self.core.to(device)
        return self

    @torch.no_grad()
    def embed(self, modality: str, items: Items, texts: Sequence[str | None] = ()) -> Float[Tensor, "n u"]:
        """Unit vectors of these items, one each: of a whole model its embedding, of an encoder alone the mean of its
        real tokens. texts: what they say, where they are texts and the teacher has a tokenizer."""
        if not len(items.facts.rows):
            return torch.zeros(0, self.width(modality), device=self.core.device, dtype=self.core.exact_dtype)
        items = self._read(modality, items, texts)
        if self.kept is None:
            return self._vectors(modality, items)
        kept = self.kept(items.x, items.keep, self.core, lambda x, keep: self._token(modality, x, keep))
        return kept.x[:, 0]

    def _token(self, modality: str, x: Tensor, keep: Bool[Tensor, "n time"]) -> Tokens:
        return Tokens(self._vectors(modality, _alone(x, keep, keep.sum(1).cpu()))[:, None], keep.new_ones(len(x), 1))

    def _vectors(self, modality: str, items: Items) -> Float[Tensor, "n u"]:
        if modality not in self.core.heads:
            parts = of_like_length(items.facts.lengths) if modality == "text" else [torch.arange(len(items.rows))]
            found = torch.cat([mean(self.core.tokens(modality, items.take(part))).x[:, 0] for part in parts])
            found = take(found, to_device(torch.cat(parts).argsort(), found.device))
            return F.normalize(found.to(self.core.exact_dtype), dim=-1)
        rows = items.facts.rows
        read = forward_task(
            self.core, Task((modality,), None), Batch(size=len(rows), items={modality: items}, positive_ids=rows)
        )
        assert read is not None
        return read.embedding

    def _read(self, modality: str, items: Items, texts: Sequence[str | None]) -> Items:
        if modality == "text" and self.items_of is not None:
            told = "a teacher with its own tokenizer reads one text of each sample; give samples without further texts"
            said = [text for text in texts if text is not None]
            require(len(said) == len(items.facts.rows), told)
            return replace(self.items_of(said), written=None, cut=None).to(self.core.device)
        x = items.x if self.size_px is None or modality != "image" else resized(items.x, self.size_px)
        return _alone(x, items.keep, items.facts.lengths)

    @torch.no_grad()
    def next_states(self, items: Items) -> Float[Tensor, "m width"]:
        """The states that expect each token of these texts, but for the first where nothing is before it; row by
        row."""
        core, device, written = self.core, self.core.device, self.core.written("text", items)
        ids, keep = core.vocabulary.shared("text", written.ids), written.keep
        known = real_places(keep, written_counts(items))
        if self.marked:
            ids = F.pad(ids, (1, 0), value=core.vocabulary.begin("text"))
            keep, known = (F.pad(one, (1, 0), value=True) for one in (keep, known))
        wanted = F.pad(known[:, 1:], (0, 1))
        if not bool(wanted.any()):
            return torch.zeros(0, core.trunk.width, device=device, dtype=core.dtype)
        segment = Segment(Tokens(core.embedding(ids), keep), causal=True, known=known)
        states, (where,) = core.trunk.packed([Sentences([segment], None, wanted)])
        return take(states, to_device(where[wanted], device))

    @torch.no_grad()
    def answer_states(self, batch: Batch, chats: Conversations, objective: Chat) -> Float[Tensor, "m width"]:
        """The states that expect each learned token of these conversations, which mention no part."""
        planned = plan_chats(replace(batch, chats=chats), objective)
        assert planned is not None
        return forward_passes(self.core, [planned])[0].states

    def table(self) -> Float[Tensor, "v width"]:
        return table_of_texts(self.core)


def table_of_texts(core: UnifiedModel) -> Float[Tensor, "v width"]:
    """What maps states to scores of ids of texts: marks and codes are of no teacher's concern."""
    span = core.vocabulary.span("text")
    return core.output_weight[span.start : span.stop]


def of_like_length(lengths: Int[Tensor, " n"]) -> list[Int[Tensor, " some"]]:
    """Places of texts in groups, the longest first: none is padded to more than twice its length, as an encoder of
    another library computes its padding too."""
    parts, rest = [], lengths.argsort(descending=True, stable=True)
    while len(rest):
        long = 2 * lengths[rest] >= lengths[rest[0]]
        parts.append(rest[long])
        rest = rest[~long]
    return parts


def _alone(x: Tensor, keep: Bool[Tensor, "n time"], lengths: Int[Tensor, " n"]) -> Items:
    """Items without augmentation, each a sample of its own."""
    rows = torch.arange(len(x))
    items = Items(x=x, keep=keep, rows=to_device(rows, x.device))
    return items.knowing(ItemFacts(rows, lengths))


def resized(
    x: UInt8[Tensor, "n channels height width"], size_px: tuple[int, int]
) -> UInt8[Tensor, "n channels height2 width2"]:
    """Pictures at another size, bilinear, with antialiasing where it is smaller."""
    found = F.interpolate(x.float(), size_px, mode="bilinear", antialias=True)
    return found.round().clamp(0, 255).to(torch.uint8)


def written_counts(items: Items) -> Int[Tensor, " n"]:
    """Ids of each text as it is written; on the CPU."""
    return items.facts.lengths if items.facts.written is None else items.facts.written


def embedding_loss(
    item: Distil,
    student: Float[Tensor, "n d"],
    teacher: Float[Tensor, "n u"],
    ranks: Collective,
    tile_mb: float,
) -> Float[Tensor, ""]:
    """This rank's share of: the mean of 1 - cosine, and of KL(teacher || student) between the similarities of each item
    to all others of all ranks. All ranks enter alike, whatever they hold."""
    counts = ranks.all_gather(torch.tensor([len(student)]), [1] * ranks.size).tolist()
    whole, own = max(1, sum(counts)), sum(counts[: ranks.rank])
    mine = slice(own, own + len(student))
    loss, theirs = student.sum() * 0, ranks.all_gather(teacher.to(student.dtype), counts)
    if item.center == "batch":
        theirs = centered(theirs)
    if item.features:
        told = f"Distil.features of {item.teacher} needs Model.embed_dim={teacher.shape[1]}, the width of its vectors"
        require(student.shape[1] == teacher.shape[1], f"{told}; set it, or learn its similarities")
        loss = loss + item.features * (1 - (student * theirs[mine]).sum(1)).sum() / whole
    if item.similarities:
        table = ranks.all_gather(student, counts)
        if item.center == "batch":
            table = centered(table)
        found = linear_kl(table[mine], table, theirs[mine], theirs, item.similarity_temperature, tile_mb, own)
        loss = loss + item.similarities * found / whole
    return loss


def centered(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Unit vectors of what is left of each without their mean; zeros where nothing is. What is shorter than LEAST stays
    short, as its direction is that of rounding errors."""
    return F.normalize(x - x.mean(0, keepdim=True), dim=1, eps=LEAST) if len(x) else x


def embedded_items(batch: Batch, modality: str, rows: Int[Tensor, " n"]) -> Items | None:
    """The items whose embeddings are of these samples: each one's last; None where there is none."""
    if not len(rows):
        return None
    items = batch.items[modality]
    return items.take(item_places(items, rows, 1))


@dataclass(frozen=True)
class Taught:
    """Tokens that a teacher has an opinion of, planned on the CPU: of one pass of the student, which places of its
    states, and what the teacher reads to have its own."""

    places: Int[Tensor, " m"]
    items: Items | None = None
    chats: Conversations | None = None


def taught_text(batch: Batch, output: PassOutput | None, teacher: Teacher) -> Taught | None:
    """Of texts that are written: all tokens but the end, and but the first where the teacher has no mark before it."""
    if output is None or not len(output.rows):
        return None
    items = batch.items["text"].take(item_places(batch.items["text"], output.rows, 1))
    cut = items.facts.cut
    counts = written_counts(items)
    asked = counts + 1 if cut is None else counts + 1 - cut.long()
    row = torch.repeat_interleave(torch.arange(len(asked)), asked)
    step = torch.arange(len(row)) - (asked.cumsum(0) - asked)[row]
    first = 0 if teacher.marked else 1
    return Taught(((step >= first) & (step < counts[row])).nonzero().squeeze(1), items=items)


def taught_chats(batch: Batch, output: PassOutput | None) -> Taught | None:
    """Of conversations without pictures and sounds, which a model of text alone can read: all that is learned."""
    if output is None or (chats := batch.chats) is None:
        return None
    index = (~torch.isin(chats.ids, torch.tensor([*PARTS.values()])).any(1)).nonzero().squeeze(1)
    if not len(index):
        return None
    seeds = None if chats.seeds is None else chats.seeds[index]
    ids, keep, learn, turns = (x[index] for x in (chats.ids, chats.keep, chats.learn, chats.turns))
    some = Conversations(rows=chats.rows[index], ids=ids, keep=keep, learn=learn, turns=turns, seeds=seeds)
    places = torch.isin(output.sample_ids, some.rows).nonzero().squeeze(1)
    return Taught(places, chats=some) if len(places) else None


def logits_loss(
    item: Distil,
    core: UnifiedModel,
    teacher: Teacher,
    states: Float[Tensor, "tokens width"],
    known: Float[Tensor, "m u"],
    taught: Taught,
    tile_mb: float,
) -> Float[Tensor, ""]:
    """The sum over tokens of KL(teacher || student) of what comes next, given that it is text, times temperature
    squared, as gradients shrink by it (arXiv 1503.02531, section 2)."""
    mine = take(states, to_device(taught.places, states.device))
    found = linear_kl(mine, table_of_texts(core), known, teacher.table(), item.temperature, tile_mb)
    return item.logits * item.temperature**2 * found
