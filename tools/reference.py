"""Writes into the docstring of each reference run what `mmfm plan` says of it on 8, 64 and 1,000 H100s.

Their data, tokenizers and imported parts need not be here: samples are made up, and architectures lie beside them.
Batches are as near to the run's as the number of GPUs allows.

    python tools/reference.py [--check]
"""

import argparse
import ast
import re
import sys
from pathlib import Path

from mmfm.config import Run
from mmfm.config.load import read_run
from mmfm.plan.batches import Assumed
from mmfm.plan.command import machines_of, planned_on
from mmfm.plan.estimate import Plan

FOLDER = Path(__file__).parent.parent / "configs" / "reference"
GPUS = (8, 64, 1_000)
HEAD = "On H100s, as `mmfm plan` says (written by tools/reference.py):"
COLUMNS = ("GPUs", "batch", "GB each", "s/step", "samples/s", "MFU %", "largest batch", "hours", "GPU hours")
NEAR = 0.1  # figures that differ by less are the same: other parts of mmfm change them by a little


def paths() -> list[Path]:
    return sorted(FOLDER.glob("*.py"))


def plans(run: Run) -> list[Plan]:
    choices = [(machines_of("h100", gpus, 0, 50.0), max(1, round(run.data.batch_size / gpus)) * gpus) for gpus in GPUS]
    return planned_on(run, choices, Assumed(architectures=str(FOLDER / "architectures")))


def block(made: list[Plan]) -> str:
    """The lines of a docstring."""
    rows = [COLUMNS, *map(_row, made)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    said = f"{made[0].parameters / 1e6:,.0f} M parameters. Assumed: {'; '.join(made[0].assumptions)}."
    return "\n".join([HEAD, "", *(f"    {line}" for line in lines), "", *_wrapped(said)])


def _row(made: Plan) -> tuple[str, ...]:
    memory = f"{made.memory_total / 1e9:.0f}" + ("" if made.fits else " (no)")
    speed = (f"{made.step_s:.2g}", f"{float(f'{made.samples_per_s:.2g}'):,.0f}", f"{100 * (made.mfu or 0):.0f}")
    largest = f"{float(f'{made.largest_batch:.2g}'):,.0f}"
    hours = (f"{float(f'{made.hours:.2g}'):,.0f}", f"{float(f'{made.gpu_hours:.2g}'):,.0f}")
    return (f"{made.gpus:,}", f"{made.batch:,}", memory, *speed, largest, *hours)


def _wrapped(text: str, width: int = 118) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def written(source: str, new: str) -> str:
    """The source with this block in place of the one in its docstring, or at the end of that."""
    before = docstring(source)
    after = f"{before.partition(HEAD)[0].rstrip()}\n\n{new}\n"
    return source.replace(before, after, 1)


def docstring(source: str) -> str:
    found = ast.get_docstring(ast.parse(source), clean=False)
    assert found is not None
    return found


def current(source: str, new: str) -> bool:
    """Whether the block in the docstring says the same in words, and in numbers nearly."""
    old = docstring(source).partition(HEAD)[2].split()
    wanted = new.partition(HEAD)[2].split()
    return len(old) == len(wanted) and all(map(_same, old, wanted))


def _same(a: str, b: str) -> bool:
    if not all(re.fullmatch(r"[\d,.]+", word) for word in (a, b)):
        return a == b
    x, y = (float(word.replace(",", "").rstrip(".")) for word in (a, b))
    return abs(x - y) <= max(NEAR * max(x, y), 1.0 if x >= 1 else 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a figure is not current")
    args = parser.parse_args()
    stale = []
    for path in paths():
        new, source = block(plans(read_run(path))), path.read_text("utf-8")
        print(path.name, new, sep="\n", flush=True)
        if args.check and not current(source, new):
            stale.append(path.name)
        if not args.check:
            path.write_text(written(source, new), "utf-8")
    if stale:
        sys.exit(f"not current: {', '.join(stale)}; python tools/reference.py writes them")


if __name__ == "__main__":
    main()
