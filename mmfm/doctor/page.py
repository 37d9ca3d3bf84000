"""An examination as one HTML file that needs no network and no script, in the look of the report's."""

from collections.abc import Iterator
from pathlib import Path

from mmfm.doctor.findings import LEVELS, Distribution, Finding, Report, Row, Section, Table, plural
from mmfm.report.charts import at, round_figure
from mmfm.report.document import document, sectioned
from mmfm.report.markup import Html, tag

CLASS = {"OK": "ok", "NOTE": "note-level", "WARNING": "warning", "ERROR": "error"}
HEIGHT_PX = 22


def render(report: Report) -> Html:
    """The page. Nothing in it may act, and its policy says so; only the style of this package applies."""
    links, main = sectioned({section.name: [*_section(section)] for section in report.sections})
    counts = ", ".join(plural(report.count(level), level) for level in reversed(LEVELS[1:])).lower()
    header = tag(
        "header",
        tag("p", "mmfm doctor", class_="kicker"),
        tag("h1", report.run),
        tag("p", report.verdict, class_="verdict-line"),
        tag("p", counts, class_="quiet"),
        links,
    )
    origin = f"Made by mmfm doctor {report.config} in {report.seconds:g} s. It loads nothing from anywhere."
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    parts = (header, main, tag("footer", tag("p", origin)))
    return document(f"{report.run}: data", *parts, more_style=style, active=False, class_="doctor")


def _section(section: Section) -> Iterator[Html]:
    if section.findings:
        yield tag("ul", *map(_finding, section.findings), class_="findings")
    yield from map(_table, section.tables)
    yield from map(_distribution, section.distributions)


def _finding(item: Finding) -> Html:
    rest = item.count - len(item.examples)
    more = tag("li", f"and {rest:,} more") if item.examples and rest > 0 else None
    shown = [_pictures(item, place) for place in range(len(item.examples))]
    lines = (tag("li", case, twins) for case, twins in zip(item.examples, shown, strict=True))
    cases = tag("ul", *lines, more, class_="cases") if item.examples else None
    return tag("li", tag("span", item.level, class_="level"), tag("p", item.message), cases, class_=CLASS[item.level])


def _pictures(item: Finding, place: int) -> Html | None:
    if place >= len(item.pictures):
        return None
    return tag("div", *(tag("img", src=uri, alt="") for uri in item.pictures[place]), class_="twins")


def _table(table: Table) -> Html:
    numbers = [all(not isinstance(row[at], str) for row in table.rows) for at in range(len(table.head))]
    heads = zip(table.head, numbers, strict=True)
    names = (tag("th", name, scope="col", class_="number" if number else None) for name, number in heads)
    head = tag("thead", tag("tr", *names))
    rows = (tag("tr", *map(_cell, row)) for row in table.rows)
    caption = tag("caption", table.title) if table.title else None
    return tag("div", tag("table", caption, head, tag("tbody", *rows), class_="plain tabled"), class_="scroll")


def _cell(cell: str | int | float) -> Html:
    return tag("td", cell) if isinstance(cell, str) else tag("td", f"{cell:,}", class_="number")


def _bin(low: float, high: float) -> str:
    """By its ends, or as the one whole number in it."""
    alone = high - low == 1 and (low + 0.5).is_integer()
    return round_figure(low + 0.5) if alone else f"{round_figure(low)} to {round_figure(high)}"


def _distribution(drawn: Distribution) -> Html:
    title = f"{drawn.title}, {drawn.unit}" if drawn.unit else drawn.title
    if drawn.constant:
        every = f"{round_figure(drawn.span[0])} {drawn.unit}".rstrip()
        return tag("p", tag("b", drawn.title), f": {every} in all {sum(row.n for row in drawn.rows):,}")
    span = tag("span", *(tag("span", round_figure(end)) for end in drawn.span), class_="spans")
    names = ("", "n", "least", "median", "95 %", "most", span)
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in names)))
    rows = (_row(row, drawn) for row in drawn.rows)
    table = tag("table", tag("caption", title), head, tag("tbody", *rows), class_="measured")
    return tag("div", table, class_="scroll")


def _row(row: Row, drawn: Distribution) -> Html:
    figures = [round_figure(value) for value in (row.least, row.median, row.high, row.most)]
    cells = (tag("td", value) for value in (f"{row.n:,}", *figures))
    return tag("tr", tag("th", row.name, scope="row"), *cells, tag("td", _histogram(row, drawn)))


def _histogram(row: Row, drawn: Distribution) -> Html:
    spoken = f"{drawn.title} of {row.name}: from {round_figure(row.least)} to {round_figure(row.most)} {drawn.unit}"
    label = {"role": "img", "aria_label": spoken.strip()}
    return tag("svg", *_bars(row, drawn), class_="histogram", width="100%", height=HEIGHT_PX, **label)


def _bars(row: Row, drawn: Distribution) -> Iterator[Html]:
    """Equally wide; the root of the count, so that what is rare is seen beside what is common."""
    wide, most = 100 / len(row.counts), max(row.counts)
    for place, count in enumerate(row.counts):
        if count:
            high = max(6.0, 100 * (count / most) ** 0.5)
            told = tag("title", f"{_bin(*drawn.edges[place : place + 2])}: {count:,}")
            box = {"x": at(place * wide), "width": at(0.9 * wide), "y": at(100 - high), "height": at(high)}
            yield tag("rect", told, **box)
    yield tag("line", x1=0, x2="100%", y1="100%", y2="100%", class_="base")
