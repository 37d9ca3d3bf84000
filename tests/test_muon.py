"""Muon: orthogonal updates, torch's own, one optimizer for both kinds of groups, and shards that step as the whole."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from toys import toy_model, toy_run

from mmfm.config import Ema, Optim, UserError
from mmfm.objectives.joint import Objectives
from mmfm.training.ema import update_ema
from mmfm.training.muon import Muon, orthogonal
from mmfm.training.optimizer import adamw, parameter_groups

MUON = Optim(optimizer="muon", lr=0.02, weight_decay=0.1)


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (24, 24)])
def test_an_update_is_nearly_orthogonal(shape: tuple[int, int]) -> None:
    """Singular values near 1 and singular vectors as they were; neither its size nor its sign's place matters."""
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    x = (u * torch.linspace(0.5, 3, u.shape[1], dtype=torch.float64)) @ v
    found = orthogonal(x)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.65 and values.max() < 1.25
    inside = u.T @ found @ v.T
    assert (inside - inside.diagonal().diag()).abs().max() < 1e-9
    torch.testing.assert_close(orthogonal(1e4 * x), found)
    torch.testing.assert_close(orthogonal(-x), -found)


def test_it_is_torchs_muon() -> None:
    """Ten steps on two matrices with decay. torch's iteration is in bf16: updates differ by a few percent of a step."""
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in ((16, 48), (32, 8))]
    theirs, start = [nn.Parameter(p.detach().clone()) for p in ours], [p.detach().clone() for p in ours]
    mine = Muon([{"params": ours, "muon": True}], lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(10):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        other.step()
    for a, b, before in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.05 * (a - before).norm()


def test_the_matrices_of_blocks_are_its_own_and_the_rest_is_adamws() -> None:
    """A partition; what AdamW has moves to the bit as AdamW alone moves it, and a step moves everything."""
    model = toy_model()
    twin = toy_model()
    twin.load_state_dict(model.state_dict())
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, MUON)
    mine = {names[id(p)] for group in groups if group["muon"] for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(names)
    assert {"trunk.blocks.0.attn.qkv.weight", "towers.image.blocks.0.mlp.fc1.weight"} <= mine
    assert all(".blocks." in name and model.get_parameter(name).ndim == 2 for name in mine)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plain = Optim(lr=MUON.lr, weight_decay=MUON.weight_decay)
    for one, optimizer in ((model, adamw(model, MUON)), (twin, adamw(twin, plain))):
        torch.manual_seed(1)
        for _ in range(2):
            for parameter in one.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, twin.get_parameter(name)) == (name not in mine), name
        assert not torch.equal(parameter, before[name]), name


def test_a_closure_that_clears_gradients_clears_all() -> None:
    """As Lightning steps: it hands over the gradients as a function, which sets those of before to zero. None of them
    adds up from step to step."""
    weights = [nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))]
    optimizer = Muon([{"params": weights[:1], "muon": True}, {"params": weights[1:], "muon": False}], lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum((p.sum() for p in weights), torch.zeros(()))
        loss.backward()
        return loss.detach()

    for _ in range(3):
        assert float(optimizer.step(closure)) > 0
        for p in weights:
            assert p.grad is not None and torch.equal(p.grad, torch.ones_like(p))


def test_its_state_goes_on_where_it_was() -> None:
    """Saved and loaded between two steps, it ends at the same weights."""

    def run(reload: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = toy_model()
        optimizer = adamw(model, MUON)
        for step in range(4):
            if step == 2 and reload:
                state, optimizer = optimizer.state_dict(), adamw(model, MUON)
                optimizer.load_state_dict(state)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        return dict(model.named_parameters())

    whole, resumed = run(False), run(True)
    assert all(torch.equal(whole[name], x) for name, x in resumed.items())


def train(rank: int, size: int, meeting: str, tell: Any) -> None:
    """Three steps in float64 with gradients of all weights, averaged as FSDP does: of sharded blocks, or whole."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    owner = Objectives(toy_model().double(), toy_run())
    if size > 1:
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
        mesh = init_device_mesh("cpu", (size,))
        for tower in owner.model.towers.values():
            for block in tower.blocks:
                fully_shard(block, mesh=mesh)
        for block in owner.model.trunk.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(owner, mesh=mesh)
    optimizer, draw = adamw(owner, MUON), torch.Generator().manual_seed(5)
    for step in range(3):
        for parameter in owner.parameters():
            whole = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            sharded = isinstance(parameter, DTensor)
            parameter.grad = (
                torch.distributed.tensor.distribute_tensor(
                    whole, parameter.device_mesh, parameter.placements, src_data_rank=None
                )
                if sharded
                else whole
            )
        optimizer.step()
        update_ema(optimizer, Ema(decay=0.5), step + 1)

    def full(x: Tensor) -> Tensor:
        return (x.full_tensor() if isinstance(x, DTensor) else x).detach()

    found = {name: (full(p), full(optimizer.state[p]["ema"])) for name, p in owner.named_parameters()}
    shards = sum(isinstance(optimizer.state[p]["ema"], DTensor) for p in owner.parameters())
    if rank == 0:
        torch_to_plain = {name: (a.numpy(), b.numpy()) for name, (a, b) in found.items()}
        tell.send((torch_to_plain, shards))
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def test_shards_step_as_the_whole(tmp_path: Path) -> None:
    """Two ranks of FSDP2, float64, Muon and AdamW with a moving average: weights and averages of one process."""
    context = multiprocessing.get_context("spawn")

    def found(size: int) -> Any:
        here, there = context.Pipe(duplex=False)
        meeting = f"file://{tmp_path}/meeting-{size}"
        ranks = [context.Process(target=train, args=(rank, size, meeting, there)) for rank in range(size)]
        for one in ranks:
            one.start()
        assert here.poll(60)
        result = here.recv()
        for one in ranks:
            one.join(60)
            assert one.exitcode == 0
        return result

    (whole, none), (sharded, some) = found(1), found(2)
    assert none == 0 and some > 10
    for name, expected in whole.items():
        for a, b in zip(sharded[name], expected, strict=True):
            assert abs(a - b).max() < 1e-12, name


def test_an_average_follows_by_its_decay() -> None:
    """By hand: begins as the weights after `start_step`, follows every second step by two steps' worth; what no step
    moved has none, and AdamW still begins to move it later."""
    weight, still = nn.Parameter(torch.ones(2, dtype=torch.float64)), nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer, seen = torch.optim.AdamW([weight, still], lr=0.1), list[Tensor]()
    for step in range(1, 8):
        weight.grad = torch.full_like(weight, float(step))
        optimizer.step()
        seen.append(weight.detach().clone())
        update_ema(optimizer, Ema(decay=0.9, start_step=2, every=2), step)
        assert ("ema" in optimizer.state[weight]) == (step >= 4)
    expected = seen[3] * 0.81 + seen[5] * 0.19
    torch.testing.assert_close(optimizer.state[weight]["ema"], expected)
    assert not optimizer.state.get(still)
    still.grad = torch.ones_like(still)
    optimizer.step()
    update_ema(optimizer, Ema(decay=0.9), 8)
    assert torch.equal(optimizer.state[still]["ema"], still)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: Ema(decay=1.0), r"Ema.decay=1.0 must be at least 0 and below 1"),
        (lambda: Ema(every=0), r"Ema.every=0"),
        (lambda: Ema(start_step=-1), r"Ema.start_step=-1 must not be negative"),
        (lambda: Optim(steps=10, warmup_steps=1, ema=Ema(start_step=10)), r"start_step=10 must be below steps=10"),
    ],
)
def test_wrong_choices_are_refused(made: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        made()
