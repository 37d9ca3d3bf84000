"""Sounds of AudioCaps' test set and their five captions, found in both directions. Clips that are gone are counted.

mmfm eval RUN configs/suites/audiocaps.py --root data/audiocaps
"""

from mmfm.evals.suite import Retrieve, Suite, Table

CLIPS = Table(table="test.csv", media="audio", file="youtube_id", captions=("caption",), suffix=".wav", may_lack=True)


def suite() -> Suite:
    return Suite(
        name="audiocaps",
        tasks=(Retrieve(data=CLIPS, pair=("audio", "text")),),
        layout="ROOT/test.csv (youtube_id, caption) and ROOT/audio/YOUTUBE_ID.wav",
        source="AudioCaps (Kim et al. 2019)",
    )
