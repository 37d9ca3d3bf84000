"""Writing a target id by id over the trunk's cache.

The sources are read once; a grammar (`CodeFormat`) keeps every id where a decoder can take it; rows that have ended
leave the batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmfm.config import require
from mmfm.config.task import Task
from mmfm.data.batch import Batch
from mmfm.generation.beam_search import search
from mmfm.generation.best_of import best
from mmfm.generation.decoding_state import DecodingState, read_sources
from mmfm.generation.detokenizer import Decode, Detokenizer
from mmfm.generation.generation_config import Finish, GenerationConfig
from mmfm.generation.sampling import drawn_seeds, sample
from mmfm.models.model import UnifiedModel
from mmfm.objectives.task_pass import sources_of

Judge = Callable[[list[int], list[list[int]]], Float[Tensor, " m"]]
GREEDY = GenerationConfig()


class Written(NamedTuple):
    """What was written. rows: the samples that have every source. ids: local, without the end.

    texts: where a decoder was given; a stop string cuts them, and not the ids. scores: of beams and of draws. finish:
    of each row, whether it came to its end or was cut at `max_tokens`; what has a fixed length comes to its end.
    logprobs: of each id, and last of the end where it came, the logarithm of its chance among those that might come.
    """

    rows: list[int]
    ids: list[list[int]]
    texts: list[str] | None = None
    scores: list[float] | None = None
    finish: Sequence[Finish] = ()
    logprobs: list[list[float]] | None = None


class Begun(NamedTuple):
    """What is to be written. rows: the samples. seeds: one for each row of the state, which has read its sources."""

    rows: list[int]
    seeds: Int[Tensor, " m"]
    state: DecodingState


class Piece(NamedTuple):
    """What is new of one sample: local ids, and of a text the characters that are sure by now.

    finish: "length" in the last piece of a sample that was cut at `max_tokens`, else empty.
    """

    row: int
    ids: list[int]
    text: str = ""
    finish: Literal["", "length"] = ""


class Step(NamedTuple):
    """A new local id for each of these rows of the batch, rising. ended: the rows that came to their end. logprobs: of
    what was chosen in each row that was still written, by row."""

    rows: list[int]
    ids: list[int]
    ended: list[int]
    logprobs: dict[int, float] = {}  # noqa: RUF012 (never changed)


def write(
    model: UnifiedModel,
    task: Task,
    batch: Batch,
    how: GenerationConfig = GREEDY,
    *,
    seeds: Int[Tensor, " size"] | None = None,
    decode: Decode | None = None,
    judge: Judge | None = None,
) -> Written:
    """One target for each sample that has every source of the task; for each of the batch where it has none.

    seeds: one for each sample of the batch; None: `how.seed` for each. decode: local ids -> text, as `how.stop` needs.
    judge: samples and what was written for them -> how near it is, which `how.draws` needs.
    """
    found = _begun(model, task, batch, how, seeds, decode)
    if found is None:
        return Written([], [], None if decode is None else [])
    return write_on(found, how, decode=decode, judge=judge)


@torch.no_grad()
def write_on(
    begun: Begun, how: GenerationConfig = GREEDY, *, decode: Decode | None = None, judge: Judge | None = None
) -> Written:
    """What follows on what was read."""
    rows, own, pen = begun
    if how.num_beams > 1:
        ids, scores, finish = search(pen, len(rows), how)
        return Written(rows, ids, None if decode is None else [decode(row) for row in ids], scores, finish)
    words = None if decode is None else [Detokenizer(decode, how.stop) for _ in range(len(rows) * how.best_of)]
    ids, cut = [[] for _ in range(len(rows) * how.best_of)], set(range(len(rows) * how.best_of))
    chances: list[list[float]] = [[] for _ in ids]
    for step in steps(pen, own, how, words):
        cut -= {*step.ended}
        for row, local in zip(step.rows, step.ids, strict=True):
            ids[row].append(local)
        for row, chance in step.logprobs.items():
            chances[row].append(chance)
    texts = None if words is None else [row.text + row.end() for row in words]
    finish: list[Finish] = ["length" if row in cut else "stop" for row in range(len(ids))]
    if how.best_of == 1:
        return Written(rows, ids, texts, None, finish, chances if how.logprobs else None)
    require(judge is not None, f"GenerationConfig.best_of={how.best_of} needs what judges them; leave draws out")
    assert judge is not None
    kept, scores = best(judge([row for row in rows for _ in range(how.best_of)], ids), how.best_of)
    texts = None if texts is None else [texts[at] for at in kept]
    chosen = [chances[at] for at in kept] if how.logprobs else None
    return Written(rows, [ids[at] for at in kept], texts, scores, [finish[at] for at in kept], chosen)


def stream(
    model: UnifiedModel,
    task: Task,
    batch: Batch,
    how: GenerationConfig = GREEDY,
    *,
    seeds: Int[Tensor, " size"] | None = None,
    decode: Decode | None = None,
    judge: Judge | None = None,
) -> Iterator[Piece]:
    """`write`, each piece as soon as it is known; those of a row join to the whole. Beams and draws come at the end."""
    if how.num_beams > 1 or how.best_of > 1:
        whole = write(model, task, batch, how, seeds=seeds, decode=decode, judge=judge)
        texts = whole.texts or [""] * len(whole.rows)
        for row, ids, text, finish in zip(whole.rows, whole.ids, texts, whole.finish, strict=True):
            yield Piece(row, ids, text, "length" if finish == "length" else "")
        return
    found = _begun(model, task, batch, how, seeds, decode)
    if found is not None:
        yield from stream_on(found, how, decode=decode)


def stream_on(begun: Begun, how: GenerationConfig = GREEDY, *, decode: Decode | None = None) -> Iterator[Piece]:
    """`write_on`, piece by piece, without beams and draws."""
    assert how.num_beams == how.best_of == 1
    rows, own, pen = begun
    words, cut = None if decode is None else [Detokenizer(decode, how.stop) for _ in rows], set(range(len(rows)))
    for step in steps(pen, own, how, words):
        cut -= {*step.ended}
        for row, local in zip(step.rows, step.ids, strict=True):
            yield Piece(rows[row], [local], "" if words is None else words[row].last)
    for at, row in enumerate(rows):
        rest = "" if words is None else words[at].end()
        if rest or at in cut:
            yield Piece(row, [], rest, "length" if at in cut else "")


@torch.no_grad()
def _begun(
    model: UnifiedModel, task: Task, batch: Batch, how: GenerationConfig, seeds: Tensor | None, decode: Decode | None
) -> Begun | None:
    """None where no sample has the sources."""
    assert task.target is not None and not task.fill
    require(not how.stop or task.target == "text", f"GenerationConfig.stop={how.stop} is for texts; {task} writes none")
    require(
        not how.stop or decode is not None, f"GenerationConfig.stop={how.stop} needs a decoder of ids; give `decode`"
    )
    found = sources_of(model, task, batch) if task.sources else (torch.arange(batch.size, device=model.device), [])
    if found is None:
        return None
    rows, sources = found
    own = torch.full((batch.size,), how.seed, device=rows.device) if seeds is None else seeds.to(rows.device)
    pen = read_sources(model, sources, task.sources, task.target, how, len(rows))
    return Begun(rows.tolist(), drawn_seeds(own[rows], how.best_of), _several(pen, len(rows), how.best_of))


def _several(pen: DecodingState, rows: int, times: int) -> DecodingState:
    if times > 1:
        pen.select(torch.arange(rows, device=pen.model.device).repeat_interleave(times))
    return pen


@torch.no_grad()
def steps(
    pen: DecodingState, seeds: Int[Tensor, " n"], how: GenerationConfig, words: Sequence[Detokenizer] | None = None
) -> Iterator[Step]:
    """Each step's new ids, until every row has ended. A row whose words have met a stop string ends too."""
    rows, limit = list(range(len(seeds))), pen.limit(how)
    start, token = pen.model.vocabulary.span(pen.target).start, pen.begin
    penalties = pen.penalties(seeds, how)
    for step in range(limit):
        scorer, scores = pen.at(step), pen.scores(token, step)
        scores = scores if penalties is None else penalties(scores, scorer, step)
        column = sample(scores, scorer.ids, seeds, step, how)
        columns = column.tolist()
        chances = _chances(rows, scores, column) if how.logprobs else {}
        going = [at for at, chosen in enumerate(columns) if chosen < scorer.size]
        said, told = [rows[at] for at in going], [scorer.first + columns[at] for at in going]
        if words is not None:
            for row, local in zip(said, told, strict=True):
                words[row].add(local)
            going = [at for at in going if not words[rows[at]].stopped]
        whole = step + 1 == pen.form.length  # of a target of fixed length
        ended = rows if whole else [row for at, row in enumerate(rows) if at not in going]
        yield Step(said, told, ended, chances)
        if not going:
            return
        if penalties is not None:
            penalties.add(column + scorer.first)
        token = column + (start + scorer.first)
        if len(going) < len(rows) and step + 1 < limit:
            index = torch.tensor(going, device=token.device)
            rows, token, seeds = [rows[at] for at in going], token[index], seeds[index]
            pen.select(index)
            if penalties is not None:
                penalties.select(index)


def _chances(rows: Sequence[int], scores: Float[Tensor, "n v"], column: Int[Tensor, " n"]) -> dict[int, float]:
    """The logarithm of the chance of what was chosen in each row."""
    chosen = scores.double().log_softmax(-1).gather(1, column[:, None])[:, 0]
    return dict(zip(rows, chosen.tolist(), strict=True))
