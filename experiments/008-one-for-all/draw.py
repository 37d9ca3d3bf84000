"""`text>image` alone, with the model, data, weight and steps that it has in all.py."""

import runpy
from dataclasses import replace
from pathlib import Path

from mmfm.config import Run


def config() -> Run:
    run = runpy.run_path(str(Path(__file__).with_name("all.py")))["config"]()
    alone = tuple(item for item in run.write if item.task == "text>image")
    return replace(run, name="draw", contrastive=(), generative=alone)
