"""Written questions about composed pictures that a model never saw, by kind, blind, and in another style.

mmfm eval RUN configs/suites/scenes.py --root data/scenes
"""

from mmfm.evals.suite import Answer, Suite

METRICS = ("exact", "vqa", "contains", "shared_word")


def suite() -> Suite:
    asked = {"metrics": METRICS, "majority_of": "train"}
    return Suite(
        name="scenes",
        tasks=(
            Answer(name="scenes", shards="test/scene-*.tar", blind="zeros", **asked),
            Answer(name="style", shards="test-style/scene-*.tar", **asked),
            Answer(name="text", shards="test/text-*.tar", **asked),
        ),
        layout="ROOT/train, ROOT/test and ROOT/test-style, as `mmfm data scenes ROOT` writes them",
        source="Tux Paint's stamps and Noto emoji, composed",
    )
