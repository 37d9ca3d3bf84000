"""How the files of an evaluation are made and written: also of numbers that are not finite, and of broken-off work."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mmfm.config import UserError, require
from mmfm.evals.metrics import Bootstrap, Kept, Score
from mmfm.evals.metrics_table import entry_of, is_headline
from mmfm.evals.records import Details, KeptScore, Origin, Row, Samples, Scores, SplitDetails, SplitSamples, paths_of
from mmfm.evals.split import Split
from mmfm.runtime.files import replace_file

NO_VALUE = "the statistic has no finite value"
PARTIAL = ".partial"
NOWHERE = Origin()


def row_of(split: str, score: Score, bootstrap: Bootstrap) -> Row:
    """A row of results.json."""
    assert entry_of(score.metric), f"{score.metric} has no entry in mmfm.evals.metrics_table.METRICS"
    value, (low, high) = score.value, score.interval(bootstrap)
    chance = round(score.chance, 9) if math.isfinite(score.chance) else None
    return Row(
        split=split,
        task=score.task,
        metric=score.metric,
        value=finite_or_none(value),
        low=finite_or_none(low),
        high=finite_or_none(high),
        chance=chance,
        n=score.n,
        clusters=score.independent,
        normalizer=score.normalizer,
        reason="" if math.isfinite(value) else score.unknown or NO_VALUE,
    )


def finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def samples_of(splits: Sequence[Split], scores: Sequence[Score], details: SplitDetails) -> SplitSamples:
    """What each sample of a split gave, or of the splits of a suite's task that reads several."""
    lists: dict[tuple[str, ...], int] = {}
    kept = [(score, score.statistic) for score in scores if not score.unknown]
    return SplitSamples(
        source=" ".join(split.source for split in splits),
        data=digest([split.digest for split in splits]) if len(splits) != 1 else splits[0].digest,
        samples=sum(len(split) for split in splits),
        classes=digest(details.classes),
        templates=details.templates,
        scores=tuple(_kept(score, one, lists) for score, one in kept if isinstance(one, Kept)),
        items=tuple(lists),
        metrics=details.metrics,
    )


def _kept(score: Score, statistic: Kept, lists: dict[tuple[str, ...], int]) -> KeptScore:
    assert len(score.items) in (0, score.n) and len(score.clusters) in (0, score.n)
    return KeptScore(
        task=score.task,
        metric=score.metric,
        n=score.n,
        kind=statistic.kind,
        parts={name: tuple(values.astype(np.float64).tolist()) for name, values in statistic.parts.items()},
        items=lists.setdefault(score.items, len(lists)) if score.items else None,
        clusters=lists.setdefault(score.clusters, len(lists)) if score.clusters else None,
        normalizer=score.normalizer,
    )


def digest(names: Sequence[str]) -> str:
    return hashlib.blake2b(json.dumps(list(names)).encode(), digest_size=16).hexdigest()


def write(scores: Mapping[str, Scores], out: Path, origin: Origin, partial: bool = False) -> list[Row]:
    """All three files, the rows last; returns these. `partial`: beside the files of an evaluation that ended."""
    data = {name: one.samples.data if one.samples else "" for name, one in scores.items()}
    rows = [replace(row, **asdict(origin), data=data[name]) for name, one in scores.items() for row in one.rows]
    details = Details(about=origin, splits={name: one.details for name, one in scores.items()})
    samples = Samples(about=origin, splits={name: one.samples for name, one in scores.items() if one.samples})
    places = [path.with_name(path.name + PARTIAL * partial) for path in paths_of(out)]
    write_json(places[2], samples)
    write_json(places[1], details)
    write_json(places[0], rows, indent=1)
    return rows


def write_json(path: Path, tree: Any, indent: int | None = None) -> None:
    """Whole or not at all; dataclasses as objects, numbers that are not finite as null, and halves of surrogate pairs
    as escapes."""
    layout = {"indent": indent, "allow_nan": False, "separators": (",", ": " if indent else ":"), "default": vars}
    try:
        text = json.dumps(tree, **layout)
    except ValueError:  # a walk through all of it is slow, and mostly all is finite
        text = json.dumps(nulled(tree), **layout)
    try:
        replace_file(path, text.encode())
    except OSError as why:
        raise UserError(f"cannot write {path}: {why.strerror}; free some space or choose a place by --out") from None


def nulled(tree: Any) -> Any:
    """The same of JSON's kinds, with None for every number that is not finite."""
    if is_dataclass(tree):
        return nulled(vars(tree))
    if isinstance(tree, dict):
        return {key: nulled(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [nulled(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def check_place(path: Path) -> Path:
    """The same path, if a file can be put there: told before the work, not after."""
    told = f"--out {path} is a folder; give the name of a file in it, such as {path / 'results.json'}"
    require(not path.is_dir(), told)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise UserError(f"cannot make {path.parent}: {why.strerror}; choose another place by --out") from None
    require(os.access(path.parent, os.W_OK), f"cannot write in {path.parent}; choose another place by --out")
    return path


@contextmanager
def kept(scores: Mapping[str, Scores], out: Path, console: Console) -> Iterator[None]:
    """Where the work within breaks off, says where that stands which was scored until then."""
    try:
        yield
    except BaseException:
        if scores:
            say(console, f"{', '.join(scores)}: kept in {out.name}{PARTIAL}, beside {out}")
        raise


def finish(scores: Mapping[str, Scores], out: Path, console: Console, origin: Origin = NOWHERE) -> list[Row]:
    """Write and print. Raises UserError where nothing was scored."""
    lines = [f"{name}: {line}" for name, one in scores.items() for line in one.details.left_out]
    sources = ", ".join(dict.fromkeys(one.details.source for one in scores.values()))
    scored = any(one.rows for one in scores.values())
    require(scored, f"nothing can be scored in {sources}: {'; '.join(lines)}")
    rows = write(scores, out, origin)
    for path in paths_of(out):
        path.with_name(path.name + PARTIAL).unlink(missing_ok=True)
    for name, one in scores.items():
        print_split(name, one.rows, one.details, console)
    say(console, f"wrote {out}")
    return rows


def say(console: Console, line: str, style: str = "") -> None:
    """A line, with what no terminal can write, halves of surrogate pairs, as escapes."""
    console.print(printable(line), style=style, soft_wrap=True, highlight=False, markup=False)


def printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def print_split(name: str, rows: Sequence[Row], details: SplitDetails, console: Console) -> None:
    """A line per task and headline metric: value, 95 % interval, chance level, number of items; narrow enough for 80
    columns. Then why values are missing, and what the scores leave out."""
    counts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in details.counts.items() if count)
    say(console, f"{name}: {counts}", "bold")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("task", "metric"):
        table.add_column(column, no_wrap=True)
    for column in ("value", "95 %", "chance", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        if is_headline(row.metric) or "/" in row.metric:  # a judge's, or of one codebook
            named = f"{row.metric} ({row.normalizer})" if row.normalizer else row.metric
            table.add_row(printable(row.task), printable(named), *_shown(row), str(row.n))
    console.print(table)
    for row in rows:
        if row.value is None:
            say(console, f"no value: {row.task} {row.metric}: {row.reason}", "yellow")
    for line in details.left_out:
        say(console, f"left out: {line}", "dim")
    console.print()


def _shown(row: Row) -> tuple[str, str, str]:
    """Value, interval and chance level; a dash for each that there is not."""
    return (
        "–" if row.value is None else f"{row.value:.3f}",
        "–" if row.low is None or row.high is None else f"{row.low:.3f}-{row.high:.3f}",
        "–" if row.chance is None else f"{row.chance:.3g}",
    )
