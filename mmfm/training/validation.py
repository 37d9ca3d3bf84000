"""The loss of each objective on validation samples, in the order of the shards, without augmentation or dropout."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from mmfm.config import MESSAGES, Run, Source, require
from mmfm.data.batch import Batch
from mmfm.data.conversations import with_chat
from mmfm.data.decode import collate, decode_of, read_example
from mmfm.data.documents import Example
from mmfm.data.index import EXTENSIONS
from mmfm.data.sample import meta_of, text_of
from mmfm.data.sources import open_source
from mmfm.data.splits import asked_and_more, shards_of
from mmfm.evals.metrics_table import better
from mmfm.models.best import Best, read_best
from mmfm.objectives.joint import Objectives
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.tokenizer import Tokenizer
from mmfm.pretrained.encoder import rested
from mmfm.runtime.distributed import Collective, SingleProcess
from mmfm.training.preflight import objectives as terms_of


@torch.no_grad()
def validation_losses(
    objectives: Objectives,
    run: Run,
    tokenizer: Tokenizer,
    ranks: Collective = SingleProcess(),  # noqa: B008 (no state)
) -> dict[str, float]:
    """`val_loss/NAME` of each objective that validation samples count for, and `val_loss`, their weighted sum.

    Ranks read every so manieth batch; each batch counts by its samples that hold what the objective needs.
    """
    terms = list(terms_of(run))
    totals = torch.zeros(len(terms), 2, dtype=torch.float64)
    others, objectives.ranks = objectives.ranks, SingleProcess()
    try:
        with rested(objectives):
            for number, batch in enumerate(validation_batches(run, tokenizer)):
                if number % ranks.size == ranks.rank:
                    losses = objectives(batch.to(objectives.model.device))
                    for at, term in enumerate(terms):
                        count = _holding(batch, term.needs)
                        totals[at] += torch.tensor([float(losses[term.name]) * count, count], dtype=torch.float64)
    finally:
        objectives.ranks = others
    sums = ranks.all_reduce_sum(totals).tolist()
    found = {term.name: loss / count for term, (loss, count) in zip(terms, sums, strict=True) if count}
    whole = sum(objectives.weights[name] * loss for name, loss in found.items())
    return {**({"val_loss": whole} if found else {}), **{f"val_loss/{name}": loss for name, loss in found.items()}}


def validation_batches(run: Run, tokenizer: Tokenizer) -> Iterator[Batch]:
    """Of `data.val`, `eval.samples` samples spread evenly, `eval.batch_size` at a time; what is damaged is left out."""
    asked, _ = asked_and_more(shards_of(run.data.val))
    shards, decode = open_source(Source(shards=asked, modalities=()), run.data), decode_of(run.data)
    texts = run.eval.texts or tuple(dict.fromkeys(text for source in run.data.train for text in source.texts))
    count = min(run.eval.samples, len(shards))
    places = [at * len(shards) // count for at in range(count)]
    for first in range(0, count, run.eval.batch_size):
        examples: list[Example] = []
        for place in places[first : first + run.eval.batch_size]:
            try:
                sample = shards.read(place, frozenset(EXTENSIONS))
                talks = run.chat is not None and MESSAGES in meta_of(sample)
                how = replace(decode, tiles=run.model.tiles) if talks else decode
                example = read_example(sample, run.model, how)
                if talks:
                    example = with_chat(example, run.model, tokenizer)
                chosen = text_of(sample, texts) if texts else None
                examples.append(example if chosen is None else replace(example, text=chosen))
            except BadSample:
                continue
        if examples:
            yield collate(examples, tokenizer)


def _holding(batch: Batch, needs: frozenset[str]) -> int:
    """How many samples hold all of this."""
    held: dict[str, set[int]] = {name: set(items.rows.tolist()) for name, items in batch.items.items()}
    held[MESSAGES] = set() if batch.chats is None else set(batch.chats.rows.tolist())
    return len(set.intersection(*(held.get(name, set()) for name in needs))) if needs else batch.size


def better_than_before(run: Run, step: int, line: Mapping[str, float]) -> Best | None:
    """What `run.best` names, where it is better than at each step before. UserError where it is not measured."""
    if not run.best:
        return None
    told = f"best={run.best} is none of what is measured: {', '.join(line) or 'nothing'}"
    require(run.best in line, f"{told}; name one of these")
    value, before = line[run.best], read_best(run.folder)
    if not math.isfinite(value):
        return None
    if before is not None and before.metric == run.best:
        gain = value - before.value
        if (-gain if run.best.startswith("val_loss") else better(run.best.rpartition("/")[2], gain)) <= 0:
            return None
    return Best(step, run.best, value)
