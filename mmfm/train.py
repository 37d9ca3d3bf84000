"""From a run's configuration to a trained model: data, model, Trainer, and a folder from which it can always go on.

runs/NAME/run.json  metrics.jsonl  skipped.jsonl  tensorboard/  checkpoints/step-N/
"""

import contextlib
import json
import logging
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from signal import SIGINT
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from mmfm.adapt import adopt, begin, check_augment, prepare
from mmfm.callbacks import LOG_EVERY_STEPS, METRICS, Agree, Bar, Journal, Saves, Scores, console
from mmfm.checkpoint import (
    clear,
    folder_of,
    newest_whole,
    read_tokenizer,
    read_verified,
    refuse_foreign,
    refuse_unsafe,
    replace_file,
    set_aside,
    steps_of,
    sweep,
)
from mmfm.codecs.fingerprint import fingerprint
from mmfm.config import Run, UserError, require
from mmfm.data.stream import StoppedWaiting
from mmfm.distributed import first_process, leave
from mmfm.grammar import parse_writing
from mmfm.inputs.text import Tokenizer, load_tokenizer
from mmfm.machine import cores
from mmfm.model import UnifiedModel, build
from mmfm.module import FolderCheckpoints, JointModule, StreamData
from mmfm.process import Signals, Stopped, follow, lead, locked
from mmfm.strict import from_json, to_json

PRECISION: dict[str, Literal["32-true", "bf16-mixed"]] = {"fp32": "32-true", "bf16": "bf16-mixed"}
RESULTS = (METRICS, "results*.json", "results*.json.partial", "report.html")
RANK_ENDS_S = 10


def train(run: Run, *, resume: bool = False, force: bool = False) -> Path:
    """Train and return the run's folder. A finished run is kept as it is; `resume` continues, `force` starts anew.

    Raises UserError for mistakes, Stopped when the machine asked it to end, KeyboardInterrupt when a person did.
    """
    follow()
    refuse_unsafe()
    refuse_foreign(run.folder)
    first = first_process()
    with locked(run.folder) if first else contextlib.nullcontext(), Signals() as signals:
        start = _start(run, resume, force)
        if start is not None and start >= run.optim.steps:
            console.print(f"{run.folder} is trained to step {start}; kept (--force trains it anew)", soft_wrap=True)
            return run.folder
        _fit(run, start, signals)
    return run.folder


def _fit(run: Run, start: int | None, signals: Signals) -> None:
    _quiet()
    torch.set_num_threads(min(run.threads, cores()))
    torch.manual_seed(run.seed)
    run, tokenizer, model = _model(run, start)
    module = JointModule(run, model)
    data, files = StreamData(run, tokenizer, fingerprints(run, model)), FolderCheckpoints(run, tokenizer)
    data.open().asked = lambda: bool(signals.asked)  # what is wrong with the data is said before anything is written
    if first_process():
        _make_way(run, start)
    journal, agree = Journal(run), Agree(run, data, signals)
    callbacks = [journal, agree, Scores(run, tokenizer, agree), Saves(run, files, agree), Bar(run, journal)]
    trainer = _trainer(run, start, callbacks, files)
    path = None if start is None else str(folder_of(run.folder, start))
    with _together(trainer), lead() if first_process() else contextlib.nullcontext():
        try:
            trainer.fit(module, data, ckpt_path=path, weights_only=True)
        except StoppedWaiting as why:
            if SIGINT in signals.asked:
                raise KeyboardInterrupt from why
            raise
    if trainer.is_global_zero:  # what all ranks know is said by the first; the others end in peace
        _tell(run, trainer, module, agree)


def fingerprints(run: Run, model: UnifiedModel) -> dict[str, str]:
    """Of the codecs that are only used: what one of them has stored need not be made again."""
    wanted = {parse_writing(item.task).target for item in run.write} - {item.modality for item in run.reconstruct}
    return {name: fingerprint(model.codecs[name], cfg) for name, cfg in run.model.codecs.items() if name in wanted}


def _model(run: Run, start: int | None) -> tuple[Run, Tokenizer, UnifiedModel]:
    """The run with its towers' blueprints, its tokenizer, and its model before the first step; a run that goes on
    asks no source: its weights are those of its checkpoint."""
    if start is None:
        prepared = prepare(run)
        model = build(prepared.run.model, prepared.tokenizer.size, run.contrast, run.data.augment)
        for line in begin(model, prepared):
            console.print(f"training {run.name}: {line}", soft_wrap=True, highlight=False, markup=False)
        return prepared.run, prepared.tokenizer, model
    where = folder_of(run.folder, start)
    files = read_verified(where)
    run = adopt(run, from_json(files["run.json"].decode(), f"{where}/run.json"))
    check_augment(run)
    tokenizer = read_tokenizer(files, run.model, where).limited(run)
    return run, tokenizer, build(run.model, tokenizer.size, run.contrast, run.data.augment)


@contextlib.contextmanager
def _together(trainer: L.Trainer) -> Iterator[None]:
    """Ranks leave together: the first, whose end is the end of all, waits for the others. Where one of them ended
    early, it has said why, and the first only knows that a connection was closed."""
    try:
        yield
    except RuntimeError as why:
        for rank, child in enumerate(children := _children(trainer), 1):
            with contextlib.suppress(subprocess.TimeoutExpired):
                if status := child.wait(RANK_ENDS_S / len(children)):
                    told = f"rank {rank} ended with status {status}; what it said stands above"
                    raise ChildProcessError(f"{told}; --resume continues from the last checkpoint") from why
        raise
    leave()
    for child in _children(trainer):
        with contextlib.suppress(subprocess.TimeoutExpired):  # then it ends with this process
            child.wait(RANK_ENDS_S)


def _children(trainer: L.Trainer) -> list[subprocess.Popen]:
    """The ranks that the first one has started."""
    return getattr(trainer.strategy.launcher, "procs", [])


def _tell(run: Run, trainer: L.Trainer, module: JointModule, agree: Agree) -> None:
    if module.failure is not None:
        raise module.failure
    if agree.stop == SIGINT:
        raise KeyboardInterrupt
    if agree.stop is not None and trainer.global_step < run.optim.steps:
        raise Stopped(f"stopped at step {trainer.global_step}, as asked, and saved; --resume continues")


def _start(run: Run, resume: bool, force: bool) -> int | None:
    """The step to continue from, or None. Nothing that was trained is lost without --force."""
    folder = run.folder
    if force or not steps_of(folder):
        begun = (folder / "run.json").is_file()  # and killed before its first checkpoint
        require(force or begun or not resume, f"{folder} has no checkpoint to resume; leave --resume out")
        return None
    step, files = newest_whole(folder)
    before = from_json(files["run.json"].decode(), f"{folder_of(folder, step)}/run.json")
    finished = step >= before.optim.steps
    if resume or finished:
        _same_configuration(before, adopt(run, before), files["tokenizer.json"].decode())
        return step
    raise UserError(
        f"{folder} holds a run stopped at step {step}; add --resume to continue it or --force to start anew"
    )


def _make_way(run: Run, start: int | None) -> None:
    """The folder as it was at step `start`: nothing in it is of a later step, and nothing half written."""
    folder = run.folder
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    if start is None:
        clear(folder)
        _remove(folder / "tensorboard")
        for path in (path for name in (*RESULTS, "skipped*.jsonl") for path in folder.glob(name)):
            path.unlink(missing_ok=True)
    else:
        for step in steps_of(folder):
            if step > start:  # damaged: were it kept, pruning would count it
                set_aside(folder_of(folder, step))
        _cut(folder / METRICS, lambda line: line["step"] <= start)
        for path in folder.glob("skipped*.jsonl"):
            _cut(path, lambda line: line["position"] < start * run.data.batch)
    replace_file(folder / "run.json", to_json(run).encode())


def _cut(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Leave out the lines that will be written again, and a last one that was cut short."""
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        replace_file(path, "".join(f"{line}\n" for line in lines if keep(json.loads(line))).encode())


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    if folder.is_dir():
        folder.rmdir()


# What may change between starts: it moves no weight.
FREE = {
    "name",
    "out",
    "threads",
    "devices",
    "accelerator",
    "save_every_steps",
    "save_every_minutes",
    "keep_checkpoints",
    "keep_every_steps",
    "eval",
    "start",
    "workers",
    "cache_mb",
    "balance",
    "most_bad",
    "store",
    "val",
}


def _same_configuration(before: Run, now: Run, tokenizer: str = "") -> None:
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
            at = _first_difference(old[name], new[name], name)
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


def _first_difference(old: Any, new: Any, where: str) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in old if old[key] != new.get(key))
        return _first_difference(old[key], new.get(key), f"{where}.{key}")
    return f"{where} was {json.dumps(old)} and is {json.dumps(new)} now"


def _quiet() -> None:
    """Lightning's tips and hardware banner; what matters is raised or logged by us."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings(
        "ignore", message=".*This DataLoader will create .* worker processes.*"
    )  # the doctor says it
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # those that are locked
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # Lightning's use of torch
    warnings.filterwarnings(
        "ignore", message=".*your dataloader is not resumable.*"
    )  # it is: StreamData keeps its place


def _trainer(run: Run, start: int | None, callbacks: Sequence[L.Callback], files: FolderCheckpoints) -> L.Trainer:
    cpu = run.accelerator == "cpu" or not torch.cuda.is_available()
    # A rank may hold no sample of a modality, so some parameters have no gradient there. And without this DDP forms
    # its buckets anew after the first step: then three or more ranks resume to other bits.
    ddp = DDPStrategy(find_unused_parameters=True, process_group_backend="gloo" if cpu else "nccl")
    return L.Trainer(
        accelerator="cpu" if cpu else "gpu",
        devices=run.devices,
        strategy=ddp if run.devices > 1 else "auto",
        precision=PRECISION[run.optim.precision],
        max_steps=run.optim.steps,
        max_epochs=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=min(LOG_EVERY_STEPS, run.optim.steps),
        logger=TensorBoardLogger(
            save_dir=run.folder, name="", version="tensorboard", purge_step=None if start is None else start + 1
        ),
        default_root_dir=run.folder,
        callbacks=list(callbacks),
        plugins=[files],
        use_distributed_sampler=False,
    )
