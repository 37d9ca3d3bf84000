"""How the same training is spread over processes and memory. It moves no sample, and weights only by rounding."""

from dataclasses import dataclass
from typing import Literal

from mmfm.config.base import Checked, positive, require


@dataclass(frozen=True, kw_only=True)
class Parallel(Checked):
    """May change at each start of a run, --resume included."""

    strategy: Literal["auto", "ddp", "fsdp"] = "auto"  # "auto": ddp where all that a rank then holds fits well
    nodes: int = 1  # machines; Run.devices are the ranks of each
    data_parallel_replicate_degree: int = 1  # of fsdp: copies of the model, each sharded over the rest (HSDP)
    reshard_after_forward: bool = True  # of fsdp: False keeps the weights whole until the backward is done (ZeRO-2)
    activation_checkpointing: Literal["none", "selective", "full"] = "none"  # what blocks compute again in backward
    compile: bool = False  # our own blocks, but for attention
    micro_batch: int = 0  # samples of a rank that the model reads at once, contrasts still see the batch; 0: all
    save_async: bool = False  # checkpoints are written while training goes on
    loss_tile_mb: float = 32.0  # of one tile of a contrast's scores, or of a vocabulary's logits

    def __post_init__(self) -> None:
        positive(self, "nodes", "data_parallel_replicate_degree", "loss_tile_mb")
        copies = self.data_parallel_replicate_degree
        told = (
            f'Parallel.data_parallel_replicate_degree={copies} is of strategy="fsdp", and "ddp" keeps one on each rank'
        )
        require(copies == 1 or self.strategy != "ddp", f"{told}; leave it out")
        told = f"Parallel.micro_batch={self.micro_batch} must not be negative; 0: the whole share of a rank at once"
        require(self.micro_batch >= 0, told)

    def is_sharded(self, weights: int, learned: int, memory: int | float) -> bool:
        """Whether each rank holds a part of the model alone. "auto": where the whole would be more than half of its
        memory. All in bytes; learned: of the weights that learn."""
        return self.strategy == "fsdp" or (self.strategy == "auto" and trained_bytes(weights, learned) > memory / 2)


def trained_bytes(weights: int, learned: int) -> int:
    """Of a model in training: its weights, and a gradient and two moments of each that learns."""
    return weights + 3 * learned
