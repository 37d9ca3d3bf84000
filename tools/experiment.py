"""Runs the arms of an experiment over several seeds and writes its results.json, figure and table.

    .venv/bin/python tools/experiment.py experiments/001-one-pass one.py two.py
    .venv/bin/python tools/experiment.py experiments/002-joint-or-single ../001-one-pass/one.py contrast.py writing.py

Each arm is a config file; each run is `mmfm train` and `mmfm eval`, in a process of its own, and is kept: a second
start only runs what is missing, or what was of another configuration, other words or other weights. Seeds of all arms
go side by side, `--jobs` at a time, so that a busy machine is busy for all alike; cost is CPU time, of the training
process and its loader.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from readme import between

from mmfm.config import Run
from mmfm.config.load import read_run
from mmfm.evals.provenance import doubt
from mmfm.report.run_record import read_rows
from mmfm.runtime.machine import cores
from mmfm.training.preflight import finished

ROOT = Path(__file__).parent.parent
RUNS = Path("runs") / "experiments"
COLUMNS = (
    ("image->text", "acc@1"),
    ("audio->text", "acc@1"),
    ("image->audio", "R@1"),
    ("audio->image", "R@1"),
    ("image>text", "exact_match"),
    ("audio>text", "exact_match"),
)
Columns = Sequence[Sequence[str]]  # task and metric
SPLITS = ("test", "test-unseen")
DATA = ("data/numbers/test", "data/numbers/test-unseen+data/numbers/test")
BEGIN, END = "<!-- results: written by tools/experiment.py -->", "<!-- end of results -->"


def run_of(config: Path, seed: int) -> Run:
    """The run of one seed of one arm. Arms of one name in two experiments have folders of their own."""
    name = f"{config.parent.name}-{config.stem}-{seed}"
    return replace(read_run(config), name=name, out=str(RUNS), seed=seed)


def kept(run: Run) -> bool:
    """Whether the run's folder holds just this configuration, trained to its end, with what that cost."""
    return (run.folder / "cost.json").is_file() and finished(run)


def scored(folder: Path, asked: Sequence[str]) -> bool:
    """Whether the run was scored by just these words, and has the weights that were scored."""
    rows, words = folder / "results.json", folder / "asked.json"
    if not (rows.is_file() and words.is_file()) or json.loads(words.read_text()) != list(asked):
        return False
    return doubt(folder, rows.name, read_rows(rows)) is None


def train_and_score(run: Run, config: Path, asked: Sequence[str], more: Sequence[str] = ()) -> None:
    """What is done already, by this configuration and these words, is not done again. more: options of the training."""
    folder = run.folder
    if not kept(run):
        command = [sys.executable, "-m", "mmfm", "train", str(config), *more, "--force"]
        began = time.monotonic()
        cost = {"cpu_seconds": cpu_seconds(command), "wall_seconds": time.monotonic() - began}
        (folder / "cost.json").write_text(json.dumps(cost))
    if not scored(folder, asked):
        cpu_seconds([sys.executable, "-m", "mmfm", "eval", str(folder), *asked])
        (folder / "asked.json").write_text(json.dumps(list(asked)))


def run_one(config: Path, seed: int, asked: Sequence[str] = ()) -> dict[str, Any]:
    """Train and score one seed of one arm, unless that was done; its rows and its cost. asked: more for `mmfm eval`."""
    run = run_of(config, seed)
    more = ["--name", run.name, "--out", str(RUNS), "--seed", str(seed)]
    train_and_score(run, config, ["--data", *DATA, *asked], more)
    return {
        "arm": config.stem,
        "seed": seed,
        **json.loads((run.folder / "cost.json").read_text()),
        "rows": [row for row in json.loads((run.folder / "results.json").read_text()) if row["split"] in SPLITS],
    }


def cpu_seconds(command: Sequence[str]) -> float:
    """User and system time of a command and its children."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def setting(command: Sequence[str]) -> dict[str, Any]:
    """What a reader needs to judge and repeat the figures."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    return {
        "command": " ".join(command),
        "commit": commit.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "lightning", "torchaudio", "espeakng-loader")},
        "hardware": f"{cores()} cores of {processor()}, no GPU",
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def value(run: dict[str, Any], split: str, task: str, metric: str) -> float | None:
    found = (row["value"] for row in run["rows"] if (row["split"], row["task"], row["metric"]) == (split, task, metric))
    return next(found, None)


def measured(runs: Iterable[dict[str, Any]], split: str, task: str, metric: str) -> list[float]:
    return [found for run in runs if (found := value(run, split, task, metric)) is not None]


def cell(values: Sequence[float], digits: int = 3) -> str:
    """Mean over seeds, and each of them."""
    if not values:
        return "-"
    each = " ".join(f"{number:.{digits}f}".removeprefix("0") for number in values)
    return f"{statistics.mean(values):.{digits}f} ({each})"


def table(runs: list[dict[str, Any]], columns: Columns = COLUMNS) -> str:
    """A line for each arm and split: mean over seeds, then every seed. Cost is relative to the first arm, by seed."""
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    lines = [["numbers", "arm", *(f"`{task}` {metric}" for task, metric in columns), "CPU time"]]
    lines.append(["---"] * len(lines[0]))
    first = {run["seed"]: run["cpu_seconds"] for run in runs if run["arm"] == arms[0]}
    for split, words in zip(SPLITS, ("seen", "never seen"), strict=True):
        for arm in arms:
            of_arm = [run for run in runs if run["arm"] == arm]
            cost = [run["cpu_seconds"] / first[run["seed"]] for run in of_arm]
            cells = [cell(measured(of_arm, split, task, metric)) for task, metric in columns]
            lines.append([words, arm, *cells, cell(cost, 2)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(runs: list[dict[str, Any]], path: Path, columns: Columns = COLUMNS) -> None:
    """Every seed a dot, the mean a bar; seen numbers above, never-seen ones below."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "mmfm", "font.size": 9})
    import matplotlib.pyplot as plt

    arms = list(dict.fromkeys(run["arm"] for run in runs))
    drawing, rows = plt.subplots(2, 1, figsize=(8, 5), sharex=True, layout="constrained")
    for axis, split, words in zip(rows, SPLITS, ("seen numbers", "never-seen numbers"), strict=True):
        for place, arm in enumerate(arms):
            for column, (task, metric) in enumerate(columns):
                found = measured([run for run in runs if run["arm"] == arm], split, task, metric)
                x = column + 0.22 * (place - (len(arms) - 1) / 2)
                if found:
                    axis.scatter([x] * len(found), found, s=16, color=f"C{place}", label=arm)
                    axis.hlines(statistics.mean(found), x - 0.09, x + 0.09, color=f"C{place}")
        axis.set(ylim=(0, 1), ylabel=words)
        axis.grid(axis="y", alpha=0.3)
    handles, labels = rows[0].get_legend_handles_labels()
    unique = dict(zip(reversed(labels), reversed(handles), strict=True))
    shown = [arm for arm in arms if arm in unique]
    rows[0].legend([unique[arm] for arm in shown], shown, loc="lower left")
    rows[1].set_xticks(range(len(columns)), [f"{task}\n{metric}" for task, metric in columns])
    drawing.savefig(path, metadata={"Date": None})


def render(readme: str, results: str) -> str:
    """The README with the table that belongs to the text of results.json."""
    found = json.loads(results)
    return between(readme, BEGIN, END, table(found["runs"], found.get("columns", COLUMNS)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("arms", nargs="+", help="config files, relative to the folder; the first is compared with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--columns", nargs="+", default=[], help="scores to show, TASK:METRIC; else the quickstart's")
    parser.add_argument("--asked", nargs="+", default=[], help="ARM=WORDS: what `mmfm eval` is told besides the data")
    chosen = parser.parse_args()
    columns = [tuple(column.rsplit(":", 1)) for column in chosen.columns] or COLUMNS
    asked = {arm: shlex.split(words) for arm, _, words in (item.partition("=") for item in chosen.asked)}
    configs = [(chosen.folder / arm).resolve().relative_to(ROOT) for arm in chosen.arms]
    work = [(config, seed) for seed in chosen.seeds for config in configs]
    with ThreadPoolExecutor(chosen.jobs) as pool:
        runs = list(pool.map(lambda one: run_one(*one, asked.get(one[0].stem, ())), work))
    results = json.dumps(
        {**setting(["tools/experiment.py", *sys.argv[1:]]), "columns": columns, "runs": runs}, indent=1
    )
    results += "\n"
    (chosen.folder / "results.json").write_text(results)
    figure(runs, chosen.folder / "figure.svg", columns)
    readme = chosen.folder / "README.md"
    readme.write_text(render(readme.read_text(), results))


if __name__ == "__main__":
    main()
