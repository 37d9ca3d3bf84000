"""What writing asks of a model: the scores of the ids that may come next, and of no others.

Guidance runs several passes, with some sources hidden, as rows of one batch: pass by pass, rows within. Letters: n
rows, p passes, v ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmfm.config import UserError, require
from mmfm.data.batch import Tokens
from mmfm.data.vocabulary import CodeFormat
from mmfm.generation.decode_step import stepper
from mmfm.generation.generation_config import GenerationConfig
from mmfm.generation.int8 import Int8Linear
from mmfm.models.kv_cache import KVCache
from mmfm.models.model import UnifiedModel
from mmfm.models.transformer import Segment


@dataclass(kw_only=True)
class DecodingState:
    """A model that has read sources, and has a target to write. It holds the rows that are still being written.

    begin: the id of the vocabulary that opens the target of each row. end: the one that ends it. read: the local ids of
    each row's texts, which `GenerationConfig.repetition_penalty` counts.
    """

    model: UnifiedModel
    target: str
    cache: KVCache
    weights: tuple[float, ...]  # of the passes
    begin: Int[Tensor, " n"]
    end: int
    read: Sequence[Sequence[int]] = ()
    step: Callable[[Tensor, KVCache], Tensor] | None = None  # of the trunk, made when it is first needed
    scorers: dict[tuple[range, bool], "CandidateLogits"] = field(default_factory=dict)

    @property
    def form(self) -> CodeFormat:
        return self.model.forms[self.target]

    def at(self, step: int) -> "CandidateLogits":
        """Of the ids of this step's book, and as its last column of the end, where it may come."""
        book, end = self.form.candidates(step), self.form.may_end(step)
        if (book, end) not in self.scorers:
            self.scorers[book, end] = CandidateLogits.of(self.model, self.target, book, end, self.end)
        return self.scorers[book, end]

    def limit(self, how: GenerationConfig) -> int:
        """How many ids the target may have: those of its form, or whole turns of its books."""
        books = len(self.form.sizes)
        told = f"GenerationConfig.max_tokens={how.max_tokens} is less than the {books} ids of one step of {self.target}"
        require(bool(self.form.length) or how.max_tokens >= books, f"{told}; give more")
        return self.form.length or how.max_tokens // books * books

    def scores(self, token: Int[Tensor, " n"], step: int) -> Float[Tensor, "n v"]:
        """After this id of the vocabulary in each row. Columns are those of `at`."""
        x = self.model.embedding(token.repeat(len(self.weights)) if len(self.weights) > 1 else token)
        if self.step is None:
            self.step = stepper(self.model.trunk)
        return self.guided(self.at(step)(self.step(x, self.cache)))

    def guided(self, scores: Float[Tensor, "pn v"]) -> Float[Tensor, "n v"]:
        """The weighted sum of the passes, in fp32 at least. UserError where one is no number: no id follows from it."""
        scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        if len(self.weights) > 1:
            each = scores.unflatten(0, (len(self.weights), -1))
            scores = torch.einsum("p,pnv->nv", scores.new_tensor(self.weights), each)
        if not bool(scores.sum().isfinite()) and not bool(scores.isfinite().all()):  # a sum is many times as fast
            raise no_numbers(self.model, self.target)
        return scores

    def select(self, rows: Int[Tensor, " m"]) -> None:
        """Only these rows go on, in this order, perhaps several times."""
        passes = torch.arange(len(self.weights), device=rows.device)
        size = 0 if self.cache.seen is None else len(self.cache.seen) // len(self.weights)
        self.cache.reorder((passes[:, None] * size + rows).flatten())
        self.begin = self.begin[rows]

    def penalties(self, seeds: Int[Tensor, " n"], how: GenerationConfig) -> "Penalties | None":
        """What changes the scores of each row as it is written; None where nothing does."""
        if how.repetition_penalty == 1 and not how.min_tokens:
            return None
        size = max(self.form.candidates(step).stop for step in range(len(self.form.sizes)))
        told = torch.zeros(len(seeds), size, dtype=torch.bool)
        for row, ids in enumerate(self.read):
            told[row, [local for local in ids if 0 <= local < size]] = True
        return Penalties(told.to(seeds.device), how)


@dataclass(kw_only=False)
class Penalties:
    """told: which local ids each row has read or written."""

    told: Bool[Tensor, "n ids"]
    how: GenerationConfig

    def __call__(self, scores: Float[Tensor, "n v"], of: "CandidateLogits", step: int) -> Float[Tensor, "n v"]:
        """The scores of this step, those of what was said before less, and the end only where it may come."""
        penalty, size = self.how.repetition_penalty, of.size
        if penalty != 1:
            said = self.told[:, of.first : of.first + size]
            lower = torch.where(scores > 0, scores / penalty, scores * penalty)[:, :size]
            scores = torch.cat([torch.where(said, lower, scores[:, :size]), scores[:, size:]], dim=1)
        if step < self.how.min_tokens and scores.shape[1] > size:
            scores = torch.cat([scores[:, :size], torch.full_like(scores[:, size:], -torch.inf)], dim=1)
        return scores

    def add(self, local: Int[Tensor, " n"]) -> None:
        """What each row says now."""
        inside = local < self.told.shape[1]
        self.told[torch.arange(len(local), device=local.device)[inside], local[inside]] = True

    def select(self, rows: Int[Tensor, " m"]) -> None:
        self.told = self.told[rows]


def no_numbers(model: UnifiedModel, target: str) -> UserError:
    """What is wrong where scores are not finite: the weights, or a precision that is too narrow for them."""
    half = model.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(model.device.type)
    bad = torch.isnan if half else lambda value: ~value.isfinite()  # a weight may be infinite only since it was cast
    broken = next((name for name, value in model.named_parameters() if bool(bad(value).any())), "")
    told = f"the scores of the next {target} token are no numbers (nan or inf)"
    other = "give another of the run's checkpoints, RUN/checkpoints/step-N"
    if broken:
        return UserError(f"{told}, since the weights {broken} are not: {other}")
    return UserError(f"{told} in half precision: give dtype float32" if half else f"{told}: {other}, or other input")


@dataclass(frozen=True, kw_only=True)
class CandidateLogits:
    """The output, for some ids alone. first: the local id of the first column. ids: of the vocabulary, by column."""

    table: nn.Module | Tensor
    end: Tensor | None
    twice: int | None  # the column of the book that is the end's id too, which comes last
    first: int
    size: int  # of the book; a column more is the end
    ids: Int[Tensor, " v"]

    @staticmethod
    def of(model: UnifiedModel, target: str, book: range, may_end: bool, end: int) -> "CandidateLogits":
        start = model.vocabulary.span(target).start
        rows = range(start + book.start, start + book.stop)
        ends = (end,) if may_end else ()
        ids = torch.cat([torch.arange(rows.start, rows.stop), torch.tensor(ends, dtype=torch.int64)]).to(model.device)
        common = {"first": book.start, "size": len(book), "ids": ids}
        common["twice"] = end - rows.start if end in rows else None
        if isinstance(model.output, Int8Linear):
            return CandidateLogits(table=model.output.rows(rows, ends), end=None, **common)
        weight = model.embedding.weight if model.output is None else model.output.weight
        if torch.is_autocast_enabled(weight.device.type):  # else the rows are cast anew at every step
            weight = weight.to(torch.get_autocast_dtype(weight.device.type))
        table = weight[rows.start : rows.stop]
        return CandidateLogits(table=table, end=weight[end : end + 1] if may_end else None, **common)

    def __call__(self, states: Float[Tensor, "*any width"]) -> Float[Tensor, "*any v"]:
        if isinstance(self.table, nn.Module):
            scores = self.table(states)
        else:
            scores = F.linear(states, self.table)
            scores = scores if self.end is None else torch.cat([scores, F.linear(states, self.end)], dim=-1)
        if self.twice is not None:
            scores[..., self.twice] = torch.finfo(scores.dtype).min  # finite, as what is not is an error
        return scores


def read_sources(
    model: UnifiedModel,
    sources: Sequence[Segment],
    names: tuple[str, ...],
    target: str,
    how: GenerationConfig,
    rows: int,
) -> DecodingState:
    """A pen for `rows` rows that has read these segments, once in each pass that guidance takes.

    A source that a pass does not see is read all the same, and hidden, as in training: its positions are counted.
    """
    seen, weights = how.passes(names)
    form = model.forms[target]
    check_room(model, sources, target, how)
    room = sum(part.tokens.keep.shape[1] for part in sources) + (form.length or how.max_tokens) + 1
    cache = model.trunk.new_cache(room)
    if sources:
        model.trunk([_in_passes(part, [one[at] for one in seen], rows) for at, part in enumerate(sources)], cache)
    begin = torch.full((rows,), model.vocabulary.begin(target), device=model.device)
    end = model.vocabulary.end
    return DecodingState(model=model, target=target, cache=cache, weights=weights, begin=begin, end=end)


def check_room(model: UnifiedModel, sources: Sequence[Segment], target: str, how: GenerationConfig) -> None:
    """UserError, before anything is read, where what is given and what may be written do not fit the trunk's window."""
    window, form = model.trunk.window, model.forms[target]
    if not window:
        return
    held = sum(part.tokens.keep.sum(1) for part in sources)
    given, room = int(held.max()) if isinstance(held, Tensor) else 0, form.length or how.max_tokens
    left = window - given if not form.length else 0
    told = (
        f"{given} tokens that are read and {room} that may be written are over Trunk.max_position_embeddings={window}"
    )
    remedy = f"give max_tokens={left}, or less to read" if left > 0 else "give less to read"
    require(given + room <= window, f"{told}; {remedy}")


def _in_passes(part: Segment, seen: Sequence[bool], rows: int) -> Segment:
    if list(seen) == [True]:
        return part
    x, keep = part.tokens
    hidden = (~torch.tensor(seen, device=x.device)).repeat_interleave(rows)
    return part._replace(tokens=Tokens(x.repeat(len(seen), 1, 1), keep.repeat(len(seen), 1)), hidden=hidden)
