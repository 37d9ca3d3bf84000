"""`mmfm runs`: what lies in a folder of runs, one line each. Nothing of it is executed, and torch is not needed."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from mmfm.config import Run, UserError, require
from mmfm.config.serialization import from_file


class Row(NamedTuple):
    """A run as a line of the table; `run` is None where its run.json cannot be opened, and `note` says why."""

    folder: Path
    run: Run | None
    step: int
    best: str
    size_bytes: int
    note: str = ""


def rows_of(folder: Path) -> list[Row]:
    """The runs in this folder, or the one that it is, by name. UserError where there are none."""
    found = sorted(path.parent for pattern in ("run.json", "*/run.json") for path in folder.glob(pattern))
    require(bool(found), f"{folder} holds no runs; give the folder that mmfm train writes to, such as runs")
    return [_row(one) for one in found]


def _row(folder: Path) -> Row:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    lines = list(_lines(folder / "metrics.jsonl"))
    step = max((line["step"] for line in lines), default=0)
    try:
        run, note = from_file(folder / "run.json"), ""
    except UserError as why:
        run, note = None, str(why)
    return Row(folder, run, step, _best(folder, lines), size, note)


def _lines(path: Path) -> "list[dict[str, Any]]":
    if not path.is_file():
        return []
    found = []
    for text in path.read_text("utf-8", "replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and type(line.get("step")) is int:
            found.append(line)
    return found


def _best(folder: Path, lines: "list[dict[str, Any]]") -> str:
    """The best by `Run.best`; else the newest validation loss, or the first score of the newest line with scores."""
    try:
        best = json.loads((folder / "checkpoints" / "best.json").read_text("utf-8"))
        return f"{best['metric']} {float(best['value']):.3f} at {int(best['step']):,}"
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        pass
    for line in reversed(lines):
        for name, value in line.items():
            if name == "val_loss" or name.startswith("score/"):
                return f"{name.removeprefix('score/')} {value:.3f} at {line['step']:,}"
    return ""


def show_runs(folder: Path) -> None:
    """The table, on the standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "step", "best score", "data", "size", box=None, pad_edge=False)
    rows = rows_of(folder)
    for row in rows:
        steps = f"{row.step:,}" if row.run is None else f"{row.step:,}/{row.run.optim.steps:,}"
        data = "?" if row.run is None else ", ".join(source.label for source in row.run.data.train)
        table.add_row(str(row.folder), steps, row.best, data, f"{row.size_bytes / 1e6:,.1f} MB")
    console = Console(highlight=False, markup=False)
    console.print(table)
    for row in rows:
        if row.note:
            console.print(row.note, soft_wrap=True)
