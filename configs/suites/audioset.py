"""AudioSet's evaluation clips against 527 classes, zero-shot: mAP. Clips that are gone are left out and counted.

mmfm eval RUN configs/suites/audioset.py --root data/audioset
"""

from mmfm.evals.suite import MultiLabel, Names, Suite, Table

CLIPS = Table(
    table="eval_segments.csv",
    media="audio",
    file="YTID",
    labels="positive_labels",
    between=",",
    suffix=".wav",
    columns=("YTID", "start_seconds", "end_seconds", "positive_labels"),
    comment="#",
    may_lack=True,
)
CLASSES = Names(table="class_labels_indices.csv", mark="mid", name="display_name")


def suite() -> Suite:
    return Suite(
        name="audioset",
        tasks=(MultiLabel(data=CLIPS, classes=CLASSES, templates=("This is a sound of {}.",)),),
        layout="ROOT/eval_segments.csv, ROOT/class_labels_indices.csv and ROOT/audio/YTID.wav",
        source="AudioSet (Gemmeke et al. 2017): its two tables, and the ten-second clips of its evaluation set",
    )
