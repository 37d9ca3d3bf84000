"""How fast a run goes and what its steps cost, from one line of the metrics to the next: no question to the device is
added but where a line is written, which waits for it anyway."""

import math
from collections.abc import Mapping

import torch
from torch.distributed.tensor import DTensor

from mmfm.config import Run
from mmfm.models.flops import step_flops
from mmfm.models.read_counts import PLACES, TOKENS
from mmfm.objectives.joint import Objectives
from mmfm.runtime.accelerators import called
from mmfm.runtime.communication import Traffic, step_traffic
from mmfm.runtime.machine import peak_bytes

FLOAT = 4  # bytes of a number of an embedding
MICRO = 1_000_000


class Throughput:
    """Of the steps since the last line, over all ranks; memory is the first rank's."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.waited_s = 0.0  # that the data had made wait when the last line was written

    def figures(self, objectives: Objectives, steps: int, seconds: float, waited_s: float) -> dict[str, float]:
        """waited_s: since the run began, that this rank has waited for batches."""
        model, ranks = objectives.model, objectives.ranks
        device = model.device
        wait, self.waited_s = waited_s - self.waited_s, waited_s
        drained = model.read_counts.drain(device)
        *_, waits = found = ranks.all_reduce_sum(torch.cat([drained, drained.new_tensor([round(MICRO * wait)])]))
        counts, embeddings = model.read_counts.named(found[:-1])
        figures = {
            "tokens_per_s": counts["trunk"][TOKENS] / seconds,
            **{f"tokens_per_s/{name}": counts[name][TOKENS] / seconds for name in model.towers},
            "data_wait": min(1.0, float(waits) / MICRO / ranks.size / seconds),
            **{f"padding/{name}": padding(counts[name]) for name in model.towers if counts[name][PLACES]},
            "padding/attention": padding(counts["trunk"]),
            "memory_gb": peak_memory(device) / 1e9,
        }
        if ranks.size > 1:
            figures["communication_mb"] = traffic(self.run, objectives).total / 1e6
        if self.run.reconstruction:  # codecs that learn are not counted
            return figures
        flops = step_flops(model, counts, embeddings)
        figures["tflops_per_step"] = flops / steps / 1e12
        peak = peak_flops(self.run, device)
        return figures if peak is None else figures | {"mfu": flops / seconds / (ranks.size * peak)}


def padding(counts: Mapping[str, int]) -> float:
    """The share of a part's places that are padding. Of the trunk's attention it is computed; of a tower it is what the
    batch was padded by, which our own leave out."""
    return 1 - counts[TOKENS] / counts[PLACES] if counts[PLACES] else 0.0


def peak_memory(device: torch.device) -> int:
    """Bytes, since the process began: of the device's allocator, or on a CPU of the whole process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()


def peak_flops(run: Run, device: torch.device) -> float | None:
    """FLOP/s of the device's products in the run's precision; None where no data sheet is known."""
    if device.type != "cuda":
        return None
    found = called(torch.cuda.get_device_name(device))
    return None if found is None else found.peak(run.optim.precision, torch.get_float32_matmul_precision() != "highest")


def traffic(run: Run, objectives: Objectives) -> Traffic:
    """What a rank sends in a step."""
    learned = [p for p in objectives.parameters() if p.requires_grad]
    size = sum(p.numel() * p.element_size() for p in objectives.parameters())
    own = run.data.batch_size // objectives.ranks.size
    return step_traffic(
        objectives.ranks.size,
        weights=size,
        gradients=sum(p.numel() * p.element_size() for p in learned),
        contrast=len(run.contrastive) * run.data.batch_size * run.model.embed_dim * FLOAT,
        sharded=any(isinstance(p, DTensor) for p in learned),
        replicas=run.parallel.data_parallel_replicate_degree,
        reshard=run.parallel.reshard_after_forward,
        parts=math.ceil(own / run.parallel.micro_batch) if run.parallel.micro_batch else 1,
    )
