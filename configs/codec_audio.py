"""A codec of spoken numbers: codes of log-mel frames, and a vocoder without weights that makes them sound.

    mmfm data numbers data/numbers
    mmfm train configs/codec_audio.py

Cost: minutes on two CPU cores. How good: experiments/006-any-to-any.
"""

from dataclasses import replace
from pathlib import Path

from mmfm.config import AudioCodec, Mel, Reconstruction, Run, Source
from mmfm.config.load import read_run

NUMBERS = "data/numbers"
CODEC = AudioCodec(
    mel=Mel(window_ms=32.0, hop_ms=12.5), frame_stack=3, num_codebooks=2, levels=(8, 8, 8), width=192, depth=2
)


def config() -> Run:
    """As configs/codec_image.py, for sounds."""
    run = read_run(Path(__file__).with_name("codec_image.py"))
    sounds = Source(shards=f"{NUMBERS}/train/audio-*.tar", modalities=("audio",))
    return replace(
        run,
        name="codec-audio",
        model=replace(run.model, image_codec=None, audio_codec=CODEC),
        data=replace(run.data, train=(sounds,), batch_size=32, cache_mb=512, max_seconds=4.0),
        reconstruction=(Reconstruction(modality="audio"),),
        optim=replace(run.optim, steps=1_500),
    )
