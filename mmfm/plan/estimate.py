"""From two counted steps to a run on many GPUs: bytes of a rank by name, seconds of a step, and what follows of these.

All counts grow with the samples of a rank as a line through the two that were counted. Time is a roofline (Williams et
al., CACM 2009): products at a share of the device's peak, all else at a share of its memory's bandwidth.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from mmfm.config import Run, require
from mmfm.plan.measure import Counted, Measured, Sizes
from mmfm.runtime.accelerators import Accelerator
from mmfm.runtime.communication import Traffic, step_traffic

PRODUCTS, MOVING = 0.7, 0.8  # shares of a data sheet's peak and bandwidth that large operations reach
LAUNCH_S = 5e-6  # that the host takes to start an operation on a GPU
OPTIMIZER = 8  # passes over a weight: weight, gradient and moments read, weight and moments written, gradient clipped
FLOAT, TILES = 4, 3
FITS = 0.92  # of a device's memory; the rest is the driver's, and what the allocator cannot use
MOST_SAMPLES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Machines:
    """gpus: all of them, on so many nodes. bandwidth: bytes/s that each sends to other nodes."""

    device: Accelerator
    gpus: int
    nodes: int
    bandwidth: float

    def __post_init__(self) -> None:
        told = f"--gpus {self.gpus} --nodes {self.nodes}"
        require(self.gpus > 0 and self.nodes > 0, f"{told} must be greater than 0")
        require(self.gpus % self.nodes == 0, f"{told}: each node must have as many GPUs")
        require(self.bandwidth > 0, f"--bandwidth {self.bandwidth / 1e9:g} must be greater than 0")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """memory: bytes of a rank by name, when it holds the most. *_s: seconds of a step. mfu: of the model's FLOPs by
    real tokens; None of codecs, whose FLOPs are not counted. shares_of_peak: of a data sheet's FLOP/s and bandwidth,
    what is taken for reached; none where operations were timed. sent_mb: by a rank in a step."""

    name: str
    device: str
    gpus: int
    nodes: int
    strategy: str
    parameters: int
    batch: int
    memory: Mapping[str, int]
    memory_total: int
    device_memory: int
    fits: bool
    largest_batch: int
    compute_s: float
    communication_s: float
    step_s: float
    mfu: float | None
    shares_of_peak: Mapping[str, float]
    model_tflops: float
    samples_per_s: float
    tokens_per_s: float
    data_mb_per_s: float
    sent_mb: Mapping[str, float] = field(default_factory=dict)
    steps: int
    hours: float
    gpu_hours: float
    assumptions: tuple[str, ...] = ()


def plan(found: Measured, machines: Machines, batch: int) -> Plan:
    """batch: samples of a step, over all ranks."""
    run, device, gpus = found.run, machines.device, machines.gpus
    sharded = is_sharded(found, device)
    memory = memory_of(found, machines, batch)
    own = batch / gpus
    products, others = compute_seconds(found, device, own)
    sent = traffic_of(found, machines, batch)
    compute, communication = products + others, communication_seconds(sent, machines)
    step_s = max(compute, communication)
    flops = line(found, own, lambda c: c.model_flops) * gpus
    total, room = sum(memory.values()), round(FITS * device.memory)
    return Plan(
        name=run.name,
        device=device.name,
        gpus=gpus,
        nodes=machines.nodes,
        strategy=strategy_of(run, sharded) if gpus > 1 else "one process",
        parameters=found.sizes.weights // FLOAT,
        batch=batch,
        memory={name: round(size) for name, size in memory.items()},
        memory_total=round(total),
        device_memory=round(device.memory),
        fits=total <= room,
        largest_batch=largest_batch(found, machines),
        compute_s=compute,
        communication_s=communication,
        step_s=step_s,
        mfu=None if run.reconstruction else flops / step_s / (gpus * peak_of(run, device)),
        shares_of_peak={} if device.name == "cpu" else {"products": PRODUCTS, "bandwidth": MOVING},
        model_tflops=flops / 1e12,
        samples_per_s=batch / step_s,
        tokens_per_s=line(found, own, lambda c: c.tokens) * gpus / step_s,
        data_mb_per_s=line(found, own, lambda c: c.batch) * gpus / step_s / 1e6,
        sent_mb={name: size / 1e6 for name, size in vars(sent).items()},
        steps=run.optim.steps,
        hours=run.optim.steps * step_s / 3600,
        gpu_hours=run.optim.steps * step_s / 3600 * gpus,
        assumptions=found.assumptions,
    )


def line(found: Measured, samples: float, of: Callable[[Counted], float]) -> float:
    """What a count is at so many samples."""
    a, b = found.small, found.large
    return float(of(a) + (of(b) - of(a)) * (samples - a.samples) / (b.samples - a.samples))


def is_sharded(found: Measured, device: Accelerator) -> bool:
    return found.run.parallel.is_sharded(found.sizes.weights, found.sizes.learned, device.memory)


def at_once(run: Run, own: float) -> tuple[float, int]:
    """Samples of a rank that go through the model at once, and in how many parts all do."""
    size = run.parallel.micro_batch
    return (float(min(size, own)), math.ceil(own / size)) if size else (float(own), 1)


def memory_of(found: Measured, machines: Machines, batch: int) -> dict[str, float]:
    """Bytes of a rank by name, at the moment when they are the most.

    Gradients of the step before live until the backward begins, as Lightning forgets them only then.
    """
    run, sizes, gpus = found.run, found.sizes, machines.gpus
    sharded, own = is_sharded(found, machines.device) and gpus > 1, batch / gpus
    shard = gpus // run.parallel.data_parallel_replicate_degree if sharded else 1
    size, parts = at_once(run, own)
    forward = line(found, size, lambda c: c.forward)
    moments = [_moment(found, name, size) for name in found.large.moments if name in found.small.moments]
    ends = [(forward, float(sizes.learned)), *moments]
    live, gradients = max(ends, key=lambda moment: moment[0] + moment[1] / shard)
    tile = min(run.parallel.loss_tile_mb * 2**20, own * batch * FLOAT)
    embeddings = batch * run.model.embed_dim * FLOAT
    kept = parts > 1
    return {
        "weights": sizes.weights / shard,
        "gradients": gradients / shard,
        "moments": moments_of(found) / shard,
        "average of weights": sizes.learned / shard if run.optim.ema else 0.0,
        "buckets of gradients": float(sizes.learned) if gpus > 1 and not sharded and not kept else 0.0,
        "whole blocks": held_whole(sizes, run.parallel.reshard_after_forward) if sharded else 0.0,
        "activations": max(live, 0.0),
        "contrasts": (2.0 * embeddings + TILES * tile) * bool(run.contrastive),
        "data": line(found, own, lambda c: c.batch),
    }


def strategy_of(run: Run, sharded: bool) -> str:
    """As people call it: ddp, fsdp, HSDP of so many copies, ZeRO-2."""
    copies = run.parallel.data_parallel_replicate_degree
    more = [f"{copies} copies"] if copies > 1 else []
    more += ["weights whole until the backward is done"] if not run.parallel.reshard_after_forward else []
    return ", ".join(("fsdp", *more)) if sharded else "ddp"


def held_whole(sizes: Sizes, reshard: bool) -> float:
    """Bytes beside a rank's share: weights and gradients of two blocks, the next among them, and of what is in none.
    ZeRO-2 has all weights when the backward begins."""
    some = float(sizes.blocks + sizes.root)
    return some + (some if reshard else sizes.weights)


def _moment(found: Measured, name: str, samples: float) -> tuple[float, float]:
    a, b = found.small.moments[name], found.large.moments[name]
    share = (samples - found.small.samples) / (found.large.samples - found.small.samples)
    return a.live + (b.live - a.live) * share, float(b.gradients)


def moments_of(found: Measured) -> float:
    """AdamW keeps two for each weight that learns; Muon one for a matrix of a block."""
    muon = found.run.optim.optimizer == "muon"
    return float(2 * found.sizes.learned - muon * found.sizes.matrices)


def largest_batch(found: Measured, machines: Machines) -> int:
    """Samples of a step that fit, over all ranks; 0: not even the weights do."""
    room, low, high = FITS * machines.device.memory, 0, MOST_SAMPLES
    while low < high:
        middle = (low + high + 1) // 2
        if sum(memory_of(found, machines, middle * machines.gpus).values()) <= room:
            low = middle
        else:
            high = middle - 1
    return low * machines.gpus


def compute_seconds(found: Measured, device: Accelerator, own: float) -> tuple[float, float]:
    """Of products, and of all else with the optimizer. Blocks that compute their activations again have a second
    forward among what was counted; a step in parts has one by formula. Of this machine both were timed."""
    run, sizes = found.run, found.sizes
    _, parts = at_once(run, own)
    again = 4 / 3 if parts > 1 else 1.0
    updated = OPTIMIZER * sizes.learned / (MOVING * device.bandwidth)
    if device.name == "cpu" and found.large.seconds:
        return again * line(found, own, lambda c: c.seconds), updated
    seconds = 0.0
    for kind in found.large.flops:
        peak = device.peak("fp32" if kind in (torch.float32, torch.float64) else "bf16", tf32(run))
        seconds += again * line(found, own, lambda c, kind=kind: c.flops.get(kind, 0)) / (PRODUCTS * peak)
    moved = again * line(found, own, lambda c: c.moved) + OPTIMIZER * sizes.learned  # as if nothing were sharded
    others = moved / (MOVING * device.bandwidth)
    host = again * parts * found.large.operations * LAUNCH_S
    return seconds, max(others, host - seconds)


def tf32(run: Run) -> bool:
    return run.optim.matmul_precision != "highest"


def peak_of(run: Run, device: Accelerator) -> float:
    return device.peak(run.optim.precision, tf32(run))


def traffic_of(found: Measured, machines: Machines, batch: int) -> Traffic:
    run, sizes = found.run, found.sizes
    return step_traffic(
        machines.gpus,
        weights=sizes.weights,
        gradients=sizes.learned,
        contrast=len(run.contrastive) * batch * run.model.embed_dim * FLOAT,
        sharded=is_sharded(found, machines.device),
        replicas=run.parallel.data_parallel_replicate_degree,
        reshard=run.parallel.reshard_after_forward,
        parts=at_once(run, batch / machines.gpus)[1],
    )


def communication_seconds(sent: Traffic, machines: Machines) -> float:
    """A ring is as fast as its slowest link."""
    link = machines.device.link if machines.nodes == 1 else min(machines.device.link, machines.bandwidth)
    return sent.total / link
