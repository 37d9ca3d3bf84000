"""Arm "contrast": the joint run without anything to write."""

from dataclasses import replace
from pathlib import Path

from mmfm.check import read_run
from mmfm.config import Run

JOINT = Path(__file__).parents[1] / "001-one-pass" / "one.py"


def config() -> Run:
    return replace(read_run(JOINT), name="contrast", write=())
