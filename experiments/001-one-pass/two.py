"""Arm "two": the same, with a pass of its own for every embedding."""

from dataclasses import replace
from pathlib import Path

from mmfm.config import Run
from mmfm.config.load import read_run


def config() -> Run:
    return replace(read_run(Path(__file__).with_name("one.py")), name="two", passes="two")
