"""What is lost when a run is killed: kill -9 of the whole process tree at random steps, against a run never killed.

A toy run with dropout, augmentation, two modalities and four losses is killed at random steps and moments (after an
update, between two files of a checkpoint, after one) and started again with --resume, as people do. A mismatch is a
step of a rank with other samples, or with a loss that differs in any bit, or that is missing. Then a run that changes
its number of ranks and loader processes, against one of a single rank. The cases are those of `make test-slow`.

    python tools/bench_resume.py [--out tools/bench_resume.json]
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from doomed import CASES, kill_and_compare, move_and_compare  # noqa: E402


def fresh() -> Path:
    return Path(tempfile.mkdtemp(prefix="bench-resume-"))


def measure() -> list[dict[str, Any]]:
    rows = []
    for devices, workers, kills in CASES:
        began = time.monotonic()
        found = kill_and_compare(fresh(), kills=kills, seed=devices, devices=devices, workers=workers)
        seconds = round(time.monotonic() - began)
        rows.append({"case": "kill -9", "ranks": devices, "workers": workers, **asdict(found), "seconds": seconds})
        print(json.dumps(rows[-1]), flush=True)
    began = time.monotonic()
    moved = asdict(move_and_compare(fresh()))
    rows.append({"case": "other ranks", **moved, "seconds": round(time.monotonic() - began)})
    print(json.dumps(rows[-1]), flush=True)
    return rows


def commit() -> str:
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


def hardware() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tools/bench_resume.json"))
    out = parser.parse_args().out
    at = commit()
    about = {
        "command": "python tools/bench_resume.py",
        "commit": at,
        "date": date.today().isoformat(),
        "hardware": hardware(),
        "torch": torch.__version__,
    }
    out.write_text(json.dumps({**about, "rows": measure()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
