"""One evaluation: a model is asked all tasks of a suite, and without one everything about the splits of its run.

What the files hold is told in `records`. Training asks `scores_during_training`, which leaves out what is slow and
computes the rest by the same code.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mmfm.config import MESSAGES, Run, UserError, require
from mmfm.data.progress import watched
from mmfm.data.sources import check_there, open_shards
from mmfm.data.splits import asked_and_more, named, named_splits, splits_of
from mmfm.evals.answers import Context, Result
from mmfm.evals.classes import check_labels, given_templates, read_lines
from mmfm.evals.collection import Opened, open_data
from mmfm.evals.config import EvalConfig, GenerationEvalConfig, config_of, default_workers
from mmfm.evals.everything import scored_coders
from mmfm.evals.heads import read_split
from mmfm.evals.left_out import left_out_of
from mmfm.evals.masked_prediction import fill_tasks
from mmfm.evals.metrics_table import metric_of
from mmfm.evals.provenance import origin_of, run_of
from mmfm.evals.questions import holds_messages, open_questions
from mmfm.evals.records import Row, Scores, SplitDetails
from mmfm.evals.results import check_place, finish, kept, row_of, samples_of, write
from mmfm.evals.split import ALONE, Evaluable, Split, Watch, at_rest
from mmfm.evals.suite import (
    Caption,
    Classify,
    Key,
    MultiLabel,
    Shards,
    Suite,
    Tars,
    Transcribe,
    default_suite,
    keys_of,
    read_suite,
    root_of,
    task_name,
)
from mmfm.evals.tasks import ANSWERS, check_able, rule_of
from mmfm.inference.bundle.load import open_whole
from mmfm.inference.interface import Interface
from mmfm.models.checkpoint import MANIFEST, newest_step, steps_of
from mmfm.runtime.devices import device_of_each, dtype_of, inference_dtype
from mmfm.runtime.distributed import Collective, each, from_first
from mmfm.runtime.machine import cores

Watches = Callable[[str], Watch]
NOTHING = GenerationEvalConfig()


def evaluate_run(
    run_folder: str | Path,
    suite: str | Path = "",
    *,
    root: str = "",
    data: Sequence[str] = (),
    out: str | Path | None = None,
    classes: str | Path | None = None,
    templates: Sequence[str] = (),
    step: int | None = None,
    ema: bool = False,
    num_workers: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    console: Console | None = None,
    ranks: Collective = ALONE,
    **changes: Any,
) -> list[Row]:
    """Ask a saved run all of a suite, and write RUN/results.SUITE.json with its details and samples beside it; without
    a suite everything about each SPEC or NAME=SPEC of `data`, or of the splits that the run names: RUN/results.json.

    `root`: the folder of the suite's data. `templates`: sentences with {} for the class's name, or files with one a
    line. `num_workers`: processes that read; None: what the machine has. `changes` of `EvalConfig`: what is None, empty
    or 0 is as the run was configured. `ranks` share the work, whose scores are the same to the bit for any number of
    them; the first prints, writes and returns, the others return nothing.
    """
    folder = Path(run_folder)
    console = (console or Console()) if ranks.rank == 0 else Console(quiet=True)
    workers = default_workers(ranks.size) if num_workers is None else num_workers
    given = [templates] if isinstance(templates, str) else templates

    def asked_for() -> tuple[Run, Suite, Path, EvalConfig, Path]:
        run = run_of(folder)
        asked = read_suite(suite) if suite else _default_suite(run, splits_to_score(run, data))
        listed = {"classes": Path(classes) if classes else None, "templates": given_templates(given)}
        config = config_of(run, num_workers=workers, **listed, **changes)
        if config.classes is not None:
            read_lines(config.classes, "class")  # so that a mistake is told before the work
        places = [key[0].shards for task in asked.tasks for key in keys_of(task) if isinstance(key[0], Shards)]
        check_there(places, config.store)
        name = ".".join(["results", *[asked.name] * bool(suite), *["ema"] * ema, "json"])
        place = check_place(Path(out) if out else folder / name)
        return run, asked, root_of(asked, root) if suite else Path(), config, place

    run, asked, place, config, results = each(ranks, asked_for)
    torch.set_num_threads(min(run.threads, cores()))
    model = load_shared(folder, step, device, run.accelerator, ranks, ema)
    kind = inference_dtype(run.optim.precision, model.core.device) if dtype == "auto" else dtype_of(dtype)
    model.to(kind)
    origin, scores = origin_of(model.checkpoint, asked if suite else None), dict[str, Scores]()

    def keep(name: str, found: Scores) -> None:
        scores[name] = found
        write(scores, results, origin, partial=True)

    def watches(name: str) -> Watch:
        return watched(name, not console.quiet, "batches")

    with kept(scores, results, console):
        evaluate(model, asked, config, root=place, watches=watches, ranks=ranks, keep=keep)
    return [] if ranks.rank else finish(scores, results, console, origin)


def _default_suite(run: Run, splits: Mapping[str, str]) -> Suite:
    """Of a model that reads conversations those splits are asked as such that hold them."""
    store = run.data.remote_cache
    firsts = {name: asked_and_more(spec)[0] for name, spec in splits.items()} if run.model.chat is not None else {}
    return default_suite(splits, {name: spec for name, spec in firsts.items() if holds_messages(spec, store)})


def splits_to_score(run: Run, data: Sequence[str]) -> dict[str, str]:
    """Name -> shards of `data`, each SHARDS or NAME=SHARDS; without any, of the splits that the run names."""
    told = f"run {run.name!r} has no validation data and no eval.splits; say what to evaluate: --data SHARDS"
    require(bool(data or run.data.val or run.eval.splits), told)
    return named_splits(data) if data else splits_of(run)


def evaluate(
    model: Evaluable,
    suite: Suite,
    config: EvalConfig,
    *,
    root: Path = Path(),
    watches: Watches = lambda _: iter,
    ranks: Collective = ALONE,
    keep: Callable[[str, Scores], None] = lambda name, scores: None,
) -> dict[str, Scores]:
    """By the names of the tasks, tasks of one name together; nothing but for the first rank. `keep` is told of each
    name as soon as it is scored. Raises UserError where the data cannot be used, or the model cannot do what is asked,
    before the work where that is known."""
    found: dict[str, Scores] = {}
    for name, splits, results in answered(model, suite, config, root=root, watches=watches, ranks=ranks):
        if ranks.rank == 0:
            found[name] = scores_of(name, splits, results, config)
            keep(name, found[name])
    return found


def scores_during_training(model: Evaluable, run: Run, ranks: Collective = ALONE) -> tuple[dict[str, float], list[str]]:
    """The leading scores over `eval.samples` samples of `data.val`, and of each data set of `eval.suites`, as
    "val/image->text/acc@1"; and what they leave out. Shared over `ranks`, which must all ask; the first gets them."""
    config = config_of(run, limit=run.eval.samples, quick=True)
    asked = [(_default_suite(run, dict([named(run.data.val)])), Path())] if run.data.val else []
    for suite in map(read_suite, run.eval.suites):
        asked.append((suite, root_of(suite)))
    scores: dict[str, float] = {}
    left_out: list[str] = []
    for suite, root in asked:
        for name, splits, results in answered(model, suite, config, root=root, ranks=ranks):
            for score in (score for result in results for score in result.scores):
                known = metric_of(score.metric)
                if known.headline if root != Path() else known.during_training:
                    scores[f"{name}/{score.task}/{score.metric}"] = score.value
            left_out += left_out_of(splits, results)
    return scores, left_out


def answered(
    model: Evaluable,
    suite: Suite,
    config: EvalConfig,
    *,
    root: Path,
    watches: Watches = lambda _: iter,
    ranks: Collective = ALONE,
) -> Iterator[tuple[str, list[Split], list[Result]]]:
    """Each name of a suite with its splits and results, which are the first rank's alone."""
    for task in suite.tasks:
        check_able(model, suite, task)
    keys = dict.fromkeys(key for task in suite.tasks for key in keys_of(task))
    opened = {key: _opened(key, suite, root, config) for key in keys}
    for task in suite.tasks:
        found = opened[keys_of(task)[0]]
        if isinstance(task, Classify | MultiLabel) and isinstance(found, Opened):
            check_labels(task, found, root)
        if isinstance(task, Transcribe):
            rule_of(task, root)
    seen: dict[Key, Split] = {}

    def see(key: Key) -> Split:
        if key not in seen:
            seen[key] = _read(model, suite, key, opened[key], config, watches, ranks, seen)
        return seen[key]

    for name in dict.fromkeys(task_name(suite, task) for task in suite.tasks):
        with at_rest(model):
            more = {"opened": opened, "watch": watches(name), "ranks": ranks}
            context = Context(model=model, config=config, root=root, see=see, **more)
            tasks = [task for task in suite.tasks if task_name(suite, task) == name]
            answers = [ANSWERS[type(task)](task, context) for task in tasks]
            splits = list({id(one): one for answer in answers for one in answer.splits}.values())
            results = [answer.result() for answer in answers] if ranks.rank == 0 else []
        yield name, splits, results


def _opened(key: Key, suite: Suite, root: Path, config: EvalConfig) -> Opened | None:
    """A data set that the suite declares; None: shards, which are opened when they are read. Texts may be empty where
    only transcripts are asked of them."""
    data, media = key
    if isinstance(data, Shards):
        return None
    if media == (MESSAGES,):
        assert isinstance(data, Tars)
        return open_questions(data.shards, root, config.store)
    silence = all(isinstance(task, Transcribe) for task in suite.tasks if key in keys_of(task))
    return open_data(data, root, media, suite.hint, config.store, silence=silence)


def _read(
    model: Evaluable,
    suite: Suite,
    key: Key,
    opened: Opened | None,
    config: EvalConfig,
    watches: Watches,
    ranks: Collective,
    seen: Mapping[Key, Split],
) -> Split:
    tasks = [task for task in suite.tasks if key in keys_of(task)]
    if opened is not None:
        writing = {f"{task.modality}>text" for task in tasks if isinstance(task, Caption | Transcribe)}
        told = {"name": opened.source, "source": opened.source, "watch": watches(opened.source), "ranks": ranks}
        return read_split(model, opened, config=config, writing=writing, as_run=False, **told)
    assert isinstance(key[0], Shards)
    name, (first, more) = task_name(suite, tasks[0]), asked_and_more(key[0].shards)
    samples = open_shards([first, *([more] if more else [])], config.store)
    return read_split(
        model,
        samples,
        name=name,
        source=key[0].shards,
        config=config,
        asking=len(open_shards([first], config.store)) if more else None,
        wider=whole(seen.get((Shards(shards=more), ()))) if more else None,
        fill=() if config.quick else fill_tasks(model),
        coders=scored_coders(model),
        watch=watches(name),
        ranks=ranks,
    )


def whole(split: Split | None) -> Split | None:
    """The same, if all of its samples were read, and none for its galleries alone."""
    return split if split is not None and len(split.infos) == split.own == len(split.samples) else None


def scores_of(name: str, splits: Sequence[Split], results: Sequence[Result], config: EvalConfig) -> Scores:
    """Rows and details of all tasks of one name."""
    scores = [score for result in results for score in result.scores]
    rows = tuple(row_of(name, score, config.bootstrap) for score in scores)
    keys = [(row.task, row.metric) for row in rows]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice:
        raise UserError(f"two tasks called {name!r} both give {' '.join(twice)}; give each a name=")
    details = SplitDetails(
        source="; ".join(split.source for split in splits),
        counts={**splits[-1].counts(), "cannot_be_used": sum(len(split.bad) for split in splits)},
        unusable={split.infos[row].key: code for split in splits for row, code in split.bad.items()},
        left_out=tuple(left_out_of(splits, results)),
    )
    for result in results:
        details = _with(details, result.details)
    return Scores(rows=rows, details=details, samples=samples_of(splits, scores, details))


def _with(details: SplitDetails, more: Mapping[str, Any]) -> SplitDetails:
    """What has no field of its own is a choice of a task."""
    fields = {name: value for name, value in more.items() if name in vars(details)}
    for name, value in fields.items():
        before = getattr(details, name)
        if isinstance(before, dict):
            fields[name] = {**before, **value}
        elif name not in ("classes", "templates"):
            fields[name] = (*before, *value)
    choices = {name: value for name, value in more.items() if name not in fields}
    return replace(details, **fields, choices={**details.choices, **choices})


def load_shared(
    folder: Path, step: int | None, device: str, accelerator: str, ranks: Collective, ema: bool = False
) -> Interface:
    """The run's model on each rank's device: of the checkpoint that the first rank finds to be the newest whole one,
    where `step` names none. The others must be able to read that one."""
    mine = each(ranks, lambda: device_of_each(device, accelerator))
    if ranks.size > 1 and step is None and not (folder / MANIFEST).is_file():
        step = from_first(ranks, lambda: newest_step(folder) if steps_of(folder) else None)
    return each(ranks, lambda: open_whole(folder, step, ema=ema, device=mine))
