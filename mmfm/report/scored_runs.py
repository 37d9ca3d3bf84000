"""Runs that were scored, read side by side and found to be comparable: the same samples, byte for byte.

Of each run results.json and all results.SUITE.json, with the .samples.json beside each. Splits of a suite are called
SUITE/NAME here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from mmfm.config import Run, UserError, require
from mmfm.evals.metrics import STATISTICS
from mmfm.evals.own_metrics import learn
from mmfm.evals.provenance import AGAIN, doubt, run_of
from mmfm.evals.records import KeptScore, Row, Samples, SplitSamples, paths_of
from mmfm.evals.resampling import Statistic
from mmfm.evals.split import numbered_names
from mmfm.inference.bundle.contents import is_bundle
from mmfm.report.run_record import RESULTS, parsed, read_rows, result_files

CLOSE = 1e-9
Key = tuple[str, str, str]  # split, task, metric


@dataclass(frozen=True, kw_only=True)
class Paired:
    """What the rows of one score gave. `names`: what they are called; (): they are told apart by place. `clusters`:
    what each is of; (): no two are of one."""

    kind: str
    parts: dict[str, np.ndarray]
    names: tuple[str, ...]
    n: int
    clusters: tuple[str, ...] = ()
    normalizer: str = ""

    def statistic(self, places: Sequence[int] | None = None) -> Statistic:
        """Of these items; None: of all."""
        chosen = slice(None) if places is None else np.asarray(places, int)
        return STATISTICS[self.kind](**{name: values[chosen] for name, values in self.parts.items()})

    @property
    def value(self) -> float:
        return float(self.statistic()(np.arange(self.n)[None])[0])


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """One run. `splits`: what was read for each split, without its figures; `kept`: the figures that can be tested;
    `notes`: what its results say of themselves that a reader should know."""

    name: str
    folder: Path
    run: Run
    rows: dict[Key, Row]
    splits: dict[str, SplitSamples]
    kept: dict[Key, Paired]
    notes: list[str] = field(default_factory=list)

    @property
    def step(self) -> int | None:
        """Of which step its scores are; of those that do not say so, what the run was to train. None: of a bundle."""
        if is_bundle(self.folder):
            return None
        return next((row.step for row in self.rows.values() if row.step is not None), self.run.optim.steps)


def read_contenders(folders: Sequence[str | Path]) -> list[ScoredRun]:
    """In the order given, called by their names, or by their folders where two have one name.

    Raises UserError for fewer than two, one that is named twice or was not scored, and runs that were scored on
    different data.
    """
    paths = [Path(folder) for folder in folders]
    require(len(paths) > 1, "mmfm compare needs at least two runs: mmfm compare RUN RUN ...")
    for first, second in combinations(paths, 2):
        require(first.resolve() != second.resolve(), f"{second} is named twice; name each run once")
    found = [_read(path) for path in paths]
    names = [one.run.name for one in found]
    if len(set(names)) < len(names):
        found = [ScoredRun(**{**vars(one), "name": str(one.folder)}) for one in found]
    for first, second in combinations(found, 2):
        _same_data(first, second)
    require(
        any(set(first.splits) & set(second.splits) for first, second in combinations(found, 2)),
        f"{paths[0]} and {paths[1]} were scored on no split of one name: one has {', '.join(found[0].splits)}, "
        f"the other {', '.join(found[1].splits)}; score both by the same --data",
    )
    return found


def _read(folder: Path) -> ScoredRun:
    run, files = run_of(folder), result_files(folder)
    require(bool(files), f"{folder} holds no {RESULTS}; score it first: mmfm eval {folder}")
    one = ScoredRun(name=run.name, folder=folder, run=run, rows={}, splits={}, kept={})
    for file in files:
        suite = file.name.removeprefix("results").removesuffix(".json").removeprefix(".")
        _add(one, file, f"{suite}/" if suite else "")
    return one


def _add(one: ScoredRun, file: Path, prefix: str) -> None:
    """The rows of a file of results, and what is kept beside them."""
    again = f"{AGAIN} {one.folder}" + f" {prefix.removesuffix('/')}.py" * bool(prefix)
    rows, beside = read_rows(file), paths_of(file)[2]
    kept = parsed(beside, Samples)
    if kept is None:
        raise UserError(f"{one.folder} holds no {beside.name}, which says what each sample gave; {again}")
    if found := doubt(one.folder, file.name, rows):
        require(not found.stale, found.told)
        one.notes.append(found.told)
    for row in rows:
        one.rows[prefix + row.split, row.task, row.metric] = row
    for name, split in kept.splits.items():
        one.splits[prefix + name] = split
        for metric, known in split.metrics.items():
            learn(metric, known)
        for score in split.scores:
            key = (prefix + name, score.task, score.metric)
            paired = one.kept[key] = _paired(score, split.items, beside)
            row = one.rows.get(key)
            matches = row is not None and _same(row.value, paired.value)
            told = f"{file} and {beside.name} do not belong together ({name}, {score.task} {score.metric}); {again}"
            require(matches, told)


def _same(value: float | None, made: float) -> bool:
    """Whether a row has the value that its samples make again, null where these make none."""
    if value is None or not math.isfinite(made):
        return value is None and not math.isfinite(made)
    return abs(value - made) <= CLOSE * max(1.0, abs(value))


def _paired(score: KeptScore, lists: Sequence[tuple[str, ...]], where: Path) -> Paired:
    known = all(place is None or place < len(lists) for place in (score.items, score.clusters))
    names, clusters = (() if at is None or not known else lists[at] for at in (score.items, score.clusters))
    parts = {name: _numbers(own) for name, own in score.parts.items()}
    every = all(len(own) == score.n for own in (*parts.values(), *filter(None, (names, clusters))))
    good = known and every and score.kind in STATISTICS and score.n > 0
    require(good, f"{where}: {score.task} {score.metric} is not what mmfm wrote there; remove it and make it again")
    told = {
        "clusters": clusters or repeated(names),
        "names": tuple(numbered_names(names)),
        "normalizer": score.normalizer,
    }
    return Paired(kind=score.kind, parts=parts, n=score.n, **told)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    """None is what was not finite; whole numbers where all are."""
    x = np.array([np.nan if value is None else value for value in values], float)
    return x.astype(int) if np.array_equal(x, x.round()) else x


def repeated(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names that occur several times are of one item."""
    return names if len(set(names)) < len(names) else ()


def _same_data(first: ScoredRun, second: ScoredRun) -> None:
    """Raises UserError where a split of both is not of the same samples and classes."""
    both = f"{first.folder} and {second.folder} were scored on different data"
    for name in (name for name in first.splits if name in second.splits):
        one, other = first.splits[name], second.splits[name]
        counts = one.samples, other.samples
        many = f"has {counts[0]} samples in one and {counts[1]} in the other"
        told = many if counts[0] != counts[1] else f"has {counts[0]} samples in both, but not the same ones"
        require(one.data == other.data, f"{both}: split {name} {told}; score both by the same --data and --limit")
        suites = {row.suite for run in (first, second) for key, row in run.rows.items() if key[0] == name and row.suite}
        asked = f"{first.folder} and {second.folder} were asked by different suites in {name}; score both by one"
        require(len(suites) < 2, asked)
        same = one.classes == other.classes
        require(same, f"{both}: split {name} has other classes to choose from; score both by the same --classes")


def differing(contenders: Sequence[ScoredRun]) -> list[str]:
    """What was not the same though the data was, and what is not compared: a line each."""
    lines = [line for one in contenders for line in one.notes]
    versions = dict.fromkeys(row.version for one in contenders for row in one.rows.values() if row.version)
    if len(versions) > 1:
        lines.append(f"the runs were scored by different versions of mmfm: {', '.join(versions)}")
    for name in dict.fromkeys(split for one in contenders for split in one.splits):
        holders = [one for one in contenders if name in one.splits]
        missing = [one.name for one in contenders if name not in one.splits]
        if missing:
            lines.append(f"{name}: not scored for {', '.join(missing)}")
        if len({one.splits[name].templates for one in holders}) > 1:
            lines.append(f"{name}: the runs were asked with different templates, so that theirs differ too")
    return lines
