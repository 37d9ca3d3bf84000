"""Pictures, sounds and text under a trunk of a billion weights in Llama's layout, found and written in one pass.

    mmfm plan configs/reference/three.py --gpus 64
    torchrun --nproc-per-node 8 -m mmfm train configs/reference/three.py

To begin with Llama's weights: `mmfm import hf:meta-llama/Llama-3.2-1B data/llama --modality trunk`, then
`trunk=replace(TRUNK, weights="data/llama")` and its tokenizer.

On H100s, as `mmfm plan` says (written by tools/reference.py):

     GPUs  batch  GB each  s/step  samples/s  MFU %  largest batch  hours  GPU hours
        8  4,096       68     3.9      1,100     23          4,600    220      1,700
       64  4,096       32    0.51      8,000     22         36,000     28      1,800
    1,000  4,000       29    0.21     20,000      3        540,000     11     11,000

1,277 M parameters. Assumed: data/texts/tokenizer.json is not here: a vocabulary of 32,768 tokens is assumed; samples
are made up, texts of 32 to 64 tokens, sounds of 5 to 10 s.
"""

from mmfm.config import (
    Conformer,
    Contrastive,
    Data,
    Generative,
    Model,
    Optim,
    Parallel,
    Run,
    Source,
    TextTower,
    Trunk,
    Vit,
)

PICTURES, SPEECH, TEXTS = "data/datacomp", "data/speech", "data/texts"
TRUNK = Trunk(
    width=2_048,
    depth=16,
    heads=32,
    kv_heads=8,
    hidden=8_192,
    eps=1e-5,
    rope_theta=500_000.0,
    rope_scaling=(32.0, 1.0, 4.0, 8_192.0),
)


def model() -> Model:
    return Model(
        image=Vit(width=768, depth=12, heads=12),
        audio=Conformer(width=512, depth=12, heads=8, kernel=31),
        text=TextTower(width=768, depth=6, heads=12),
        trunk=TRUNK,
        tokenizer=f"{TEXTS}/tokenizer.json",
        embed_dim=768,
    )


def data() -> Data:
    return Data(
        train=(
            Source(shards=f"{PICTURES}/{{000000..012799}}.tar", modalities=("image", "text"), weight=2),
            Source(shards=f"{SPEECH}/{{0000..4095}}.tar", modalities=("audio", "text")),
            Source(shards=f"{TEXTS}/{{0000..1023}}.tar", modalities=("text",)),
        ),
        batch_size=4_096,
        num_workers=8,
        max_seconds=30.0,
        max_text_tokens=512,
    )


def config() -> Run:
    return Run(
        name="three",
        model=model(),
        data=data(),
        contrastive=(Contrastive(pair=("image", "text")), Contrastive(pair=("audio", "text"))),
        generative=(Generative(task="image>text"), Generative(task="audio>text"), Generative(task=">text", weight=0.5)),
        optim=Optim(steps=200_000, lr=4e-4, warmup_steps=2_000, schedule="wsd", betas=(0.9, 0.95), precision="bf16"),
        parallel=Parallel(activation_checkpointing="full"),
        save_every_steps=1_000,
    )
