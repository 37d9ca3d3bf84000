"""A run's metrics.jsonl: read, cut where a run goes on, and kept strict JSON."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from mmfm.config import Run
from mmfm.runtime.files import replace_file

METRICS = "metrics.jsonl"
console = Console(stderr=True)


def seconds_so_far(run: Run) -> float:
    """Of training, by metrics.jsonl; 0 where there is none yet."""
    path = run.folder / METRICS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return max((json.loads(line).get("seconds", 0.0) for line in lines), default=0.0)


def cut(path: Path, key: str, end: int) -> None:
    """Leaves out of a file of JSON lines those from `end` on, by their number `key`, as they will be written again, and
    a last one that was cut short. What else cannot be read is set aside beside the file, and that is said."""
    if not path.exists():
        return
    *lines, last = path.read_bytes().split(b"\n")
    lines += [] if _number(last, key) is None else [last]
    numbers = [(line, _number(line, key)) for line in lines if line.strip()]
    damaged = [line for line, number in numbers if number is None]
    if damaged:
        aside = path.with_name(f"{path.name}.damaged")
        with aside.open("ab") as file:
            file.writelines(line + b"\n" for line in damaged)
        told = f"{path}: {len(damaged)} of its lines cannot be read, and are set aside in {aside.name}"
        console.print(told, style="bold red", soft_wrap=True, highlight=False, markup=False)
    kept = [line for line, number in numbers if number is not None and number < end]
    replace_file(path, b"".join(line + b"\n" for line in kept))


def _number(line: bytes, key: str) -> int | None:
    """None where the line is no JSON object with a whole number of this name."""
    try:
        value = json.loads(line)[key]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return value if type(value) is int else None


def finite(line: Mapping[str, Any]) -> dict[str, Any]:
    """The line without values that are not finite, for which JSON has no word; `not_finite` names those."""
    odd = [key for key, value in line.items() if isinstance(value, float) and not math.isfinite(value)]
    clean = {key: value for key, value in line.items() if key not in odd}
    return clean | {"not_finite": odd} if odd else clean
