"""Any of pictures, sounds and text into any other, written as codes of imported codecs by a trunk in Qwen's layout.

    mmfm plan configs/reference/any.py --gpus 64
    torchrun --nproc-per-node 8 -m mmfm train configs/reference/any.py

Janus's codec makes 576 codes of a picture, Mimi's 100 of a second in eight books. Shards that hold them need no codec
at training.

On H100s, as `mmfm plan` says (written by tools/reference.py):

     GPUs  batch  GB each  s/step  samples/s  MFU %  largest batch  hours  GPU hours
        8  2,048       61     4.8        430     15          2,600    270      2,100
       64  2,048       18    0.61      3,400     14         20,000     34      2,200
    1,000  2,000       15    0.12     17,000      5        310,000      6      6,400

753 M parameters. Assumed: data/datacomp/tokenizer.json is not here: a vocabulary of 32,768 tokens is assumed; samples
are made up, texts of 32 to 64 tokens, sounds of 5 to 10 s.
"""

from mmfm.config import (
    Conformer,
    Contrastive,
    Data,
    Generative,
    KnownCodec,
    Model,
    Optim,
    Parallel,
    Run,
    Source,
    TextTower,
    Trunk,
    Vit,
)

PICTURES, SPEECH = "data/datacomp", "data/speech"
JANUS, MIMI = "hf:deepseek-community/Janus-Pro-1B", "hf:kyutai/mimi"


def model() -> Model:
    return Model(
        image=Vit(height_px=384, width_px=384, width=768, depth=12, heads=12),
        audio=Conformer(width=512, depth=8, heads=8),
        text=TextTower(width=512, depth=4, heads=8),
        trunk=Trunk(width=896, depth=24, heads=14, kv_heads=2, hidden=4_864, qkv_bias=True, rope_theta=1_000_000.0),
        tokenizer=f"{PICTURES}/tokenizer.json",
        image_codec=KnownCodec(source=JANUS),
        audio_codec=KnownCodec(source=MIMI, num_codebooks=8),
        embed_dim=512,
    )


def data() -> Data:
    return Data(
        train=(
            Source(shards=f"{PICTURES}/{{000000..012799}}.tar", modalities=("image", "text")),
            Source(shards=f"{SPEECH}/{{0000..4095}}.tar", modalities=("audio", "text")),
        ),
        batch_size=2_048,
        num_workers=8,
        max_seconds=10.0,
        max_text_tokens=128,
    )


def config() -> Run:
    return Run(
        name="any-to-any",
        model=model(),
        data=data(),
        contrastive=(Contrastive(pair=("image", "text"), weight=0.3), Contrastive(pair=("audio", "text"), weight=0.3)),
        generative=(
            Generative(task="image>text", weight=0.3),
            Generative(task="audio>text", weight=0.3),
            Generative(task="text>image", condition_dropout=0.1),
            Generative(task="text>audio", condition_dropout=0.1),
        ),
        optim=Optim(steps=200_000, lr=5e-4, warmup_steps=2_000, schedule="wsd", precision="bf16"),
        parallel=Parallel(activation_checkpointing="full"),
    )
