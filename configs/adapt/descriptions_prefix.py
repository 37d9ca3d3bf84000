"""The pairs of `descriptions.py` as an encoder-decoder reads them: the source from both sides, then the answer.

    (the bundle and data of configs/adapt/descriptions.py)
    mmfm train configs/adapt/descriptions_prefix.py
    mmfm eval runs/descriptions-prefix configs/suites/texts.py --root data/descriptions
    mmfm generate runs/descriptions-prefix 'text>text' --text 'Translate into French: a small editor'

One trunk is both (a prefix language model, section 3.2.1 of T5, arXiv 1910.10683): a token of the source sees all of
the source, and one of the answer sees the source and what was written. There are no turns and no template; what begins
and ends an answer are marks of the vocabulary, whose rows are new and learn. The loss is of the answer, as it is in the
conversations.
"""

from dataclasses import replace
from pathlib import Path

from mmfm.config import Embedded, Generative, Run, Source, Text
from mmfm.config.load import read_run

CHAT = Path(__file__).with_name("descriptions.py")


def as_pair(source: Source) -> Source:
    """The same shards, read as two texts."""
    return replace(source, modalities=("text",), texts=(Text(field="question"),), targets=(Text(field="answer"),))


def config() -> Run:
    run = read_run(CHAT)
    return replace(
        run,
        name="descriptions-prefix",
        model=replace(run.model, text=Embedded(causal=False), chat=None),
        data=replace(run.data, train=tuple(map(as_pair, run.data.train))),
        chat=None,
        generative=(Generative(task="text>text"),),
    )
