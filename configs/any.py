"""Numbers from any modality into any other: named, spoken, drawn, continued and filled in, by one transformer.

    mmfm data numbers data/numbers
    mmfm train configs/codec_image.py
    mmfm train configs/codec_audio.py
    mmfm train configs/any.py
    mmfm generate runs/any "text>image" --text forty-two --num-samples 8 --temperature 1 --out forty-two.png

Cost: a quarter of an hour on two CPU cores, codecs included. How good: experiments/006-any-to-any.
"""

from dataclasses import replace
from pathlib import Path

from mmfm.config import AudioCodec, Contrastive, Eval, Generative, ImageCodec, Optim, Run, TextTower, Trunk
from mmfm.config.load import read_run

HERE = Path(__file__).parent
WIDTH = 128


def config() -> Run:
    before, image, audio = (read_run(HERE / f"{name}.py") for name in ("quickstart", "codec_image", "codec_audio"))
    assert isinstance(image.model.image_codec, ImageCodec) and isinstance(audio.model.audio_codec, AudioCodec)
    model = replace(
        before.model,
        text=TextTower(width=64, depth=1, heads=4),
        trunk=Trunk(width=WIDTH, depth=3, heads=4, kv_heads=4),
        image_codec=replace(image.model.image_codec, weights=str(image.folder)),
        audio_codec=replace(audio.model.audio_codec, weights=str(audio.folder)),
    )
    return replace(
        before,
        name="any",
        model=model,
        contrastive=(Contrastive(pair=("image", "text"), weight=0.3), Contrastive(pair=("audio", "text"), weight=0.3)),
        generative=(
            Generative(task="image>text", weight=0.3),
            Generative(task="audio>text", weight=0.3),
            Generative(task="text>image", condition_dropout=0.1),
            Generative(task="text>audio", condition_dropout=0.1),
            Generative(task="text>image~", condition_dropout=0.5, sample_fraction=0.25, weight=0.3),
            Generative(task="text>audio~", condition_dropout=0.5, sample_fraction=0.1, weight=0.1),
            Generative(task="audio>audio", sample_fraction=0.25, weight=0.3),
            Generative(task="image,text>text", sample_fraction=0.2, weight=0.1),
            Generative(task=">text", sample_fraction=0.25, weight=0.1),
        ),
        data=replace(before.data, batch_size=96),
        optim=Optim(steps=1_000, lr=2e-3, warmup_steps=100),
        threads=1,
        devices=2,
        eval=Eval(every_steps=0),
        save_every_steps=100,
    )
