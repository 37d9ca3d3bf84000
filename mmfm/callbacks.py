"""What happens between two steps, in this order: journal, what all ranks agree on, scores, checkpoint, bar."""

import json
import math
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mmfm.checkpoint import folder_of
from mmfm.config import Run, UserError
from mmfm.data.splits import named
from mmfm.data.stream import StoppedWaiting
from mmfm.distributed import Alone, Ranks, Said, joined_if_many, together
from mmfm.evals.run import scores_during_training
from mmfm.inputs.text import Tokenizer
from mmfm.interface import Interface
from mmfm.module import FolderCheckpoints, JointModule, StreamData
from mmfm.process import Signals

LOG_EVERY_STEPS, PRINT_EVERY_STEPS = 10, 100
METRICS = "metrics.jsonl"
console = Console(stderr=True)


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
    with (run.folder / METRICS).open("a") as file:
        file.write(json.dumps(clean, allow_nan=False) + "\n")
    if trainer.logger is not None:
        trainer.logger.log_metrics({key: value for key, value in clean.items() if key != "step"}, step=line["step"])


class Agree(AfterStep):
    """What ranks must decide alike, by one small sum over them: to stop, to save, and what could not be read.

    They meet every LOG_EVERY_STEPS steps and wherever a checkpoint falls due; a rank alone meets itself every step.
    `save` holds for the step just done. `stop` is the signal that ends the run, and stays.
    """

    def __init__(
        self, run: Run, data: StreamData, signals: Signals, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.run, self.data, self.signals, self.clock = run, data, signals, clock
        self.save = False
        self.stop: signal.Signals | None = None
        self.saved_at = clock()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_at = self.clock()
        self.signals.install()

    def after_step(self, trainer: L.Trainer, module: JointModule, losses: Mapping[str, Tensor]) -> None:
        ranks, step = module.objectives.ranks, trainer.global_step
        due = step % self.run.save_every_steps == 0 or step == self.run.optim.steps
        self.save = False
        if ranks.size == 1 or due or step % LOG_EVERY_STEPS == 0:
            self._meet(module, due)
        if module.failure is not None:
            self.save = False  # the last checkpoint is from before
        trainer.should_stop = trainer.should_stop or self.stop is not None or module.failure is not None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        told = self.data.open().health.told()
        if told and trainer.is_global_zero:
            console.print(told, soft_wrap=True, highlight=False, markup=False)

    def _meet(self, module: JointModule, due: bool) -> None:
        ranks, health = module.objectives.ranks, self.data.open().health
        late = ranks.rank == 0 and 0 < self.run.save_every_minutes <= (self.clock() - self.saved_at) / 60
        mine = [signal.SIGINT in self.signals.asked, bool(self.signals.asked), late, *health.take()]
        numbers = torch.tensor([int(number) for number in mine], dtype=torch.int64, device=module.device)
        interrupted, asked, late, *counts = ranks.total(numbers).tolist()
        if lines := health.skipped():
            name = f"skipped-{ranks.rank}.jsonl" if ranks.rank else "skipped.jsonl"
            with (self.run.folder / name).open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
        try:
            health.add(counts)
        except UserError as why:
            module.failure = why
        if asked:
            self.stop = signal.SIGINT if interrupted else signal.SIGTERM
        self.save = due or bool(asked or late)


class Scores(AfterStep):
    """Zero-shot scores on validation shards while training, by the functions of `mmfm eval`; all ranks share the work.

    A run that is asked to stop saves at once; the scores of that step are made when it is resumed.
    """

    def __init__(self, run: Run, tokenizer: Tokenizer, agree: Agree) -> None:
        self.run, self.tokenizer, self.agree = run, tokenizer, agree
        self.ranks: Ranks = Alone()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.ranks = joined_if_many("gloo")  # what they tell each other is on the CPU

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, JointModule)
        if trainer.global_step and self._due(trainer) and not self._scored(trainer.global_step):
            self._score(trainer, pl_module)

    def after_step(self, trainer: L.Trainer, module: JointModule, losses: Mapping[str, Tensor]) -> None:
        hurry = self.agree.stop is not None and trainer.global_step < self.run.optim.steps
        if self._due(trainer) and not hurry:
            self._score(trainer, module)

    def _due(self, trainer: L.Trainer) -> bool:
        every = self.run.eval.every_steps
        return bool(every and self.run.data.val and trainer.global_step % every == 0)

    def _scored(self, step: int) -> bool:
        """As the first rank finds it: the others may see another disk, or this one too late."""
        return together(self.ranks, lambda: b"yes" if self._recorded(step) else b"no")[0] == b"yes"

    def _recorded(self, step: int) -> bool:
        path = self.run.folder / METRICS
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return any(line["step"] == step and any(key.startswith("score/") for key in line) for line in found)

    def _score(self, trainer: L.Trainer, module: JointModule) -> None:
        try:
            interface = Interface(module.objectives.model, self.run, self.tokenizer)
            scores, left_out = scores_during_training(interface, self.run, ranks=self.ranks)
        except (UserError, Said) as why:
            if self.ranks.size == 1:
                raise
            module.failure, trainer.should_stop = UserError(str(why)), True  # on all ranks: the first says it
            return
        if self.ranks.rank:
            return
        name, _ = named(self.run.data.val)
        if not scores:
            told = f"step {trainer.global_step}: nothing of {name} is scored: {'; '.join(left_out)}"
            console.print(told, style="bold red", soft_wrap=True, highlight=False, markup=False)
        found = {f"score/{name}/{metric}": value for metric, value in scores.items()}
        record(trainer, self.run, {"step": trainer.global_step} | found)


class Saves(AfterStep):
    """A checkpoint when all ranks agreed on one. Where it cannot be written training goes on to the next, aloud."""

    def __init__(self, run: Run, files: FolderCheckpoints, agree: Agree) -> None:
        self.run, self.files, self.agree = run, files, agree

    def after_step(self, trainer: L.Trainer, module: JointModule, losses: Mapping[str, Tensor]) -> None:
        if not self.agree.save:
            return
        trainer.save_checkpoint(folder_of(self.run.folder, trainer.global_step))
        self.agree.saved_at = self.agree.clock()
        if self.files.failure is None:
            return
        if trainer.should_stop or trainer.global_step == self.run.optim.steps:
            raise self.files.failure
        console.print(f"[bold red]{self.files.failure}; until then training goes on[/]", soft_wrap=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """A rank alone that was stopped while it waited for a batch stands between two steps, and can save."""
        step = trainer.global_step
        if not isinstance(exception, StoppedWaiting) or trainer.world_size > 1:
            return
        if step and step == self.agree.data.open().consumed:
            trainer.save_checkpoint(folder_of(self.run.folder, step))
            exception.saved = step if self.files.failure is None else None


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
        if self.progress.live.is_started:  # else rich would print an empty line
            self.progress.stop()


def describe(line: Mapping[str, float]) -> str:
    """The journal's newest line in words."""
    if not line:
        return ""
    losses = [f"{key.removeprefix('loss/')} {value:.3f}" for key, value in line.items() if key.startswith("loss/")]
    return "  ".join((f"{line['steps_per_s']:.2f} steps/s", f"{line['samples_per_s']:.0f} samples/s", *losses))
