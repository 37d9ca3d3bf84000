"""Trains the arms one after the other, each in a process of its own, and notes what each cost; then scores them.

.venv/bin/python experiments/007-fill-text/arms.py
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from experiment import cpu_seconds  # noqa: E402

ARMS = ("causal", "filled", "both", "spans")
TEST = "data/corpus/test"


def run(arm: str) -> None:
    """What is done already is not done again."""
    folder = ROOT / "runs" / f"text-{arm}"
    mmfm = [sys.executable, "-m", "mmfm"]
    if not (folder / "cost.json").exists():
        spent = cpu_seconds([*mmfm, "train", str(Path(__file__).with_name(f"{arm}.py").relative_to(ROOT)), "--force"])
        (folder / "cost.json").write_text(json.dumps({"cpu_seconds": spent}))


def main() -> None:
    for arm in ARMS:
        run(arm)


if __name__ == "__main__":
    main()
