"""`mmfm plan`: a run on machines that need not be here, as a table for people or as JSON."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from mmfm.config import Run, require
from mmfm.plan.batches import Assumed
from mmfm.plan.estimate import MOVING, PRODUCTS, Machines, Plan, plan
from mmfm.plan.measure import Measured, measure, require_samples
from mmfm.runtime.accelerators import GIGA, Accelerator, accelerator, called
from mmfm.runtime.machine import available_bytes
from mmfm.training.sharding import require_copies

OF_A_NODE = 8  # GPUs, unless it is said


def machines_of(device: str, gpus: int, nodes: int, bandwidth_gb: float) -> Machines:
    """device: a name of `accelerators.KNOWN`, "cpu", or "auto": the GPU that is here, else h100. nodes: 0 for those of
    8 GPUs each, or one rank on a processor."""
    of_a_node = 1 if device == "cpu" else OF_A_NODE
    told = f"--gpus {gpus} makes no whole nodes of {of_a_node}; give --nodes, or a multiple of {of_a_node}"
    require(nodes > 0 or gpus <= of_a_node or gpus % of_a_node == 0, told)
    nodes = nodes or -(-gpus // of_a_node)
    return Machines(device=_device(device), gpus=gpus, nodes=nodes, bandwidth=bandwidth_gb * GIGA)


def _device(name: str) -> Accelerator:
    if name == "cpu":
        return this_processor()
    if name == "auto":
        here = called(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        return here or accelerator("h100")
    return accelerator(name)


def this_processor(side: int = 768, repeats: int = 5) -> Accelerator:
    """What products and copies of this machine reach, measured once, so that shares of it are whole."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    big = torch.zeros(1 << 24)
    product = min(_seconds(lambda: a @ b) for _ in range(repeats))
    copy = min(_seconds(big.clone) for _ in range(repeats))
    peak, bandwidth = 2 * side**3 / product / PRODUCTS, 2 * big.numel() * 4 / copy / MOVING
    memory = float(available_bytes())
    return Accelerator(
        name="cpu", bf16=peak, tf32=peak, fp32=peak, memory=memory, bandwidth=bandwidth, link=bandwidth / 2
    )


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def planned(run: Run, machines: Machines, assumed: Assumed) -> Plan:
    """The plan of the run's own batch. UserError where it cannot be planned."""
    require_samples(run, machines.gpus)
    return planned_on(run, [(machines, run.data.batch_size)], assumed)[0]


def planned_on(run: Run, choices: Sequence[tuple[Machines, int]], assumed: Assumed) -> list[Plan]:
    """The same run on several machines, with so many samples of a step on each; counted once."""
    require(bool(run.terms), "the run has no objective, and so no step; give contrastive, generative or reconstruction")
    for machines, _ in choices:
        require_copies(run.parallel, machines.gpus)
    own = max(batch // machines.gpus for machines, batch in choices)
    timed = any(machines.device.name == "cpu" for machines, _ in choices)
    found: Measured = measure(run, assumed, min(run.parallel.micro_batch or own, own), timed)
    return [plan(found, machines, batch) for machines, batch in choices]


def as_json(made: Plan) -> str:
    return json.dumps(dataclasses.asdict(made), indent=2) + "\n"


def lines(made: Plan) -> Iterator[str]:
    """For people."""
    gpus = f"{made.gpus:,} x {made.device}" + (f" on {made.nodes:,} nodes" if made.nodes > 1 else "")
    yield f"{made.name}: {made.parameters / 1e6:,.1f} M parameters, {made.strategy}, on {gpus}"
    for told in made.assumptions:
        yield f"  assumed: {told}"
    yield f"memory of each GPU when it holds the most, of {bytes_of(made.device_memory)}"
    for name, size in made.memory.items():
        if size:
            yield f"  {name:<22}{bytes_of(size):>12}"
    verdict = "fits" if made.fits else f"DOES NOT FIT; {remedy(made)}"
    yield f"  {'together':<22}{bytes_of(made.memory_total):>12}  {verdict}"
    yield f"largest batch that fits: {made.largest_batch:,} (this run: {made.batch:,})"
    yield f"a step: {made.step_s:.3g} s ({made.compute_s:.3g} computing, beside {made.communication_s:.3g} sending)"
    if made.shares_of_peak:
        shares = f"products at {PRODUCTS:.0%} of the data sheet's FLOP/s, all else at {MOVING:.0%} of its bandwidth"
        yield f"  assumed: {shares}, sending hidden behind computing"
    speed = [f"{made.samples_per_s:,.0f} samples/s"]
    speed += [f"{made.tokens_per_s:,.0f} real tokens/s in the trunk"] if made.tokens_per_s else []
    yield "  " + ", ".join(speed + ([] if made.mfu is None else [f"MFU {made.mfu:.1%}"]))
    yield f"  data: {made.data_mb_per_s:,.0f} MB/s decoded"
    sent = ", ".join(f"{name} {size:,.0f}" for name, size in made.sent_mb.items() if size)
    if sent:
        yield f"  each GPU sends, in MB: {sent}"
    yield f"the run: {made.steps:,} steps, {made.hours:,.1f} hours, {made.gpu_hours:,.0f} GPU hours"


def remedy(made: Plan) -> str:
    """Of a step that does not fit."""
    own = made.largest_batch // made.gpus
    if not own:
        return "not even the model does: give more --gpus and --parallel.strategy fsdp"
    return f"try --parallel.micro-batch {2 ** (own.bit_length() - 1)}, or --parallel.activation-checkpointing full"


def bytes_of(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
