"""Answers after documents that were looked for: with what a retriever finds, and for comparison with none, the right
one and another one; and how often the right one is found.

"messages>text" is with the documents that the retriever finds, "messages>text (no document)" and so on are what it is
compared with, and "questions->document" is the retriever alone. Records of the answers name the documents by keys.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmfm.config import require
from mmfm.evals.answering import Put, answered, left_out, put, questions_of, scores_of
from mmfm.evals.answers import Answer, Context, Result
from mmfm.evals.metrics import Ranks, Score, chance_recall, hits, joined, mean, ranks
from mmfm.evals.questions import Question, rooted
from mmfm.evals.suite import Answer as AnswerTask
from mmfm.inference.documents import Document, Library, documents_of, readable
from mmfm.inference.retrievers import index_of

RETRIEVAL = "questions->document"
QUERIES_AT_ONCE = 256  # times the documents is what their scores take
DEPTHS = (1, 5, 10)

Keys = Mapping[str, Sequence[str]]  # the documents before each question, by its key


def answer_with_documents(task: AnswerTask, context: Context) -> Answer:
    """The scores of `suite.Answer` with documents. UserError: no question names one of the documents."""
    questions = questions_of(task, context)
    documents = documents_of(rooted(task.documents, context.root), context.config.store)
    library = Library.of(documents, index_of(task.retriever, context.model))
    read = {document.key: document for document in readable(documents, context.model.config.image is not None)}
    asked = {one.key: one for one in questions.asked if one is not None}
    known = sum(one is not None for one in questions.asked)
    told = f"{questions.source}: {known - len(asked)} of {known} questions have the key of another; give each its own"
    require(len(asked) == known, told)
    able = [one for one in asked.values() if one.document in read]
    told = f"{questions.source}: no question names a document of {task.documents}"
    require(bool(able), f'{told}; write the key of the right one as "document" into its .json')
    retrieved = {key: [one.key for one in some] for key, some in _retrieved(library, list(asked.values()), task.k)}
    others: dict[str, Keys] = {
        "no": {},
        "right": {one.key: [one.document] for one in able},
        "another": {one.key: [other(documents, one.document)] for one in able},
    }
    conditions = {"": retrieved} | {f" ({name} document)": others[name] for name in others if name in task.beside}
    found = {name: _put(task, context, keys, read) for name, keys in conditions.items()}

    def result() -> Result:
        scores = [score for name, one in found.items() for score in scores_of(task, one, name, _rows(one, able, name))]
        main, lines = found[""], left_out(task, found[""])
        if len(able) < len(asked):
            rest = f"{len(asked) - len(able)} of {len(asked)} questions name no document that is there"
            lines.append(f"{rest}: without the right one, another one, and a score of the retriever")
        details: dict[str, Any] = {"retriever": task.retriever, "documents": len(documents), "k": task.k}
        records = answered(main, documents=retrieved)
        return Result(
            scores=[*scores, *retrieval_scores(library, able, main)],
            details={**details, "answers": records},
            left_out=lines,
        )

    return Answer(splits=(found[""].split,), result=result)


def _put(task: AnswerTask, context: Context, keys: Keys, read: Mapping[str, Document]) -> Put:
    before = {key: [read[name] for name in names] for key, names in keys.items()}
    return put(task, questions_of(task, context), context, lambda key: before.get(key, ()))


def _rows(found: Put, able: Sequence[Question], name: str) -> list[Any]:
    """Those that are asked under this condition."""
    rows, keys = found.said[""], {one.key for one in able}
    return rows if name in ("", " (no document)") else [one for one in rows if found.question(one.row).key in keys]


def _retrieved(library: Library, asked: Sequence[Question], k: int) -> Iterator[tuple[str, list[Any]]]:
    for start in range(0, len(asked), QUERIES_AT_ONCE):
        some = asked[start : start + QUERIES_AT_ONCE]
        found = library.retrieve_all([one.turns for one in some], k)
        yield from zip((one.key for one in some), found, strict=True)


def other(documents: Sequence[Document], key: str) -> str:
    """The key of another document, always the same one: that which is half of all behind it, in a circle."""
    place = next(at for at, one in enumerate(documents) if one.key == key)
    return documents[(place + max(len(documents) // 2, 1)) % len(documents)].key


def retrieval_scores(library: Library, asked: Sequence[Question], main: Put) -> list[Score]:
    """R@1, R@5 and R@10 of the questions that were read; ties in expectation."""
    read = {main.question(one.row).key: one.row for one in main.said[""]}
    some = [one for one in asked if one.key in read]
    if not some:
        return []
    found, rows = _ranked(library, some), [read[one.key] for one in some]
    names = {"items": main.split.names(rows), "n": len(some)}
    return [
        Score(
            task=RETRIEVAL,
            metric=f"R@{k}",
            statistic=mean(hits(found, k)),
            chance=chance_recall(found.relevant, len(library.documents), k),
            **names,
        )
        for k in DEPTHS
    ]


def _ranked(library: Library, asked: Sequence[Question]) -> Ranks:
    places = {document.key: at for at, document in enumerate(library.documents)}
    parts = []
    for start in range(0, len(asked), QUERIES_AT_ONCE):
        some = asked[start : start + QUERIES_AT_ONCE]
        relevant = np.zeros((len(some), len(places)), bool)
        relevant[np.arange(len(some)), [places[one.document] for one in some]] = True
        parts.append(ranks(library.scores_of([one.turns for one in some]), relevant))
    return joined(parts)
