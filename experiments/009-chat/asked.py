"""`configs/adapt/chat_spoken.py` without described pictures: questions alone, each answered in a word or so."""

from dataclasses import replace
from pathlib import Path

from mmfm.config import Run, Source
from mmfm.config.load import read_run

SPOKEN = Path(__file__).parents[2] / "configs" / "adapt" / "chat_spoken.py"
WEIGHTS = {"scene": 10, "spoken": 4, "text": 2}


def config() -> Run:
    run = read_run(SPOKEN)
    train = tuple(
        Source(name=use, shards=f"data/scenes/train/{use}-*.tar", modalities=("messages",), weight=weight)
        for use, weight in WEIGHTS.items()
    )
    return replace(run, name="asked", data=replace(run.data, train=train), optim=replace(run.optim, steps=400))
