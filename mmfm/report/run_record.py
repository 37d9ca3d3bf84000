"""What a run's folder says: run.json, metrics.jsonl, results.json and results.details.json, read into plain values.

Only run.json must be there. A line of metrics.jsonl that a crash cut short is counted and left out; steps that a
resumed run went through again replace those before.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mmfm.config import Run, UserError
from mmfm.config.serialization import parse
from mmfm.evals.provenance import doubt, run_of
from mmfm.evals.records import Details, Row, SplitDetails
from mmfm.inference.bundle.contents import is_bundle, read_bundle

RESULTS, BESIDE = "results.json", (".details.json", ".samples.json")


def headline_first(split: str) -> tuple[bool, bool]:
    """A key for sorting: "test", of which the headline speaks, then other tests, then the rest as they come."""
    return split != "test", not split.startswith("test")


@dataclass(frozen=True, kw_only=True)
class Log:
    """`curves`: name -> (step, value) by rising step. `seconds`: over all starts of the run.

    `broken`: lines that cannot be read; `resumed`: times that training went back; `lost`: name -> values not finite.
    """

    curves: dict[str, tuple[tuple[int, float], ...]]
    step: int
    seconds: float
    broken: int
    resumed: int
    lost: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A sample that training could not use. Met again in a later epoch, or after a resume, it is the same one."""

    source: str
    shard: str
    key: str
    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """`splits`: in the order of the page."""

    folder: Path
    run: Run
    source: str  # of a bundle, what it was made of; empty: of a run
    log: Log | None
    rows: tuple[Row, ...] | None
    splits: dict[str, SplitDetails] | None
    skipped: tuple[Skipped, ...] = ()
    doubts: tuple[str, ...] = ()  # of results that are not of the run as it is: results.json and those of suites


def read_record(folder: Path) -> Record:
    """Raises UserError if there is no run in `folder`, or if a file in it is not what its command writes."""
    run = run_of(folder)
    every = {file.name: read_rows(file) for file in result_files(folder)}
    doubts = [found for name, rows in every.items() if (found := doubt(folder, name, rows))]
    details = parsed(folder / "results.details.json", Details)
    splits = None if details is None else sorted(details.splits.items(), key=lambda one: headline_first(one[0]))
    return Record(
        folder=folder,
        run=run,
        source=read_bundle(folder).source if is_bundle(folder) else "",
        log=read_log(text) if (text := text_of(folder / "metrics.jsonl")) is not None else None,
        rows=every.get(RESULTS),
        doubts=tuple(found.told for found in doubts),
        splits=None if splits is None else dict(splits),
        skipped=tuple(read_skipped(folder)),
    )


def result_files(folder: Path) -> list[Path]:
    """results.json and those of suites, without what stands beside them."""
    every = sorted(folder.glob("results*.json"), key=lambda file: (file.name != RESULTS, file.name))
    return [file for file in every if not file.name.endswith(BESIDE)]


def read_rows(path: Path) -> tuple[Row, ...]:
    return parsed(path, tuple[Row, ...]) or ()


def read_skipped(folder: Path) -> list[Skipped]:
    """The distinct samples in skipped.jsonl and skipped-RANK.jsonl; a last line that was cut short is left out."""
    lines = [line for path in sorted(folder.glob("skipped*.jsonl")) for line in _lines(path)]
    names = [field.name for field in fields(Skipped)]
    return list(dict.fromkeys(Skipped(**{name: str(line.get(name, "")) for name in names}) for line in lines))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            tree = json.loads(line)
        except ValueError:
            continue
        if isinstance(tree, dict):
            yield tree


def parsed(path: Path, kind: Any) -> Any:
    """What a file holds, as it was written; None where there is none."""
    text = text_of(path)
    try:
        return None if text is None else parse(kind, text, str(path), older=True)
    except UserError as why:
        raise UserError(f"{why}; remove it and make it again") from None


def text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def read_log(text: str) -> Log:
    """The lines of metrics.jsonl as curves; a line that is no JSON object with a whole `step` counts as broken."""
    lines, seconds, previous, broken, resumed, reached = [], 0.0, 0.0, 0, 0, 0.0
    for line in map(_line, filter(str.strip, text.splitlines())):
        if "step" not in line:
            broken += 1
            continue
        if "seconds" in line:  # a line of training; scores come without, and may lag behind
            if line["step"] < reached:
                resumed += 1
                lines = [earlier for earlier in lines if earlier["step"] < line["step"]]
            # The clock starts again with the run.
            seconds += line["seconds"] - (previous if line["seconds"] >= previous else 0)
            previous, reached = line["seconds"], line["step"]
        lines.append(line)
    curves: dict[str, list[tuple[int, float]]] = {}
    lost: Counter[str] = Counter()
    for line in lines:
        for name in line.keys() - {"step", "seconds"}:
            if math.isfinite(line[name]):
                curves.setdefault(name, []).append((int(line["step"]), line[name]))
            else:
                lost[name] += 1
    last = int(max((line["step"] for line in lines), default=0))
    ordered = {name: tuple(points) for name, points in sorted(curves.items())}
    return Log(
        curves=ordered, step=last, seconds=seconds, broken=broken, resumed=resumed, lost=dict(sorted(lost.items()))
    )


def _line(text: str) -> dict[str, float]:
    """The numbers of a line, null as nan; {} if it cannot be read or is of no step."""
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(values, dict):
        return {}
    kept = {name: float("nan" if value is None else value) for name, value in values.items() if _numeric(value)}
    return kept if all(math.isfinite(kept.get(name, 0.0)) for name in ("step", "seconds")) else {}


def _numeric(value: Any) -> bool:
    return value is None or isinstance(value, int | float)
