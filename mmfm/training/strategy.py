"""How Lightning's Trainer is told what ranks share: they have met already, and a module may shard itself."""

from collections.abc import Mapping
from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from mmfm.config import Parallel
from mmfm.objectives.joint import Objectives
from mmfm.runtime.distributed import Collective, full_tensor
from mmfm.runtime.launch import HERE
from mmfm.training.sharding import mesh_of, part_of, shard


class UnwrappedDDP(DDPStrategy):
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
    """Lightning's strategy for modules that shard themselves, with a mesh of our own. A checkpoint is whole: weights
    and moments of all ranks are gathered for it, and each rank takes its part of what is read."""

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
        return {name: full_tensor(x) for name, x in self.model.state_dict().items()}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.model is not None
        mine = self.model.state_dict()
        found = {name: part_of(x, mine[name]) for name, x in checkpoint["state_dict"].items()}
        self.model.load_state_dict(found, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = inner.state_dict()
        whole = {number: {name: _full(x) for name, x in one.items()} for number, one in state["state"].items()}
        return state | {"state": whole}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            mine = {
                number: {name: part_of(x, parameters[number]) if _moment(x) else x for name, x in one.items()}
                for number, one in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": mine})

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path)


def _moment(x: Any) -> bool:
    """Whether it belongs to each weight, and is no count of steps."""
    return isinstance(x, Tensor) and x.ndim > 0


def _full(x: Any) -> Any:
    return full_tensor(x) if isinstance(x, Tensor) else x
