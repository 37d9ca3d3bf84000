"""Where a run begins or goes on: what of its folder stays, and which configuration may continue which."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from mmfm.config import Run, UserError, require
from mmfm.config.serialization import from_json, to_json
from mmfm.models.best import forget_best
from mmfm.models.checkpoint import (
    Checkpoint,
    clear,
    folder_of,
    newest_listed,
    newest_whole,
    set_aside,
    steps_of,
    sweep,
    verified,
)
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.runtime.distributed import Collective, difference, from_first
from mmfm.runtime.files import replace_file
from mmfm.training.initialize import adopt
from mmfm.training.metrics_file import METRICS, cut

RESULTS = (METRICS, "results*.json", "results*.json.partial", "report.html")
# What may change between starts: it moves no weight, but by rounding.
FREE = {
    "name",
    "out",
    "threads",
    "devices",
    "accelerator",
    "parallel",
    "profile_steps",
    "save_every_steps",
    "save_every_minutes",
    "keep_checkpoints",
    "keep_every_steps",
    "best",
    "eval",
    "callbacks",
    "loggers",
    "start",
    "num_workers",
    "cache_mb",
    "balance_by_length",
    "max_bad_fraction",
    "remote_cache",
    "val",
}


def resume_step(run: Run, resume: bool, force: bool, damaged: Mapping[int, str] | None = None) -> int | None:
    """The step to continue from, or None. Nothing that was trained is lost without --force.

    Whether all bytes of that step's checkpoint are right `open_checkpoint` finds out, with all ranks, and here only
    where nothing is to be trained. damaged: steps that it found to be, and what it said of them.
    """
    folder = run.folder
    if force or not steps_of(folder):
        begun = (folder / "run.json").is_file()  # and killed before its first checkpoint
        require(force or begun or not resume, f"{folder} has no checkpoint to resume; leave --resume out")
        return None
    step, files = newest_listed(folder, damaged or {})
    if step >= run.optim.steps:
        step, files = newest_whole(folder)
    before = from_json(files["run.json"].decode(), f"{folder_of(folder, step)}/run.json")
    finished = step >= before.optim.steps
    if resume or finished:
        check_same_configuration(before, adopt(run, before), files["tokenizer.json"].decode())
        return step
    raise UserError(
        f"{folder} holds a run stopped at step {step}; add --resume to continue it or --force to start anew"
    )


def open_checkpoint(
    run: Run, start: int | None, ranks: Collective, earlier: Callable[[dict[int, str]], int | None]
) -> tuple[int | None, Checkpoint | None]:
    """The checkpoint of this step, verified by all ranks; where that fails, of the one which `earlier` gives on the
    first rank for the steps that are damaged, until one is whole."""
    damaged = dict[int, str]()
    while start is not None:
        try:
            return start, verified(folder_of(run.folder, start), ranks)
        except (UserError, OSError) as why:
            damaged[start] = str(why)
        start = from_first(ranks, lambda: earlier(damaged))
    return None, None


def clear_for_start(run: Run, start: int | None, position: int = 0) -> None:
    """The folder as it was at step `start`, behind so many samples: nothing in it is of a later step, and nothing half
    written."""
    folder = run.folder
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    if start is None:
        clear(folder)
        _remove(folder / "tensorboard")
        for path in (path for name in (*RESULTS, "skipped*.jsonl", "*.jsonl.damaged") for path in folder.glob(name)):
            path.unlink(missing_ok=True)
    else:
        for step in steps_of(folder):
            if step > start:  # damaged: were it kept, pruning would count it
                set_aside(folder_of(folder, step))
        cut(folder / METRICS, "step", start + 1)
        for path in folder.glob("skipped*.jsonl"):
            cut(path, "position", position)
    forget_best(folder, start or 0)
    replace_file(folder / "run.json", to_json(run).encode())


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    if folder.is_dir():
        folder.rmdir()


def check_same_configuration(before: Run, now: Run, tokenizer: str = "") -> None:
    """`tokenizer`: the one that the run was trained with, as JSON; a path to the same one elsewhere is no other."""
    schedules = (*before.optim.extends, before.optim.steps)
    if schedules == (*now.optim.extends, now.optim.steps)[: len(schedules)]:  # it goes on where the last one ends
        before = replace(before, optim=replace(before.optim, steps=now.optim.steps, extends=now.optim.extends))
    old, new = (json.loads(to_json(run)) for run in (before, now))
    for tree in (old, new):
        tree["data"] = {name: value for name, value in tree["data"].items() if name not in FREE}
        for source in tree["data"]["train"]:  # by their names, sizes and counts the stream knows its shards again
            source.update(shards="", name="")
    if tokenizer and _is_tokenizer(now.model.tokenizer, tokenizer):
        new["model"]["tokenizer"] = old["model"]["tokenizer"]
    for name in old:
        if name not in FREE and old[name] != new[name]:
            where, was, now_is = difference(old[name], new[name], name) or (name, None, None)
            at = f"{where} was {json.dumps(was)} and is {json.dumps(now_is)} now"
            longer = f"--resume --optim.steps N --optim.extends {' '.join(map(str, schedules))}"
            why = f" (the rate's schedule ends there; {longer} goes on beyond it)" * at.startswith(
                ("optim.steps", "optim.extends")
            )
            raise UserError(
                f"{now.folder} was trained with another configuration: {at}{why}; "
                "restore it, --force, or use another --name"
            )


def _is_tokenizer(spec: str, known: str) -> bool:
    try:
        return load_tokenizer(spec).to_json() == known
    except UserError:
        return False
