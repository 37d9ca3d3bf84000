"""Questions about pictures and sounds, as shards of conversations: answers by kind, blind, and the commonest answer.

    mmfm eval RUN configs/suites/answers.py --root data/scenes

A sample's .json has "messages", whose last turn is the answer, and may have "kind", "answers" and "choices".
"""

from mmfm.evals.suite import Answer, Suite


def suite() -> Suite:
    metrics = ("exact", "vqa", "contains", "shared_word")
    return Suite(
        name="answers",
        tasks=(Answer(shards="test", metrics=metrics, blind="zeros", majority_of="train"),),
        layout="ROOT/train and ROOT/test, shards of conversations",
        source="any that `mmfm data build` makes of conversations",
    )
