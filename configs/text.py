"""Text alone: the passages of `mmfm data corpus`, written from left to right or filled in, by a trunk without towers.

    mmfm data corpus data/corpus
    mmfm train configs/text.py

Cost: minutes on one CPU core. `config` is the run that does both; `causal` and `filled` do one each, at the same cost.
Which does what how well: experiments/007-fill-text/README.md.
"""

from dataclasses import replace

from mmfm.config import Data, Eval, Generative, Model, Optim, Run, Source, Trunk

CORPUS = "data/corpus"
ALL = (0.0, 1.0)  # of a text, so much may be masked: then what is filled in bounds a text's likelihood too


def config() -> Run:
    """A passage is written with a chance of a half, and filled in with a chance of a half."""
    run = causal()
    return replace(
        run,
        name="text",
        generative=(
            Generative(task=">text", sample_fraction=0.5),
            Generative(task="text~", sample_fraction=0.5, mask_ratio=ALL),
        ),
    )


def causal() -> Run:
    return Run(
        name="text-causal",
        model=Model(
            image=None,
            audio=None,
            text=None,
            trunk=Trunk(width=96, depth=3, heads=4, kv_heads=4),
            tokenizer=f"{CORPUS}/tokenizer.json",
            embed_dim=96,
        ),
        data=Data(train=(Source(shards=f"{CORPUS}/train", modalities=("text",)),), val=f"{CORPUS}/val", batch_size=32),
        generative=(Generative(task=">text"),),
        optim=Optim(steps=600, lr=4e-3, warmup_steps=50),
        eval=Eval(batch_size=64),
    )


def filled(span: int = 1) -> Run:
    """`span`: how many tokens that follow each other are masked together."""
    return replace(causal(), name="text-filled", generative=(Generative(task="text~", mask_ratio=ALL, mask_span=span),))
