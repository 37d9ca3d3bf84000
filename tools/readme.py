"""Writes the tables of README.md and of experiments/000-quickstart from their JSON, so that no figure is typed.

.venv/bin/python tools/readme.py
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "experiments" / "000-quickstart" / "results.json"
EXPERIMENT = RESULTS.with_name("README.md")
BENCH = ROOT / "tools" / "bench_step.json"
BEGIN, END = "<!-- scores: written by tools/readme.py -->", "<!-- end of scores -->"
SPLITS = {"test": "numbers seen in training", "test-unseen": "the twenty never seen"}
LINES = (
    ("image->text", "acc@1", "a picture, named"),
    ("audio->text", "acc@1", "a voice, named"),
    ("image->audio", "R@1", "a picture, its sound found"),
    ("audio->image", "R@1", "a sound, its picture found"),
    ("image>text", "exact", "a picture, written out"),
    ("audio>text", "exact", "a voice, written down"),
    ("audio>text", "wer", "the same, word error rate (less is better)"),
    (">text", "bits_per_byte", "captions predicted, bits per byte (less is better)"),
)
MISSING = "The table is made from `experiments/000-quickstart/results.json`, which is not there yet."


def cell(row: Mapping[str, Any] | None) -> str:
    """Value, interval and chance level; a dash where nothing was measured."""
    if row is None:
        return "-"
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f}), chance {row['chance']:.3g}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    found = {(row["split"], row["task"], row["metric"]): row for row in rows}
    head = ["", "task", "metric", *SPLITS.values()]
    lines = [head, ["---"] * len(head)]
    for task, metric, words in LINES:
        lines.append([words, f"`{task}`", metric, *(cell(found.get((split, task, metric))) for split in SPLITS)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render(readme: str, results: str | None) -> str:
    """The README with the table of `results`, the text of results.json; None: with the line that there is none."""
    before, _, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"README.md should hold {BEGIN!r} and, after it, {END!r}")
    return f"{before}{BEGIN}\n{MISSING if results is None else table(json.loads(results))}\n{END}{after}"


def generated() -> str:
    """README.md with its two tables."""
    page = render(README.read_text("utf-8"), RESULTS.read_text("utf-8") if RESULTS.exists() else None)
    content = speed_table(json.loads(BENCH.read_text("utf-8")))
    return between(page, "<!-- speed: written by tools/readme.py -->", "<!-- end of speed -->", content)


def speed_table(bench: Mapping[str, Any]) -> str:
    """What tools/bench_step.json tells, and on what it was measured."""
    lines = [["precision", "clock", "samples/s over open_clip's", "of the matmul peak", "open_clip's"], ["---"] * 5]
    for row in bench["rows"]:
        cells = [
            f"{row[name]['value']:.2f} ({row[name]['low']:.2f} to {row[name]['high']:.2f})"
            for name in ("ratio", "of_peak", "of_peak_open_clip")
        ]
        lines.append([row["precision"], row["clock"], *cells])
    machine = bench["hardware"]
    threads = bench["rows"][0]["threads"]
    said = (
        f"{machine['cpu']}, {threads} thread, torch {bench['torch']}, open_clip {bench['open_clip']}, {bench['date']}"
    )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\nMeasured on {said}."


def tuning_table(text: str) -> str:
    """What tuning.json tells: a line for each run, seen and never-seen numbers in one cell."""
    runs = json.loads(text)["runs"]
    tasks = list(runs[0]["val"])
    lines = [["run", "change", "steps", *(f"`{task.replace('/', '` ')}" for task in tasks)]]
    lines.append(["---"] * len(lines[0]))
    for run in runs:
        cells = [f"{run['val'][task]:.3f}, {run['val-unseen'][task]:.3f}" for task in tasks]
        lines.append([run["name"], run["change"], str(run["steps"]), *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def between(page: str, begin: str, end: str, content: str) -> str:
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"


def generated_experiment() -> str:
    """experiments/000-quickstart/README.md with both of its tables."""
    page = render(EXPERIMENT.read_text("utf-8"), RESULTS.read_text("utf-8") if RESULTS.exists() else None)
    content = tuning_table(EXPERIMENT.with_name("tuning.json").read_text("utf-8"))
    return between(page, "<!-- tuning: written by tools/readme.py -->", "<!-- end of tuning -->", content)


if __name__ == "__main__":
    README.write_text(generated(), "utf-8")
    EXPERIMENT.write_text(generated_experiment(), "utf-8")
