"""Figures of speed: planted counts, seconds and peaks give known figures; traffic by formula is what rings send."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toys import toy_batch, toy_model, toy_run

from mmfm.config import UserError
from mmfm.models.flops import step_flops
from mmfm.objectives.contrastive_loss import CONTRAST
from mmfm.objectives.joint import Objectives
from mmfm.runtime import accelerators, communication
from mmfm.runtime.accelerators import KNOWN, accelerator, called
from mmfm.runtime.communication import step_traffic
from mmfm.runtime.distributed import SingleProcess
from mmfm.training import throughput
from mmfm.training.throughput import Throughput, padding, traffic


class Two:
    """Two ranks that hold the same."""

    rank, size = 0, 2

    def all_reduce_sum(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def after(steps: int) -> Objectives:
    objectives = Objectives(toy_model(), toy_run())
    for _ in range(steps):
        objectives(toy_batch())
    return objectives


def test_planted_seconds_give_known_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps in two seconds, half a second of waiting, on a device of a known peak."""
    monkeypatch.setattr(throughput, "peak_flops", lambda run, device: 1e9)
    objectives, speed = after(3), Throughput(toy_run())
    found = speed.figures(objectives, 3, 2.0, 0.5)
    again = after(3)
    counts, pairs = again.model.read_counts.named(again.model.read_counts.drain(torch.device("cpu")))
    assert found["tokens_per_s"] == counts["trunk"]["tokens"] / 2
    assert found["tokens_per_s/text"] == counts["text"]["tokens"] / 2
    assert found["data_wait"] == 0.25
    flops = step_flops(again.model, counts, pairs)
    assert found["tflops_per_step"] * 3e12 == pytest.approx(flops)
    assert found["mfu"] == pytest.approx(flops / 2 / 1e9)
    assert found["padding/image"] == 0 and 0 < found["padding/text"] < 1
    assert "communication_mb" not in found and found["memory_gb"] > 0.05


def test_waiting_is_that_since_the_last_line() -> None:
    speed = Throughput(toy_run())
    assert speed.figures(after(1), 1, 2.0, 1.0)["data_wait"] == 0.5
    assert speed.figures(after(1), 1, 2.0, 1.5)["data_wait"] == 0.25


def test_two_ranks_have_read_twice_as_much() -> None:
    """And each sends by formula."""
    one, two = after(2), after(2)
    two.ranks = Two()  # type: ignore[assignment]
    alone, both = (Throughput(toy_run()).figures(x, 2, 1.0, 0.3) for x in (one, two))
    assert both["tokens_per_s"] == 2 * alone["tokens_per_s"] and both["data_wait"] == pytest.approx(0.3, abs=1e-6)
    assert both["padding/text"] == alone["padding/text"]
    assert both["communication_mb"] * 1e6 == pytest.approx(traffic(toy_run(), two).total)


def test_padding_of_nothing_is_none() -> None:
    assert padding({"tokens": 3, "places": 4}) == 0.25 and padding({"tokens": 0, "places": 0}) == 0.0


def sent_by_rings(n: int, size: int) -> int:
    """Bytes that one of n ranks sends in a ring all-reduce of `size` bytes, pass by pass."""
    sent = 0
    for _ in range(2):  # reduce-scatter, all-gather
        for _ in range(n - 1):
            sent += size // n
    return sent


@pytest.mark.parametrize("n", [2, 4, 8])
def test_an_all_reduce_is_that_of_a_ring(n: int) -> None:
    assert communication.all_reduce(64 * n, n) == sent_by_rings(n, 64 * n)


def test_one_rank_sends_nothing() -> None:
    for sharded in (False, True):
        assert step_traffic(1, weights=100, gradients=100, contrast=10, sharded=sharded).total == 0


def test_strategies_send_what_their_papers_say() -> None:
    """Of psi bytes with many ranks: DDP and ZeRO-2 twice, FSDP (ZeRO-3) three times (ZeRO, arXiv 1910.02054, section
    7); HSDP's copies reduce a shard besides; GradCache gathers for each forward."""
    n, psi = 1024, 1024.0
    each = {"weights": psi, "gradients": psi}
    ddp, fsdp = step_traffic(n, **each), step_traffic(n, **each, sharded=True)
    zero2 = step_traffic(n, **each, sharded=True, reshard=False)
    assert ddp.total == pytest.approx(2 * psi, rel=2e-3) and zero2.total == ddp.total
    assert fsdp.total == pytest.approx(3 * psi, rel=2e-3)
    hsdp = step_traffic(n, **each, sharded=True, replicas=n // 8)
    assert hsdp.gradients == pytest.approx(psi * 7 / 8 + 2 * psi / 8, rel=1e-2)
    parts = step_traffic(n, **each, sharded=True, parts=4)
    assert parts.weights == 6 * fsdp.weights and parts.gradients == 4 * fsdp.gradients
    assert step_traffic(n, **each, parts=4) == ddp


class Recorded(SingleProcess):
    """Two ranks that hold the same, and the bytes that one of them sends of numbers."""

    size = 2

    def __init__(self) -> None:
        self.sent = 0

    def all_gather(self, x: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        if not x.is_floating_point():  # groups and ranks of rows: the second rank's are its own
            return torch.cat([x, x + torch.tensor([len(x), 1])])
        self.sent += x.numel() * x.element_size()
        return torch.cat([x, x])

    def reduce_scatter_sum(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        self.sent += x.numel() * x.element_size() // 2
        return x[: counts[0]]


@pytest.mark.parametrize("name", CONTRAST)
def test_a_contrast_sends_what_is_said(name: str) -> None:
    """Beside a number for each row, by which the softmax of columns is made up."""
    rows, width, ranks = 64, 256, Recorded()
    a, b = (F.normalize(torch.randn(rows, width), dim=1).requires_grad_() for _ in range(2))
    CONTRAST[name](a, b, torch.arange(rows), torch.ones(()), torch.zeros(()), ranks).backward()
    told = step_traffic(2, weights=0, gradients=0, contrast=2 * rows * width * 4).contrast
    assert told <= ranks.sent <= 1.01 * told


def test_locked_weights_send_no_gradients() -> None:
    objectives = after(0)
    objectives.ranks = Two()  # type: ignore[assignment]
    whole = traffic(toy_run(), objectives)
    objectives.model.lock([name for name, _ in objectives.model.named_parameters() if name.startswith("trunk.")])
    assert traffic(toy_run(), objectives).gradients < whole.gradients


def test_devices_are_known_by_the_names_of_people_and_drivers() -> None:
    assert accelerator("H100").bf16 == 989.4e12 and accelerator("h100").peak("bf16") == 989.4e12
    assert accelerator("a100").peak("fp32") == 19.5e12 and accelerator("a100").peak("fp32", tf32=True) == 156e12
    assert called("NVIDIA H100 80GB HBM3") is KNOWN["h100"] and called("NVIDIA H100 PCIe") is KNOWN["h100-pcie"]
    assert called("NVIDIA A100-SXM4-40GB") is KNOWN["a100-40gb"] and called("NVIDIA L40S") is KNOWN["l40s"]
    assert called("NVIDIA L4") is KNOWN["l4"] and called("Some GPU") is None
    assert set(accelerators.CALLED.values()) == set(KNOWN)
    with pytest.raises(UserError, match=r"device 'h1000' is not known; give one of b200, h200"):
        accelerator("h1000")
