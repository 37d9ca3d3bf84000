"""A codec of spoken numbers: codes of log-mel frames, and a vocoder without weights that makes them sound.

    mmfm data numbers data/numbers
    mmfm train configs/codec_audio.py

Cost: minutes on two CPU cores. How good: experiments/006-any-to-any.
"""

from mmfm.config import AudioCodec, Data, Mel, Model, Optim, Reconstruct, Run, Source, Trunk

NUMBERS = "data/numbers"
CODEC = AudioCodec(mel=Mel(window_ms=32.0, hop_ms=12.5), stack=3, books=2, levels=(8, 8, 8), width=192, depth=2)


def config() -> Run:
    return Run(
        name="codec-audio",
        model=Model(
            image=None,
            audio=None,
            text=None,
            trunk=Trunk(width=8, depth=0, heads=1, kv_heads=1),
            embed_dim=8,
            audio_codec=CODEC,
        ),
        data=Data(
            train=(Source(shards=f"{NUMBERS}/train/audio-*.tar", provides=("audio",)),),
            val=f"{NUMBERS}/val",
            batch=32,
            cache_mb=512,
            max_seconds=4.0,
        ),
        reconstruct=(Reconstruct(modality="audio"),),
        optim=Optim(steps=1_500, lr=2e-3, warmup_steps=50, weight_decay=0.0),
        threads=2,
    )
