"""Sounds and their five captions, found in both directions.

mmfm eval RUN configs/suites/clotho.py --root data/clotho
"""

from mmfm.evals.suite import Retrieve, Suite, Table

CLIPS = Table(
    table="clotho_captions_evaluation.csv",
    media="evaluation",
    file="file_name",
    captions=("caption_1", "caption_2", "caption_3", "caption_4", "caption_5"),
)


def suite() -> Suite:
    return Suite(
        name="clotho",
        tasks=(Retrieve(data=CLIPS, pair=("audio", "text")),),
        layout="ROOT/clotho_captions_evaluation.csv and ROOT/evaluation/*.wav",
        source="Clotho 2.1 (Drossos et al. 2020)",
    )
