"""Arm "numbers": the mixed run's model on the numbers data set alone, with as many samples of it in each step."""

from dataclasses import replace
from pathlib import Path

from mmfm.config import Run
from mmfm.config.load import read_run

MIXED = Path(__file__).parents[2] / "configs" / "stamps.py"


def config() -> Run:
    run = read_run(MIXED)
    sources = tuple(source for source in run.data.train if source.label.startswith("numbers"))
    return replace(run, name="numbers-alone", data=replace(run.data, train=sources, batch_size=64))
