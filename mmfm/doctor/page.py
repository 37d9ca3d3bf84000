"""An examination as one HTML file that needs no network and no script, in the look of the report's."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

from mmfm.doctor.findings import LEVELS, Distribution, Finding, Report, Row, Section, Table, plural
from mmfm.report import report
from mmfm.report.charts import at, round_figure
from mmfm.report.markup import Html, join, tag

CSS = (Path(report.__file__).with_name("page.css"), Path(__file__).with_name("page.css"))
CLASS = {"OK": "ok", "NOTE": "note-level", "WARNING": "warning", "ERROR": "error"}
HEIGHT_PX = 22


def render(diagnosis: Report) -> Html:
    """The page. Nothing in it may act, and its policy says so; only the style of this package applies."""
    style = Html("\n".join(path.read_text(encoding="utf-8") for path in CSS))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{diagnosis.run}: data"),
        tag("style", style),
    )
    told = f"Made by mmfm doctor {diagnosis.config} in {diagnosis.seconds:g} s. It loads nothing from anywhere."
    main = tag("main", *(_section(section) for section in diagnosis.sections))
    body = tag("body", _header(diagnosis), main, tag("footer", tag("p", told)), class_="doctor")
    return join((Html("<!doctype html>\n"), tag("html", head, body, lang="en"), "\n"))


def _header(diagnosis: Report) -> Html:
    counts = ", ".join(plural(diagnosis.count(level), level) for level in reversed(LEVELS[1:])).lower()
    links = (tag("li", tag("a", section.name, href=f"#{_anchor(section)}")) for section in diagnosis.sections)
    return tag(
        "header",
        tag("p", "mmfm doctor", class_="kicker"),
        tag("h1", diagnosis.run),
        tag("p", diagnosis.verdict, class_="verdict-line"),
        tag("p", counts, class_="quiet"),
        tag("nav", tag("ul", *links), aria_label="Sections"),
    )


def _anchor(section: Section) -> str:
    return section.name.lower().replace(" ", "-")


def _section(section: Section) -> Html:
    return tag(
        "section",
        tag("h2", section.name),
        tag("ul", *map(_finding, section.findings), class_="findings") if section.findings else None,
        *map(_table, section.tables),
        *map(_distribution, section.distributions),
        id=_anchor(section),
    )


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
