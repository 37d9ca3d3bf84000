"""The figures of an evaluation on a terminal: for each split the headline metrics, and what they leave out."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mmfm.evals.metrics_table import is_headline


def printable(text: str) -> str:
    """With what no terminal can write, halves of surrogate pairs, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def print_split(name: str, rows: Sequence[dict[str, Any]], details: dict[str, Any], console: Console) -> None:
    """A line per task and metric: value, 95 % interval, chance level, number of items. Narrow enough for 80 columns."""
    counts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in details["counts"].items() if count)
    console.print(printable(f"{name}: {counts}"), style="bold", soft_wrap=True, highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("task", "metric"):
        table.add_column(column, no_wrap=True)
    for column in ("value", "95 %", "chance", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        if is_headline(row["metric"]) or "/" in row["metric"]:  # a judge's, or of one codebook
            table.add_row(printable(row["task"]), printable(_named(row)), *_numbers(row), str(row["n"]))
    console.print(table)
    for row in rows:
        if row["value"] is None:
            told = f"no value: {row['task']} {row['metric']}: {row.get('reason', '')}"
            console.print(printable(told), style="yellow", soft_wrap=True, highlight=False, markup=False)
    for line in details["left_out"]:
        console.print(printable(f"left out: {line}"), style="dim", soft_wrap=True, highlight=False, markup=False)
    console.print()


def _named(row: dict[str, Any]) -> str:
    """The metric, and the rule by which texts were compared."""
    return f"{row['metric']} ({rule})" if (rule := row.get("normalizer")) else row["metric"]


def _numbers(row: dict[str, Any]) -> tuple[str, str, str]:
    """Value, interval and chance level; a dash for each that there is not."""
    value, low, high, chance = (row[name] for name in ("value", "low", "high", "chance"))
    return (
        "–" if value is None else f"{value:.3f}",
        "–" if low is None or high is None else f"{low:.3f}-{high:.3f}",
        "–" if chance is None else f"{chance:.3g}",
    )
