"""Weights sharded over ranks train as one process does, in float64, whatever each rank's share holds."""

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_distributed import CODEC, learning
from toys import pick, random_batch, toy_model

from mmfm.config import Parallel, Run
from mmfm.data.batch import Batch
from mmfm.models.model import UnifiedModel
from mmfm.objectives.grad_cache import grad_cache_backward
from mmfm.objectives.joint import Objectives
from mmfm.runtime.distributed import full_tensor, joined_if_many
from mmfm.training.optimizer import adamw
from mmfm.training.sharding import mesh_of, shard

SIZE, STEPS = 12, 4
RUN = learning(0)
STRATEGIES = {"fsdp": Parallel(), "zero2": Parallel(reshard_after_forward=False)}


def model_of(run: Run, dropout: float = 0.2) -> UnifiedModel:
    return toy_model(contrast=run.contrastive, image_codec=CODEC, dropout=dropout).train()


def batch_of(step: int, rank: int, ranks: int) -> Batch:
    """This rank's share; each second step samples with pictures are those of the first ranks, so that the last ones
    have none; the last step has no sound on any rank."""
    every, rows = random_batch(SIZE, seed=step), list(range(SIZE))
    seen = set(every.items["image"].rows.tolist())
    if step % 2:
        lacking = [row for row in rows if row not in seen]
        rows = [row for row in rows if row in seen][: len(lacking)] + lacking
    each = -(-len(rows) // ranks)
    batch = pick(every, rows[rank * each : (rank + 1) * each])
    return batch if step < STEPS - 1 else replace(batch, items={k: v for k, v in batch.items.items() if k != "audio"})


def train(owner: Objectives, run: Run, rank: int, ranks: int, parts: int = 0) -> list[dict[str, torch.Tensor]]:
    """Losses over all ranks of each step, with clipping."""
    optimizer, found = adamw(owner, run.optim), []
    for step in range(STEPS):
        batch = batch_of(step, rank, ranks)
        optimizer.zero_grad()
        if parts:
            losses = grad_cache_backward(owner, batch, parts)
        else:
            losses = owner(batch)
            owner.total(losses).backward()
        norm = torch.nn.utils.clip_grad_norm_(owner.parameters(), 0.5)
        optimizer.step()
        owner.model.clamp_scales()
        found.append({name: owner.ranks.all_reduce_sum(loss) for name, loss in losses.items()})
        found[-1]["norm"] = torch.tensor(float(norm), dtype=torch.float64)
    return found


def weights(owner: Objectives) -> dict[str, torch.Tensor]:
    return {name: full_tensor(p).detach().clone() for name, p in owner.named_parameters()}


def of_strategy(name: str, degree: int = 1, parts: int = 0) -> tuple[Any, Any]:
    owner = Objectives(model_of(RUN), RUN, joined_if_many())
    shard(owner, mesh_of("cpu", dist.get_world_size(), degree), STRATEGIES[name].reshard_after_forward)
    losses = train(owner, RUN, dist.get_rank(), dist.get_world_size(), parts)
    return losses, weights(owner)


CASES: dict[str, Callable[[], Any]] = {
    "fsdp": lambda: of_strategy("fsdp"),
    "zero2": lambda: of_strategy("zero2"),
    "parts": lambda: of_strategy("fsdp", parts=5),
}


def one_rank(rank: int, ranks: int, port: int, out: Path, cases: dict[str, Callable[[], Any]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    torch.save({name: case() for name, case in CASES.items()}, out / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.set_forkserver_preload(["mmfm.training.sharding"])
    mp.start_processes(one_rank, args=(2, port, out, {}), nprocs=2, start_method="forkserver")
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> tuple[Any, Any]:
    owner = Objectives(model_of(RUN), RUN)
    return train(owner, RUN, 0, 1), weights(owner)


@pytest.mark.parametrize("name", CASES)
def test_four_steps_are_those_of_one_process(processes: list[dict], alone: Any, name: str) -> None:
    """AdamW and clipping, dropout on: losses, the norm of gradients, and each weight after four steps."""
    for rank in processes:
        losses, found = rank[name]
        for mine, expected in zip(losses, alone[0], strict=True):
            for key in expected:
                torch.testing.assert_close(mine[key], expected[key].detach(), rtol=1e-9, atol=1e-10)
        differences = {key: float((found[key] - expected).abs().max()) for key, expected in alone[1].items()}
        assert max(differences.values()) < 1e-10, differences


def test_shares_have_what_ranks_could_get_wrong() -> None:
    """A rank without a picture beside one with several, and at last no sound anywhere."""
    held = [[batch_of(step, rank, 2).items.keys() for rank in range(2)] for step in range(STEPS)]
    assert "image" in held[1][0] and "image" not in held[1][1]
    assert all("audio" not in rank for rank in held[-1])
