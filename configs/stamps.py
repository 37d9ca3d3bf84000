"""Pictures with captions and speech in ten languages, mixed with the numbers data set, in one run.

    mmfm data numbers data/numbers
    mmfm data stamps data/stamps
    mmfm train configs/stamps.py
    mmfm eval runs/stamps --data stamps=data/stamps/test numbers=data/numbers/test

Cost, scores and what the mixture does to each part: experiments/003-stamps/README.md.
"""

from pathlib import Path

from mmfm.config import (
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
    Text,
    TextTower,
    Trunk,
    Vit,
)
from mmfm.config.load import read_run

QUICKSTART = Path(__file__).with_name("quickstart.py")
NUMBERS, STAMPS = "data/numbers", "data/stamps"
SPOKEN = ("be", "bg", "ca", "da", "el", "es", "fr", "ro", "ru")  # the languages with hundreds of descriptions
WIDTH = 64


def model() -> Model:
    return Model(
        image=Vit(height_px=32, width_px=32, patch_px=8, channels=3, stem="conv", width=WIDTH, depth=2, heads=4),
        audio=Conformer(mel=Mel(bins=40, hop_ms=12.5), width=WIDTH, depth=2, heads=4),
        text=TextTower(width=WIDTH, depth=2, heads=4),
        trunk=Trunk(width=WIDTH, depth=2, heads=4, kv_heads=4),
        tokenizer=f"{STAMPS}/tokenizer.json",
        embed_dim=WIDTH,
    )


def stamps() -> tuple[Source, ...]:
    """A picture is called by its English caption a quarter of the time, else by one of those that people speak."""
    texts = (Text(field="caption", weight=3.0), *(Text(field=f"captions.{language}") for language in SPOKEN))
    sounds = f"{STAMPS}/train/speech-*.tar,{STAMPS}/train/sound-*.tar"
    return (
        Source(name="stamps-image", shards=f"{STAMPS}/train/image-*.tar", modalities=("image", "text"), texts=texts),
        Source(name="stamps-audio", shards=sounds, modalities=("audio", "text"), weight=3),
    )


def numbers() -> tuple[Source, ...]:
    return (
        Source(name="numbers-image", shards=f"{NUMBERS}/train/image-*.tar", modalities=("image", "text"), weight=2),
        Source(name="numbers-audio", shards=f"{NUMBERS}/train/audio-*.tar", modalities=("audio", "text"), weight=2),
    )


def data() -> Data:
    return Data(
        train=(*stamps(), *numbers()),
        val=f"{STAMPS}/val",
        batch_size=128,
        max_seconds=15.0,
        crop_seconds=4.0,  # one clip in fifty is longer; a batch is padded to its longest
        augment=read_run(QUICKSTART).data.augment,
    )


def config() -> Run:
    return Run(
        name="stamps",
        model=model(),
        data=data(),
        contrastive=(Contrastive(pair=("image", "text")), Contrastive(pair=("audio", "text"))),
        generative=(Generative(task="image>text"), Generative(task="audio>text"), Generative(task=">text", weight=0.1)),
        optim=Optim(steps=1_200, lr=2e-3, warmup_steps=100),
        eval=Eval(every_steps=400),
        threads=2,
    )
