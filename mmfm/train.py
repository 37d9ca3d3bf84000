"""From a run's configuration to a trained model: data, model, Trainer, and what is written on the way.

runs/NAME/run.json  metrics.jsonl  tensorboard/  checkpoints/step-N/
"""

import json
import logging
import math
import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mmfm.checkpoint import folder_of, newest_whole, replace_file, steps_of
from mmfm.config import Run, UserError, require
from mmfm.distributed import first_process
from mmfm.evals.run import scores_during_training
from mmfm.inputs.text import Tokenizer, load_tokenizer
from mmfm.interface import Interface
from mmfm.model import build
from mmfm.module import FolderCheckpoints, JointModule, StreamData
from mmfm.strict import from_json, to_json

LOG_EVERY_STEPS, PRINT_EVERY_STEPS = 10, 100
PRECISION: dict[str, Literal["32-true", "bf16-mixed"]] = {"fp32": "32-true", "bf16": "bf16-mixed"}
console = Console(stderr=True)


def train(run: Run, *, resume: bool = False, force: bool = False) -> Path:
    """Train and return the run's folder. A finished run is kept as it is; `resume` continues, `force` starts anew."""
    start = _prepare(run, resume, force)
    if start is not None and start >= run.optim.steps:
        console.print(f"{run.folder} is trained to step {start} already; kept (--force trains it anew)")
        return run.folder
    _quiet()
    torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    tokenizer = load_tokenizer(run.model.tokenizer)
    module = JointModule(run, build(run.model, tokenizer.size, run.contrast, run.data.augment))
    data = StreamData(run, tokenizer)
    data.open()  # what is wrong with the data is said before anything is written
    run.folder.mkdir(parents=True, exist_ok=True)
    replace_file(run.folder / "run.json", to_json(run).encode())
    journal, stop = Journal(run), Stop()
    callbacks = [journal, Scores(run, tokenizer), stop, Saves(run), Bar(run, journal)]
    trainer = _trainer(run, tokenizer, callbacks)
    trainer.fit(module, data, ckpt_path=None if start is None else str(folder_of(run.folder, start)), weights_only=True)
    if stop.asked:
        raise KeyboardInterrupt
    return run.folder


def _prepare(run: Run, resume: bool, force: bool) -> int | None:
    """The step to continue from, or None. Nothing that was trained is lost without --force."""
    folder = run.folder
    if force or not steps_of(folder):
        require(not resume or force, f"{folder} has no checkpoint to resume; leave --resume out")
        if not first_process():
            return None  # the first has cleared the folder before it started this one
        for old in ("metrics.jsonl", "results.json", "results.details.json", "report.html"):
            (folder / old).unlink(missing_ok=True)
        for step in steps_of(folder):
            _remove(folder_of(folder, step))
        _remove(folder / "tensorboard")
        return None
    step, files = newest_whole(folder)
    before = from_json(files["run.json"].decode(), f"{folder_of(folder, step)}/run.json")
    finished = step >= before.optim.steps
    if resume or finished:
        _same_configuration(before, run)
        return step
    raise UserError(
        f"{folder} holds a run stopped at step {step}; add --resume to continue it or --force to start anew"
    )


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    if folder.is_dir():
        folder.rmdir()


# What may change between starts: it moves no weight.
FREE = {
    "out",
    "threads",
    "devices",
    "accelerator",
    "save_every_steps",
    "save_every_minutes",
    "keep_checkpoints",
    "keep_every_steps",
    "eval",
    "workers",
    "cache_mb",
    "balance",
    "most_bad",
    "store",
}


def _same_configuration(before: Run, now: Run) -> None:
    old, new = (json.loads(to_json(run)) for run in (before, now))
    for tree in (old, new):
        tree["data"] = {name: value for name, value in tree["data"].items() if name not in FREE}
    for name in old:
        if name not in FREE and old[name] != new[name]:
            at = _first_difference(old[name], new[name], name)
            raise UserError(
                f"{now.folder} was trained with another configuration: {at}; restore it, --force, or use another --name"
            )


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
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # Lightning's use of torch
    warnings.filterwarnings(
        "ignore", message=".*your dataloader is not resumable.*"
    )  # it is: StreamData keeps its place


def _trainer(run: Run, tokenizer: Tokenizer, callbacks: Sequence[L.Callback]) -> L.Trainer:
    cpu = run.accelerator == "cpu" or not torch.cuda.is_available()
    # A rank may hold no sample of a modality, so some parameters have no gradient there.
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
        logger=TensorBoardLogger(save_dir=run.folder, name="", version="tensorboard"),
        callbacks=list(callbacks),
        plugins=[FolderCheckpoints(run, tokenizer)],
        use_distributed_sampler=False,
    )


class AfterStep(L.Callback):
    """A callback that acts when a step is done, with the types that this project knows."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, JointModule)
        self.after_step(trainer, pl_module, outputs["losses"])

    def after_step(self, trainer: L.Trainer, module: JointModule, losses: Mapping[str, Tensor]) -> None:
        raise NotImplementedError


class Journal(AfterStep):
    """Every objective by name, the rate and the speed: into metrics.jsonl and TensorBoard, from the first rank."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.line: dict[str, float] = {}
        self.began = self.since = time.monotonic()
        self.since_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = self.since = time.monotonic()
        self.since_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.since_step:  # saving and scoring are not part of the pace
            self.since = time.monotonic()

    def after_step(self, trainer: L.Trainer, module: JointModule, losses: Mapping[str, Tensor]) -> None:
        step = trainer.global_step
        if step % LOG_EVERY_STEPS and step != self.run.optim.steps:
            return
        objectives, now = module.objectives, time.monotonic()
        totals = {name: float(objectives.ranks.total(loss)) for name, loss in losses.items()}
        pace = (step - self.since_step) / max(now - self.since, 1e-9)
        self.line = {
            "loss": sum(objectives.weights[name] * loss for name, loss in totals.items()),
            **{f"loss/{name}": loss for name, loss in totals.items()},
            **{f"scale/{name}": float(objectives.model.scale(name).detach()) for name in objectives.model.log_scales},
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "grad_norm": module.grad_norm,
            "steps_per_s": pace,
            "samples_per_s": pace * self.run.data.batch,
        }
        self.since, self.since_step = now, step
        record(trainer, self.run, {"step": step, "seconds": round(now - self.began, 3), **self.line})


def record(trainer: L.Trainer, run: Run, line: dict[str, Any]) -> None:
    """One line of metrics.jsonl. Values that are not finite are left out of it: JSON has no word for them."""
    if not trainer.is_global_zero:
        return
    clean = {key: value for key, value in line.items() if not isinstance(value, float) or math.isfinite(value)}
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(clean, allow_nan=False) + "\n")
    if trainer.logger is not None:
        trainer.logger.log_metrics({key: value for key, value in clean.items() if key != "step"}, step=line["step"])


class Scores(AfterStep):
    """Zero-shot scores on validation shards while training, by the functions of `mmfm eval`."""

    def __init__(self, run: Run, tokenizer: Tokenizer) -> None:
        self.run, self.tokenizer = run, tokenizer

    def after_step(self, trainer: L.Trainer, module: JointModule, losses: Mapping[str, Tensor]) -> None:
        every, step = self.run.eval.every_steps, trainer.global_step
        if not every or not self.run.data.val or step % every or not trainer.is_global_zero:
            return
        core = module.objectives.model
        core.eval()
        scores = scores_during_training(Interface(core, self.run, self.tokenizer), self.run.data.val, run=self.run)
        core.train()
        record(trainer, self.run, {"step": step} | {f"score/val/{name}": value for name, value in scores.items()})


class Stop(AfterStep):
    """Ctrl-C or SIGTERM: finish the step, save, stop. A second one stops at once."""

    def __init__(self) -> None:
        self.asked, self.before = False, {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name in (signal.SIGINT, signal.SIGTERM):
            self.before[name] = signal.signal(name, self._ask)

    def _ask(self, number: int, _: Any) -> None:
        self.asked = True
        signal.signal(number, self.before[number])

    def after_step(self, trainer: L.Trainer, module: JointModule, losses: Mapping[str, Tensor]) -> None:
        ranks = module.objectives.ranks
        if ranks.size > 1 and trainer.global_step % LOG_EVERY_STEPS:
            return  # to agree costs a collective, so ranks do it only now and then
        if float(ranks.total(torch.tensor(float(self.asked), device=module.device))) > 0:
            self.asked = trainer.should_stop = True

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for name, handler in self.before.items():
            signal.signal(name, handler)


class Saves(AfterStep):
    """A checkpoint every so many steps, at the end, and when stopped."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def after_step(self, trainer: L.Trainer, module: JointModule, losses: Mapping[str, Tensor]) -> None:
        step = trainer.global_step
        if step % self.run.save_every_steps == 0 or step == self.run.optim.steps or trainer.should_stop:
            trainer.save_checkpoint(folder_of(self.run.folder, step))


class Bar(AfterStep):
    """One line: steps, steps/s, samples/s, the losses by name, time left; plain lines where there is no terminal."""

    def __init__(self, run: Run, journal: Journal) -> None:
        self.run, self.journal = run, journal
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
        losses = TextColumn("{task.fields[losses]}")
        self.progress = Progress(*columns, TimeRemainingColumn(), losses, console=console, transient=True)
        self.task = self.progress.add_task(run.name, total=run.optim.steps, losses="")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.progress.reset(self.task, completed=trainer.global_step)
        if console.is_terminal and trainer.is_global_zero:
            self.progress.start()

    def after_step(self, trainer: L.Trainer, module: JointModule, losses: Mapping[str, Tensor]) -> None:
        step, text = trainer.global_step, describe(self.journal.line)
        self.progress.update(self.task, completed=step, losses=text)
        if step % PRINT_EVERY_STEPS == 0 and not console.is_terminal and trainer.is_global_zero:
            left = self.progress.tasks[0].time_remaining
            left_text = "" if left is None else f"  {left:.0f} s left"
            console.print(f"step {step}/{self.run.optim.steps}  {text}{left_text}", soft_wrap=True, highlight=False)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.progress.stop()


def describe(line: Mapping[str, float]) -> str:
    """The journal's newest line in words."""
    if not line:
        return ""
    losses = [f"{key.removeprefix('loss/')} {value:.3f}" for key, value in line.items() if key.startswith("loss/")]
    return "  ".join((f"{line['steps_per_s']:.2f} steps/s", f"{line['samples_per_s']:.0f} samples/s", *losses))
