"""Writes the tables of all pages (README.md, guides of folders, tools/PARITY.md, an experiment) from their JSON.

A table stands between `<!-- NAME: written by tools/readme.py -->` and `<!-- end of NAME -->`; TABLES has its maker. No
figure is typed.

    .venv/bin/python tools/readme.py
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "000-quickstart" / "results.json"
BENCH = ROOT / "tools" / "bench_step.json"
ENGINE = [ROOT / "tools" / f"bench_{name}.json" for name in ("loader", "decode", "read", "memory", "resume")]
GENERATE = ROOT / "tools" / "bench_generate.json"
ANY = ROOT / "experiments" / "006-any-to-any" / "results.json"
CHAT = ROOT / "experiments" / "009-chat" / "results.json"
COST = ROOT / "tools" / "quickstart_cost.json"
PARITY = ROOT / "tools" / "parity.json"
PARITY_PAGE = PARITY.with_name("PARITY.md")
TABLE = re.compile(r"(<!-- (\w+): written by tools/readme.py -->\n).*?(\n<!-- end of (\w+) -->)", re.DOTALL)
SPLITS = {"test": "numbers seen in training", "test-unseen": "the twenty never seen"}
LINES = (
    ("image->text", "acc@1", "a picture, named"),
    ("audio->text", "acc@1", "a voice, named"),
    ("image->audio", "R@1", "a picture, its sound found"),
    ("audio->image", "R@1", "a sound, its picture found"),
    ("image>text", "exact_match", "a picture, written out"),
    ("audio>text", "exact_match", "a voice, written down"),
    ("audio>text", "wer", "the same, word error rate (less is better)"),
    (">text", "bits_per_byte", "captions predicted, bits per byte (less is better)"),
)
FEW = [LINES[at] for at in (0, 1, 2, 4, 5)]
PARITY_TEXT = """# Encoders of other libraries, there and here

Written by tools/readme.py from tools/parity.json, which `{command}` wrote; what the columns are is said in
tools/parity.py, and every row is a test (tests/test_parity_table.py, those of wheels in tests/slow/). Wrapped: the
library's own module behind our interface. Native: its weights in our own modules. Preprocessing: the largest difference
between what the library's own processor makes of pictures that are not square, or of clips, and what we make of them,
in parts of 255, of the colours or of the largest number of the sounds' features; texts have none. Difference: the
largest between two numbers of their tokens and ours; size: the largest of these numbers. Padded: the largest difference
between a shorter item beside a longer one and the same item alone; images are never padded.

{table}

Two items each, on {cpu}, {date}, commit {commit}; {versions}.
"""
ANY_LINES = (
    ("text>image", "digits/right", "a number drawn, both digits"),
    ("best of 8: text>image", "digits/right", "the best of eight, by the model's own embeddings"),
    ("text>audio", "speech/right", "a number spoken"),
    ("audio>text>image", "digits/right", "a voice, drawn"),
    ("audio>audio", "speech/number", "half a clip continued: the whole is a number"),
)
CHAT_LINES = (
    ("kind", "exact_match", "what kind of thing is it, of ten"),
    ("count", "exact_match", "how many things, one to four"),
    ("animal", "exact_match", "is there an animal"),
    ("colour", "exact_match", "the ground's colour, of six"),
    ("where", "exact_match", "in which corner"),
    ("side", "exact_match", "what is on the left, or right"),
    ("name", "shared_word", "its name, open: a word of it"),
)
DECODE_GOALS = {"seek": ">= 10"}  # of tools/bench_decode.json, which states none


def cell(row: Mapping[str, Any] | None) -> str:
    """Value, interval and chance level; a dash where nothing was measured."""
    if row is None:
        return "-"
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f}), chance {row['chance']:.3g}"


def table(rows: Sequence[Mapping[str, Any]], shown: Sequence[tuple[str, str, str]] = LINES) -> str:
    found = {(row["split"], row["task"], row["metric"]): row for row in rows}
    head = ["", "task", "metric", *SPLITS.values()]
    lines = [head, ["---"] * len(head)]
    for task, metric, words in shown:
        lines.append([words, f"`{task}`", metric, *(cell(found.get((split, task, metric))) for split in SPLITS)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pages() -> list[Path]:
    """README.md, and the pages of all folders that hold a table written here."""
    folders = ("mmfm", "configs", "experiments", "tools", "tests")
    found = [ROOT / "README.md", *(page for folder in folders for page in sorted((ROOT / folder).rglob("*.md")))]
    return [page for page in found if page != PARITY_PAGE and TABLE.search(page.read_text("utf-8"))]


def render(page: str) -> str:
    """The page with its tables made anew. ValueError: a table's begin and end, or its name, do not match."""

    def fill(match: re.Match[str]) -> str:
        begin, name, end, closed = match.groups()
        if name != closed or name not in TABLES:
            raise ValueError(f"a table {name!r} ends as {closed!r}; there are {', '.join(TABLES)}")
        return f"{begin}{TABLES[name]()}{end}"

    if page.count("written by tools/readme.py -->") != page.count("<!-- end of "):
        raise ValueError("a table should stand between its begin and its end")
    return TABLE.sub(fill, page)


def any_table(results: str) -> str:
    """What was drawn and said, and read right by judges; and the sentence of the first drawing."""
    report = json.loads(results)
    found = {(row["split"], row["task"], row["metric"]): row for row in report["rows"]}
    head = ["", "task", "read by", *SPLITS.values()]
    lines = [head, ["---"] * len(head)]
    for task, metric, words in ANY_LINES:
        cells = [cell(found.get((split, task, metric))) for split in SPLITS]
        lines.append([words, f"`{task}`", metric.partition("/")[0], *cells])
    shown = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    told = f'Of the first drawing the model writes "{report["sentence"]}"; in the sound, the best of eight by its own'
    return f'{shown}\n\n{told} embeddings, the recogniser hears "{report["heard"]}".'


def chat_table(results: str) -> str:
    """Shares of right answers over seeds, of the first arm: written and spoken, blind, and the commonest answer."""
    runs = json.loads(results)["runs"]
    runs = [run for run in runs if run["arm"] == runs[0]["arm"]]

    def cells(split: str, task: str, metric: str) -> str:
        rows = [row for run in runs for row in run["rows"]]
        return mean_of([row for row in rows if (row["split"], row["task"], row["metric"]) == (split, task, metric)])

    asked = {
        "written": lambda kind, metric: cells("scenes", f"messages>text:{kind}", metric),
        "spoken": lambda kind, metric: cells("spoken", f"messages>text:spoken-{kind}", metric),
        "written, no picture": lambda kind, metric: cells("scenes", f"messages>text:{kind} (blind)", metric),
        "the commonest answer": lambda kind, metric: cells("scenes", f"messages>text:{kind} (majority)", metric),
    }
    lines = [["", *(words for *_, words in CHAT_LINES)], ["---"] * (1 + len(CHAT_LINES))]
    lines += [[name, *(of(kind, metric) for kind, metric, _ in CHAT_LINES)] for name, of in asked.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Over seeds, and the widest interval that they span; a dash where nothing was measured."""
    if not rows:
        return "-"
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    return f"{mean(row['value'] for row in rows):.2f} ({low:.2f} to {high:.2f})"


def talk(text: str) -> str:
    """The turns of a conversation."""
    turns = json.loads(text)["turns"]
    said = [f"*{turn['asked']}*{' (spoken)' * turn['spoken']} **{turn['answered']}**" for turn in turns]
    return " ".join(said)


def parity_summary(report: Mapping[str, Any]) -> str:
    """A line for each library: how many encoders, how far ours are from it, and which of them see their padding."""
    head = ["library", "preprocessing", "wrapped", "largest difference", "native", "largest difference"]
    head.append("see their padding")
    lines = [head, ["---"] * len(head)]
    for library in dict.fromkeys(row["library"] for row in report["rows"]):
        cells = [library, unprepared([row for row in report["rows"] if row["library"] == library])]
        for way in ("wrapped", "native"):
            found = [row for row in report["rows"] if (row["library"], row["way"]) == (library, way)]
            cells += [str(len(found)), worst(found)]
        seen = [row["model"] for row in report["rows"] if row["library"] == library and row["invariant"] is False]
        lines.append([*cells, "; ".join(seen) or "none"])
    models = len({(row["library"], row["model"]) for row in report["rows"]})
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\n{models} encoders. Measured on {cpu(report['hardware'])}, {report['date']}."


def worst(rows: Sequence[Mapping[str, Any]]) -> str:
    """The largest difference, as a part of the largest number in the tokens."""
    return f"{max(row['difference'] / row['size'] for row in rows):.2g}" if rows else "-"


def unprepared(rows: Sequence[Mapping[str, Any]]) -> str:
    """The largest difference of preprocessing, in parts of 255; a dash where none was measured."""
    found = [row["preprocessing"] for row in rows if row["preprocessing"] is not None]
    return f"{max(found):.2g}" if found else "-"


def parity_page() -> str:
    """tools/PARITY.md: every row of tools/parity.json."""
    report = json.loads(PARITY.read_text("utf-8"))
    head = ["model", "library", "modality", "way", "preprocessing", "difference", "size", "padded", "width"]
    head.append("seconds")
    lines = [head, ["---"] * len(head)]
    for row in report["rows"]:
        padded = "-" if row["padded"] is None else f"{row['padded']:.2g}{'' if row['invariant'] else ', sees padding'}"
        figures = [f"{row['difference']:.2g}", f"{row['size']:.3g}", padded, str(row["width"]), f"{row['seconds']:.2g}"]
        lines.append([row["model"], row["library"], row["modality"], row["way"], unprepared([row]), *figures])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return PARITY_TEXT.format(**{**report, "table": table, "versions": versions, "cpu": cpu(report["hardware"])})


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


def engine_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """What the benches of the data engine tell: what has a goal, what was decoded in part, and what was killed."""
    lines = [["", "measured", "goal"], ["---"] * 3]
    lines += [list(cells) for report in reports for row in report["rows"] if (cells := engine_cells(row))]
    machines = dict.fromkeys(f"{cpu(report['hardware'])}, {report['date']}" for report in reports)
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\nMeasured on {'; '.join(machines)}."


def short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"


def cpu(hardware: Mapping[str, Any] | str) -> str:
    return hardware if isinstance(hardware, str) else hardware["cpu"]


def engine_cells(row: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """A line of the table; None for a row that only explains another one."""
    if "case" in row:  # of bench_resume: counts
        counts = {name: n for name, n in row.items() if name not in ("case", "seconds") and not isinstance(n, list)}
        told = ", ".join(f"{name.replace('_', ' ')} {short(count)}" for name, count in counts.items())
        return row["case"], told, "0 different"
    if "ratio" in row:  # of bench_decode
        goal = DECODE_GOALS.get(row["way"], "")
        found, unit, name = row["ratio"], "x", f"{row['what']}: {row['way']} over {row['against']}"
    elif not row.get("goal"):
        return None
    else:
        found, unit, goal, name = row, row["unit"], row["goal"], row["name"]
    space = "" if unit in ("x", "%") else " "
    value, low, high = (short(found[part]) for part in ("value", "low", "high"))
    return name, f"{value}{space}{unit} ({low} to {high})", f"{goal}{space}{unit}" if goal else "-"


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
    """The page with `content` between these two lines; what experiments' own tools write theirs with."""
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def cost(report: Mapping[str, Any]) -> str:
    """What the first command takes, in a sentence."""
    took, disk = ({row["name"]: row["value"] for row in report["rows"] if row["unit"] == unit} for unit in ("s", "MB"))
    steps = ", ".join(f"{name} {minutes(took[name])}" for name in ("install", "data", "train", "eval"))
    space = f"{disk['.venv'] / 1000:.1f} GB of packages, {disk['data'] + disk['runs']:.0f} MB of data and run"
    cores = report["hardware"]["cores"]
    return f"On {cores} cores of {cpu(report['hardware'])}: {steps}. Disk: {space}."


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


TABLES = {
    "cost": lambda: cost(read(COST)),
    "scores": lambda: table(read(RESULTS)),
    "few": lambda: table(read(RESULTS), FEW),
    "any": lambda: any_table(ANY.read_text("utf-8")),
    "chat": lambda: chat_table(CHAT.read_text("utf-8")),
    "talk": lambda: talk(CHAT.with_name("talk.json").read_text("utf-8")),
    "speed": lambda: speed_table(read(BENCH)),
    "data": lambda: engine_table([read(path) for path in ENGINE]),
    "packing": lambda: engine_table(
        [read(ROOT / "tools" / f"bench_{name}.json") for name in ("packing", "before", "joint", "losses", "dropout")]
    ),
    "checkpoints": lambda: engine_table([read(ROOT / "tools" / "bench_checkpoint.json")]),
    "writing": lambda: engine_table([read(GENERATE)]),
    "parity": lambda: parity_summary(read(PARITY)),
    "tuning": lambda: tuning_table(RESULTS.with_name("tuning.json").read_text("utf-8")),
}


if __name__ == "__main__":
    for page in pages():
        page.write_text(render(page.read_text("utf-8")), "utf-8")
    PARITY_PAGE.write_text(parity_page(), "utf-8")
