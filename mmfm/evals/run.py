"""The evaluation of a run: every split through the same functions, whose figures become results.json.

What the files hold is told in `results`. Training asks `scores_during_training`, which leaves out what is slow and
computes the rest by the same code.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from mmfm.config import RemoteCache, Run, Source, Text, require
from mmfm.data.decode import Decode, decode_of
from mmfm.data.sample import why_no_text
from mmfm.data.sources import check_there, open_shards
from mmfm.data.splits import asked_and_more, named
from mmfm.evals.codec import Coding, score_codecs, scored_codecs
from mmfm.evals.coverage import not_scored, told_of_texts
from mmfm.evals.examples import show
from mmfm.evals.generation import GenerationEvalConfig, Making, make_all
from mmfm.evals.masked_prediction import Filling, fill_split
from mmfm.evals.metrics import Bootstrap, Score
from mmfm.evals.metrics_table import metric_of
from mmfm.evals.paths import check_place, read_run, splits_to_score
from mmfm.evals.provenance import origin_of
from mmfm.evals.results import Scores, finish, kept, row_of, write
from mmfm.evals.retrieval import Retrieved, retrieve_all
from mmfm.evals.samples import samples_of
from mmfm.evals.split import Evaluable, Split, Watch, at_rest, device_of, read_split, reads
from mmfm.evals.text_generation import writing_figures
from mmfm.evals.zero_shot import (
    NONE,
    Classified,
    ClassSet,
    class_of_samples,
    class_vectors,
    classes_of,
    classify,
    find_classes,
    find_templates,
    given_templates,
    read_lines,
)
from mmfm.inference.interface import Interface
from mmfm.inference.load import load_model
from mmfm.models.checkpoint import MANIFEST, newest_step, steps_of
from mmfm.runtime.devices import device_of_each
from mmfm.runtime.distributed import Collective, SingleProcess, each, from_first
from mmfm.runtime.machine import cores

BOOTSTRAP, NOTHING = Bootstrap(), GenerationEvalConfig()
DECODE, STORE, ALONE = Decode(), RemoteCache(), SingleProcess()


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What may be chosen. `classes` is a file; it and `templates`, unless given, are looked for beside the shards.

    sources: the run's, as which samples are read. texts: fields to read instead of theirs.
    """

    classes: Path | None = None
    templates: tuple[str, ...] = ()
    default_templates: tuple[str, ...] = ("{}",)
    batch_size: int = 64
    decode: Decode = DECODE
    store: RemoteCache = STORE
    max_tokens: int = 0
    sources: tuple[Source, ...] = ()
    texts: tuple[Text, ...] = ()
    bootstrap: Bootstrap = BOOTSTRAP
    limit: int | None = None
    asking: GenerationEvalConfig = NOTHING

    @property
    def reading(self) -> dict[str, Any]:
        """What `read_split` is told of it."""
        names = ("decode", "store", "sources", "texts", "max_tokens", "limit")
        return {"batch": self.batch_size, **{name: getattr(self, name) for name in names}}

    def __post_init__(self) -> None:
        counts = {"batch_size": self.batch_size, "bootstrap": self.bootstrap.resamples}
        for name, value in {**counts, "limit": 1 if self.limit is None else self.limit}.items():
            require(value > 0, f"{name}={value} must be greater than 0")
        require(self.max_tokens >= 0, f"max_tokens={self.max_tokens} must not be negative; 0: what the texts need")


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """A split with all that was computed of it, before intervals."""

    split: Split
    classes: ClassSet
    templates: tuple[str, ...]
    owned: np.ndarray
    classified: dict[str, Classified]
    retrieved: list[Retrieved]
    coding: Coding
    making: Making
    filling: Filling
    whole: bool  # also what takes long

    def figures(self) -> list[Score]:
        classes = [figure for found in self.classified.values() for figure in found.figures]
        pairs = [figure for found in self.retrieved if len(found.asked) for figure in found.figures()]
        written = writing_figures(self.split)
        made = [*self.coding.figures, *self.making.figures(self.split), *self.filling.figures(self.split)]
        return [*classes, *pairs, *written, *made]


def evaluate(
    model: Evaluable, spec: str, *, split: str, how: EvalConfig, watch: Watch = iter, ranks: Collective = ALONE
) -> Scores:
    """All figures of one split, with intervals, and its gallery. Raises UserError where the data cannot be used.

    Ranks share the reading and encoding; figures are the first rank's, and the others get none.
    """
    with at_rest(model):
        scored = _score(model, spec, split, how, with_nats=True, watch=watch, ranks=ranks)
        if ranks.rank:
            return Scores(rows=[], details={})
        figures = scored.figures()
        rows = [row_of(split, figure, how.bootstrap) for figure in figures]
        shown = show(scored.split, model, scored.retrieved, how.decode, scored.making)
    counts = {**scored.split.counts(), "without_class": int((scored.owned[: len(scored.split)] == NONE).sum())}
    details = {
        "source": spec,
        "counts": counts,
        "classes": list(scored.classes.names),
        "templates": list(scored.templates),
        "confusion": {f"{name}->text": found.confusion for name, found in scored.classified.items()},
        **shown,
        **({"judges": about} if (about := scored.making.about()) else {}),
        "unusable": {scored.split.keys[row]: code for row, code in scored.split.bad.items()},
        "left_out": left_out(scored, model),
    }
    samples = samples_of([scored.split], figures, scored.classes.names, scored.templates)
    return Scores(rows=rows, details=details, samples=samples)


def scores_during_training(model: Evaluable, run: Run, ranks: Collective = ALONE) -> tuple[dict[str, float], list[str]]:
    """The leading scores over `eval.samples` samples of `data.val`, as "image->text/acc@1", and what they leave out.

    Shared over `ranks`, all of which must ask; the first gets the scores.
    """
    name, spec = named(run.data.val)
    with at_rest(model):
        scored = _score(model, spec, name, how_of(run, limit=run.eval.samples), with_nats=False, ranks=ranks)
        if ranks.rank:
            return {}, []
        chosen = [figure for figure in scored.figures() if metric_of(figure.metric).during_training]
        return {f"{figure.task}/{figure.metric}": figure.value for figure in chosen}, left_out(scored, model)


def how_of(run: Run, **changes: Any) -> EvalConfig:
    """The run's own settings, but for those `changes` that say something (not None, not empty, not 0)."""
    chosen = {name: value for name, value in changes.items() if value}
    chosen["bootstrap"] = Bootstrap(resamples=chosen.get("bootstrap", run.eval.bootstrap))
    own = {
        "batch_size": run.eval.batch_size,
        "max_tokens": run.eval.max_tokens,
        "decode": decode_of(run.data),
        "store": run.data.remote_cache,
        "sources": run.data.train,
        "texts": run.eval.texts,
    }
    return EvalConfig(**{"default_templates": run.eval.templates, **own, **chosen})


def _score(
    model: Evaluable,
    spec: str,
    name: str,
    how: EvalConfig,
    *,
    with_nats: bool,
    watch: Watch = iter,
    ranks: Collective = ALONE,
) -> _Scored:
    templates = find_templates(spec, how.templates, how.default_templates, how.store)
    split = read_split(
        model,
        spec,
        name=name,
        **how.reading,
        with_nats=with_nats,
        watch=watch,
        ranks=ranks,
    )
    classes = find_classes(split.captions, spec, how.classes, how.store)
    owned = class_of_samples(split, classes)
    classified: dict[str, Classified] = {}
    if "text" in model.modalities and (owned != NONE).any():
        head = class_vectors(model, classes.names, templates, ranks)
        heard = ("image", "audio") if ranks.rank == 0 else ()
        found = {name: classify(split, name, owned, head, classes_of(split, classes, name)) for name in heard}
        classified = {modality: result for modality, result in found.items() if result is not None}
    return _Scored(
        split=split,
        classes=classes,
        templates=templates,
        owned=owned,
        classified=classified,
        retrieved=retrieve_all(split, model, ranks),
        coding=_coding(model, spec, how, watch, ranks),
        making=make_all(
            model,
            split,
            _wanted(split, classes, owned),
            {name: [classes.names[at] for at in classes_of(split, classes, name)] for name in ("image", "audio")},
            how.asking,
            batch=how.batch_size,
            watch=watch,
            ranks=ranks,
        ),
        filling=fill_split(model, split, batch=how.batch_size, watch=watch, ranks=ranks) if with_nats else Filling(),
        whole=with_nats,
    )


def _wanted(split: Split, classes: ClassSet, owned: np.ndarray) -> list[str | None]:
    """What a picture or sound of each sample should say: its class, else its text."""
    named = zip(owned[: len(split)].tolist(), split.texts, strict=False)
    return [text if place == NONE else classes.names[place] for place, text in named]


def _coding(model: Evaluable, spec: str, how: EvalConfig, watch: Watch, ranks: Collective) -> Coding:
    """Of the codecs that are to be scored, if any."""
    coders = scored_codecs(model)
    if not coders:
        return Coding(figures=[], left_out=[])
    samples = open_shards([asked_and_more(spec)[0]], how.store)
    told = {"decode": how.decode, "batch": how.batch_size, "limit": how.limit}
    return score_codecs(coders, samples, **told, device=device_of(model), watch=watch, ranks=ranks)


def left_out(scored: _Scored, model: Evaluable) -> list[str]:
    """One line for each thing that the figures do not cover."""
    split, total, lines = scored.split, len(scored.split), []
    available = len(split.shards) - (len(split.keys) - total)
    if total < available:
        lines.append(f"{total} of {available} samples were read, evenly spread (the limit)")
    if len(split.keys) > total:
        lines.append(f"{len(split.keys) - total} more samples only widen the galleries of retrieval")
    if split.unread and reads(model):
        lines.append(f"{split.unread} of {total} samples have nothing that the model reads")
    if split.bad:
        codes = ", ".join(f"{code} ({count})" for code, count in sorted(Counter(split.bad.values()).items()))
        first = next(iter(split.bad))
        lines.append(f"{len(split.bad)} of {total} samples cannot be used: {codes}; the first is {split.keys[first]}")
    if split.truncated:
        told = "their text is longer than is read: only its beginning counts, and their likelihood is left out"
        lines.append(f"{split.truncated} of {total} samples: {told} (data.max_text_tokens)")
    if split.shards.ignored:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(split.shards.ignored.items()))
        lines.append(f"files that are not read: {kinds}")
    lines += [*told_of_texts(split), *scored.coding.left_out, *scored.making.left_out]
    lines += not_scored(model, {figure.task for figure in scored.figures()}, during_training=not scored.whole)
    if not reads(model):
        return lines
    if "text" not in model.modalities:
        lines.append("no classification: the model has no tower for text")
    elif not scored.classes.names:
        lines.append("no classification: there is no classnames.txt, no --classes and no text to take names from")
    elif without := int((scored.owned[:total] == NONE).sum()):
        lines.append(f"{without} of {total} samples have none of the {len(scored.classes.names)} classes")
    without_text = [row for row in range(total) if split.texts[row] is None and row not in split.bad]
    if without_text:
        why = why_no_text(split.shards[split.places[without_text[0]]])
        lines.append(f"{len(without_text)} of {total} samples have no text{why}")
    for found in scored.retrieved:
        if found.left_out:
            lines.append(
                f"{found.task}: {found.left_out} of {len(found.query)} queries have no relevant answer to find"
            )
    return lines


def evaluate_run(
    run_folder: str | Path,
    *,
    data: Sequence[str] = (),
    out: str | Path | None = None,
    classes: str | Path | None = None,
    templates: Sequence[str] = (),
    batch_size: int | None = None,
    max_tokens: int | None = None,
    bootstrap: int | None = None,
    limit: int | None = None,
    step: int | None = None,
    asking: GenerationEvalConfig = NOTHING,
    device: str = "auto",
    console: Console | None = None,
    ranks: Collective = ALONE,
) -> list[dict[str, Any]]:
    """Evaluate a saved run on each SPEC or NAME=SPEC of `data` and write results.json and results.details.json.

    Without `data`: the splits that the run names. What is None, empty or 0 is as the run was configured.
    `templates`: sentences with {} for the class's name, or files with one a line. `asking`: what is drawn and said, and
    who judges it. `ranks` share the work, whose figures
    are the same to the bit for any number of them; the first prints, writes and returns, the others return nothing.
    """
    folder = Path(run_folder)
    console = (console or Console()) if ranks.rank == 0 else Console(quiet=True)

    def asked_for() -> tuple[Run, dict[str, str], EvalConfig, Path]:
        run = read_run(folder)
        splits = splits_to_score(run, data)
        how = how_of(
            run,
            classes=Path(classes) if classes else None,
            templates=given_templates([templates] if isinstance(templates, str) else templates),
            batch_size=batch_size,
            max_tokens=max_tokens,
            bootstrap=bootstrap,
            limit=limit,
            asking=asking,
        )
        if how.classes is not None:
            read_lines(how.classes, "class")  # so that a mistake is told before the work
        check_there([*splits.values()], how.store)
        return run, splits, how, check_place(Path(out) if out else folder / "results.json")

    run, splits, how, results = each(ranks, asked_for)
    torch.set_num_threads(min(run.threads, cores()))
    model = load_shared(folder, step, device, run.accelerator, ranks)
    origin, scores = origin_of(model.checkpoint), dict[str, Scores]()
    with kept(scores, results, console):
        for name, spec in splits.items():
            watch = progress(name, console)
            scores[name] = evaluate(model, spec, split=name, how=how, watch=watch, ranks=ranks)
            if ranks.rank == 0 and len(scores) < len(splits):
                write(scores, results, origin, partial=True)
    return [] if ranks.rank else finish(scores, splits, results, console, origin)


def load_shared(folder: Path, step: int | None, device: str, accelerator: str, ranks: Collective) -> Interface:
    """The run's model on each rank's device: of the checkpoint that the first rank finds to be the newest whole one,
    where `step` names none. The others must be able to read that one."""
    mine = each(ranks, lambda: device_of_each(device, accelerator))
    if ranks.size > 1 and step is None and not (folder / MANIFEST).is_file():
        step = from_first(ranks, lambda: newest_step(folder) if steps_of(folder) else None)
    return each(ranks, lambda: load_model(folder, step, mine))


def progress(name: str, console: Console) -> Watch:
    return lambda batches: track(batches, name, console=console, transient=True, disable=not console.is_terminal)
