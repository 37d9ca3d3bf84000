"""A logger of one's own: metrics into Weights & Biases, offline; `wandb sync` uploads them later.

loggers=(Wandb(project="numbers"),)  # of a Run; needs `pip install wandb`
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.loggers import Logger as LightningLogger

from mmfm.config import Logger, Run


class WandbLogger(LightningLogger):
    def __init__(self, config: "Wandb", run: Run) -> None:
        super().__init__()
        import wandb

        self.writer = wandb.init(
            project=config.project, name=run.name, id=run.name, resume="allow", mode=config.mode, dir=str(run.folder)
        )

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return self.writer.id

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.writer.log(dict(metrics), step=step)

    def finalize(self, status: str) -> None:
        self.writer.finish()


@dataclass(frozen=True, kw_only=True)
class Wandb(Logger):
    project: str = "mmfm"
    mode: str = "offline"

    def build(self, run: Run) -> WandbLogger:
        return WandbLogger(self, run)
