"""The figures of an evaluation on a terminal: for each split the headline metrics, and what they leave out."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mmfm.evals.registry import is_headline


def print_split(name: str, rows: Sequence[dict[str, Any]], details: dict[str, Any], console: Console) -> None:
    """A line per task and metric: value, 95 % interval, chance level, number of items. Narrow enough for 80 columns."""
    counts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in details["counts"].items() if count)
    console.print(f"{name}: {counts}", style="bold", soft_wrap=True, highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("task", "metric"):
        table.add_column(column, no_wrap=True)
    for column in ("value", "95 %", "chance", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        if is_headline(row["metric"]) or "/" in row["metric"]:  # a judge's, or of one codebook
            range_, chance = f"{row['low']:.3f}-{row['high']:.3f}", f"{row['chance']:.3g}"
            table.add_row(row["task"], row["metric"], f"{row['value']:.3f}", range_, chance, str(row["n"]))
    console.print(table)
    for line in details["left_out"]:
        console.print(f"left out: {line}", style="dim", soft_wrap=True, highlight=False, markup=False)
    console.print()
