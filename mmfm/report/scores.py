"""The rows of results.json as tiles, as dots with intervals and chance, and as one plain table."""

import math
from collections.abc import Iterable, Sequence

from mmfm.config import Run
from mmfm.evals.metrics_table import (
    GROUPS,
    METRICS,
    OTHER,
    entry_of,
    group_of,
    is_control,
    is_headline,
    is_share,
    label,
    metric_of,
)
from mmfm.evals.records import Row
from mmfm.report import charts
from mmfm.report.charts import Axis, linear_axis
from mmfm.report.markup import Html, join, tag
from mmfm.report.run_record import Log, headline_first

MOST_LEADING = 10  # tasks whose leading score has a tile and a place in the opening sentence
NO_BREAK = "\N{NO-BREAK SPACE}"
PERCENT = Axis(low=0.0, high=1.0, ticks=(0.0, 0.25, 0.5, 0.75, 1.0))


def shown(task: str) -> str:
    """A task with a printed arrow; a task of writing keeps its sign, which tells the two apart."""
    return task.replace("->", " → ")


def show(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}{NO_BREAK}%" if is_share(metric) else _plain_number(metric, value)


def _plain_number(metric: str, value: float) -> str:
    return charts.round_figure(value) if metric_of(metric).unit == "rank" else f"{value:,.2f}"


def interval(row: Row) -> str:
    if row.low is None or row.high is None:
        return "no interval"
    if is_share(row.metric):
        return f"{100 * row.low:.1f} – {100 * row.high:.1f}"
    return f"{_plain_number(row.metric, row.low)} – {_plain_number(row.metric, row.high)}"


def leading(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Task and metric of the score that speaks for each task: of those with a sentence the first in METRICS."""
    order = list(METRICS)
    found: dict[str, str] = {}
    for row in rows:
        best = found.get(row.task)
        if row.value is None or is_control(row.task) or not metric_of(row.metric).sentence:
            continue
        if best is None or order.index(entry_of(row.metric) or "") < order.index(entry_of(best) or ""):
            found[row.task] = row.metric
    return list(found.items())[:MOST_LEADING]


def find(rows: Sequence[Row], task: str, metric: str, split: str | None = None) -> list[Row]:
    """The rows of a task and metric, with a value."""
    same = [row for row in rows if (row.task, row.metric) == (task, metric) and row.value is not None]
    return [row for row in same if split in (None, row.split)]


def splits_of(rows: Sequence[Row]) -> list[str]:
    """Their names in the order of the page; the headline speaks of the first."""
    return sorted(dict.fromkeys(row.split for row in rows), key=headline_first)


def never_met(run: Run, task: str) -> bool:
    """Whether the two sides of a retrieval were never trained together, by an objective or within a sample."""
    sides = set(task.split("->"))
    paired = any(set(item.pair) == sides for item in run.contrastive)
    return "->" in task and not paired and not any(sides <= set(source.modalities) for source in run.data.train)


def axis_of(rows: Iterable[Row]) -> Axis:
    """From zero: to 100 % for shares, unless one exceeds it; to a round number for the rest."""
    rows = list(rows)
    highest = max((x for row in rows for x in (row.value, row.high, row.chance) if x is not None), default=1.0)
    if highest <= 1 and all(is_share(row.metric) for row in rows):
        return PERCENT
    return linear_axis(0.0, highest, 4)


def tiles(run: Run, rows: Sequence[Row]) -> Html:
    """The leading scores: large for the main split, smaller for the others."""
    order = splits_of(rows)
    chosen = leading(rows) or list(dict.fromkeys((row.task, row.metric) for row in rows))[:6]
    found = [find(rows, *names) for names in chosen]
    return tag("ul", *(_tile(run, same, order) for same in found if same), class_="tiles")


def _tile(run: Run, found: Sequence[Row], order: Sequence[str]) -> Html:
    first, *others = sorted(found, key=lambda row: order.index(row.split))
    axis, known = axis_of(found), metric_of(first.metric)
    lower = "lower is better" if known.higher_is_better is False else None
    note = "the two never met in training" if never_met(run, first.task) else lower
    chance = "" if first.chance is None else f", chance {show(first.metric, first.chance)}"
    return tag(
        "li",
        tag("h3", shown(first.task), " ", tag("span", label(first.metric), class_="quiet")),
        tag("p", tag("strong", show(first.metric, first.value)), " ", tag("span", known.meaning), class_="figure"),
        tag("p", f"{first.split}: 95 % interval {interval(first)}{chance}", class_="quiet interval"),
        *(_tile_lane(row, axis, order.index(row.split)) for row in (first, *others)),
        tag("p", note, class_="quiet remark") if note else None,
    )


def _tile_lane(row: Row, axis: Axis, mark: int) -> Html:
    name = tag("span", charts.key(mark), row.split)
    value = tag("span", show(row.metric, row.value), class_="value")
    drawn = charts.lane(row.value, row.low, row.high, row.chance, axis, mark)
    return tag("div", name, drawn, value, class_="split", title=spoken(row))


def spoken(row: Row) -> str:
    chance = "unknown" if row.chance is None else show(row.metric, row.chance)
    value = show(row.metric, row.value)
    items = f" of {row.clusters:,} items" if 0 < row.clusters < row.n else ""
    told = f"{row.split}, {row.task} {row.metric}: {value}, 95 % interval {interval(row)}, chance {chance}"
    return f"{told}, n = {row.n:,}{items}"


def score_charts(run: Run, rows: Sequence[Row]) -> Html:
    """All scores, grouped by kind and task; the splits of a score lie under each other on one axis."""
    marks = {name: i for i, name in enumerate(splits_of(rows))}
    groups = []
    for kind in (*GROUPS, OTHER):
        same = [row for row in rows if group_of(row.metric, row.task) == kind]
        panels = [
            _panel(task, [row for row in same if row.task == task], marks, never_met(run, task))
            for task in dict.fromkeys(row.task for row in same)
        ]
        if panels:
            groups.append(join((tag("h3", kind), tag("div", *panels, class_="panels"))))
    return tag("div", _legend(marks), *groups)


def _legend(marks: dict[str, int]) -> Html:
    splits = [tag("li", charts.key(mark), name) for name, mark in marks.items()]
    bar = tag("rect", x=-8, width=16, y=-6, height=12, class_="range m0")
    tick = tag("line", x1=0, x2=0, y1=-8, y2=8, class_="chance")
    extra = [
        tag("li", tag("svg", drawn, class_="key", viewBox="-9 -9 18 18", aria_hidden="true"), text)
        for drawn, text in ((bar, "95 % bootstrap interval"), (tick, "chance"))
    ]
    return tag("ul", *splits, *extra, class_="legend marks")


def _panel(task: str, rows: Sequence[Row], marks: dict[str, int], apart: bool) -> Html:
    """Shares lie on one axis, drawn at the foot; another metric has its own, told beside its name."""
    shared = axis_of(row for row in rows if is_share(row.metric))
    axis_row = tag("tr", tag("td"), tag("td", charts.axis_labels(shared, _percent)), tag("td"), class_="axis")
    metrics = list(dict.fromkeys(row.metric for row in rows))
    shares, others = (
        [_metric(metric, rows, marks, shared) for metric in metrics if is_share(metric) is kind]
        for kind in (True, False)
    )
    note = tag("span", " the two never met in training", class_="quiet") if apart else None
    foot = tag("tbody", axis_row) if shares else None
    return tag("table", tag("caption", shown(task), note), *shares, foot, *others, class_="dots")


def _metric(metric: str, rows: Sequence[Row], marks: dict[str, int], shared: Axis) -> Html:
    same = sorted((row for row in rows if row.metric == metric), key=lambda row: marks[row.split])
    axis = shared if is_share(metric) else axis_of(same)
    scale = "" if axis is shared else f"; drawn from {axis.low:g} to {axis.high:g}"
    rules = "".join(f"; normalized by {rule}" for rule in dict.fromkeys(row.normalizer for row in same) if rule)
    meaning = tag("span", metric_of(metric).explained + rules + scale, class_="quiet")
    heading = tag("tr", tag("th", label(metric), " ", meaning, colspan=3, scope="rowgroup"))
    return tag("tbody", heading, *(_lane_row(row, axis, marks[row.split]) for row in same))


def _lane_row(row: Row, axis: Axis, mark: int) -> Html:
    return tag(
        "tr",
        tag("th", charts.key(mark), row.split, scope="row"),
        tag("td", charts.lane(row.value, row.low, row.high, row.chance, axis, mark), class_="track"),
        tag(
            "td", tag("b", show(row.metric, row.value)), " ", tag("span", interval(row), class_="quiet"), class_="value"
        ),
        title=spoken(row),
    )


def during_training(log: Log) -> tuple[list[Html], list[Html]]:
    """The headline scores of each task over the steps: a chart of the shares, and a small one of each other score."""
    found: dict[tuple[str, str, str], Sequence[tuple[int, float]]] = {}
    for name, points in log.curves.items():
        head, *rest = name.split("/", 3)
        if head == "score" and len(rest) == 3 and is_headline(rest[2]):
            found[rest[0], rest[1], rest[2]] = points
    splits = list(dict.fromkeys(split for split, _, _ in found))
    on = {split: f" on {split}" if len(splits) > 1 else "" for split in splits}
    shares, others = {}, {}
    lower = _lower(metric for _, _, metric in found if is_share(metric))
    for (split, task, metric), points in found.items():
        (shares if is_share(metric) else others)[f"{shown(task)} {label(metric)}{on[split]}"] = points
    small = [charts.curves(name, {name: line}, charts.zero_axis(line), height_px=120) for name, line in others.items()]
    if not shares:
        return [], small
    highest = max(value for points in shares.values() for _, value in points)
    axis = PERCENT if highest <= 1 else linear_axis(0.0, highest, 4)
    title = f"Scores on {', '.join(splits)}"
    return [charts.curves(title, shares, axis, note=lower, show=_percent)], small


def _lower(names: Iterable[str]) -> str:
    """Which of these metrics are better where they are lower."""
    lower = dict.fromkeys(label(name) for name in names if metric_of(name).higher_is_better is False)
    return f"{' and '.join(lower)}: lower is better" if lower else ""


def _percent(value: int | float) -> str:
    return f"{100 * value:.0f}{NO_BREAK}%"


COLUMNS = ("split", "task", "metric", "value", "low", "high", "chance", "n")


def table(rows: Sequence[Row]) -> Html:
    """Every row as it stands in results.json, sortable by its headings; where there are such, the rule by which texts
    were compared, or why there is no value."""
    remarks = [", ".join(filter(None, (row.normalizer, row.reason))) for row in rows]
    names = (*COLUMNS, *(["remark"] if any(remarks) else []))
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in names)))
    cells = [(*(getattr(row, name) for name in COLUMNS), told) for row, told in zip(rows, remarks, strict=True)]
    body = tag("tbody", *(tag("tr", *map(_cell, values[: len(names)])) for values in cells))
    return tag("div", tag("table", head, body, class_="plain sortable"), class_="scroll")


def _cell(value: str | int | float | None) -> Html:
    if value is None:
        return tag("td", "–", class_="number")
    if isinstance(value, str):
        return tag("td", value)
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
    return tag("td", text, class_="number", data_value=value if math.isfinite(value) else None)
