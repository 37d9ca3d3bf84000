"""Arm "both": each passage written or filled in, each with a chance of a half."""

import runpy
from dataclasses import replace
from pathlib import Path

from mmfm.config import Run

TEXT = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "text.py"))


def config() -> Run:
    return replace(TEXT["config"](), name="text-both")
