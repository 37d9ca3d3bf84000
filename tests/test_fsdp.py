"""Weights sharded over ranks train as one process does, in float64, whatever each rank's share holds."""

from typing import Any

import pytest
import sharded
import torch
from sharded import CHAT, LOCKED, MUON, ONLY_CODEC, RUN, STEPS, TALK, UNASKED, alone, batch_of, check, of_ranks, start
from torch import nn
from toys import toy_model

from mmfm.config import Parallel, UserError
from mmfm.models.execution import blocks_of
from mmfm.training.sharding import chosen_strategy

TRAINED = {
    "fsdp": (of_ranks, {}),
    "zero2": (of_ranks, {"reshard": False}),
    "parts": (of_ranks, {"parts": 5}),
    "evaluated": (of_ranks, {"after": sharded.unequal_calls}),
    "locked towers": (of_ranks, {"run": LOCKED}),
    "checkpointed": (sharded.checkpointed, {"how": "full"}),
    "selective": (sharded.checkpointed, {"how": "selective"}),
    "compiled": (sharded.compiled, {}),
    "muon": (of_ranks, {"run": MUON}),
    "a codec alone": (of_ranks, {"run": ONLY_CODEC}),
    "unasked": (of_ranks, {"run": UNASKED}),
    "conversations": (of_ranks, {"run": CHAT}),
    "conversations in parts": (of_ranks, {"run": CHAT, "parts": 5}),
    "conversations alone": (of_ranks, {"run": TALK}),
}
OTHERS = {
    "collectives": (sharded.collectives, {}),
    "collectives of zero2": (sharded.collectives, {"reshard": False}),
    "collectives of parts": (sharded.collectives, {"parts": 3}),
    "dtypes": (sharded.dtypes_under_autocast, {}),
    "held": (sharded.held_rows, {}),
}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return start(2, tmp_path_factory.mktemp("ranks"), TRAINED | OTHERS)


@pytest.fixture(scope="module")
def one_process() -> dict[str, Any]:
    runs = {"locked towers": LOCKED, "muon": MUON, "a codec alone": ONLY_CODEC, "unasked": UNASKED, "": RUN}
    runs |= {"conversations": CHAT, "conversations in parts": CHAT, "conversations alone": TALK}
    return {name: alone(run) for name, run in runs.items()}


@pytest.mark.parametrize("name", TRAINED)
def test_five_steps_are_those_of_one_process(processes: list[dict], one_process: dict, name: str) -> None:
    """AdamW, or Muon, and clipping, dropout on: losses, scales, the norm of gradients, and at the end each weight."""
    for rank in processes:
        check(rank[name], one_process.get(name) or one_process[""])


def test_shares_have_what_ranks_could_get_wrong() -> None:
    """A rank without a picture beside one with several, one without a sample, and no sound anywhere."""
    held = [[batch_of(step, rank, 2) for rank in range(2)] for step in range(STEPS)]
    assert "image" in held[1][0].items and "image" not in held[1][1].items
    assert not held[2][1].size and not held[2][1].items
    assert all("audio" not in rank.items for rank in held[-1])


def test_collectives_of_a_step_are_counted(processes: list[dict]) -> None:
    """Nine groups of weights: a tower and its block each, two blocks of the trunk, and the root. All are gathered for
    the forward, all but the root again for the backward, and each group's gradients are scattered once. The rest is
    ours."""
    of_weights = {"collectives": 9 + 8, "collectives of zero2": 9}
    for name, count in of_weights.items():
        found = processes[0][name]
        assert processes[1][name] == processes[0][name]
        assert (found["allgather_base"], found["reduce_scatter_base"]) == (count, 9 + 3)
        # The roll call; of each pair how many rows, whose, one side, and the gradients of that side, scattered too; of
        # a softmax its columns; all counts that losses divide by.
        assert (found["allgather"], found["allreduce"]) == (1 + 3 * 3 + 2, 1)


def test_each_part_gathers_weights_and_scatters_gradients(processes: list[dict]) -> None:
    """Two micro-batches: weights are gathered for a forward without gradients, a forward and a backward of each, and
    the gradients of each are scattered; besides those of the contrasts' scales, which are the root's."""
    found = processes[0]["collectives of parts"]
    assert 2 * (9 + 9 + 8) - 1 <= found["allgather_base"] <= 2 * (9 + 9 + 8)
    assert found["reduce_scatter_base"] == 2 * 9 + 1 + 3


def test_losses_are_made_in_single_precision_under_autocast(processes: list[dict]) -> None:
    assert len(processes[0]["dtypes"]) == 9 + len(RUN.terms)
    assert {kind for rank in processes for kind in rank["dtypes"]} == {"torch.float32"}


def test_held_rows_have_no_gradient_on_any_rank(processes: list[dict]) -> None:
    """Not even one that is not a number; other rows keep theirs."""
    before, after = processes[0]["held"]
    assert not after[1:7].any() and torch.equal(after[7:][before[7:] != 0], before[7:][before[7:] != 0])
    assert torch.equal(after.isnan().any(1)[1:7], torch.zeros(6, dtype=torch.bool))


@pytest.mark.parametrize(
    ("strategy", "memory", "expected"),
    [
        ("auto", 56.1, "ddp, as weights, gradients and moments of 2.8e-08 GB are at most half of the 5.61e-08 GB"),
        ("auto", 55.9, "fsdp, as weights, gradients and moments of 2.8e-08 GB are more than half of the 5.59e-08 GB"),
        ("ddp", 1.0, "ddp, as chosen"),
        ("fsdp", 1e9, "fsdp, as chosen"),
    ],
)
def test_auto_shards_what_does_not_fit(strategy: Any, memory: float, expected: str) -> None:
    """Sixteen bytes for each number that learns, four for one that does not, in half of a rank's memory."""
    model = nn.Linear(3, 1)
    model.weight.requires_grad_(False)
    kind, told = chosen_strategy(Parallel(strategy=strategy), model, 2, memory)
    assert told.startswith(expected) and kind == expected[: len(kind)]


def test_copies_that_the_ranks_do_not_make_are_refused() -> None:
    with pytest.raises(UserError, match=r"data_parallel_replicate_degree=3 is no divisor of the 4 ranks; choose one"):
        chosen_strategy(Parallel(data_parallel_replicate_degree=3), nn.Linear(1, 1), 4, 1e9)
    with pytest.raises(UserError, match=r'data_parallel_replicate_degree=2 is of strategy="fsdp".*; leave it out'):
        Parallel(strategy="ddp", data_parallel_replicate_degree=2)


def test_layers_of_any_library_are_found() -> None:
    """The outermost list of modules of one class and of several parts; no list of single convolutions."""
    layers = [nn.TransformerEncoderLayer(8, 2) for _ in range(3)]
    tower = nn.ModuleDict(
        {"stem": nn.Sequential(*(nn.Conv1d(1, 1, 1) for _ in range(2))), "deep": nn.ModuleList(layers)}
    )
    assert [*blocks_of(tower)] == layers
    ours = toy_model().towers["audio"]
    assert [*blocks_of(ours)] == [*ours.blocks]
