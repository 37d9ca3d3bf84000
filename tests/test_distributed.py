"""Two gloo processes against one, in float64: losses and gradients are equal, whatever each rank's share holds."""

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from toys import pick, toy_batch, toy_model, toy_run

from mmfm.distributed import Alone, joined_if_many
from mmfm.objectives import Objectives

SHARES = {
    "mixed": ([0, 1, 2, 3], [4, 5, 6, 7]),
    "modalities apart": ([0, 3, 6, 2], [1, 4, 7, 5]),
    "images on one rank only": ([0, 3, 6, 2], [1, 4]),
    "one rank has no pair at all": ([0, 1, 2, 3, 4, 5, 6], [7]),
}


def losses_and_gradients(objectives: torch.nn.Module, owner: Objectives, batch) -> tuple[dict, dict]:
    losses = objectives(batch)
    owner.total(losses).backward()
    totals = {name: owner.ranks.total(loss) for name, loss in losses.items()}
    return totals, {name: p.grad.clone() for name, p in owner.named_parameters() if p.grad is not None}


def one_rank(rank: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results = {}
    for name, shares in SHARES.items():
        owner = Objectives(toy_model(), toy_run(), joined_if_many())
        wrapped = DistributedDataParallel(owner, find_unused_parameters=True)
        results[name] = losses_and_gradients(wrapped, owner, pick(toy_batch(8, repeats=True), shares[rank]))
    torch.save(results, out / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(one_rank, args=(port, out), nprocs=2, start_method="spawn")
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", SHARES)
def test_two_ranks_equal_one_process(ranks, name):
    """Each objective's loss, and after DDP's averaging every parameter's gradient, is that of the whole batch."""
    owner = Objectives(toy_model(), toy_run(), Alone())
    whole = pick(toy_batch(8, repeats=True), [*SHARES[name][0], *SHARES[name][1]])
    losses, gradients = losses_and_gradients(owner, owner, whole)
    for rank in ranks:
        found, found_gradients = rank[name]
        torch.testing.assert_close(found, losses, rtol=1e-10, atol=1e-12)
        for parameter, gradient in found_gradients.items():
            expected = gradients.get(parameter, torch.zeros_like(gradient))
            torch.testing.assert_close(
                gradient, expected, rtol=1e-9, atol=1e-11, msg=lambda m, p=parameter: f"{p}: {m}"
            )
        assert gradients.keys() <= found_gradients.keys()


def test_the_batch_of_the_test_has_repeats_and_lacks():
    """Else the test above would not test them: two samples share a text, one has none, and no rank holds everything."""
    batch = toy_batch(8, repeats=True)
    assert len(batch.same.unique()) < 8 and -1 in batch.same.tolist()
    images, sounds = (set(batch.items[name].rows.tolist()) for name in ("image", "audio"))
    assert images != sounds and not images & set(SHARES["images on one rank only"][1])
