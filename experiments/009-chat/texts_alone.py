"""Synopses of Debian's descriptions, which no training of the chat models has: bits per byte, before and after.

mmfm eval RUN experiments/009-chat/texts_alone.py --root data/descriptions --limit 200
"""

from mmfm.evals.suite import Answer, Suite


def suite() -> Suite:
    return Suite(
        name="texts_alone",
        tasks=(Answer(name="synopses", shards="test/synopsis-*.tar", metrics=("exact",), write=False),),
        layout="ROOT/test, as `mmfm data descriptions ROOT` writes it",
        source="Debian's descriptions of packages",
    )
