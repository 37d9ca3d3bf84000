"""The numbers data set: pictures with text and voices with text, never a picture with a voice, both objectives at once.

    mmfm data numbers data/numbers
    mmfm train configs/quickstart.py

Cost: minutes on two CPU cores. Expected scores: the table in README.md (experiments/000-quickstart/results.json).
"""

from mmfm.config import (
    Augment,
    Conformer,
    Contrast,
    Data,
    Eval,
    Mel,
    Model,
    Optim,
    Run,
    Source,
    TextTower,
    Trunk,
    Vit,
    Write,
)

NUMBERS = "data/numbers"
WIDTH = 128


def model() -> Model:
    return Model(
        image=Vit(height_px=16, width_px=32, patch_px=4, channels=1, width=WIDTH, depth=3, heads=4),
        audio=Conformer(mel=Mel(bins=64), width=WIDTH, depth=3, heads=4),
        text=TextTower(width=WIDTH, depth=2, heads=4),
        trunk=Trunk(width=WIDTH, depth=3, heads=4, kv_heads=4),
        tokenizer=f"{NUMBERS}/tokenizer.json",
        embed_dim=WIDTH,
    )


def data() -> Data:
    return Data(
        train=(
            Source(shards=f"{NUMBERS}/train/image-*.tar", provides=("image", "text")),
            Source(shards=f"{NUMBERS}/train/audio-*.tar", provides=("audio", "text")),
        ),
        val=f"{NUMBERS}/val",
        batch=128,
        max_seconds=4.0,
        augment=Augment(
            rotate_deg=10.0,
            scale=0.15,
            shear=0.1,
            shift=0.08,
            contrast=0.2,
            speed=0.15,
            formant=0.15,
            mask_frames=10,
            mask_bins=8,
        ),
    )


def config() -> Run:
    return Run(
        name="quickstart",
        model=model(),
        data=data(),
        contrast=(Contrast(pair=("image", "text")), Contrast(pair=("audio", "text"))),
        write=(Write(task="image>text"), Write(task="audio>text"), Write(task=">text")),
        optim=Optim(steps=2_000, lr=2e-3, warmup_steps=100),
        eval=Eval(every_steps=500),
    )
