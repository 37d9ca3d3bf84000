"""Arm "one": the quickstart for 1,000 steps; each embedding comes from the pass that also writes."""

from dataclasses import replace
from pathlib import Path

from mmfm.config import Run
from mmfm.config.load import read_run

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"


def config() -> Run:
    run = read_run(QUICKSTART)
    optim, evals = replace(run.optim, steps=1_000), replace(run.eval, every_steps=0)
    return replace(run, name="one", optim=optim, eval=evals, threads=1)
