"""What Lightning needs: a thin module that asks the objectives and sums them, the data with its one integer of state,
and a checkpoint plug-in that keeps Lightning's own state as safetensors and JSON.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer

from mmfm.config import Run, UserError
from mmfm.data.batch import Batch
from mmfm.data.stream import TrainStream
from mmfm.models.base_weights import NEW, place_new_rows
from mmfm.models.checkpoint import Checkpoint
from mmfm.models.model import UnifiedModel
from mmfm.objectives.distil import Teacher
from mmfm.objectives.grad_cache import as_it_is, grad_cache_backward, reduce_gradients
from mmfm.objectives.joint import Objectives
from mmfm.preprocessing.tokenizer import Tokenizer
from mmfm.runtime.distributed import joined_if_many
from mmfm.runtime.machine import cores
from mmfm.runtime.tensor_files import Saved
from mmfm.training.ema import update_ema
from mmfm.training.lr_schedule import rate_factor
from mmfm.training.optimizer import optimizer_of, set_learning
from mmfm.training.saving import OPENED, OPTIMIZERS, FolderSaver, by_name, names_of, restored, restored_optimizer
from mmfm.training.sharding import hold_rows
from mmfm.training.strategy import Sharded

MOST_BAD_STEPS = 10
LEAST_SCALE = 1.0  # of the loss in fp16


def step_seed(seed: int, step: int, rank: int) -> int:
    """For whatever draws from the global generator; augmentation and dropout do not, they belong to positions."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


class JointModule(L.LightningModule):
    def __init__(self, run: Run, model: UnifiedModel, teachers: Mapping[str, Teacher] | None = None) -> None:
        super().__init__()
        missing = [item.name for item in run.distil if item.name not in (teachers or {})]
        assert not missing, f"no teacher for {missing}; load_teachers gives them"
        self.run, self.objectives = run, Objectives(model, run, teachers=teachers)
        self.learning = set_learning(model, run)
        model.set_grad_checkpointing(run.parallel.activation_checkpointing)
        model.set_compile("inductor" if run.parallel.compile else None)
        self.bad_steps = 0
        self.grad_norm = 0.0
        self.scaler: torch.amp.GradScaler | None = None  # of fp16
        self.strategy_told = ""  # how ranks share the model, and why
        self.failure: UserError | None = None  # what all ranks found at the same step, and will not train on with

    def setup(self, stage: str) -> None:
        torch.set_num_threads(min(self.run.threads, cores()))  # Lightning has just given each rank all cores
        torch.set_float32_matmul_precision(self.run.optim.matmul_precision)
        plugin = self.trainer.precision_plugin
        self.scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
        self.objectives.ranks = joined_if_many()

    def configure_model(self) -> None:
        """All ranks have made the same weights; where they share them each keeps its part."""
        if isinstance(strategy := self.trainer.strategy, Sharded) and not self.objectives.sharded:
            strategy.shard(self.objectives)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.objectives(batch)

    def training_step(self, batch: Batch, _: int) -> dict[str, Any]:
        torch.manual_seed(step_seed(self.run.seed, self.global_step, self.global_rank))
        if self.run.parallel.micro_batch:
            return self._step_in_parts(batch)
        losses = self.objectives(batch)
        return {"loss": self.objectives.total(losses), "losses": {k: v.detach() for k, v in losses.items()}}

    def _step_in_parts(self, batch: Batch) -> dict[str, Any]:
        """All of the backward too: Lightning, which would run one of its own, finds the gradients made."""
        self.zero_grad()
        scaled = as_it_is if self.scaler is None else self.scaler.scale
        losses = grad_cache_backward(self.objectives, batch, self.run.parallel.micro_batch, scaled)
        if not self.objectives.sharded:
            reduce_gradients(self.objectives, self.objectives.ranks)
        return {"loss": self.objectives.total(losses), "losses": losses}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if not self.run.parallel.micro_batch:
            super().backward(loss, *args, **kwargs)

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """After the step in parts this would be too late."""
        if not self.run.parallel.micro_batch:
            super().optimizer_zero_grad(*args, **kwargs)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optim = self.run.optim
        optimizer = optimizer_of(self.objectives, optim, self.learning)
        rate = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: rate_factor(step, optim),
        )
        return {"optimizer": optimizer, "lr_scheduler": LRSchedulerConfigType(scheduler=rate, interval="step")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        owners = zip(checkpoint[OPTIMIZERS], self._optimizers(), strict=True)
        checkpoint[OPTIMIZERS] = [by_name(state, names_of(self, owner)) for state, owner in owners]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Each rank reads what it holds of the weights and of the optimizer's state; an optimizer that had other groups
        is refused."""
        owner = self.configure_optimizers()["optimizer"]
        states = checkpoint[OPTIMIZERS]
        checkpoint[OPTIMIZERS] = [restored_optimizer(state, self, owner, self.run) for state in states]
        mine = self.state_dict()
        for name, saved in checkpoint.get("state_dict", {}).items():
            if isinstance(saved, Saved):
                checkpoint["state_dict"][name] = restored(saved, mine[name]) if name in mine else saved.read()
        if self.run.model.adapters:
            self._over_base(checkpoint["state_dict"], mine)
        if (opened := checkpoint.pop(OPENED, None)) is not None:
            opened.release()

    def _over_base(self, saved: dict[str, Any], mine: Mapping[str, Tensor]) -> None:
        """What is not saved is there already: the weights under adapters, which were verified."""
        for name in [name for name in saved if name.endswith(NEW)]:
            place_new_rows(mine[name.removesuffix(NEW)], saved.pop(name), self.objectives.model.vocabulary)
        saved |= {name: tensor for name, tensor in mine.items() if name not in saved}

    def _optimizers(self) -> list[Optimizer]:
        found = self.optimizers(use_pl_optimizer=False)
        return found if isinstance(found, list) else [found]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.objectives.model.clamp_scales()
        if (ema := self.run.optim.ema) is not None:
            optimizer = self.optimizers(use_pl_optimizer=False)
            assert isinstance(optimizer, torch.optim.Optimizer)
            update_ema(optimizer, ema, self.trainer.global_step + 1)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip by norm; a gradient that is not finite changes nothing, and ten in a row stop the run.

        Gradients are summed over ranks already, so that all of them decide alike. In fp16 one that overflows lowers the
        scale of the loss, and is no bad step unless there is nothing left to lower.
        """
        model = self.objectives.model
        for name in self.learning.held if self.objectives.sharded else ():
            hold_rows(model.get_parameter(name), model.vocabulary.span("text"))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.run.optim.max_grad_norm)
        self.grad_norm = float(norm)
        if np.isfinite(self.grad_norm):
            self.bad_steps = 0
            return
        for parameter in self.parameters():
            parameter.grad = None
        if self.scaler is not None and self.scaler.get_scale() > LEAST_SCALE:
            return
        self.bad_steps += 1
        if self.bad_steps >= MOST_BAD_STEPS:
            self.failure = UserError(
                f"the gradient was not finite {self.bad_steps} steps in a row, by step {self.global_step}; "
                "lower optim.lr, or raise optim.warmup_steps, and train under another --name or with --force"
            )


class StreamData(L.LightningDataModule):
    """The training stream. Its state is one integer, a fingerprint of what that integer counts, and what could not
    be read so far: the same on all ranks, so that any number of them can go on from it.

    Kept here and not in the loader, whose state Lightning would save from one rank only, one batch ahead, and forget
    when something asks for `estimated_stepping_batches`.
    """

    def __init__(self, run: Run, tokenizer: Tokenizer, codecs: Mapping[str, str] | None = None) -> None:
        """codecs: of those whose stored codes may be read, by modality, their fingerprints."""
        super().__init__()
        self.run, self.tokenizer, self.codecs = run, tokenizer, codecs
        self.stream: TrainStream | None = None
        self.start = 0

    def open(self) -> TrainStream:
        if self.stream is None:
            how = {"rank": 0, "world": self.run.ranks, "start": self.start, "codecs": self.codecs}
            self.stream = TrainStream(self.run, self.tokenizer, **how)
        return self.stream

    def setup(self, stage: str) -> None:
        """What was opened before there was a Trainer becomes this rank's part."""
        stream, trainer = self.open(), self.trainer
        assert trainer is not None and trainer.world_size == self.run.ranks
        stream.plan = replace(stream.plan, rank=trainer.global_rank)

    def train_dataloader(self) -> TrainStream:
        return self.open()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def state_dict(self) -> dict[str, Any]:
        stream = self.open()
        place = {"position": stream.position} if self.run.data.tokens_per_batch else {}
        known = {"consumed": stream.consumed, "fingerprint": stream.fingerprint(), "health": stream.health.state()}
        return known | place

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        stream = self.open()
        if state_dict["fingerprint"] != stream.fingerprint():
            raise UserError(
                f"the shards, seed, shares or batch of {self.run.name} are not those it was trained on so far; "
                "restore them, or start anew with --force"
            )
        stream.consumed = self.start = state_dict["consumed"]
        stream.position = position_of(state_dict, self.run)
        stream.health.load(state_dict["health"])


def position_of(state: Mapping[str, Any], run: Run) -> int:
    """How many samples the steps of a `StreamData.state_dict` took, over all ranks."""
    return state.get("position", state["consumed"] * run.data.batch_size)


def position_in(opened: Checkpoint | None, run: Run) -> int:
    """The same of a checkpoint; without one 0."""
    return 0 if opened is None else position_of(opened.tree(handles="/")[StreamData.__name__], run)


class ScaledPrecision(MixedPrecision):
    """fp16 with a scaled loss. Gradients are as they are before they are clipped, which Lightning leaves to optimizers
    that could do it themselves, as fused ones."""

    def __init__(self, device: str) -> None:
        super().__init__("16-mixed", device, torch.amp.GradScaler(device))

    def optimizer_step(self, optimizer: Any, model: Any, closure: Callable[[], Any], **kwargs: Any) -> Any:
        assert self.scaler is not None
        result = closure()
        self.scaler.unscale_(optimizer)
        self._after_closure(model, optimizer)
        self.scaler.step(optimizer)
        self.scaler.update()
        return result


class FolderCheckpoints(FolderSaver, CheckpointIO):
    """Lightning asks for checkpoints, of all ranks at once; `mmfm.training.saving` writes and verifies them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        self.save(checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return self.load(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        raise NotImplementedError("old checkpoints are pruned when a new one is whole")
