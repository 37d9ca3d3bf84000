"""A run asked all questions of a suite: results.SUITE.json, with rows as in results.json, and its details beside it.

Each data set is read and encoded once, for all tasks that ask about it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mmfm.config import Run, UserError, require
from mmfm.evals.answers import ANSWERS, Context, Result, Seen, left_out, rule_of
from mmfm.evals.collection import Opened, open_data
from mmfm.evals.labels import check_labels
from mmfm.evals.paths import check_place, read_run
from mmfm.evals.provenance import origin_of
from mmfm.evals.results import Scores, finish, kept, row_of, write
from mmfm.evals.run import EvalConfig, how_of, load_shared, progress
from mmfm.evals.samples import samples_of
from mmfm.evals.split import Evaluable, Watch, at_rest, read_split
from mmfm.evals.suite import (
    Caption,
    Classify,
    Key,
    MultiLabel,
    Retrieve,
    Suite,
    Task,
    Transcribe,
    keys_of,
    read_suite,
    root_of,
    task_name,
)
from mmfm.runtime.distributed import Collective, SingleProcess, each
from mmfm.runtime.machine import cores

Watches = Callable[[str], Watch]
ALONE = SingleProcess()


def evaluate_suite(
    run_folder: str | Path,
    suite_file: str | Path,
    *,
    root: str = "",
    out: str | Path | None = None,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    bootstrap: int | None = None,
    limit: int | None = None,
    step: int | None = None,
    device: str = "auto",
    console: Console | None = None,
    ranks: Collective = ALONE,
) -> list[dict[str, Any]]:
    """Ask a saved run all of a suite, and write RUN/results.SUITE.json and RUN/results.SUITE.details.json.

    `root`: the folder of its data. What is None or 0 is as the run was configured. `ranks` share the work; the first
    prints, writes and returns, the others return nothing.
    """
    folder = Path(run_folder)
    console = (console or Console()) if ranks.rank == 0 else Console(quiet=True)

    def asked() -> tuple[Run, Suite, Path, EvalConfig, Path]:
        run, suite = read_run(folder), read_suite(suite_file)
        how = how_of(run, batch_size=batch_size, max_tokens=max_tokens, bootstrap=bootstrap, limit=limit)
        results = check_place(Path(out) if out else folder / f"results.{suite.name}.json")
        return run, suite, root_of(suite, root), how, results

    run, suite, place, how, results = each(ranks, asked)
    torch.set_num_threads(min(run.threads, cores()))
    model = load_shared(folder, step, device, run.accelerator, ranks)
    origin, scores = origin_of(model.checkpoint, suite), dict[str, Scores]()

    def keep(name: str, score: Scores) -> None:
        scores[name] = score
        write(scores, results, origin, partial=True)

    with kept(scores, results, console):
        suite_scores(model, suite, place, how, watches=lambda name: progress(name, console), ranks=ranks, keep=keep)
    return [] if ranks.rank else finish(scores, {name: str(place) for name in scores}, results, console, origin)


def suite_scores(
    model: Evaluable,
    suite: Suite,
    root: Path,
    how: EvalConfig,
    watches: Watches = lambda _: iter,
    ranks: Collective = ALONE,
    keep: Callable[[str, Scores], None] = lambda name, score: None,
) -> dict[str, Scores]:
    """By the names of the tasks, tasks of one name together; nothing but for the first rank. `keep` is told of each
    name as soon as it is scored.

    Raises UserError before the work where a task asks for what the model cannot do.
    """
    for task in suite.tasks:
        check_able(model, suite, task)
    opened = {
        key: open_data(key[0], root, key[1], suite.hint, how.store, silence=key in silent(suite))
        for key in wanted(suite)
    }
    for task in suite.tasks:
        if isinstance(task, Classify | MultiLabel):
            check_labels(task, opened[keys_of(task)[0]], root)
        if isinstance(task, Transcribe):
            rule_of(task, root)
    with at_rest(model):
        see = seer(model, opened, wanted(suite), how, watches, ranks)
        context = Context(model=model, how=how, root=root, see=see, ranks=ranks)
        scores: dict[str, Scores] = {}
        for name in dict.fromkeys(task_name(suite, task) for task in suite.tasks):
            answers = [ANSWERS[type(task)](task, context) for task in suite.tasks if task_name(suite, task) == name]
            if ranks.rank == 0:
                seen = list({id(one): one for answer in answers for one in answer.seen}.values())
                scores[name] = scores_of(name, seen, [answer.result() for answer in answers], how)
                keep(name, scores[name])
    return scores


def check_able(model: Evaluable, suite: Suite, task: Task) -> None:
    """Raises UserError where the model lacks a tower or a way of writing that the task is about."""
    told = f"suite {suite.name}: {type(task).__name__} {task_name(suite, task)}"
    for name in task.pair if isinstance(task, Retrieve) else (task.modality,):
        reads = ", ".join(model.modalities)
        require(name in model.modalities, f"{told} needs a model that reads {name}; this one reads {reads}")
    if isinstance(task, Caption | Transcribe):
        wanted, writes = f"{task.modality}>text", ", ".join(model.tasks) or "nothing"
        require(wanted in model.tasks, f"{told} needs a model that writes {wanted}; this one writes {writes}")


def wanted(suite: Suite) -> dict[Key, set[str]]:
    """Each data set once, with all the writing that tasks ask for."""
    found: dict[Key, set[str]] = {key: set() for task in suite.tasks for key in keys_of(task)}
    for task in suite.tasks:
        if isinstance(task, Caption | Transcribe):
            found[keys_of(task)[0]].add(f"{task.modality}>text")
    return found


def silent(suite: Suite) -> set[Key]:
    """The data sets whose texts may be empty: only transcripts are asked of them."""
    asked = [(key, isinstance(task, Transcribe)) for task in suite.tasks for key in keys_of(task)]
    return {key for key, _ in asked} - {key for key, transcribes in asked if not transcribes}


def seer(
    model: Evaluable,
    opened: Mapping[Key, Opened],
    writing: Mapping[Key, set[str]],
    how: EvalConfig,
    watches: Watches,
    ranks: Collective,
) -> Callable[[Key], Seen]:
    """Reads a data set when it is first asked for."""
    seen: dict[Key, Seen] = {}

    def see(key: Key) -> Seen:
        if key not in seen:
            name = opened[key].source
            split = read_split(
                model,
                name,
                name=name,
                **how.reading,
                with_nats=False,
                writing=writing[key],
                opened=opened[key],
                watch=watches(name),
                ranks=ranks,
            )
            seen[key] = Seen(opened=opened[key], split=split)
        return seen[key]

    return see


def scores_of(name: str, seen: Sequence[Seen], results: Sequence[Result], how: EvalConfig) -> Scores:
    """Rows and details of all tasks of one name."""
    figures = [figure for result in results for figure in result.figures]
    rows = [row_of(name, figure, how.bootstrap) for figure in figures]
    keys = [(row["task"], row["metric"]) for row in rows]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice:
        raise UserError(f"two tasks called {name!r} both give {' '.join(twice)}; give each a name=")
    details: dict[str, Any] = {"classes": [], "templates": [], "confusion": {}, "retrievals": [], "writings": []}
    for result in results:
        for key, value in result.details.items():
            before = details.get(key)
            merged = before | value if isinstance(before, dict) else value
            details[key] = [*details[key], *value] if key == "writings" else merged
    counts = {**seen[-1].split.counts(), "cannot_be_used": sum(len(one.split.bad) for one in seen)}
    unusable = {one.split.keys[row]: code for one in seen for row, code in one.split.bad.items()}
    told = {"source": "; ".join(one.split.source for one in seen), "counts": counts, "unusable": unusable}
    samples = samples_of([one.split for one in seen], figures, details["classes"], details["templates"])
    return Scores(rows=rows, details={**told, **details, "left_out": left_out(seen)}, samples=samples)
