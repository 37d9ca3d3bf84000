"""Four ranks with sharded weights, in copies too, and three, which no matrix divides by: one process's steps."""

from pathlib import Path

import pytest
from sharded import alone, check, of_ranks, start

CASES = {
    "three ranks": (3, {}),
    "four ranks": (4, {}),
    "two copies on two ranks each": (4, {"degree": 2}),
    "weights kept whole after the forward": (4, {"reshard": False}),
    "in parts": (4, {"parts": 2}),
    "in copies and parts, kept whole": (4, {"degree": 2, "reshard": False, "parts": 2}),
}


@pytest.mark.parametrize("ranks", [3, 4])
def test_any_ranks_train_as_one_process(tmp_path: Path, ranks: int) -> None:
    cases = {name: (of_ranks, how) for name, (count, how) in CASES.items() if count == ranks}
    expected = alone()
    for rank in start(ranks, tmp_path, cases):
        for name in cases:
            check(rank[name], expected)
