"""Texts that are translated or summarised, as shards of conversations, beside copying the source or its beginning.

    mmfm eval RUN configs/suites/texts.py --root data/descriptions

A sample's .json has "messages", whose last turn is the translation or summary, and "text", the source alone.
"""

from mmfm.evals.suite import Answer, Suite


def suite() -> Suite:
    baselines = ("source", "first_sentence")
    return Suite(
        name="texts",
        tasks=(Answer(shards="test", metrics=("exact", "rouge", "chrf", "bleu"), baselines=baselines),),
        layout="ROOT/test, shards of conversations",
        source="such as `mmfm data descriptions` makes",
    )
