"""`mmfm compare`: a board of runs on a terminal, as a page, and for machines."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mmfm.config import require
from mmfm.evals.metrics_table import is_headline
from mmfm.evals.resampling import Bootstrap
from mmfm.evals.results import check_place, say, write_json
from mmfm.report.compare_page import render
from mmfm.report.comparison import Comparison, board_of, letter, sentences
from mmfm.report.document import save_page
from mmfm.report.scored_runs import read_contenders

SHOWN = 13  # sentences on a terminal
SPLIT = ("source", "data", "samples", "classes", "templates")  # what is told of each


def compare(
    folders: Sequence[str | Path],
    *,
    out: str = "",
    json: str = "",
    resamples: int = 10_000,
    seed: int = 0,
    console: Console | None = None,
) -> Comparison:
    """Compare scored runs on a terminal; `out`: also as a page, `json`: also for machines.

    Raises UserError where they cannot be compared, naming the difference.
    """
    require(resamples > 0, f"--resamples {resamples} must be greater than 0")
    places = [check_place(Path(place)) for place in (out, json) if place]
    board = board_of(read_contenders(folders), Bootstrap(resamples=resamples, seed=seed))
    if json:
        write_json(Path(json), tree_of(board))
    if out:
        save_page(render(board), Path(out))
    console = console or Console()
    print_board(board, console)
    for place in places:
        say(console, f"wrote {place}")
    return board


def tree_of(board: Comparison) -> dict[str, Any]:
    """The board for machines: strict JSON, runs by their names."""
    runs = [
        {
            "name": one.name,
            "folder": str(one.folder),
            "seed": one.run.seed,
            "steps": one.step,
            "splits": {name: {key: getattr(split, key) for key in SPLIT} for name, split in one.splits.items()},
        }
        for one in board.runs
    ]
    rows = [{"run": one.name, **asdict(row), "split": key[0]} for one in board.runs for key, row in one.rows.items()]
    compared = [
        {
            **asdict(one),
            "first": board.runs[one.first].name,
            "second": board.runs[one.second].name,
            "better": None if one.better is None else board.runs[one.better].name,
        }
        for one in board.comparisons
    ]
    told = {"sentences": sentences(board), "notes": board.notes, "bootstrap": board.bootstrap._asdict()}
    return {"runs": runs, "rows": rows, "comparisons": compared, **told}


def print_board(board: Comparison, console: Console) -> None:
    """The runs, their headline figures, and what differs."""

    for place, one in enumerate(board.runs):
        about = "a bundle" if one.step is None else f"seed {one.run.seed}, {one.step:,} steps"
        say(console, f"{letter(place)}  {one.name}  ({one.folder}, {about})")
    for split in dict.fromkeys(key[0] for key in board.keys):
        say(console, f"\n{split}", "bold")
        console.print(_figures(board, split))
    say(console, f"\npaired by item; {board.bootstrap.resamples:,} resamples, seed {board.bootstrap.seed}", "dim")
    told = sentences(board)
    for line in told[:SHOWN]:
        say(console, line)
    if told[SHOWN:]:
        say(console, f"and {len(told) - SHOWN} more: --out compare.html or --json FILE has them", "dim")
    for line in board.notes:
        say(console, f"note: {line}", "dim")


def _figures(board: Comparison, split: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("task", "metric"):
        table.add_column(column, no_wrap=True)
    for column in (*map(letter, range(len(board.runs))), "n"):
        table.add_column(column, justify="right", no_wrap=True)
    for key in board.keys:
        if key[0] == split and is_headline(key[2]):
            rows = [one.rows.get(key) for one in board.runs]
            cells = ["–" if row is None or row.value is None else f"{row.value:.3f}" for row in rows]
            counts = "/".join(dict.fromkeys(str(row.n) for row in rows if row is not None))
            table.add_row(*key[1:], *cells, counts)
    return table
