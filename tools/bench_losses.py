"""Memory and time of the tiled losses against the same losses with the whole square: contrast and cross-entropy.

Each is computed, with its gradients, in a process of its own, whose peak of resident memory above its inputs is taken;
the two ways follow each other in turn.

    python tools/bench_losses.py [--rounds 3] [--out tools/bench_losses.json]
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import in_a_process, in_turns, ratios, row, write_report
from torch import Tensor

from mmfm.objectives.contrastive_loss import sigmoid_contrast, softmax_contrast
from mmfm.objectives.cross_entropy import linear_cross_entropy

SPAWN = multiprocessing.get_context("spawn")
PAIRS, DIM = 16_384, 256
LARGE = (32_768, 512)
TOKENS, WIDTH, VOCABULARY = 2_048, 512, 128_256
SLOWER = {"softmax": 1.05, "sigmoid": 1.05, "cross-entropy": 1.1}
SMALLER = {"softmax": 15, "sigmoid": 15, "cross-entropy": 7}


def naive_softmax(a: Tensor, b: Tensor, same: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    target = (same[:, None] == same).to(a.dtype)
    target = target / target.sum(1, keepdim=True)
    ways = (-(target * (scale * x @ y.T).log_softmax(1)).sum() for x, y in ((a, b), (b, a)))
    return sum(ways, torch.zeros(())) / (2 * len(a))


def naive_sigmoid(a: Tensor, b: Tensor, same: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    sign = 2 * (same[:, None] == same).to(a.dtype) - 1
    return -F.logsigmoid(sign * (scale * a @ b.T + bias)).sum() / len(a)


def naive_cross_entropy(states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(states @ weight.T, labels, reduction="sum")


WAYS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "softmax": (softmax_contrast, naive_softmax),
    "sigmoid": (sigmoid_contrast, naive_sigmoid),
    "cross-entropy": (linear_cross_entropy, naive_cross_entropy),
}


def inputs(loss: str, pairs: int, dim: int) -> tuple[Tensor, ...]:
    if loss == "cross-entropy":
        states, weight = (torch.randn(n, WIDTH, requires_grad=True) for n in (TOKENS, VOCABULARY))
        return states, weight, torch.randint(VOCABULARY, (TOKENS,))
    a, b = (F.normalize(torch.randn(pairs, dim), dim=1).requires_grad_() for _ in range(2))
    scale, bias = (torch.tensor(value, requires_grad=True) for value in (10.0, -10.0))
    return a, b, torch.arange(pairs), scale, bias


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(loss: str, tiled: bool, pairs: int, dim: int, tell: Callable[[tuple[float, float]], None]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    given, way = inputs(loss, pairs, dim), WAYS[loss][0 if tiled else 1]
    before, start = peak_mb(), time.process_time()
    way(*given).backward()
    tell((time.process_time() - start, peak_mb() - before))


def alone(loss: str, tiled: bool, pairs: int = PAIRS, dim: int = DIM) -> tuple[float, float]:
    """CPU seconds and peak in MB, of a process of its own."""
    return in_a_process(SPAWN, measure, loss, tiled, pairs, dim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("tools/bench_losses.json"))
    args = parser.parse_args()
    rows = []
    for loss in WAYS:
        peaks: dict[bool, list[float]] = {True: [], False: []}

        def way(tiled: bool, loss: str = loss, peaks: dict[bool, list[float]] = peaks) -> float:
            seconds, peak = alone(loss, tiled)
            peaks[tiled].append(peak)
            return seconds

        found = in_turns({"tiled": lambda: way(True), "naive": lambda: way(False)}, args.rounds)
        size = f"{TOKENS:,} x {WIDTH} x {VOCABULARY:,}" if loss == "cross-entropy" else f"{PAIRS:,} x {DIM}"
        rows += [
            row(
                f"{loss} of {size}: naive peak over tiled",
                ratios(peaks[False], peaks[True]),
                unit="x",
                goal=f">= {SMALLER[loss]}",
            ),
            row(
                f"{loss} of {size}: CPU time over naive's",
                ratios(found["tiled"], found["naive"]),
                unit="x",
                goal=f"<= {SLOWER[loss]}",
            ),
            row(f"{loss} of {size}: peak", peaks[True], unit="MB"),
        ]
    seconds, peak = alone("softmax", True, *LARGE)
    size = f"{LARGE[0]:,} x {LARGE[1]}"
    rows += [
        row(f"softmax of {size}: peak", [peak], unit="MB"),
        row(f"softmax of {size}: CPU time", [seconds], unit="s"),
    ]
    write_report(args.out, rows, {"torch": torch.__version__})


if __name__ == "__main__":
    main()
