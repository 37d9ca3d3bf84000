"""What a run's folder says: run.json, metrics.jsonl, results.json and results.details.json, read into plain values.

Only run.json must be there. A line of metrics.jsonl that a crash cut short is counted and left out; steps that a
resumed run went through again replace those before.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from mmfm.config import Run, UserError, require
from mmfm.config.serialization import from_file
from mmfm.evals.provenance import doubt

Value = TypeVar("Value")
RESULTS, BESIDE = "results.json", (".details.json", ".samples.json")


def headline_first(split: str) -> tuple[bool, bool]:
    """A key for sorting: "test", of which the headline speaks, then other tests, then the rest as they come."""
    return split != "test", not split.startswith("test")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure. A value that is missing or not finite is None, so is an interval or a chance level.

    `clusters` of its `n` are of different items. `normalizer`: the rule by which texts were compared. `reason`: why
    there is no value. What it is of: see `provenance`.
    """

    split: str
    task: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    chance: float | None
    n: int
    clusters: int = 0
    normalizer: str = ""
    reason: str = ""
    step: int | None = None
    weights: str = ""
    suite: str = ""
    version: str = ""
    data: str = ""


@dataclass(frozen=True, kw_only=True)
class Item:
    modality: str
    key: str
    caption: str
    src: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    item: Item
    score: float | None
    hit: bool


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    task: str
    query: Item
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True)
class Writing:
    task: str
    source: Item | None
    reference: str
    written: str
    correct: bool


@dataclass(frozen=True, kw_only=True)
class Making:
    """What was drawn or said. start: seconds of a sound that repeat what was given. read: by judge, what is read in it;
    own_read: in the sample's own. correct: None where nobody judged."""

    task: str
    sources: tuple[Item, ...]
    made: Item
    start: float
    read: dict[str, str]
    correct: bool | None
    own: Item | None
    own_read: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Split:
    """`confusion`: for each task, (true class, predicted class, how often)."""

    name: str
    source: str
    counts: dict[str, int]
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    confusion: dict[str, tuple[tuple[int, int, int], ...]]
    retrievals: tuple[Retrieval, ...]
    writings: tuple[Writing, ...]
    makings: tuple[Making, ...]
    left_out: tuple[str, ...]


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
    folder: Path
    run: Run
    log: Log | None
    rows: tuple[Row, ...] | None
    splits: tuple[Split, ...] | None
    skipped: tuple[Skipped, ...] = ()
    doubts: tuple[str, ...] = ()  # of results that are not of the run as it is: results.json and those of suites


def read_record(folder: Path) -> Record:
    """Raises UserError if there is no run in `folder`, or if a file in it is not what its command writes."""
    path = folder / "run.json"
    require(folder.is_dir(), f"{folder}: no such folder; give the folder of a run, such as runs/NAME")
    require(path.is_file(), f"{folder} holds no run.json, so it is no run; give the folder that `mmfm train` printed")
    every = {file.name: rows for file in result_files(folder) if (rows := parsed(file, read_rows)) is not None}
    doubts = [found for name, rows in every.items() if (found := doubt(folder, name, map(vars, rows)))]
    return Record(
        folder=folder,
        run=from_file(path),
        log=parsed(folder / "metrics.jsonl", read_log),
        rows=every.get(RESULTS),
        doubts=tuple(found.told for found in doubts),
        splits=parsed(folder / "results.details.json", lambda text: tuple(_splits(json.loads(text)["splits"]))),
        skipped=tuple(read_skipped(folder)),
    )


def result_files(folder: Path) -> list[Path]:
    """results.json and those of suites, without what stands beside them."""
    every = sorted(folder.glob("results*.json"), key=lambda file: (file.name != RESULTS, file.name))
    return [file for file in every if not file.name.endswith(BESIDE)]


def read_rows(text: str) -> tuple[Row, ...]:
    return tuple(map(row_of, json.loads(text)))


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


def parsed(path: Path, parse: Callable[[str], Value]) -> Value | None:
    if not path.is_file():
        return None
    try:
        return parse(path.read_text(encoding="utf-8", errors="replace"))
    except (AttributeError, KeyError, TypeError, ValueError) as why:
        problem = f"{type(why).__name__}: {why}"
        raise UserError(f"{path} is not what mmfm wrote there ({problem}); remove it and make it again") from None


def number(value: Any) -> float | None:
    """A finite float, or None for null, NaN and infinities."""
    return float(value) if value is not None and math.isfinite(value) else None


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


def row_of(row: Any) -> Row:
    return Row(
        split=str(row["split"]),
        task=str(row["task"]),
        metric=str(row["metric"]),
        value=number(row["value"]),
        low=number(row["low"]),
        high=number(row["high"]),
        chance=number(row["chance"]),
        n=int(row["n"]),
        clusters=int(row.get("clusters") or row["n"]),
        step=int(row["step"]) if row.get("step") is not None else None,
        **{name: str(row.get(name) or "") for name in ("normalizer", "reason", "weights", "suite", "version", "data")},
    )


def _splits(splits: Any) -> list[Split]:
    """In the order of the page."""
    return [
        Split(
            name=name,
            source=str(split.get("source", "")),
            counts={key: int(count) for key, count in split.get("counts", {}).items()},
            classes=tuple(map(str, split.get("classes", ()))),
            templates=tuple(map(str, split.get("templates", ()))),
            confusion={task: tuple(map(_cell, cells)) for task, cells in split.get("confusion", {}).items()},
            retrievals=tuple(map(_retrieval, split.get("retrievals", ()))),
            writings=tuple(map(_writing, split.get("writings", ()))),
            makings=tuple(map(_making, split.get("makings", ()))),
            left_out=tuple(map(str, split.get("left_out", ()))),
        )
        for name, split in sorted(splits.items(), key=lambda item: headline_first(item[0]))
    ]


def _cell(cell: Any) -> tuple[int, int, int]:
    true, predicted, count = map(int, cell)
    return true, predicted, count


def _item(item: Any) -> Item:
    return Item(
        modality=str(item["modality"]),
        key=str(item.get("key", "")),
        caption=str(item.get("caption") or ""),
        src=str(item.get("src") or ""),
    )


def _retrieval(retrieval: Any) -> Retrieval:
    answers = [
        Answer(item=_item(answer), score=number(answer.get("score")), hit=bool(answer["hit"]))
        for answer in retrieval["answers"]
    ]
    return Retrieval(task=str(retrieval["task"]), query=_item(retrieval["query"]), answers=tuple(answers))


def _making(making: Any) -> Making:
    own, correct = making.get("own"), making.get("correct")
    return Making(
        task=str(making["task"]),
        sources=tuple(map(_item, making.get("sources", ()))),
        made=_item(making["made"]),
        start=number(making.get("start")) or 0.0,
        read={str(judge): str(text) for judge, text in making.get("read", {}).items()},
        correct=None if correct is None else bool(correct),
        own=_item(own) if own else None,
        own_read={str(judge): str(text) for judge, text in making.get("own_read", {}).items()},
    )


def _writing(writing: Any) -> Writing:
    source = writing.get("source")
    return Writing(
        task=str(writing["task"]),
        source=_item(source) if source else None,
        reference=str(writing["reference"]),
        written=str(writing["written"]),
        correct=bool(writing["correct"]),
    )
