"""How Lightning's Trainer is told what ranks share: they have met already, and a module may shard itself."""

from collections.abc import Mapping
from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.optim import Optimizer

from mmfm.config import Parallel
from mmfm.objectives.joint import Objectives
from mmfm.runtime.distributed import Collective
from mmfm.runtime.launch import HERE
from mmfm.training.sharding import mesh_of, shard


class DDP(DDPStrategy):
    """All ranks take part in a checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        self.checkpoint_io.save_checkpoint(checkpoint, filepath)


class UnwrappedDDP(DDP):
    """Ranks whose module stays as it is: a step in parts reduces its gradients once, when all parts are done."""

    def configure_ddp(self) -> None: ...


class Met(ClusterEnvironment):
    """The ranks as they have met already: Lightning starts none and joins none. To each of them its own device is the
    only one of its machine."""

    def __init__(self, ranks: Collective) -> None:
        self.ranks = ranks

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return HERE

    @property
    def main_port(self) -> int:
        return 0

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.ranks.size

    def global_rank(self) -> int:
        return self.ranks.rank

    def set_world_size(self, size: int) -> None: ...
    def set_global_rank(self, rank: int) -> None: ...
    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return 0


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for modules that shard themselves, with a mesh of our own. In a checkpoint each
    rank writes its parts of weights and moments, and reads them."""

    def __init__(self, ranks: int, parallel: Parallel) -> None:
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1)
        self.parallel = parallel

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def shard(self, objectives: Objectives) -> None:
        degree = self.parallel.data_parallel_replicate_degree
        shard(objectives, mesh_of(self.root_device.type, self.world_size, degree), self.parallel.reshard_after_forward)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return self.model.state_dict()

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.model is not None
        self.model.load_state_dict(checkpoint["state_dict"], strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return inner.state_dict()

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path)
