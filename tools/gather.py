"""Puts the scores of finished runs beside each other: results.json of an experiment, and the table in its README.

    .venv/bin/python tools/gather.py experiments/003-stamps mixed=runs/stamps numbers=runs/numbers-alone

Each run was trained by `mmfm train` and scored by `mmfm eval` before, as the experiment's README says.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment import setting
from readme import between

from mmfm.evals.provenance import doubt
from mmfm.report.run_record import read_rows

COLUMNS = (
    ("image->text", "R@1"),
    ("audio->text", "R@1"),
    ("text->image", "R@1"),
    ("text->audio", "R@1"),
    ("image->text", "R@10"),
    ("audio->text", "R@10"),
    ("text->image", "R@10"),
    ("text->audio", "R@10"),
    ("audio->image", "R@1"),
    ("image->audio", "R@1"),
    ("audio->image", "R@10"),
    ("image->audio", "R@10"),
    ("image>text", "bits_per_byte"),
    ("audio>text", "bits_per_byte"),
)
BEGIN, END = "<!-- results: written by tools/gather.py -->", "<!-- end of results -->"


def cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f}), chance {row['chance']:.2g}, n {row['n']}"


def table(runs: Sequence[Mapping[str, Any]], columns: Sequence[Sequence[str]] = COLUMNS) -> str:
    """A line for each score and split, a column for each arm."""
    arms = [run["arm"] for run in runs]
    found = {(run["arm"], row["split"], row["task"], row["metric"]): row for run in runs for row in run["rows"]}
    splits = list(dict.fromkeys(row["split"] for run in runs for row in run["rows"]))
    lines = [["split", "score", *arms], ["---"] * (2 + len(arms))]
    for split in splits:
        for task, metric in columns:
            cells = [cell(found.get((arm, split, task, metric))) for arm in arms]
            if set(cells) != {"-"}:
                lines.append([split, f"`{task}` {metric}", *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render(readme: str, results: str) -> str:
    """The README with the table that belongs to the text of results.json."""
    found = json.loads(results)
    return between(readme, BEGIN, END, table(found["runs"], found.get("columns", COLUMNS)))


def fresh(run: Path, name: str = "results.json") -> list[dict[str, Any]]:
    """The rows of a run. SystemExit in one line where there are none of this name, or none of its last weights."""
    if not (run / name).exists():
        raise SystemExit(f"{run} has no {name}; score it with mmfm eval, as the experiment's README says")
    rows = json.loads((run / name).read_text())
    if found := doubt(run, name, read_rows(run / name)):
        raise SystemExit(found.told)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", nargs="+", help="NAME=RUN, or NAME=RUN@COMMIT of the code that trained it")
    parser.add_argument("--columns", nargs="+", default=[], help="scores to show, TASK:METRIC; else those of retrieval")
    chosen = parser.parse_args()
    columns = [tuple(column.rsplit(":", 1)) for column in chosen.columns] or COLUMNS
    runs = []
    for item in chosen.runs:
        arm, _, place = item.partition("=")
        run, _, commit = place.partition("@")
        rows = fresh(Path(run))
        curves = Path(run) / "metrics.jsonl"  # which a rival that is no run does not have
        lines = curves.read_text().splitlines() if curves.exists() else ['{"step": 0, "seconds": 0}']
        last = json.loads(lines[-1])
        runs.append(
            {"arm": arm, "trained_from": commit, "steps": last["step"], "seconds": last["seconds"], "rows": rows}
        )
    told = setting(["tools/gather.py", str(chosen.folder), *(item.partition("=")[0] + "=RUN" for item in chosen.runs)])
    results = json.dumps({**told, "columns": columns, "runs": runs}, indent=1) + "\n"
    (chosen.folder / "results.json").write_text(results)
    readme = chosen.folder / "README.md"
    readme.write_text(render(readme.read_text(), results))


if __name__ == "__main__":
    main()
