"""What the benches share: rounds in turn, medians with intervals, what they ran on, and the JSON that is kept."""

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from mmfm.runtime.machine import cores


def in_turns(ways: Mapping[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """What each way says, once a round; another one begins each round, so that a busy machine disturbs all alike."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(count):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(ways[name]())
    return found


def in_a_process(context: BaseContext, run: Callable[..., None], *arguments: Any) -> Any:
    """What `run` tells by its last argument, a function, in a process of its own."""
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(*arguments, there.send))  # type: ignore[attr-defined]
    process.start()
    there.close()
    found = here.recv()
    process.join()
    return found


def seconds(run: Callable[[], Any]) -> float:
    """Of this process's time on the processor: on a quiet machine, what one waits for work that reads no disk."""
    start = time.process_time()
    run()
    return time.process_time() - start


def median_interval(values: Sequence[float], draws: int = 2000) -> dict[str, float]:
    """Median and its 95 % bootstrap interval, to four digits."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    named = {
        "value": statistics.median(values),
        "low": medians[int(0.025 * draws)],
        "high": medians[int(0.975 * draws)],
    }
    return {name: float(f"{value:.4g}") for name, value in named.items()}


def row(name: str, values: Sequence[float], *, unit: str, goal: str = "") -> dict[str, Any]:
    """A line of a report. `goal`: ">= 3", "<= 5" or none."""
    found = {"name": name, **median_interval(values), "goal": goal, "unit": unit}
    print(f"{name}: {found['value']:g} {unit} ({found['low']:g} to {found['high']:g}), goal {goal or '-'}", flush=True)
    return found


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(over, under, strict=True)]


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """This process, and those that it starts, on the first cores that it may use."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def hardware() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "cores": cores()}


def commit() -> str:
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return described.stdout.strip() or "unknown"


def write_report(path: Path, rows: Sequence[Mapping[str, Any]], versions: Mapping[str, str], **more: Any) -> None:
    report = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "versions": {"python": platform.python_version(), **versions},
        "hardware": {**hardware(), "load_at_end": round(os.getloadavg()[0], 2)},
        "date": date.today().isoformat(),
        **more,
        "rows": rows,
    }
    path.write_text(json.dumps(report, indent=2) + "\n")
