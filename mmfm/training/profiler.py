"""A trace of a few steps: what ran when, on processor and device, for chrome://tracing or ui.perfetto.dev."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mmfm.config import Run, require
from mmfm.training.callbacks import AfterStep
from mmfm.training.metrics_file import console
from mmfm.training.module import JointModule

FOLDER = "profile"


def check_window(run: Run, start: int) -> None:
    """UserError where a run that goes on from this step has left the first step of `profile_steps` behind."""
    first = run.profile_steps[0] if run.profile_steps else start + 1
    told = f"Run.profile_steps={run.profile_steps}: the run goes on from step {start}, and that has passed"
    require(first > start, f"{told}; name later steps, or leave it out")


class StepProfiler(AfterStep):
    """From the beginning of the first of `Run.profile_steps` to the end of the last; each rank writes its own trace."""

    def __init__(self, run: Run) -> None:
        self.run, self.trace = run, None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.run.profile_steps and trainer.global_step + 1 == self.run.profile_steps[0]:
            kinds = [ProfilerActivity.CPU]
            kinds += [ProfilerActivity.CUDA] if pl_module.device.type == "cuda" else []
            self.trace = profile(activities=kinds, record_shapes=True, profile_memory=True)
            self.trace.start()

    def after_step(self, trainer: Any, module: JointModule, losses: Mapping[str, Tensor]) -> None:
        if self.trace is not None and trainer.global_step == self.run.profile_steps[1]:
            self._write(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """What was recorded of a run that ended within its window is written too."""
        if self.trace is not None:
            self._write(trainer)

    def _write(self, trainer: Any) -> None:
        assert self.trace is not None
        trace, self.trace = self.trace, None
        trace.stop()
        first, last = self.run.profile_steps[0], trainer.global_step
        path = self.run.folder / FOLDER / f"steps-{first}-{last}-rank-{trainer.global_rank}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(path))
        if trainer.is_global_zero:
            told = f"the trace of steps {first} to {last} is {path}; open it in chrome://tracing or ui.perfetto.dev"
            console.print(told, soft_wrap=True, highlight=False, markup=False)
