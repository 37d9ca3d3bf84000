"""Which checkpoint of a run is its best, by the measure that `Run.best` names: checkpoints/best.json."""

import json
from pathlib import Path
from typing import NamedTuple

from mmfm.config import UserError
from mmfm.models.checkpoint import folder_of
from mmfm.runtime.files import replace_file

FILE = "best.json"


class Best(NamedTuple):
    step: int
    metric: str
    value: float


def read_best(run_folder: Path) -> Best | None:
    """None where there is none, and where it is no longer there or is of another version."""
    try:
        best = Best(**json.loads((run_folder / "checkpoints" / FILE).read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    whole = type(best.step) is int and isinstance(best.value, int | float)
    return best if whole and folder_of(run_folder, best.step).is_dir() else None


def write_best(run_folder: Path, best: Best) -> None:
    replace_file(run_folder / "checkpoints" / FILE, json.dumps(best._asdict()).encode())


def best_step(run_folder: Path) -> int:
    best = read_best(run_folder)
    if best is None:
        raise UserError(f"{run_folder} has no best checkpoint; train it with --best val_loss, or give another step")
    return best.step


def forget_best(run_folder: Path, after: int) -> None:
    """Where it is of a step beyond this one, which will be trained anew."""
    best = read_best(run_folder)
    if best is None or best.step > after:
        (run_folder / "checkpoints" / FILE).unlink(missing_ok=True)
