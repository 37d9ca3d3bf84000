"""Charts as inline SVG: curves over steps, and dots with intervals. Pure functions of numbers to markup.

Positions are percentages of the drawing, so that a chart fills any width while its letters and strokes keep their size.
Colours are classes of page.css (light and dark); what a colour says is also said by a label, a shape or a place.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mmfm.report.markup import Html, tag

Number = int | float
Point = tuple[Number, Number]
COLOURS = 6  # of page.css; a seventh curve starts again, dashed
DRAWN_POINTS, READ_POINTS = 1_200, 240  # per curve: in the drawing, and in the read-out
MOST_REACH = 50  # points to either side of a running mean
LABEL_PX = 16.0


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Where a value lies between `low` and `high`, as a percentage."""

    low: float
    high: float
    log: bool = False
    ticks: tuple[float, ...] = ()

    def percent(self, value: Number) -> float:
        scale = math.log if self.log else float
        low, high = scale(self.low), scale(self.high)
        return 100 * (scale(min(max(value, self.low), self.high)) - low) / (high - low)


def linear_axis(low: Number, high: Number, count: int = 5) -> Axis:
    """From the last round number below `low` to the first above `high`, with about `count` round steps."""
    if high <= low:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999) * power
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(low=first * step, high=last * step, ticks=tuple(i * step for i in range(first, last + 1)))


def log_axis(low: Number, high: Number) -> Axis:
    """Ticks at 1, 2 and 5 times the powers of ten, or at the powers alone when many. Needs 0 < low <= high."""
    low, high = low / 1.08, high * 1.08
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    if len(ticks) > 7:
        ticks = [10.0**p for p in powers if low <= 10.0**p <= high]
    return Axis(low=low, high=high, log=True, ticks=tuple(ticks))


def loss_axis(points: Iterable[Point]) -> Axis:
    """Logarithmic where positive values span more than a factor of eight, so that the end of training can be seen."""
    values = [value for _, value in points]
    low, high = min(values), max(values)
    return log_axis(low, high) if low > 0 and high / low > 8 else linear_axis(min(low, 0.0), high)


def zero_axis(points: Iterable[Point]) -> Axis:
    return linear_axis(0.0, max(value for _, value in points), 3)


def smooth(points: Sequence[Point], share: float = 0.05) -> list[Point]:
    """A centred mean over `share` of the points, fewer at both ends: nothing lags, and few points stay."""
    reach = min(MOST_REACH, round(len(points) * share / 2))
    values, means = [value for _, value in points], []
    for i, (step, _) in enumerate(points):
        window = values[max(0, i - reach) : i + reach + 1]
        means.append((step, sum(window) / len(window)))
    return means


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most about `most` points: of each bucket the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept = {points[0], points[-1]}
    for start in range(0, len(points), size):
        by_value = sorted(points[start : start + size], key=lambda point: point[1])
        kept |= {by_value[0], by_value[-1]}
    return sorted(kept)


def round_figure(value: Number, digits: int = 3) -> str:
    """`digits` significant digits, thousands with commas, without needless zeros: 12,000; 0.0314; 2e-05."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    if abs(value) < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def curves(
    title: str,
    series: Mapping[str, Sequence[Point]],
    axis: Axis,
    *,
    note: str = "",
    height_px: int = 260,
    smoothed: bool = False,
    show: Callable[[Number], str] = round_figure,
) -> Html:
    """Lines over steps, named at their right ends. `smoothed`: a bold running mean over faint raw values."""
    last = max(1, *(step for points in series.values() for step, _ in points))
    across = Axis(low=0.0, high=float(last), ticks=tuple(t for t in linear_axis(0.0, float(last)).ticks if t <= last))
    bold = {name: smooth(points) if smoothed else list(points) for name, points in series.items()}
    several = len(series) > 1
    drawing = tag(
        "svg",
        *_grid(across, axis, show),
        _lines(series if smoothed else {}, bold, across, axis),
        *(_dot(p[0], across, axis, colour(i)) for i, p in enumerate(bold.values()) if len(p) == 1),
        *(_ends(bold, across, axis, height_px, show) if several else ()),
        role="img",
        aria_label=_spoken(title, bold, last, show),
        class_="curves",
        width="100%",
        height=height_px,
    )
    read = [[name, [[x, show(y)] for x, y in thin(points, READ_POINTS)]] for name, points in bold.items()]
    legend = tag("ul", *(tag("li", swatch(i), name) for i, name in enumerate(series)), class_="legend")
    return tag(
        "figure",
        tag("figcaption", tag("b", title), tag("span", note, class_="quiet") if note else None),
        legend if several else None,
        tag("div", drawing, class_="plot" if several else "plot single"),
        class_="chart",
        data_chart=json.dumps({"last": last, "series": read}, separators=(",", ":")),
    )


def _spoken(title: str, bold: Mapping[str, Sequence[Point]], last: Number, show: Callable[[Number], str]) -> str:
    ends = "; ".join(f"{name} from {show(p[0][1])} to {show(p[-1][1])}" for name, p in bold.items())
    return f"{title}, by step up to {last:,.0f}: {ends}."


def _lines(faint: Mapping[str, Sequence[Point]], bold: Mapping[str, Sequence[Point]], across: Axis, axis: Axis) -> Html:
    """Paths in a square of 100 that is stretched over the drawing; the strokes are not."""
    raw = [_path(points, across, axis, f"raw {colour(i)}") for i, points in enumerate(faint.values())]
    lines = [_path(points, across, axis, f"curve {colour(i)}") for i, points in enumerate(bold.values())]
    stretch = {"viewBox": "0 0 100 100", "preserveAspectRatio": "none", "width": "100%", "height": "100%"}
    return tag("svg", *raw, *lines, **stretch)


def colour(index: int) -> str:
    return f"c{index % COLOURS}" + (" dashed" if index >= COLOURS else "")


def swatch(index: int) -> Html:
    line = tag("line", x1=0, x2=18, y1=5, y2=5, class_=f"curve {colour(index)}")
    return tag("svg", line, width=18, height=10, aria_hidden="true")


def _path(points: Sequence[Point], across: Axis, axis: Axis, kind: str) -> Html:
    drawn = [f"{across.percent(x):.2f} {100 - axis.percent(y):.2f}" for x, y in thin(points, DRAWN_POINTS)]
    return tag("path", d="M" + "L".join(drawn), class_=kind)


def _dot(point: Point, across: Axis, axis: Axis, colour: str) -> Html:
    return tag(
        "circle", cx=at(across.percent(point[0])), cy=at(100 - axis.percent(point[1])), r=3.5, class_=f"dot {colour}"
    )


def at(percent: float) -> str:
    return f"{percent:.2f}%"


def _grid(across: Axis, axis: Axis, show: Callable[[Number], str]) -> Iterable[Html]:
    for value in axis.ticks:
        y = at(100 - axis.percent(value))
        yield tag("line", x1=0, x2="100%", y1=y, y2=y, class_="grid")
        yield tag("text", show(value), x=0, y=y, dx=-8, dy=4, class_="tick y")
    for value in across.ticks:
        yield tag("text", f"{value:,.0f}", x=at(across.percent(value)), y="100%", dy=20, class_="tick x")
    yield tag("line", x1=0, x2="100%", y1="100%", y2="100%", class_="base")


def _ends(
    bold: Mapping[str, Sequence[Point]], across: Axis, axis: Axis, height_px: int, show: Callable[[Number], str]
) -> Iterable[Html]:
    """The names at the curves' ends, moved apart where they would overlap."""
    wanted = [height_px * (1 - axis.percent(points[-1][1]) / 100) for points in bold.values()]
    for i, (y, name) in enumerate(zip(spread(wanted, LABEL_PX, float(height_px)), bold, strict=True)):
        step, value = bold[name][-1]
        yield tag("circle", cx=at(across.percent(step)), cy=f"{wanted[i]:.1f}", r=3.5, class_=f"dot {colour(i)}")
        value = tag("tspan", f" {show(value)}", class_="value")
        yield tag("text", name, value, x="100%", y=f"{y:.1f}", dx=12, dy=4, class_=f"name {colour(i)}")


def spread(wanted: Sequence[float], gap: float, most: float) -> list[float]:
    """Places at least `gap` apart and at most `most`, in the order of those wanted and close to them."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = list(wanted)
    for before, after in pairwise(order):
        places[after] = max(places[after], places[before] + gap)
    ceiling = most
    for i in reversed(order):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    return places


def lane(
    value: float | None, low: float | None, high: float | None, chance: float | None, axis: Axis, mark: int
) -> Html:
    """One row of a dot chart: the interval as a bar, the value as a shape of its own per split, chance as a tick."""
    parts = [tag("line", x1=(x := at(axis.percent(t))), x2=x, y1=0, y2="100%", class_="grid") for t in axis.ticks]
    if chance is not None:
        x = at(axis.percent(chance))
        parts.append(tag("line", x1=x, x2=x, y1=2, y2=20, class_="chance"))
    if low is not None and high is not None:
        left, right = axis.percent(low), axis.percent(high)
        extent = {"x": at(left), "width": at(right - left), "y": 4, "height": 14}
        parts.append(tag("rect", **extent, class_=f"range m{mark % 4}"))
    if value is not None:
        parts.append(tag("svg", shape(mark), x=at(axis.percent(value)), y=11, overflow="visible"))
    return tag("svg", *parts, class_="lane", width="100%", height=22, aria_hidden="true")


def shape(mark: int) -> Html:
    """A mark round the origin: full circle, open circle, diamond, square; then again."""
    kind = {"class_": f"mark m{mark % 4}"}
    if mark % 4 < 2:
        return tag("circle", r=4, **kind)
    return tag("path", d="M0-5L5 0 0 5-5 0Z" if mark % 4 == 2 else "M-4-4H4V4H-4Z", **kind)


def key(mark: int) -> Html:
    """The mark of a split, for a legend."""
    return tag("svg", shape(mark), class_="key", viewBox="-8 -8 16 16", aria_hidden="true")


def axis_labels(axis: Axis, show: Callable[[Number], str]) -> Html:
    """The foot of a dot chart; every second label gives way on a narrow screen."""
    ends = {0: " first", len(axis.ticks) - 1: " last"}
    texts = [
        tag("text", show(value), x=at(axis.percent(value)), y=12, class_=f"tick x{ends.get(i, ' minor' * (i % 2))}")
        for i, value in enumerate(axis.ticks)
    ]
    return tag("svg", *texts, class_="lane", width="100%", height=16, aria_hidden="true")
