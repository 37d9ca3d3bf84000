"""Where zero-shot classification goes wrong: the confusion matrix, the most frequent confusions, the hardest classes.

The first split is open, and what it shows is also said in a sentence.
"""

from collections.abc import Sequence

from mmfm.evals.records import SplitDetails
from mmfm.report.heatmap import Cell, class_name, heat_map
from mmfm.report.markup import Html, tag
from mmfm.report.scores import shown

Cells = Sequence[Cell]
LISTED = 8  # confusions; and hardest classes
MOST_CLASSES = 2_000  # of a heat map
MAP_NOTE = tag(
    "p",
    tag("svg", tag("rect", width=10, height=10, class_="right"), width=10, height=10, aria_hidden="true"),
    " right, ",
    tag("svg", tag("rect", width=10, height=10, class_="wrong"), width=10, height=10, aria_hidden="true"),
    " wrong; the stronger, the larger the share of its row. A row is a true class, a column what it was read as.",
    class_="quiet",
)


def totals(cells: Cells) -> dict[int, tuple[int, int]]:
    """For each true class that occurs: how many were right, and how many there are."""
    counted: dict[int, tuple[int, int]] = {}
    for true, seen, count in cells:
        right, of = counted.get(true, (0, 0))
        counted[true] = (right + count * (true == seen), of + count)
    return counted


def confusions(cells: Cells) -> list[tuple[int, int, int]]:
    """The cells off the diagonal, most frequent first; among equals, the larger share of its class."""
    counted = totals(cells)
    wrong = [cell for cell in cells if cell[0] != cell[1]]
    return sorted(wrong, key=lambda cell: (-cell[2], counted[cell[0]][1], cell[:2]))


def hardest(cells: Cells) -> list[tuple[int, int, int]]:
    """(class, right, of) of the classes with a mistake, lowest share first, and the more certain first among equals."""
    missed = [(true, right, of) for true, (right, of) in totals(cells).items() if right < of]
    return sorted(missed, key=lambda row: (row[1] / row[2], -row[2], row[0]))


def mistakes(name: str, split: SplitDetails, opened: bool) -> Html | None:
    """One figure for each task of the split that has a confusion matrix."""
    figures = [_figure(name, split, task, cells) for task, cells in split.confusion.items() if cells]
    counted = "; ".join(f"{shown(task)}: {_wrong(cells)}" for task, cells in split.confusion.items() if cells)
    heading = tag("summary", tag("b", name), " ", tag("span", counted, class_="quiet"))
    return tag("details", heading, tag("div", *figures, class_="pair"), open=opened) if figures else None


def _figure(name: str, split: SplitDetails, task: str, cells: Cells) -> Html:
    counted = totals(cells)
    right, of = (sum(pair[i] for pair in counted.values()) for i in (0, 1))
    columns = max(len(split.classes), 1 + max(max(true, seen) for true, seen, _ in cells))
    rows = sorted(counted) if len(counted) < columns / 2 else range(columns)
    drawn = [cell for cell in cells if cell[2] > 0]
    if columns <= MOST_CLASSES:
        label = f"Heat map of {task} on {name}: true classes down, classes read across; the lists below say the same"
        drawing = heat_map(drawn, rows, split.classes, columns, label)
    else:
        drawing = tag("p", f"{columns:,} classes are too many for a map.", class_="quiet")
    only = f"; only the {len(rows)} classes that occur have a row" if len(rows) < columns else ""
    caption = tag("figcaption", tag("b", shown(task)), tag("span", f"{right:,} of {of:,} right{only}", class_="quiet"))
    lists = tag("div", _confusion_list(split, drawn), _hardest_list(split, drawn), class_="lists")
    return tag(
        "figure", caption, drawing, tag("p", "\N{NO-BREAK SPACE}", class_="told quiet"), lists, class_="confusion"
    )


def _confusion_list(split: SplitDetails, cells: Cells) -> Html:
    found, counted = confusions(cells), totals(cells)
    rows = [
        tag(
            "tr",
            tag("td", class_name(split.classes, t)),
            tag("td", class_name(split.classes, s)),
            _of(n, counted[t][1]),
        )
        for t, s, n in found[:LISTED]
    ]
    return _list(f"Most frequent of {len(found):,} confusions", ("true", "read as", "times"), rows)


def _hardest_list(split: SplitDetails, cells: Cells) -> Html:
    found = hardest(cells)
    rows = [tag("tr", tag("td", class_name(split.classes, c)), _of(right, of)) for c, right, of in found[:LISTED]]
    return _list(f"Hardest of {len(totals(cells)):,} classes", ("class", "right"), rows)


def _of(part: int, whole: int) -> Html:
    return tag("td", f"{part:,} of {whole:,}", class_="number")


def _list(title: str, names: Sequence[str], rows: Sequence[Html]) -> Html:
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in names)))
    body = tag("tbody", *rows) if rows else tag("tbody", tag("tr", tag("td", "none", colspan=len(names))))
    return tag("table", tag("caption", title), head, body, class_="plain")


def _wrong(cells: Cells) -> str:
    wrong, of = (sum(count for _, _, count in some) for some in (confusions(cells), cells))
    return f"{wrong:,} of {of:,} wrong"


def worst(name: str, split: SplitDetails) -> list[str]:
    """What went wrong on a split, in a sentence for each task."""
    said = []
    for task, cells in split.confusion.items():
        sentence = f"{shown(task)} on {name}: {_wrong(cells)}"
        if found := confusions(cells):
            true, seen, count = found[0]
            pair = f"“{class_name(split.classes, true)}” read as “{class_name(split.classes, seen)}”"
            sentence += f", most often {pair} ({count:,} of {totals(cells)[true][1]:,})"
        said.append(f"{sentence}.")
    return said
