"""Audio and text (CLAP, arXiv 2211.06687): Whisper's encoder, which learns slowly, and captions found and written.

    mmfm plan configs/reference/clap.py --gpus 8
    mmfm train configs/reference/clap.py --devices 8

Ten seconds of a clip are read, a random part in training; four of Whisper's tokens become one of the trunk's.

On H100s, as `mmfm plan` says (written by tools/reference.py):

     GPUs  batch  GB each  s/step  samples/s  MFU %  largest batch  hours  GPU hours
        8  2,048       67    0.34      6,000      7          2,200      2         15
       64  2,048       12   0.045     46,000      6         18,000      0         16
    1,000  2,000        4   0.037     53,000      0        280,000      0        210

161 M parameters. Assumed: data/wavcaps/tokenizer.json is not here: a vocabulary of 32,768 tokens is assumed; samples
are made up, texts of 32 to 64 tokens, sounds of 5 to 10 s.
"""

from mmfm.config import (
    Contrastive,
    Data,
    Generative,
    Model,
    Optim,
    ParamGroup,
    Run,
    Source,
    TextTower,
    Tower,
    Trunk,
)

SHARDS = "data/wavcaps"
WHISPER = "hf:openai/whisper-small"


def model() -> Model:
    return Model(
        image=None,
        audio=Tower(source=WHISPER, window_seconds=10.0, frame_stack=4),
        text=TextTower(width=512, depth=6, heads=8),
        trunk=Trunk(width=512, depth=6, heads=8, kv_heads=8),
        tokenizer=f"{SHARDS}/tokenizer.json",
        embed_dim=512,
        dropout=0.1,
    )


def config() -> Run:
    return Run(
        name="clap",
        model=model(),
        data=Data(
            train=(Source(shards=f"{SHARDS}/{{0000..0402}}.tar", modalities=("audio", "text")),),
            batch_size=2_048,
            num_workers=8,
            crop_seconds=10.0,
            max_seconds=600.0,
        ),
        contrastive=(Contrastive(pair=("audio", "text")),),
        generative=(Generative(task="audio>text", weight=0.5),),
        optim=Optim(
            steps=20_000,
            lr=5e-4,
            warmup_steps=1_000,
            precision="bf16",
            param_groups=(ParamGroup(pattern="towers.audio.*", lr_scale=0.1),),
        ),
    )
