"""Builds the data set that the quickstart was tuned on: `numbers` with other twenty numbers held out, the scans and
voices of val in place of those of test, and an accent of val's own. No scan, voice or accent of test is in it.

.venv/bin/python tools/tuning_data.py data/tuning
"""

import sys
from dataclasses import replace
from pathlib import Path

from mmfm.datasets import numbers, numbers_plan

UNSEEN = tuple(sorted(10 * (2 + step % 8) + 1 + (4 * step + 2) % 9 for step in range(20)))
SEEN = tuple(number for number in range(100) if number not in UNSEEN)
ACCENT = "en-gb-x-gbcwmd"


def splits(ordinary: tuple[numbers_plan.Split, ...]) -> tuple[numbers_plan.Split, ...]:
    """The ordinary splits, changed as said above."""
    train, val, test, unseen = ordinary
    accents = tuple(accent for accent in train.accents if accent != ACCENT)
    train, val = replace(train, numbers=SEEN, accents=accents), replace(val, numbers=SEEN, accents=(ACCENT,))
    as_val = {"scans": val.scans, "variants": val.variants, "accents": val.accents}
    return train, val, replace(test, numbers=SEEN, **as_val), replace(unseen, numbers=UNSEEN, **as_val)


if __name__ == "__main__":
    ordinary = numbers_plan.splits()
    numbers_plan.splits = lambda: splits(ordinary)
    numbers.build(Path(sys.argv[1]), seed=1)
