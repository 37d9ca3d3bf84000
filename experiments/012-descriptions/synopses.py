"""Synopses of packages, and their translations, of source packages that no training text is of; each kind by itself.

mmfm eval RUN experiments/012-descriptions/synopses.py --root data/descriptions --limit 200
"""

from mmfm.evals.suite import Answer, Suite

KINDS = ("synopsis", "en-fr", "en-de", "en-it")


def suite() -> Suite:
    tasks = [
        Answer(
            name=kind,
            shards=f"test/{kind}-[0-9]*.tar",
            metrics=("exact", "rouge", "chrf", "bleu"),
            by_kind=False,
            baselines=("source", "first_sentence"),
        )
        for kind in KINDS
    ]
    return Suite(
        name="synopses",
        tasks=tuple(tasks),
        layout="ROOT/test, shards of one kind each",
        source="`mmfm data descriptions`",
    )
