"""Whether the loader keeps up with the model, and whether both have room: sections made of what `speed` measured."""

from collections.abc import Iterator

import torch

from mmfm.config import Run, UserError
from mmfm.data.stream import PREFETCH
from mmfm.doctor.findings import Finding, Section, finding, plural, table
from mmfm.doctor.speed import ROOM, Measured, Memory, fits, measure
from mmfm.preprocessing.tokenizer import Tokenizer
from mmfm.runtime import machine
from mmfm.runtime.machine import available_bytes, cores, shared_bytes

LONG_S = 8 * 3_600.0  # a run that takes longer than a working day is said so as a warning
PATIENT = 0.05  # share of the time that the model may wait for data
MEGABYTE = 1e6


def pace_and_memory(run: Run, tokenizer: Tokenizer) -> tuple[Section, Section | None]:
    """Speed, and memory where the step could be tried."""
    possible, wanted, room = fits(run, tokenizer)
    if not possible:
        told = f"a step was not tried: weights, gradients and moments need about {wanted / 1e9:.1f} GB, and this "
        told += f"machine has {room / 1e9:.1f} GB free; ask on a larger one"
        return Section(name="Speed", findings=(finding("NOTE", "step_too_large", told),)), None
    try:
        found = measure(run, tokenizer, round(ROOM * room) - wanted)
    except (UserError, OSError) as why:
        told = f"not measured, as training would stop: {why}"
        return Section(name="Speed", findings=(finding("ERROR", "stream_stops", told),)), None
    return speed(found, run, cores()), memory(found.memory, run, available_bytes(), shared_bytes())


def speed(found: Measured, run: Run, have: int) -> Section:
    pace = found.pace
    rows = [
        ("one loader process", round(found.batch / pace.load_s), round(1e3 * pace.load_s, 1)),
        (f"the model, {plural(run.threads, 'thread')}", round(found.batch / pace.step_s), round(1e3 * pace.step_s, 1)),
        (f"both, data.num_workers={pace.workers}", round(found.batch / pace.every_s), round(1e3 * pace.every_s, 1)),
    ]
    drawn = table(f"Batches of {found.batch}, on this machine", ("", "samples per s", "ms per batch"), rows)
    return Section(name="Speed", findings=tuple(_advice(found, run, have)), tables=(drawn,))


def _advice(found: Measured, run: Run, have: int) -> list[Finding]:
    findings, pace = list[Finding](), found.pace
    enough = plural(pace.needed, "loader process")
    if pace.waiting <= PATIENT:
        told = f"data.num_workers={pace.workers} keeps up with the model, which needs {enough}"
        findings.append(finding("OK", "keeps_up", told))
    else:
        told = (
            f"the model waits for data {pace.waiting:.0%} of the time with data.num_workers={pace.workers}; {enough} "
        )
        told += f"would keep up: set data.num_workers={pace.needed}"
        findings.append(finding("WARNING", "starved", told, (), pace.needed))
    if run.data.cache_mb:
        told = (
            "loading was measured before anything is cached; what data.cache_mb holds is quicker from its second use on"
        )
        findings.append(finding("NOTE", "uncached", told))
    wanted = max(pace.needed, pace.workers) + run.threads
    if wanted * run.devices > have:
        each = f"{max(pace.needed, pace.workers)} loading + {plural(run.threads, 'thread')}"
        told = f"{run.devices} x ({each}) are more than the {plural(have, 'core')} here: they take turns, and each is "
        told += "slower than measured alone"
        findings.append(finding("NOTE", "few_cores", told))
    if found.stepped < found.batch:
        told = (
            f"the step is that of {plural(found.stepped, 'sample')}, times {found.batch / found.stepped:g}: the whole "
        )
        told += "batch would take too long here, or too much room"
        findings.append(finding("NOTE", "extrapolated", told))
    if found.busy:
        told = (
            f"the machine was busy: the step had a processor {1 / found.busy:.0%} of the time; ask again when it is not"
        )
        findings.append(finding("NOTE", "busy", told))
    if run.accelerator != "cpu":
        told = "the step was measured on the processor; an accelerator is faster, and needs as many times more workers"
        findings.append(finding("NOTE", "measured_on_cpu", told))
    return [*findings, duration(found, run)]


def duration(found: Measured, run: Run) -> Finding:
    """What the run takes in all: its steps, times the seconds from one to the next."""
    whole_s, every_s = run.optim.steps * found.pace.every_s, found.pace.every_s
    told = f"{plural(run.optim.steps, 'step')} x {every_s:.3g} s from step to step = about {spoken(whole_s)} in all"
    if run.accelerator != "cpu" and torch.cuda.is_available():
        return finding("NOTE", "duration", f"{told} on the processor; the GPU, which the run takes, was not measured")
    if whole_s <= LONG_S:
        return finding("OK", "duration", told)
    remedy = "lower optim.steps or the model's size, or train on a faster machine; what is trained is saved on the way"
    return finding("WARNING", "long", f"{told}: {remedy}", (), round(whole_s))


def spoken(seconds: float) -> str:
    """A duration in the unit that people would use."""
    for unit, size in (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def memory(found: Memory, run: Run, room: int, shared: int | None = None) -> Section:
    """Of one rank, in MB, against what this machine has free. `shared`: free bytes of shared memory, if it has any."""
    waiting = f"{run.data.num_workers} x {PREFETCH} batches" if run.data.num_workers else "no batch waits"
    cached = f", {max(run.data.num_workers, 1)} x {run.data.cache_mb} MB cached at most" if run.data.cache_mb else ""
    rows = [
        ("parameters", found.parameters, "counted"),
        ("gradients", found.gradients, "as many"),
        ("Adam's moments", found.moments, "twice as many"),
        ("activations", found.activations, "kept by autograd for the backward pass of a batch, counted"),
        ("the batch", found.batch, "the largest of those loaded"),
        ("loader", found.loader, waiting + cached),
        ("all", found.total, "without the program itself, and what a kernel needs for a moment"),
    ]
    cells = [(name, round(size / MEGABYTE, 1), how) for name, size, how in rows]
    drawn = table("One rank", ("", "MB", "how it is known"), cells)
    total = found.total * run.devices
    told = f"about {total / 1e9:.2f} GB for {plural(run.devices, 'rank')}; this machine has {room / 1e9:.2f} GB free"
    one = finding("OK", "memory", told)
    if total > room and run.accelerator != "gpu":
        one = finding(
            "WARNING", "memory_short", f"{told}: lower data.batch_size or data.cache_mb, or take another machine"
        )
    findings = [one, *_in_flight(found, run, shared)]
    return Section(name="Memory", findings=tuple(findings), tables=(drawn,))


def _in_flight(found: Memory, run: Run, shared: int | None) -> Iterator[Finding]:
    """Batches that loader processes have ready lie in shared memory, of which a container has 64 MB by default."""
    wanted = run.devices * run.data.num_workers * PREFETCH * found.batch
    if shared is not None and wanted > shared:
        told = f"batches in flight take up to {wanted / MEGABYTE:.3g} MB of shared memory, and {machine.SHARED} has "
        told += f"{shared / MEGABYTE:.3g} MB free: the rest goes through pipes, slower; give the container more "
        yield finding("NOTE", "shared_memory", told + "(--shm-size), or lower data.num_workers or data.batch_size")
