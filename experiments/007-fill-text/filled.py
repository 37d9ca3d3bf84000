"""Arm "filled": filled in, every place masked on its own."""

import runpy
from dataclasses import replace
from pathlib import Path

from mmfm.config import Run

TEXT = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "text.py"))


def config() -> Run:
    return replace(TEXT["filled"](), name="text-filled")
