"""Every task of configs/any.py in one run, cut to 200 steps."""

import runpy
from dataclasses import replace
from pathlib import Path

from mmfm.config import Run

CONFIGS = Path(__file__).parents[2] / "configs"


def config() -> Run:
    run = runpy.run_path(str(CONFIGS / "any.py"))["config"]()
    return replace(run, name="all", devices=1, optim=replace(run.optim, steps=200, warmup_steps=50))
