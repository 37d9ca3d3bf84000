"""Span corruption before `descriptions_prefix.py`: masked runs of words are filled in, seen from both sides (T5).

    (the bundle and data of configs/adapt/descriptions.py)
    mmfm train configs/adapt/spans.py
    mmfm train configs/adapt/descriptions_prefix.py --start runs/spans --name descriptions-after

15 % of the tokens are masked, in runs of three (T5, arXiv 1910.10683, section 3.1.4), in paragraphs of descriptions,
English ones and translations, each alone. T5 puts one mark for a run and writes what was there; here each token has a
mask in its place, and `text~` asks for it where it stood.
"""

from dataclasses import replace
from pathlib import Path

from mmfm.config import Generative, Run, Source, Text
from mmfm.config.load import read_run

PREFIX = Path(__file__).with_name("descriptions_prefix.py")
SHARDS = "data/descriptions/train/en-{fr,de,it}-paragraph-*.tar"
BOTH = (Text(field="text"), Text(field="answer"))  # the English paragraph or its translation, with equal chances


def config() -> Run:
    run = read_run(PREFIX)
    source = Source(name="paragraphs", shards=SHARDS, modalities=("text",), texts=BOTH)
    return replace(
        run,
        name="spans",
        data=replace(run.data, train=(source,)),
        generative=(Generative(task="text~", mask_ratio=(0.15, 0.15), mask_span=3),),
        optim=replace(run.optim, steps=160),
    )
