"""Training with weights, gradients and moments sharded over ranks: FSDP2 (arXiv 2304.11277) of towers and trunk, block
by block, HSDP where `data_parallel_replicate_degree` is above 1, ZeRO-2 where weights stay whole after the forward.

All ranks enter all towers alike (`mmfm.objectives.roll_call`), and nothing touches a weight outside of the root's
forward but within `whole`. Tensor parallelism is not here: contrasts want many ranks with samples of their own, and a
rank holds one block at a time.
"""

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from mmfm.config import Parallel, require
from mmfm.config.parallel import trained_bytes
from mmfm.models.execution import blocks_of
from mmfm.models.imported import ImportedTower
from mmfm.objectives.joint import Objectives
from mmfm.runtime.distributed import nothing

FLOAT = 4  # bytes of a weight


def chosen_strategy(parallel: Parallel, model: nn.Module, ranks: int, memory: float) -> tuple[str, str]:
    """Which strategy, and why. memory: bytes of each rank's device. UserError for ranks that make no such copies."""
    require_copies(parallel, ranks)
    sizes = [(FLOAT * p.numel(), p.requires_grad) for p in model.parameters()]
    weights, learned = sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
    sharded = parallel.is_sharded(weights, learned, memory)
    kind, than = ("fsdp", "more than") if sharded else ("ddp", "at most")
    if parallel.strategy != "auto":
        return kind, f"{kind}, as chosen"
    told = f"{trained_bytes(weights, learned) / 1e9:.3g} GB are {than} half of the {memory / 1e9:.3g} GB"
    return kind, f"{kind}, as weights, gradients and moments of {told} that a rank has"


def require_copies(parallel: Parallel, ranks: int) -> None:
    degree = parallel.data_parallel_replicate_degree
    told = f"Parallel.data_parallel_replicate_degree={degree} is no divisor of the {ranks} ranks"
    require(ranks % degree == 0, f"{told}; choose one, or start other ranks")


def memory_of_rank(device: torch.device, ranks_here: int) -> float:
    """Bytes of a GPU; of the processor's memory this rank's share."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / ranks_here


def mesh_of(kind: str, ranks: int, degree: int) -> DeviceMesh:
    """All ranks, in `degree` groups of neighbours that hold a copy each, where it is above 1."""
    if degree == 1:
        return init_device_mesh(kind, (ranks,), mesh_dim_names=("shard",))
    return init_device_mesh(kind, (degree, ranks // degree), mesh_dim_names=("replicate", "shard"))


def shard(objectives: Objectives, mesh: DeviceMesh, reshard_after_forward: bool = True) -> None:
    """Before the optimizer is built. Groups of weights that come and go together: each block of a tower or the trunk,
    what else a tower has, and at the root all else (tables, heads, connectors, scales)."""
    model, how = objectives.model, {"mesh": mesh, "reshard_after_forward": reshard_after_forward}
    kept = _kept_whole(objectives)
    for tower in (tower for tower in model.towers.values() if not kept.issuperset(tower.parameters())):
        for block in blocks_of(tower):
            fully_shard(block, **how)
        fully_shard(tower, **how)
    for block in model.trunk.blocks:
        fully_shard(block, **how)
    fully_shard(objectives, mesh=mesh, ignored_params=kept)
    register_fsdp_forward_method(objectives, "inside")
    objectives.sharded = True


def _kept_whole(objectives: Objectives) -> set[nn.Parameter]:
    """Weights of what does not learn and is not entered by all ranks alike: codecs that are only used, and towers whose
    features are kept on the disk."""
    model = objectives.model
    alone = [*model.codecs.values(), *(t for t in model.towers.values() if isinstance(t, ImportedTower) and t.kept)]
    return {p for part in alone for p in part.parameters() if not any(q.requires_grad for q in part.parameters())}


@contextlib.contextmanager
def whole(objectives: Objectives, reshard_after_forward: bool = True) -> Iterator[None]:
    """All weights on every rank meanwhile, so that ranks may call the model unequally often. All must come here.

    reshard_after_forward: what is restored.
    """
    parts = [part for part in objectives.modules() if isinstance(part, FSDPModule)]
    objectives.inside(nothing)  # else what is entered first in there would be taken for the root
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(reshard_after_forward and part is not objectives, recurse=False)
            part.reshard()


def hold_rows(table: nn.Parameter, rows: range) -> None:
    """No gradient for these rows of a sharded table, on which a hook of autograd would see none."""
    if table.grad is not None:
        held = torch.zeros(table.shape, dtype=torch.bool, device=table.device)
        held[rows.start : rows.stop] = True
        table.grad.to_local()[part_of(held, table).to_local()] = 0  # type: ignore[attr-defined]


def part_of(x: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor the part that this rank holds of `like`."""
    x = x.reshape(like.shape).to(like.device)
    if not isinstance(like, DTensor):
        return x
    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)
