"""How fast samples come, how fast the model takes them, and what memory a step needs: measured on a few real batches.

The loader is the run's own stream without processes of its own, so that its time is that of one. The step is forward,
backward and update on this machine's processor. What autograd keeps for the backward pass is counted as it is kept,
each storage once: unlike the process's size it does not depend on what ran before.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import median

import torch
from torch import Tensor

from mmfm.config import Conformer, Model, Run, TextTower, Vit
from mmfm.data.batch import Batch
from mmfm.data.stream import PREFETCH, TrainStream
from mmfm.data.stream_plan import Loaded, Plan
from mmfm.models.model import build
from mmfm.objectives.joint import Objectives
from mmfm.preprocessing.tokenizer import Tokenizer
from mmfm.runtime.devices import autocast
from mmfm.runtime.machine import available_bytes, cores
from mmfm.training.optimizer import Learning, optimizer_of, set_learning
from mmfm.training.teachers import load_teachers

BATCHES, SECONDS = 12, 12.0  # that are loaded, and that loading or stepping may take in all
STEPS = 4
SMALL, MOST_SECONDS = 8, 15.0  # samples of the first step; what one may take, or a part of the batch is taken for all
COPIES = 4  # of the weights: themselves, gradients, and Adam's two moments
BYTES = 4  # of a number in fp32, in which weights are kept whatever the precision
BUSY = 1.5  # times as long as the processor works: others were at it
ROOM = 0.8  # of the memory that is available: beyond, a step is not tried


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds that a batch takes one loader process, and the model. `workers`: how many load; 0: the trainer itself."""

    load_s: float
    step_s: float
    workers: int

    @property
    def needed(self) -> int:
        """Loader processes with which the model never waits, on as many cores."""
        return max(1, math.ceil(self.load_s / self.step_s - 1e-9))

    @property
    def every_s(self) -> float:
        """From step to step: without processes each in turn, else whichever is slower."""
        return self.load_s + self.step_s if self.workers == 0 else max(self.step_s, self.load_s / self.workers)

    @property
    def waiting(self) -> float:
        """Share of the time in which the model waits for data."""
        return 1 - self.step_s / self.every_s


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank."""

    parameters: int
    gradients: int
    moments: int
    activations: int
    batch: int
    loader: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.moments + self.activations + self.batch + self.loader


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a batch takes to load is a median without the first, which warms up."""

    batch: int  # samples of one rank
    pace: Pace
    memory: Memory
    # Samples that the step was tried with; of more, time and activations are taken to grow as their number.
    stepped: int
    busy: float = 0.0  # how many times longer the step took than the processor worked on it; 0: no longer


def measure(run: Run, tokenizer: Tokenizer, room: int) -> Measured:
    """`room`: bytes that activations may take. Raises UserError where the stream does."""
    batches, load_s, plan = load(run, tokenizer)
    torch.set_num_threads(min(run.threads, cores()))
    torch.manual_seed(run.seed)
    model = build(run.model, tokenizer.size, run.contrastive, run.data.augment)
    run, teachers = load_teachers(run, tokenizer)
    objectives, learning = Objectives(model, run, teachers=teachers), set_learning(model, run)
    objectives.train()
    most = bearable(objectives, run, plan, room)
    tried = batches if most is None else [most]
    times = batches[0].size / tried[0].size
    kept = activations(objectives, run, tried[0])
    step_s, busy = step_seconds(objectives, run, tried, learning)
    learnt = sum(p.numel() * p.element_size() for p in objectives.parameters() if p.requires_grad)
    largest = max(bytes_of(batch) for batch in batches)
    memory = Memory(
        parameters=sum(p.numel() * p.element_size() for p in objectives.parameters()),
        gradients=learnt,
        moments=2 * learnt,
        activations=round(kept * times),
        batch=largest,
        loader=loader_bytes(largest, run.data.num_workers, run.data.cache_mb),
    )
    return Measured(
        batch=batches[0].size,
        pace=Pace(load_s=load_s, step_s=step_s * times, workers=run.data.num_workers),
        memory=memory,
        stepped=tried[0].size,
        busy=busy,
    )


def bearable(objectives: Objectives, run: Run, plan: Plan, room: int) -> Batch | None:
    """None if a step with the whole batch has room and ends in time; else the largest of a few samples that does.

    It tries twice as many as before, as long as those should be bearable too.
    """
    whole = run.ranks * (1 if run.data.mix_by == "batch" else sum(source.weight for source in run.data.train))
    count = min(run.data.batch_size, whole * max(1, math.ceil(SMALL * run.ranks / whole)))
    activations(objectives, run, first_batch(plan, run, count))  # the first of all steps takes longer
    while count < run.data.batch_size:
        batch, start = first_batch(plan, run, count), time.perf_counter()
        kept, more = activations(objectives, run, batch), min(2.0, run.data.batch_size / count)
        if more * kept > room or more * (time.perf_counter() - start) > MOST_SECONDS:
            return batch
        count = min(run.data.batch_size, 2 * count)
    return None


def first_batch(plan: Plan, run: Run, count: int) -> Batch:
    """As the run would begin with `count` samples over all ranks."""
    loaded = replace(plan, run=replace(run, data=replace(run.data, batch_size=count)))[0]
    if isinstance(loaded, Exception):
        raise loaded
    assert isinstance(loaded, Loaded)
    return loaded.batch


def load(run: Run, tokenizer: Tokenizer) -> tuple[list[Batch], float, Plan]:
    """The first batches of the first rank, the seconds that one takes with nothing cached, and their plan."""
    alone = replace(run, data=replace(run.data, num_workers=0))
    stream = TrainStream(alone, tokenizer, rank=0, world=run.ranks)
    return *_timed(islice(iter(stream), BATCHES)), stream.plan


def _timed(source: Iterator[Batch]) -> tuple[list[Batch], float]:
    found, took, begun = list[Batch](), list[float](), time.perf_counter()
    while time.perf_counter() - begun < SECONDS or not found:
        start = time.perf_counter()
        item = next(source, None)
        if item is None:
            break
        took.append(time.perf_counter() - start)
        found.append(item)
    return found, median(took[1:] or took)


def step_seconds(objectives: Objectives, run: Run, batches: Sequence[Batch], learning: Learning) -> tuple[float, float]:
    """Forward, backward and update on the batches in turn, the quickest of a few; and `Measured.busy`."""
    optimizer, took, begun = optimizer_of(objectives, run.optim, learning), list[float](), time.perf_counter()
    worked = time.process_time()
    for number in range(STEPS):
        start = time.perf_counter()
        _backward(objectives, run, batches[number % len(batches)])
        torch.nn.utils.clip_grad_norm_(objectives.parameters(), run.optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        took.append(time.perf_counter() - start)
        if time.perf_counter() - begun > SECONDS:
            break
    slower = sum(took) / max(time.process_time() - worked, 1e-9)
    return min(took), slower if slower > BUSY else 0.0


def _backward(objectives: Objectives, run: Run, batch: Batch) -> None:
    with autocast(run.optim.precision, torch.device("cpu")):
        loss = objectives.total(objectives(batch))
    loss.backward()


def activations(objectives: Objectives, run: Run, batch: Batch) -> int:
    """Bytes that autograd keeps of a batch for its backward pass: each storage once, without weights and the batch."""
    known = [*objectives.parameters(), *objectives.buffers()]
    known += [tensor for item in batch.items.values() for tensor in (item.x, item.keep, item.rows)]
    before = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in before:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _backward(objectives, run, batch)
    objectives.zero_grad()
    return sum(kept.values())


def bytes_of(batch: Batch) -> int:
    found = [
        batch.positive_ids,
        *(tensor for item in batch.items.values() for tensor in (item.x, item.keep, item.rows)),
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in found)


def loader_bytes(batch: int, workers: int, cache_mb: int) -> int:
    """Batches that wait to be used, and decoded samples kept by each process, or by the trainer if that one loads."""
    return max(workers, 1) * cache_mb * 2**20 + (workers * PREFETCH * batch if workers else 0)


def fits(run: Run, tokenizer: Tokenizer) -> tuple[bool, int, int]:
    """Whether the weights and what training keeps beside them have room here; their bytes by estimate, and the room."""
    estimate = COPIES * BYTES * rough_parameters(run.model, tokenizer.size)
    room = available_bytes()
    return estimate <= ROOM * room, estimate, room


def rough_parameters(model: Model, text_size: int) -> int:
    """Within some tens of percent: a block of a transformer has about 12 width^2, of a conformer 26 width^2."""
    parts = [model.trunk, *(part for part in (model.image, model.text) if isinstance(part, Vit | TextTower))]
    blocks = sum(12 * part.depth * part.width**2 for part in parts)
    if isinstance(model.audio, Conformer):
        blocks += 26 * model.audio.depth * model.audio.width**2
    towers = model.text.width * text_size if isinstance(model.text, TextTower) else 0
    return blocks + towers + model.trunk.width * (text_size + model.codes("image") + model.codes("audio"))
