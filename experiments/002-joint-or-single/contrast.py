"""Arm "contrast": the joint run without anything to write."""

from dataclasses import replace
from pathlib import Path

from mmfm.config import Run
from mmfm.config.load import read_run

JOINT = Path(__file__).parents[1] / "001-one-pass" / "one.py"


def config() -> Run:
    return replace(read_run(JOINT), name="contrast", generative=())
