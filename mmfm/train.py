"""From a run's configuration to a trained model: data, model, Trainer, and what is written on the way.

runs/NAME/run.json  metrics.jsonl  tensorboard/  checkpoints/step-N/
"""

import json
import logging
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmfm.checkpoint import folder_of, newest_whole, replace_file, steps_of
from mmfm.config import Run, UserError, from_json, require, to_json
from mmfm.evals.run import scores_during_training
from mmfm.inputs.text import Tokenizer, load_tokenizer
from mmfm.interface import Interface
from mmfm.model import build
from mmfm.module import FolderCheckpoints, JointModule, StreamData

LOG_EVERY_STEPS = 10
PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}
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
    stop = Stop()
    trainer = _trainer(run, tokenizer, [Journal(run), Scores(run, tokenizer), stop, Saves(run), Bar(run)])
    trainer.fit(module, data, ckpt_path=None if start is None else str(folder_of(run.folder, start)), weights_only=True)
    if stop.asked:
        raise KeyboardInterrupt
    return run.folder


def _prepare(run: Run, resume: bool, force: bool) -> int | None:
    """The step to continue from, or None. Nothing that was trained is lost without --force."""
    folder = run.folder
    if force or not steps_of(folder):
        require(not resume or force, f"{folder} has no checkpoint to resume; leave --resume out")
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


FREE = {
    "out",
    "threads",
    "devices",
    "accelerator",
    "save_every_steps",
    "keep_checkpoints",
    "eval",
}  # may change between starts


def _same_configuration(before: Run, now: Run) -> None:
    old, new = (json.loads(to_json(run)) for run in (before, now))
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
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


def _trainer(run: Run, tokenizer: Tokenizer, callbacks: list[L.Callback]) -> L.Trainer:
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
        log_every_n_steps=LOG_EVERY_STEPS,
        logger=TensorBoardLogger(save_dir=run.folder, name="", version="tensorboard"),
        callbacks=callbacks,
        plugins=[FolderCheckpoints(run, tokenizer)],
        use_distributed_sampler=False,
    )


class Journal(L.Callback):
    """Every objective by name, the rate and the speed: into metrics.jsonl and TensorBoard, from the first rank."""

    def __init__(self, run: Run) -> None:
        self.run, self.line = run, {}
        self.began = self.last = time.monotonic()
        self.last_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = self.last = time.monotonic()
        self.last_step = trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if step % LOG_EVERY_STEPS and step != self.run.optim.steps:
            return
        losses = {name: float(pl_module.objectives.ranks.total(loss)) for name, loss in outputs["losses"].items()}
        now = time.monotonic()
        pace = (step - self.last_step) / max(now - self.last, 1e-9)
        weights = pl_module.objectives.weights
        self.line = {
            "loss": sum(weights[name] * loss for name, loss in losses.items()),
            **{f"loss/{name}": loss for name, loss in losses.items()},
            **{
                f"scale/{name}": float(pl_module.objectives.model.scale(name).detach())
                for name in pl_module.objectives.model.log_scales
            },
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "grad_norm": pl_module.grad_norm,
            "steps_per_s": pace,
            "samples_per_s": pace * self.run.data.batch,
        }
        self.last, self.last_step = now, step
        record(trainer, self.run, {"step": step, "seconds": round(now - self.began, 3), **self.line})

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.last_step:  # saving and scoring are not part of the pace
            self.last = time.monotonic()


def record(trainer: L.Trainer, run: Run, line: dict[str, Any]) -> None:
    """One line of metrics.jsonl. Values that are not finite are left out of it: JSON has no word for them."""
    if not trainer.is_global_zero:
        return
    clean = {key: value for key, value in line.items() if not isinstance(value, float) or abs(value) < float("inf")}
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(clean, allow_nan=False) + "\n")
    if trainer.logger is not None:
        trainer.logger.log_metrics({key: value for key, value in clean.items() if key != "step"}, step=line["step"])


class Scores(L.Callback):
    """Zero-shot scores on validation shards while training, by the functions of `mmfm eval`."""

    def __init__(self, run: Run, tokenizer: Tokenizer) -> None:
        self.run, self.tokenizer = run, tokenizer

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        every, step = self.run.eval.every_steps, trainer.global_step
        if not every or not self.run.data.val or step % every or not trainer.is_global_zero:
            return
        core = pl_module.objectives.model
        core.eval()
        model = Interface(core, self.run, self.tokenizer)
        scores = scores_during_training(model, self.run.data.val, run=self.run)
        core.train()
        record(trainer, self.run, {"step": step} | {f"score/val/{name}": value for name, value in scores.items()})


class Saves(L.Callback):
    """A checkpoint every so many steps and at the end."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if step % self.run.save_every_steps == 0 or step == self.run.optim.steps or trainer.should_stop:
            trainer.save_checkpoint(folder_of(self.run.folder, step))


class Stop(L.Callback):
    """Ctrl-C or SIGTERM: finish the step, save, stop. A second one stops at once."""

    def __init__(self) -> None:
        self.asked, self.before = False, {}

    def on_train_start(self, trainer, pl_module) -> None:
        for name in (signal.SIGINT, signal.SIGTERM):
            self.before[name] = signal.signal(name, self._ask)

    def _ask(self, number: int, _: Any) -> None:
        self.asked = True
        signal.signal(number, self.before[number])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if pl_module.objectives.ranks.size > 1 and trainer.global_step % LOG_EVERY_STEPS:
            return  # ranks agree only now and then: it costs a collective
        asked = pl_module.objectives.ranks.total(torch.tensor(float(self.asked), device=pl_module.device))
        if float(asked) > 0:
            self.asked = trainer.should_stop = True

    def on_train_end(self, trainer, pl_module) -> None:
        for name, handler in self.before.items():
            signal.signal(name, handler)


class Bar(L.Callback):
    """One line: steps, steps/s, samples/s, the losses by name, time left; plain lines where there is no terminal."""

    def __init__(self, run: Run) -> None:
        self.run, self.progress, self.task = run, None, None

    def on_train_start(self, trainer, pl_module) -> None:
        if not trainer.is_global_zero:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, TextColumn("{task.fields[losses]}"), console=console, transient=True)
        self.task = self.progress.add_task(
            self.run.name, total=self.run.optim.steps, completed=trainer.global_step, losses=""
        )
        if console.is_terminal:
            self.progress.start()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self.progress is None or self.task is None:
            return
        step = trainer.global_step
        line = next(callback.line for callback in trainer.callbacks if isinstance(callback, Journal))
        text = describe(line)
        self.progress.update(self.task, completed=step, losses=text)
        if not console.is_terminal and step % 100 == 0:
            left = self.progress.tasks[0].time_remaining
            console.print(
                f"step {step}/{self.run.optim.steps}  {text}" + ("" if left is None else f"  {left:.0f} s left"),
                soft_wrap=True,
            )

    def on_train_end(self, trainer, pl_module) -> None:
        if self.progress is not None:
            self.progress.stop()


def describe(line: dict[str, float]) -> str:
    """The journal's newest line in words."""
    if not line:
        return ""
    losses = "  ".join(
        f"{key.removeprefix('loss/')} {value:.3f}" for key, value in line.items() if key.startswith("loss/")
    )
    return f"{line['steps_per_s']:.2f} steps/s  {line['samples_per_s']:.0f} samples/s  {losses}"
