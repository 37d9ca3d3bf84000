"""Spoken questions of new voices about composed pictures; and another question spoken, which nothing answers.

mmfm eval RUN configs/suites/scenes_spoken.py --root data/scenes
"""

from mmfm.evals.suite import Answer, Suite

METRICS = ("exact", "vqa", "contains", "shared_word")


def suite() -> Suite:
    asked = {"metrics": METRICS, "majority_of": "train"}
    return Suite(
        name="scenes_spoken",
        tasks=(
            Answer(name="spoken", shards="test/spoken-*.tar", blind="zeros", **asked),
            Answer(name="control", shards="test/control-*.tar", **asked),
        ),
        layout="ROOT/train and ROOT/test, as `mmfm data scenes ROOT` writes them",
        source="Tux Paint's stamps, composed; espeak-ng's voices",
    )
