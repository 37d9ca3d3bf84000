"""Answers that no model writes, beside which a model's are read: the commonest one, the source, its first sentence."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmfm.evals.answer_metrics import vqa_text
from mmfm.evals.answers import Context
from mmfm.evals.questions import Question, open_questions
from mmfm.evals.suite import Answer as AnswerTask

SENTENCE = re.compile(r"(?s)(.+?[.!?])(?=\s|$)")


def baselines(
    task: AnswerTask, asked: Mapping[int, Question], context: Context
) -> tuple[dict[str, dict[int, str]], dict[str, Any]]:
    """What each would write to these questions, by name and by row; and what results say of it."""
    made: dict[str, dict[int, str]] = {}
    details: dict[str, Any] = {}
    if "majority" in task.baselines:
        known: Iterable[Question | None] = asked.values()
        if task.majority_of:
            known = open_questions(task.majority_of, context.root, context.config.store).asked
        commonest = majority([one for one in known if one is not None])
        made["majority"] = {row: commonest.get(one.kind, "") for row, one in asked.items()}
        details["majority"] = {"of": task.majority_of or f"the split itself, {task.shards}", "answers": commonest}
    if "source" in task.baselines:
        made["source"] = {row: one.source for row, one in asked.items()}
    if "first_sentence" in task.baselines:
        made["first sentence"] = {row: first_sentence(one.source) for row, one in asked.items()}
    return made, details


def majority(questions: Sequence[Question]) -> dict[str, str]:
    """The commonest reference of each kind, as it is first spelled; among equals the first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    spelled: dict[str, str] = {}
    for one in questions:
        plain = vqa_text(one.reference)
        counts[one.kind][plain] += 1
        spelled.setdefault(plain, one.reference)
    return {kind: spelled[own.most_common(1)[0][0]] for kind, own in counts.items()}


def first_sentence(text: str) -> str:
    """Up to the first full stop, ! or ? before white space."""
    match = SENTENCE.match(text.strip())
    return match[1] if match else text.strip()
