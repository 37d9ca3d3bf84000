"""What happens between two steps, in this order: metrics, what all ranks agree on, scores, checkpoint, bar."""

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lightning as L
import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from mmfm.config import Run, UserError
from mmfm.data.stream import TrainStream
from mmfm.data.waiting import StoppedWaiting
from mmfm.evals.run import scores_during_training
from mmfm.inference.interface import Interface
from mmfm.models.adapters import sizes_of
from mmfm.models.best import Best
from mmfm.models.checkpoint import folder_of
from mmfm.preprocessing.tokenizer import Tokenizer
from mmfm.runtime.distributed import Collective, Said, SingleProcess, joined_if_many, together
from mmfm.runtime.process import Signals
from mmfm.training.metrics_file import METRICS, console, finite, seconds_so_far
from mmfm.training.module import FolderCheckpoints, JointModule, StreamData
from mmfm.training.progress import Lines, describe
from mmfm.training.sharding import whole
from mmfm.training.throughput import Throughput
from mmfm.training.validation import better_than_before, validation_losses

LOG_EVERY_STEPS, PRINT_EVERY_STEPS, PRINT_EVERY_S = 10, 100, 30.0


class AfterStep(L.Callback):
    """A callback that acts when a step is done, with the types that this project knows."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, JointModule)
        self.after_step(trainer, pl_module, outputs["losses"])

    def after_step(self, trainer: L.Trainer, module: JointModule, losses: Mapping[str, Tensor]) -> None:
        raise NotImplementedError


class MetricsLogger(AfterStep):
    """Every objective by name, the rate and the speed: into metrics.jsonl and TensorBoard, from the first rank."""

    def __init__(self, run: Run) -> None:
        self.run, self.throughput = run, Throughput(run)
        self.line: dict[str, float] = {}
        self.began = self.since = time.monotonic()
        self.since_step = self.since_sample = 0  # steps that were done, samples that were read

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The seconds of a run that goes on are those since its first start that it was trained."""
        self.since = time.monotonic()
        self.began = self.since - seconds_so_far(self.run)
        self.since_step, self.since_sample = trainer.global_step, stream_of(trainer).position

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.since_step:  # saving and scoring are not part of the pace
            self.since = time.monotonic()
            self.throughput.waited_s = stream_of(trainer).waited_s

    def after_step(self, trainer: L.Trainer, module: JointModule, losses: Mapping[str, Tensor]) -> None:
        step = trainer.global_step
        if step % LOG_EVERY_STEPS and step != self.run.optim.steps:
            return
        objectives, now = module.objectives, time.monotonic()
        totals = {name: float(objectives.ranks.all_reduce_sum(loss)) for name, loss in losses.items()}
        steps, seconds = step - self.since_step, max(now - self.since, 1e-9)
        samples = stream_of(trainer).position
        self.line = {
            "loss": sum(objectives.weights[name] * loss for name, loss in totals.items()),
            **{f"loss/{name}": loss for name, loss in totals.items()},
            **{f"scale/{name}": float(objectives.model.scale(name).detach()) for name in objectives.model.log_scales},
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "grad_norm": module.grad_norm,
            "steps_per_s": steps / seconds,
            "samples_per_s": (samples - self.since_sample) / seconds,
            **self.throughput.figures(objectives, steps, seconds, stream_of(trainer).waited_s),
        }
        self.since, self.since_step, self.since_sample = now, step, samples
        record(trainer, self.run, {"step": step, "seconds": round(now - self.began, 3), **self.line})


def stream_of(trainer: L.Trainer) -> TrainStream:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, StreamData)
    return data.open()


def record(trainer: L.Trainer, run: Run, line: dict[str, Any]) -> None:
    """One line of metrics.jsonl: strict JSON. Where it cannot be written that is said, and training goes on."""
    if not trainer.is_global_zero:
        return
    clean = finite(line)
    try:
        with (run.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean, allow_nan=False) + "\n")
    except OSError as why:
        told = f"step {line['step']} is not in {METRICS} ({why.strerror or why}); make room; training goes on"
        console.print(f"[bold red]{told}[/]", soft_wrap=True)
    numbers = {key: value for key, value in clean.items() if key not in ("step", "not_finite")}
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=line["step"])


class StopConsensus(AfterStep):
    """What ranks must decide alike, by one small sum over them: to stop, to save, and what could not be read.

    They meet after every step: who asks for an end may wait for one step, and not for ten.
    `save` holds for the step just done, and `written` where all ranks have written a checkpoint that was under way, as
    `written_here` says of this one. `stop` is the signal that ends the run, and stays.
    """

    def __init__(
        self, run: Run, data: StreamData, signals: Signals, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.run, self.data, self.signals, self.clock = run, data, signals, clock
        self.save = False
        self.written_here: Callable[[], bool] = lambda: False
        self.written = False
        self.best: Best | None = None  # that the step just scored is, until it is saved; known to the first rank
        self.stop: signal.Signals | None = None
        self.saved_at = clock()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_at = self.clock()
        self.signals.install()

    def after_step(self, trainer: L.Trainer, module: JointModule, losses: Mapping[str, Tensor]) -> None:
        step = trainer.global_step
        due = step % self.run.save_every_steps == 0 or step == self.run.optim.steps
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
        mine = [signal.SIGINT in self.signals.asked, bool(self.signals.asked), late, *health.drain()]
        mine.append(self.written_here())
        numbers = torch.tensor([int(number) for number in mine], dtype=torch.int64, device=module.device)
        interrupted, asked, late, *counts, written = ranks.all_reduce_sum(numbers).tolist()
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
        self.save, self.written = due or bool(asked or late), written == ranks.size


class PeriodicEval(AfterStep):
    """Scores on validation shards and suites while training, by the functions of `mmfm eval`; ranks share the work.

    A run that is asked to stop saves at once; the scores of that step are made when it is resumed.
    """

    def __init__(self, run: Run, tokenizer: Tokenizer, agree: StopConsensus) -> None:
        self.run, self.tokenizer, self.agree = run, tokenizer, agree
        self.ranks: Collective = SingleProcess()

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
        scored = self.run.data.val or self.run.eval.suites
        return bool(every and scored and trainer.global_step % every == 0)

    def _scored(self, step: int) -> bool:
        """As the first rank finds it: the others may see another disk, or this one too late."""
        return together(self.ranks, lambda: b"yes" if self._recorded(step) else b"no")[0] == b"yes"

    def _recorded(self, step: int) -> bool:
        path = self.run.folder / METRICS
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return any(line["step"] == step and any(key.startswith("score/") for key in line) for line in found)

    def _score(self, trainer: L.Trainer, module: JointModule) -> None:
        step, line, left_out = trainer.global_step, {}, []

        def best() -> bytes:
            self.agree.best = None if self.ranks.rank else better_than_before(self.run, step, line)
            return b"yes" if self.agree.best else b"no"

        try:
            with whole(module.objectives, self.run.parallel.reshard_after_forward):
                interface = Interface(module.objectives.model, self.run, self.tokenizer)
                scores, left_out = scores_during_training(interface, self.run, ranks=self.ranks)
                line |= {f"score/{name}": value for name, value in scores.items()}
                if self.run.data.val:
                    line |= validation_losses(module.objectives, self.run, self.tokenizer, self.ranks)
            is_best = together(self.ranks, best)[0] == b"yes"
        except (UserError, Said) as why:
            if self.ranks.size == 1:
                raise
            module.failure, trainer.should_stop = UserError(str(why)), True  # on all ranks: the first says it
            return
        self.agree.save = self.agree.save or is_best
        if self.ranks.rank:
            return
        if not scores:
            told = f"step {step}: nothing is scored: {'; '.join(left_out)}"
            console.print(told, style="bold red", soft_wrap=True, highlight=False, markup=False)
        record(trainer, self.run, {"step": step} | line)


class CheckpointSaver(AfterStep):
    """A checkpoint when all ranks agreed on one, and on that all have written what was under way. Where it cannot be
    written training goes on to the next, aloud."""

    def __init__(self, run: Run, files: FolderCheckpoints, agree: StopConsensus) -> None:
        self.run, self.files, self.agree = run, files, agree
        self.agree.written_here = files.written
        self.told: UserError | None = None

    def after_step(self, trainer: L.Trainer, module: JointModule, losses: Mapping[str, Tensor]) -> None:
        ends = trainer.should_stop or trainer.global_step == self.run.optim.steps
        if self.agree.save:
            self.files.best, self.agree.best = self.agree.best, None
            trainer.save_checkpoint(folder_of(self.run.folder, trainer.global_step))
            self.agree.saved_at = self.agree.clock()
        if ends or (self.agree.written and not self.agree.save):
            self.files.finish()
        self._tell(module, ends)

    def _tell(self, module: JointModule, ends: bool) -> None:
        failure, before, self.told = self.files.failure, self.told, self.files.failure
        if failure is None or failure is before:
            return
        if ends:
            module.failure = module.failure or failure  # on all ranks: the first says it
        elif self.files.ranks.rank == 0:
            console.print(f"[bold red]{failure}; until then training goes on[/]", soft_wrap=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """A rank alone ends what it writes; stopped while it waited for a batch it stands between two steps, and can
        save."""
        step = trainer.global_step
        if trainer.world_size > 1:
            return
        self.files.finish()
        if isinstance(exception, StoppedWaiting) and step and step == self.agree.data.open().consumed:
            trainer.save_checkpoint(folder_of(self.run.folder, step))
            self.files.finish()
            exception.saved = step if self.files.failure is None else None


class ProgressBar(AfterStep):
    """Steps, time left, speed and losses by name. Where there is no terminal: plain lines, the first after one step,
    then every PRINT_EVERY_STEPS steps and at least every PRINT_EVERY_S seconds."""

    def __init__(self, run: Run, metrics: MetricsLogger, clock: Callable[[], float] = time.monotonic) -> None:
        self.run, self.metrics, self.clock = run, metrics, clock
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
        self.progress = Lines(*columns, TimeRemainingColumn(), console=console, transient=True)
        self.task = self.progress.add_task(run.name, total=run.optim.steps, losses="")
        self.began = self.said_at = clock()
        self.first = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, JointModule)
        self.first, self.began = trainer.global_step, self.clock()
        self.progress.reset(self.task, completed=trainer.global_step)
        if trainer.is_global_zero:
            for line in self._opening(pl_module, trainer.world_size):
                console.print(line, soft_wrap=True, highlight=False, markup=False)
        if console.is_terminal and trainer.is_global_zero:
            self.progress.start()

    def _opening(self, module: JointModule, ranks: int) -> Iterator[str]:
        steps, data = self.run.optim.steps, self.run.data
        where = f"resumed from step {self.first} of {steps}" if self.first else f"{steps} steps of {data.of_a_step}"
        each = f", on each of {ranks} ranks" if ranks > 1 else ""
        model = module.objectives.model
        numbers = sizes_of(model)
        sizes = [(numbers[name], p.requires_grad) for name, p in model.named_parameters()]
        learn, all_of_them = sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)
        size = f"{all_of_them:,} parameters" + (f" of which {learn:,} learn" if learn < all_of_them else "")
        how = f"{size}, in {self.run.optim.precision} on {module.device}{each}"
        yield f"training {self.run.name}: {where}, into {self.run.folder}, {how}"
        if module.strategy_told:
            yield f"training {self.run.name}: ranks share the model by {module.strategy_told}"
        if self.run.optim.param_groups or self.run.model.adapters:
            yield from (f"training {self.run.name}: {line}" for line in module.learning.lines)

    def after_step(self, trainer: L.Trainer, module: JointModule, losses: Mapping[str, Tensor]) -> None:
        step, now = trainer.global_step, self.clock()
        self.progress.update(self.task, completed=step, losses=describe(self.metrics.line))
        due = step % PRINT_EVERY_STEPS == 0 or now - self.said_at >= PRINT_EVERY_S
        ends = step in (self.first + 1, self.run.optim.steps)
        if (due or ends) and not console.is_terminal and trainer.is_global_zero:
            self.said_at = now
            console.print(self._line(step, now), soft_wrap=True, highlight=False, markup=False)

    def _line(self, step: int, now: float) -> str:
        """Such as "step 100/1200  2.51 steps/s  image-text 1.234  438 s left"; of the first step what it took."""
        if step == self.first + 1 < self.run.optim.steps:
            return f"step {step}/{self.run.optim.steps}  the first took {now - self.began:.1f} s"
        left = (now - self.began) / (step - self.first) * (self.run.optim.steps - step)
        said = f"step {step}/{self.run.optim.steps}  {describe(self.metrics.line)}".rstrip()
        return f"{said}  {left:.0f} s left" if left else said

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.progress.live.is_started:  # else rich would print an empty line
            self.progress.stop()
