"""Puts the scores of answers beside each other, over seeds: results.json of an experiment, and the table in its README.

    python tools/answers.py experiments/009-chat heard=runs/heard-0,runs/heard-1,runs/heard-2 \
        --suites scenes scenes_spoken --metrics exact_match name:shared_word

Each run was trained by `mmfm train` and scored by `mmfm eval RUN SUITE` before, as the experiment's README says. A cell
is the mean over seeds, each of them, and the widest interval that they span.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from experiment import setting
from gather import fresh
from readme import between

BEGIN, END = "<!-- results: written by tools/answers.py -->", "<!-- end of results -->"
KEPT = ("split", "task", "metric", "value", "low", "high", "chance", "n", "step", "weights")
TASK = re.compile(r"(?P<name>[^()]+?)(?: \((?P<control>[^()]+)\))?")
Row = Mapping[str, Any]


def named(task: str) -> tuple[str, str]:
    """The question's kind and the control: "messages>text:count (blind)" is ("count", "blind")."""
    match = TASK.fullmatch(task)
    assert match is not None
    return match["name"].partition(":")[2] or "all", match["control"] or ""


def wanted(row: Row, metrics: Sequence[str]) -> bool:
    """Whether the row's metric is among these, for all kinds of questions or for its own, as in name:shared_word."""
    return not {row["metric"], f"{named(row['task'])[0]}:{row['metric']}"}.isdisjoint(metrics)


def cell(rows: Sequence[Row]) -> str:
    """Over seeds. What does not depend on the seed is said once."""
    values = [row["value"] for row in rows]
    if not rows:
        return "-"
    each = " ".join(f"{value:.3f}".removeprefix("0") for value in values)
    seeds = f" ({each})" if len(set(values)) > 1 else ""
    return f"{mean(values):.3f}{seeds} [{min(row['low'] for row in rows):.3f}, {max(row['high'] for row in rows):.3f}]"


def table(runs: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    """A line for each question that was asked and each metric; a column for each arm, and for each of its controls."""
    found: dict[tuple[str, str, str], dict[str, list[Row]]] = {}
    for run in runs:
        for row in run["rows"]:
            kind, control = named(row["task"])
            if wanted(row, metrics):
                arm = f"{run['arm']}, {control}" if control else run["arm"]
                found.setdefault((row["split"], kind, row["metric"]), {}).setdefault(arm, []).append(row)
    arms = list(dict.fromkeys(arm for cells in found.values() for arm in cells))
    lines = [["asked", "of", "score", "n", *arms], ["---"] * (4 + len(arms))]
    for (split, kind, metric), cells in found.items():
        counts = sorted({row["n"] for rows in cells.values() for row in rows}, reverse=True)
        n = "/".join(map(str, counts))
        lines.append([split, kind, metric, n, *(cell(cells.get(arm, ())) for arm in arms)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render(readme: str, results: str) -> str:
    """The README with the table that belongs to the text of results.json."""
    found = json.loads(results)
    return between(readme, BEGIN, END, table(found["runs"], found["metrics"]))


def others(before: Mapping[str, Any], arms: Sequence[str]) -> list[dict[str, Any]]:
    """The runs of arms that are not scored now, each with the commit that it was scored at."""
    return [{"commit": before["commit"], **run} for run in before["runs"] if run["arm"] not in arms]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "arms", nargs="+", help="NAME=RUN,RUN,...: an arm's runs, one of each seed; @SUITE,... of others"
    )
    parser.add_argument("--suites", nargs="+", required=True, help="names of suites that the runs were scored with")
    parser.add_argument(
        "--metrics", nargs="+", default=["exact_match"], help="METRIC, or KIND:METRIC of one kind alone"
    )
    parser.add_argument(
        "--keep", action="store_true", help="what results.json holds of other arms stays, with the commit it is of"
    )
    chosen = parser.parse_args()
    results = chosen.folder / "results.json"
    runs = (
        others(json.loads(results.read_text()), [item.partition("=")[0] for item in chosen.arms]) if chosen.keep else []
    )
    for arm, _, rest in (item.partition("=") for item in chosen.arms):
        folders, _, own = rest.partition("@")
        suites = own.split(",") if own else chosen.suites
        for run in map(Path, folders.split(",")):
            curves = run / "metrics.jsonl"  # which an imported model does not have
            last = json.loads(curves.read_text().splitlines()[-1]) if curves.exists() else {"step": 0, "seconds": 0.0}
            about = {"arm": arm, "run": run.name, "steps": last["step"], "seconds": last["seconds"]}
            rows = [row for suite in suites for row in fresh(run, f"results.{suite}.json")]
            kept = [{name: row[name] for name in KEPT} for row in rows if wanted(row, chosen.metrics)]
            runs.append({**about, "rows": kept})
    words = [*(f"{item.partition('=')[0]}=RUNS" for item in chosen.arms), "--suites", *chosen.suites]
    told = setting(["tools/answers.py", f"experiments/{chosen.folder.name}", *words, "--metrics", *chosen.metrics])
    text = json.dumps({**told, "metrics": chosen.metrics, "runs": runs}, indent=1) + "\n"
    results.write_text(text)
    readme = chosen.folder / "README.md"
    readme.write_text(render(readme.read_text(), text))


if __name__ == "__main__":
    main()
