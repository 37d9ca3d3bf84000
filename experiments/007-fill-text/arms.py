"""Trains the arms one after the other, each in a process of its own, and scores them; tools/gather.py makes the table.

    .venv/bin/python experiments/007-fill-text/arms.py

What `mmfm eval` does not say stands beside it in each run's results.json: what a step cost, and the bound with what it
takes to say how long the text is, which `>text` says by its end mark: -log of the share of such lengths in train.
"""

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from experiment import train_and_score  # noqa: E402

from mmfm.config.load import read_run  # noqa: E402
from mmfm.data.shards import Shards  # noqa: E402
from mmfm.preprocessing.tokenizer import load_tokenizer  # noqa: E402

ARMS = ("causal", "filled", "both", "spans")
CORPUS = ROOT / "data" / "corpus"
STEPS, LONGEST = 600, 600  # of a run; tokens of a passage, at most: its bytes


def run(arm: str) -> Path:
    """What is done already is not done again."""
    config = Path(__file__).with_name(f"{arm}.py").relative_to(ROOT)
    own = read_run(config)
    train_and_score(own, config, ["--data", "test=data/corpus/test"])
    return own.folder


def passages(split: str) -> list[str]:
    shards = Shards(sorted((CORPUS / split).glob("*.tar")))
    return [shards[at].parts["txt"].decode() for at in range(len(shards))]


def length_bits() -> float:
    """Bits per byte that the lengths of test take, by those of train; one of each length is added to what train has."""
    tokenizer = load_tokenizer(CORPUS / "tokenizer.json")
    seen = Counter(len(tokenizer.encode(text)) for text in passages("train"))
    test, total = passages("test"), seen.total() + LONGEST
    bits = sum(-math.log2((1 + seen[len(tokenizer.encode(text))]) / total) for text in test)
    return bits / sum(len(text.encode()) for text in test)


def more(rows: list[dict[str, Any]], cost: float, length: float) -> list[dict[str, Any]]:
    """The rows, with those that are made of them."""
    own = [row for row in rows if row["metric"] not in ("bits_per_byte_with_length", "cpu_ms_per_step")]
    bounds = [row for row in own if row["metric"] == "nelbo_bits_per_byte"]
    moved = [{**row, **{name: row[name] + length for name in ("value", "low", "high")}} for row in bounds]
    step = 1_000 * cost / STEPS
    of = {name: own[0][name] for name in ("step", "weights", "version") if name in own[0]}
    spent = {
        **of,
        "split": "test",
        "task": "train",
        "metric": "cpu_ms_per_step",
        "value": step,
        "low": step,
        "high": step,
    }
    return [
        *own,
        *({**row, "metric": "bits_per_byte_with_length"} for row in moved),
        {**of, **spent, "chance": 0.0, "n": STEPS},
    ]


def main() -> None:
    length = length_bits()
    for arm in ARMS:
        folder = run(arm)
        cost = json.loads((folder / "cost.json").read_text())["cpu_seconds"]
        rows = more(json.loads((folder / "results.json").read_text()), cost, length)
        (folder / "results.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
