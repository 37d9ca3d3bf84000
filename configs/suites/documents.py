"""Questions whose answers stand in documents: without one, with the right one, with what BM25 finds, with another one.

    mmfm eval RUN configs/suites/documents.py --root data/packages

A sample's .json has "messages", whose last turn is the answer, "answers", and "document", the key of the right record.
"""

from mmfm.evals.suite import Answer, Suite


def suite() -> Suite:
    return Suite(
        name="documents",
        tasks=(Answer(shards="test/closed-*.tar", documents="records", metrics=("exact", "contains", "f1")),),
        layout="ROOT/test/closed-*.tar, shards of questions, and ROOT/records, shards of texts",
        source="such as `mmfm data packages` makes",
    )
