"""The figures of an evaluation on a terminal: for each split the headline metrics, and what they leave out."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

CODECS = ("psnr", "ssim", "spectral_distance", "stoi", "bits_per_pixel", "bits_per_second", "codes_used")
FILLED = ("bits_per_byte_bound", "bits_per_code_bound", "filled@15%")
HEADLINES = ("acc@1", "mAP", "R@1", "exact", "cider", "bleu4", "rouge_l", "wer", "bits_per_byte", *FILLED, *CODECS)


def is_headline(metric: str) -> bool:
    """What runs are compared by; of a judge's figures, those of what the run made."""
    judge, _, name = metric.rpartition("/")
    return metric in HEADLINES or (bool(judge) and name in ("read", "named", "wer"))


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
        if row["metric"] in HEADLINES or "/" in row["metric"]:  # a judge's
            range_, chance = f"{row['low']:.3f}-{row['high']:.3f}", f"{row['chance']:.3g}"
            table.add_row(row["task"], row["metric"], f"{row['value']:.3f}", range_, chance, str(row["n"]))
    console.print(table)
    for line in details["left_out"]:
        console.print(f"left out: {line}", style="dim", soft_wrap=True, highlight=False, markup=False)
    console.print()
