"""The page of `mmfm compare`: what differs beyond chance, every figure of every run, and how it was tested."""

from collections.abc import Iterator, Sequence

from mmfm.evals.metrics_table import is_headline, is_share, label, metric_of
from mmfm.evals.records import Row
from mmfm.report import charts
from mmfm.report.charts import Axis
from mmfm.report.comparison import Comparison, PairedTest, amount, letter, p_value, sentences
from mmfm.report.document import document, sectioned
from mmfm.report.markup import Html, join, tag
from mmfm.report.scored_runs import Key, ScoredRun
from mmfm.report.scores import NO_BREAK, axis_of, interval, show, shown

HOW = (
    "Each test asks whether two of these models would differ on other samples like these; it says nothing of what "
    "training either again, with another seed, would give. A difference is the first run less the second. Its interval "
    "is a percentile bootstrap over the items that both have, drawn alike; rows of one item, such as five captions of "
    "one picture, are drawn and tested together. Where every row is right or wrong, p is that of an exact test of "
    "signs, which is McNemar's where each row is an item of its own; else of Student's t of the difference over its "
    "bootstrap error. Both are corrected by Holm's method over all comparisons of one task on one split. "
    "Only: how many rows the first run alone got right, and the second alone."
)
SHOWN = 8  # sentences; the table has the rest
OPEN = 20  # comparisons


def render(board: Comparison) -> Html:
    """The page."""
    head, *told = sentences(board)
    found = [tag("li", unbroken(line)) for line in told[:SHOWN]]
    more = [tag("p", f"And {len(told) - SHOWN} more, in the table below.", class_="quiet")] if told[SHOWN:] else []
    parts: dict[str, list[Html]] = {
        "Overview": [*([tag("ul", *found, class_="findings")] if found else []), *more, _runs(board.runs)],
        "Scores": [*_scores(board)],
        "Differences": [_comparisons(board)] if board.comparisons else [],
        "All figures": [_every(board)],
        "How it was tested": [*_how(board)],
    }
    links, main = sectioned(parts)
    names = [one.name for one in board.runs]
    title = " and ".join(names) if len(names) == 2 else f"{len(names)} runs"
    header = tag(
        "header",
        tag("p", "mmfm comparison", class_="kicker"),
        tag("h1", title),
        tag("p", unbroken(head), class_="summary"),
        links,
    )
    folders = ", ".join(str(one.folder) for one in board.runs)
    footer = tag(
        "footer", tag("p", f"Made by mmfm compare from the files of {folders}. It loads nothing from anywhere.")
    )
    return document(f"{title}: comparison", header, main, footer)


def unbroken(line: str) -> str:
    """A sentence whose numbers keep their signs beside them, with printed arrows."""
    return shown(line).replace(" %", f"{NO_BREAK}%").replace("p < ", f"p{NO_BREAK}<{NO_BREAK}")


def _table(names: Sequence[str], rows: Sequence[Html], kind: str = "plain") -> Html:
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in names)))
    return tag("div", tag("table", head, tag("tbody", *rows), class_=kind), class_="scroll")


def _number(text: str, value: int | float | None = None) -> Html:
    return tag("td", text, class_="number", data_value=value)


def _runs(runs: Sequence[ScoredRun]) -> Html:
    """Which run is which: its letter and mark are those of the charts."""
    rows = [
        tag(
            "tr",
            tag("th", charts.key(place), letter(place), scope="row", class_="run"),
            tag("td", one.name),
            tag("td", tag("code", one.folder)),
            _number(f"{one.run.seed}"),
            _number("" if one.step is None else f"{one.step:,}"),
            tag("td", ", ".join(f"{name} ({about.samples:,})" for name, about in one.splits.items())),
        )
        for place, one in enumerate(runs)
    ]
    return _table(("", "run", "folder", "seed", "steps", "scored on (samples)"), rows)


def _comparisons(board: Comparison) -> Html:
    """Every pair and figure; many of them unfold."""
    names = (
        "split",
        "task",
        "metric",
        "runs",
        "difference",
        "95 % interval",
        "p",
        "p (Holm)",
        "items",
        "only",
        "better",
    )
    rows = [_compared(board, one) for one in board.comparisons]
    summary = tag("summary", f"All {len(rows):,} comparisons; those beyond chance are marked")
    return tag("details", summary, _table(names, rows, "plain sortable compared"), open=len(rows) <= OPEN)


def _compared(board: Comparison, one: PairedTest) -> Html:
    points, outcome = is_share(one.metric), one.outcome
    only = "–" if one.only is None else f"{one.only[0]:,} : {one.only[1]:,}"
    first, second = (board.runs[place].name for place in (one.first, one.second))
    better = None if one.better is None else (charts.key(one.better), tag("b", letter(one.better)))
    limits = f"{amount(outcome.low, points)} to {amount(outcome.high, points)}"
    found = ((p, p_value(p).removeprefix("p ").removeprefix("= ")) for p in (outcome.p, one.adjusted))
    return tag(
        "tr",
        *(tag("td", text) for text in (one.split, shown(one.task), label(one.metric))),
        tag("td", f"{letter(one.first)} − {letter(one.second)}"),
        _number(f"{'+' * (outcome.difference > 0)}{amount(outcome.difference, points)}", outcome.difference),
        _number(limits),
        *(_number(text, p) for p, text in found),
        _number(f"{outcome.n:,}" + f" of {outcome.items:,}" * (outcome.items < outcome.n), outcome.n),
        _number(only),
        tag("td", *(better or ("–",))),
        class_="beyond" if better else None,
        title=f"{first} less {second}; p: {outcome.test}",
    )


def _scores(board: Comparison) -> Iterator[Html]:
    """The headline figures: for each a lane for each run, on one axis."""
    marks = [tag("li", charts.key(place), f"{letter(place)} {one.name}") for place, one in enumerate(board.runs)]
    bar = tag("rect", x=-8, width=16, y=-6, height=12, class_="range m0")
    tick = tag("line", x1=0, x2=0, y1=-8, y2=8, class_="chance")
    for drawn, text in ((bar, "95 % bootstrap interval"), (tick, "chance")):
        marks.append(tag("li", tag("svg", drawn, class_="key", viewBox="-9 -9 18 18", aria_hidden="true"), text))
    yield tag("ul", *marks, class_="legend marks")
    for split in dict.fromkeys(key[0] for key in board.keys):
        own = [key for key in board.keys if key[0] == split and is_headline(key[2])]
        if own:
            yield join((tag("h3", split), tag("div", *(_panel(board, key) for key in own), class_="panels")))


def _panel(board: Comparison, key: Key) -> Html:
    found = [(place, row) for place, one in enumerate(board.runs) if (row := one.rows.get(key)) is not None]
    axis = axis_of(row for _, row in found)
    meaning = metric_of(key[2]).explained
    scale = "" if axis.high == 1.0 else f"{'; ' * bool(meaning)}drawn from {axis.low:g} to {axis.high:g}"
    counts = " / ".join(dict.fromkeys(f"{row.n:,}" for _, row in found))
    heading = tag("span", f" {label(key[2])}; {meaning}{scale}; n = {counts}", class_="quiet")
    lanes = [_lane(row, axis, place) for place, row in found]
    return tag("table", tag("caption", shown(key[1]), heading), tag("tbody", *lanes), class_="dots")


def _lane(row: Row, axis: Axis, place: int) -> Html:
    value = (tag("b", show(row.metric, row.value)), " ", tag("span", interval(row), class_="quiet"))
    return tag(
        "tr",
        tag("th", charts.key(place), letter(place), scope="row"),
        tag("td", charts.lane(row.value, row.low, row.high, row.chance, axis, place), class_="track"),
        tag("td", *value, class_="value"),
    )


def _every(board: Comparison) -> Html:
    """Every figure: a line for each, a column for each run."""
    names = ["split", "task", "metric", *(f"{letter(place)} {one.name}" for place, one in enumerate(board.runs))]
    rows = []
    for key in board.keys:
        found = [one.rows.get(key) for one in board.runs]
        cells = [_cell(row) for row in found]
        chance = next((row.chance for row in found if row is not None), None)
        counts = " / ".join(dict.fromkeys(f"{row.n:,}" for row in found if row is not None))
        texts = (tag("td", text) for text in (key[0], shown(key[1]), label(key[2])))
        rows.append(tag("tr", *texts, *cells, _number(show(key[2], chance), chance), _number(counts)))
    return _table([*names, "chance", "n"], rows, "plain sortable")


def _cell(row: Row | None) -> Html:
    if row is None or row.value is None:
        return _number("–")
    limits = tag("span", f" {interval(row)}", class_="quiet")
    return tag("td", tag("b", show(row.metric, row.value)), limits, class_="number", data_value=row.value)


def _how(board: Comparison) -> Iterator[Html]:
    drawn = (
        f"{board.bootstrap.resamples:,} resamples, seed {board.bootstrap.seed}; {len(board.comparisons)} comparisons."
    )
    yield tag("p", HOW)
    yield tag("p", drawn)
    if board.notes:
        yield tag("ul", *(tag("li", line) for line in board.notes), class_="left-out")
    yield tag("pre", tag("code", f"mmfm compare {' '.join(str(one.folder) for one in board.runs)}"))
