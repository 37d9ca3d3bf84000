"""Few shots, interleaved (Flamingo, arXiv 2204.14198): the chat model learns to name a picture by those before it.

    (the bundle and data of configs/adapt/chat.py)
    mmfm train configs/adapt/chat.py
    mmfm train configs/adapt/shots.py
    mmfm eval runs/shots configs/suites/shots.py --root data/scenes

It goes on from a run that has learned what pictures show, `--start runs/chat-spoken` for another one, `--start ''` for
none. A conversation shows up to four pictures with their names, made up or true, each in a turn of its own that is not
learned, and one more to be named. Cost and scores: experiments/013-shots/README.md.
"""

from dataclasses import replace
from pathlib import Path

from mmfm.config import Run, Source
from mmfm.config.load import read_run

CHAT = Path(__file__).with_name("chat.py")
SCENES = "data/scenes"


def config() -> Run:
    run = read_run(CHAT)
    train = (Source(name="shots", shards=f"{SCENES}/train/shots-*.tar", modalities=("messages",)),)
    return replace(
        run,
        name="shots",
        start="runs/chat",
        data=replace(run.data, train=train, val=f"{SCENES}/val/shots-*.tar", batch_size=8),
        optim=replace(run.optim, steps=100, lr=5e-4, warmup_steps=20),
    )
