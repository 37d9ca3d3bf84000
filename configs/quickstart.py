"""The numbers data set: image-text and audio-text samples, never image with audio; contrast and writing in one pass.

    mmfm data numbers data/numbers
    mmfm train configs/quickstart.py

Cost: minutes on two CPU cores. Expected scores: the table in README.md, from experiments/000-quickstart/results.json.
What was tried on the way here, and did not help: experiments/000-quickstart/README.md.
"""

from mmfm.config import (
    Augment,
    Conformer,
    Contrastive,
    Data,
    Eval,
    Generative,
    Mel,
    Model,
    Optim,
    Run,
    Source,
    TextTower,
    Trunk,
    Vit,
)

NUMBERS = "data/numbers"
WIDTH = 64


def model() -> Model:
    return Model(
        image=Vit(height_px=16, width_px=32, patch_px=8, channels=1, stem="conv", width=WIDTH, depth=2, heads=4),
        audio=Conformer(mel=Mel(bins=40, hop_ms=12.5), width=WIDTH, depth=2, heads=4),
        text=TextTower(width=WIDTH, depth=2, heads=4),
        trunk=Trunk(width=WIDTH, depth=2, heads=4, kv_heads=4),
        tokenizer=f"{NUMBERS}/tokenizer.json",
        embed_dim=WIDTH,
    )


def augment() -> Augment:
    return Augment(
        rotate_deg=10.0,
        scale=0.15,
        shear=0.1,
        translate=0.08,
        brightness=0.2,
        speed=0.25,
        vtlp=0.25,
        time_mask=10,
        freq_mask=8,
        target_token_dropout=0.7,  # or the decoder learns which numbers exist, and never writes another
    )


def data() -> Data:
    return Data(
        train=(
            Source(shards=f"{NUMBERS}/train/image-*.tar", modalities=("image", "text")),
            Source(shards=f"{NUMBERS}/train/audio-*.tar", modalities=("audio", "text")),
        ),
        val=f"{NUMBERS}/val",
        batch_size=128,
        cache_mb=512,  # all of it, decoded
        max_seconds=4.0,
        augment=augment(),
    )


def config() -> Run:
    return Run(
        name="quickstart",
        model=model(),
        data=data(),
        contrastive=(Contrastive(pair=("image", "text")), Contrastive(pair=("audio", "text"))),
        generative=(Generative(task="image>text"), Generative(task="audio>text"), Generative(task=">text", weight=0.1)),
        optim=Optim(steps=1_200, lr=2e-3, warmup_steps=100),
        eval=Eval(every_steps=300, splits=(f"{NUMBERS}/test", f"{NUMBERS}/test-unseen+{NUMBERS}/test")),
    )
