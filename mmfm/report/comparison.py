"""Runs side by side, and which of their differences chance does not explain.

Every headline figure of every pair of runs is one comparison: a difference with a paired bootstrap interval, a p-value
(an exact test of signs where every row is right or wrong, McNemar's where each is an item of its own; else of Student's
t over the bootstrap's error), and Holm's correction within its family: all comparisons of one task on one split.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from mmfm.config import require
from mmfm.evals.metrics_table import better, is_headline, is_share, label
from mmfm.evals.resampling import Bootstrap, numbered, resampled
from mmfm.report.paired import Outcome, discordant, estimated, holm, least_p, sign_flips, summed
from mmfm.report.run_record import headline_first
from mmfm.report.scored_runs import Key, Paired, ScoredRun, differing

LEVEL, HOLM = 0.05, "after Holm's correction within each task of a split"


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """`first` less `second`, as places among the runs. `adjusted`: p after Holm's correction within the family of
    `family` comparisons.

    `only`: how many rows only the first, and only the second, got right; None where rows are more than that.
    """

    split: str
    task: str
    metric: str
    first: int
    second: int
    values: tuple[float, float]
    outcome: Outcome
    only: tuple[int, int] | None
    adjusted: float = 1.0
    family: int = 1

    @property
    def better(self) -> int | None:
        """The run that is better beyond chance, if one is, and if the metric has a better direction at all."""
        side = better(self.metric, self.outcome.difference) if self.adjusted < LEVEL else 0
        return {1: self.first, -1: self.second, 0: None}[side]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that is shown: the runs, their rows, the comparisons, and what was not compared."""

    runs: list[ScoredRun]
    keys: list[Key]
    comparisons: list[PairedTest]
    notes: list[str]
    bootstrap: Bootstrap

    def where(self, key: Key) -> str:
        split, task, metric = key
        return f"{split}, {task} {label(metric)}"


def board_of(runs: Sequence[ScoredRun], bootstrap: Bootstrap) -> Comparison:
    """Runs that `read_contenders` let pass, compared by pairs."""
    keys = sorted(dict.fromkeys(key for one in runs for key in one.rows), key=lambda key: headline_first(key[0]))
    notes, found, untested = differing(runs), [], []
    for key in keys:
        holders = [place for place, one in enumerate(runs) if key in one.kept]
        if is_headline(key[2]) and len(holders) > 1:
            found += _compared(key, runs, holders, bootstrap, notes)
        elif is_headline(key[2]) and sum(key in one.rows for one in runs) > 1:
            untested.append(f"{key[0]}, {key[1]} {label(key[2])}")
    if untested:
        why = (
            "shown and not tested, as each is of all items at once, so that results keep no number of every item for it"
        )
        notes.append(f"{why}: {'; '.join(untested)}")
    found, hopeless = corrected(found)
    notes += hopeless
    return Comparison(runs=list(runs), keys=keys, comparisons=found, notes=notes, bootstrap=bootstrap)


def corrected(found: Sequence[PairedTest]) -> tuple[list[PairedTest], list[str]]:
    """Holm's correction within each family, and which of them have too few items for anything to differ."""
    families: dict[tuple[str, str], list[int]] = {}
    for place, one in enumerate(found):
        families.setdefault((one.split, one.task), []).append(place)
    made, few = list(found), dict[str, list[str]]()
    for (split, task), places in families.items():
        for place, p in zip(places, holm([found[place].outcome.p for place in places]), strict=True):
            made[place] = replace(found[place], adjusted=p, family=len(places))
        most = max(found[place].outcome.items for place in places)
        if least_p(most) * len(places) >= LEVEL:
            few.setdefault(split, []).append(f"{task} ({most} items, {len(places)} comparisons)")
    told = "too few items for any difference to be beyond chance"
    return made, [f"{split}: {told}: {', '.join(tasks)}" for split, tasks in few.items()]


def _compared(
    key: Key, runs: Sequence[ScoredRun], holders: list[int], bootstrap: Bootstrap, notes: list[str]
) -> list[PairedTest]:
    """Every pair of these runs on the items that all of them have; resampled alike."""
    kept = [runs[place].kept[key] for place in holders]
    chosen = _common(kept)
    n = len(chosen[0])
    most = max(one.n for one in kept)
    if n < most:
        notes.append(f"{key[0]}: {key[1]} {label(key[2])} is compared on the {n} of {most} items that all runs have")
    if n == 0:
        return []
    if len(rules := dict.fromkeys(one.normalizer for one in kept)) > 1:
        told = f"{key[0]}: {key[1]} {label(key[2])} is of texts that were normalised differently"
        notes.append(f"{told} ({', '.join(rule or 'unknown' for rule in rules)}), and is not tested")
        return []
    statistics = [one.statistic(places) for one, places in zip(kept, chosen, strict=True)]
    known = next(((one.clusters, at) for one, at in zip(kept, chosen, strict=True) if one.clusters), None)
    numbers = numbered([] if known is None else [known[0][place] for place in known[1]], n)
    values, draws = resampled(statistics, n, bootstrap, numbers)
    return [
        _comparison(
            key,
            (holders[a], holders[b]),
            (kept[a], kept[b]),
            (chosen[a], chosen[b]),
            numbers,
            values[[a, b]],
            draws[[a, b]],
        )
        for a, b in combinations(range(len(holders)), 2)
    ]


def _common(kept: Sequence[Paired]) -> list[list[int]]:
    """The places, in each of them, of the items that all have, in one order."""
    if not all(one.names for one in kept):
        require(len({one.n for one in kept}) == 1, "items without names differ in number; score the runs again")
        return [list(range(one.n)) for one in kept]
    shared = set.intersection(*(set(one.names) for one in kept))
    order = [name for name in kept[0].names if name in shared]
    return [[places[name] for name in order] for one in kept if (places := {n: i for i, n in enumerate(one.names)})]


def _comparison(
    key: Key,
    pair: tuple[int, int],
    kept: tuple[Paired, Paired],
    places: tuple[list[int], list[int]],
    numbers: np.ndarray | None,
    values: np.ndarray,
    draws: np.ndarray,
) -> PairedTest:
    n, only = len(places[0]), None
    outcome = estimated(values, draws, n if numbers is None else int(numbers.max()) + 1, n)
    if all(one.kind == "mean" for one in kept):
        first, second = (one.parts["values"][at].astype(np.float64) for one, at in zip(kept, places, strict=True))
        only = discordant(first, second)
        if only is not None:
            test = "McNemar" if numbers is None else "signs of items"
            outcome = replace(outcome, p=sign_flips(summed(first - second, numbers)), test=test)
    split, task, metric = key
    told = {"split": split, "task": task, "metric": metric, "first": pair[0], "second": pair[1]}
    return PairedTest(**told, values=(float(values[0]), float(values[1])), outcome=outcome, only=only)


def sentences(board: Comparison) -> list[str]:
    """What differs beyond chance, in plain words; first how many do."""
    found, every = [one for one in board.comparisons if one.better is not None], len(board.comparisons)
    if not found:
        return [f"Nothing differs beyond chance: {HOLM} none of {every} comparisons has p < {LEVEL:g}."]
    verb = "differs" if len(found) == 1 else "differ"
    head = f"{len(found)} of {every} comparisons {verb} beyond chance (p < {LEVEL:g} {HOLM})."
    return [head, *(sentence(board, one) for one in found)]


def sentence(board: Comparison, one: PairedTest) -> str:
    """One comparison that chance does not explain, from the better run's side."""
    assert one.better is not None
    worse, turned = (one.second, 1) if one.better == one.first else (one.first, -1)
    mine, theirs = one.values[::turned]
    sign = 1 if one.outcome.difference > 0 else -1
    low, high = sorted((sign * one.outcome.low, sign * one.outcome.high))
    where = board.where((one.split, one.task, one.metric))
    names = f"{board.runs[one.better].name} is better than {board.runs[worse].name}"
    points = is_share(one.metric)
    limits = f"95 % interval {amount(low, points)} to {amount(high, points)}"
    told = f"{amount(abs(one.outcome.difference), points)}{' points' * points}, {limits}"
    shown = f"{figure(one.metric, mine)} against {figure(one.metric, theirs)}"
    return f"{where}: {names}, {shown} (by {told}; {p_value(one.adjusted)})."


def amount(value: float, points: bool) -> str:
    return f"{100 * value:.1f}" if points else f"{value:.3f}"


def figure(metric: str, value: float) -> str:
    return f"{100 * value:.1f} %" if is_share(metric) else f"{value:.3f}"


def p_value(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}" if p < 0.01 else f"p = {p:.2f}"


def letter(place: int) -> str:
    """A, B, ... Z, A1, B1, ...: what a run is called in narrow columns."""
    return chr(ord("A") + place % 26) + str(place // 26 or "")
