"""What `make quickstart` costs on this machine: seconds of each step, and the disk that is taken.

It runs in the clone that it stands in, which should be fresh, with nothing but the standard library:

    PYTHONPATH=. python3 tools/quickstart_cost.py [--out tools/quickstart_cost.json]
"""

import argparse
import shlex
import subprocess
import time
from pathlib import Path

from measure import write_report

STEPS = {"data": "data numbers", "train": "train", "eval": "eval", "report": "report"}
PLACES = (".venv", "data", "runs")


def run(words: list[str]) -> float:
    start = time.monotonic()
    subprocess.run(words, check=True)
    return time.monotonic() - start


def disk_mb(folder: Path) -> float:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if not path.is_symlink()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tools/quickstart_cost.json"))
    out = parser.parse_args().out
    root = Path.cwd()
    assert not (root / ".venv").exists(), "this clone was used already; make a fresh one"
    found = {"install": run(["make", ".venv/core"])}
    lines = subprocess.run(["make", "-n", "quickstart"], check=True, capture_output=True, text=True).stdout.splitlines()
    for name, begins in STEPS.items():
        (line,) = (line for line in lines if line.split("mmfm ", 1)[-1].startswith(begins))
        found[name] = run(shlex.split(line))
    rows = [{"name": name, "value": round(seconds, 1), "unit": "s"} for name, seconds in found.items()]
    rows += [{"name": name, "value": round(disk_mb(root / name)), "unit": "MB"} for name in PLACES]
    write_report(out, rows, {})


if __name__ == "__main__":
    main()
