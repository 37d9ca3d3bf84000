"""A callback of one's own: the norm of each part's weights, every so many steps, into metrics.jsonl and the loggers.

callbacks=(WeightNorms(every_steps=100),)  # of a Run
"""

from collections.abc import Mapping
from dataclasses import dataclass

import lightning as L
import torch
from torch import Tensor

from mmfm.config import Callback, Run
from mmfm.training.callbacks import AfterStep, record
from mmfm.training.module import JointModule


class NormsLogger(AfterStep):
    def __init__(self, run: Run, every_steps: int) -> None:
        self.run, self.every_steps = run, every_steps

    def after_step(self, trainer: L.Trainer, module: JointModule, losses: Mapping[str, Tensor]) -> None:
        if trainer.global_step % self.every_steps == 0:
            parts = {name: list(part.parameters()) for name, part in module.objectives.model.named_children()}
            norms = {f"norm/{name}": float(torch.nn.utils.get_total_norm(own)) for name, own in parts.items() if own}
            record(trainer, self.run, {"step": trainer.global_step, **norms})


@dataclass(frozen=True, kw_only=True)
class WeightNorms(Callback):
    every_steps: int = 100

    def build(self, run: Run) -> NormsLogger:
        return NormsLogger(run, self.every_steps)
