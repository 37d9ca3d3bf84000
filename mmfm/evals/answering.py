"""Scores of answers to the questions of conversations, for each kind of question, beside what needs no model or eyes.

A control is a task of its own in results: "messages>text" is the model's, "messages>text:count" of one kind of
question, and "messages>text:count (blind)", "(majority)", "(source)" and "(first sentence)" are what it is compared
with. Intervals draw whole pictures: questions about one picture are no independent evidence.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from mmfm.config import MESSAGES, UserError, require
from mmfm.data.batch import Batch
from mmfm.evals.answer_baselines import baselines
from mmfm.evals.answer_metrics import FEWEST_PEOPLE, Choices, Told, answer_scores, choice_scores, exact, vqa_text
from mmfm.evals.answers import Answer, Context, Result
from mmfm.evals.heads import LEAST_WRITTEN
from mmfm.evals.metrics import Score, bits_per_byte, mean
from mmfm.evals.predict import Loaded, SplitReader, predict
from mmfm.evals.questions import Question, QuestionReader, Questions, spread_over_kinds
from mmfm.evals.reading import Reader
from mmfm.evals.records import Answered
from mmfm.evals.replies import Replies, blinded, replies
from mmfm.evals.split import SampleInfo, Split, batches, device_of
from mmfm.evals.suite import Answer as AnswerTask
from mmfm.evals.suite import keys_of
from mmfm.inference.documents import Document
from mmfm.inference.interface import Interface
from mmfm.preprocessing.chat import PARTS

TASK = "messages>text"
BLIND = "blind"


class Row(NamedTuple):
    """What was said to one question; text: None where nothing was to be written."""

    row: int
    nats: float | None
    exact: bool | None
    text: str | None
    cut: bool
    choices: list[tuple[float, int]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Of a batch, whose rows count from its first sample. alone: items that had no other to be swapped with."""

    infos: tuple[SampleInfo, ...]
    bad: dict[int, str]
    given: Replies
    blind: Replies | None
    alone: int


@dataclass(frozen=True, kw_only=True)
class Head:
    """The questions of a batch, put as they are and blind."""

    model: Interface
    choices: Mapping[int, tuple[str, ...]]  # by row of the split
    blind: Literal["", "zeros", "swapped"]
    one_pass: bool
    max_tokens: int

    def __call__(self, loaded: Loaded) -> Part:
        batch = self.model.encoded(loaded.batch.to(device_of(self.model)), tuple(PARTS))
        blind, alone = None, 0
        if self.blind:
            other, alone = blinded(batch, self.blind, [info.media for info in loaded.infos])
            blind = self.replies(other, loaded.rows)
        told = {"infos": loaded.infos, "bad": loaded.bad, "blind": blind, "alone": alone}
        return Part(given=self.replies(batch, loaded.rows), **told)

    def replies(self, batch: Batch, rows: Sequence[int]) -> Replies:
        choices = [self.choices.get(row, ()) for row in rows]
        return replies(self.model, batch, choices, one_pass=self.one_pass, max_tokens=self.max_tokens)


@dataclass(frozen=True, kw_only=True)
class Put:
    """The questions of a split and what was said to each, by control: "" to the questions as they are."""

    split: Split
    questions: Questions
    said: dict[str, list[Row]]
    alone: int

    def question(self, row: int) -> Question:
        found = self.questions.asked[self.split.places[row]]
        assert found is not None
        return found

    def of_kind(self, kind: str | None, rows: Sequence[Row]) -> list[Row]:
        return [one for one in rows if kind is None or self.question(one.row).kind == kind]

    def told(self, rows: Sequence[Row], written: Sequence[str]) -> Told:
        at = [one.row for one in rows]
        answers = [self.question(row).answers for row in at]
        programs = [self.question(row).program for row in at]
        return Told(written, answers, self.split.names(at), self.split.clusters(at), programs)


def put(
    task: AnswerTask,
    questions: Questions,
    context: Context,
    before: Callable[[str], Sequence[Document]] = lambda key: (),
) -> Put:
    """Ask the model every question once, and once more blind. before: documents before a question, by its key."""
    model = context.model
    assert isinstance(model, Interface)
    reader = QuestionReader(model=model.config, decode=context.config.decode, tokenizer=model.tokenizer, before=before)

    def head(asked: Sequence[Question | None], max_tokens: int) -> Head:
        choices = {row: one.choices for row, one in enumerate(asked) if one is not None and one.choices}
        about = {"choices": choices, "blind": task.blind, "one_pass": task.one_pass}
        return Head(model=model, max_tokens=max_tokens, **about)

    return put_by(reader, head, task, questions, context)


def put_by(
    reader: Reader,
    head: Callable[[Sequence[Question | None], int], Callable[[Loaded], Part]],
    task: AnswerTask,
    questions: Questions,
    context: Context,
) -> Put:
    """Ask as many questions as the limit says, as `reader` reads them. head: of what is asked, None where it is no
    question, and of how many tokens are written at most, 0 where nothing is; what it makes of a batch."""
    model, config = context.model, context.config
    assert isinstance(model, Interface)
    places = spread_over_kinds(questions, config.limit)
    asked = [questions.asked[place] for place in places]
    lengths = [len(model.tokenizer.encode(one.reference)) for one in asked if one is not None]
    most = config.max_tokens or max([LEAST_WRITTEN, *(2 * length for length in lengths)])
    at: dict[str, Any] = {"samples": questions, "places": places, "own": len(places)}
    parts = predict(
        SplitReader(reader=reader, tokenizer=model.tokenizer, **at),
        batches(0, len(places), config.batch_size),
        head(asked, most if task.write else 0),
        Part,
        num_workers=config.num_workers,
        ranks=context.ranks,
        watch=context.watch,
    )
    split = Split(name=questions.source, source=questions.source, max_tokens=most, reader=reader, **at)
    return _joined(split, questions, parts)


def _joined(split: Split, questions: Questions, parts: Sequence[Part]) -> Put:
    infos, bad, start = [], {}, 0
    said: dict[str, list[Row]] = defaultdict(list)
    for part in parts:
        for name, one in (("", part.given), (BLIND, part.blind)):
            said[name] += [] if one is None else _rows(one, start)
        infos += part.infos
        bad |= {start + row: code for row, code in part.bad.items()}
        start += len(part.infos)
    digests = json.dumps([len(infos), *(info.digest for info in infos)]).encode()
    found = replace(split, infos=tuple(infos), bad=bad, digest=hashlib.blake2b(digests, digest_size=16).hexdigest())
    told = f"{split.source}: not one of its {len(split)} conversations can be used ({', '.join(set(bad.values()))})"
    require(bool(said[""]), told)
    return Put(split=found, questions=questions, said=dict(said), alone=sum(part.alone for part in parts))


def _rows(one: Replies, start: int) -> list[Row]:
    count = len(one.rows)
    nats, exact, texts = (column or [None] * count for column in (one.nats, one.exact, one.texts))
    columns = zip(one.rows, nats, exact, texts, one.cut or [False] * count, one.choices, strict=True)
    return [Row(start + row, *rest) for row, *rest in columns]


def answer_questions(task: AnswerTask, context: Context) -> Answer:
    """The scores of `suite.Answer`, but for documents."""
    task = quick(task, context)
    return answer_of(task, put(task, questions_of(task, context), context), context)


def quick(task: AnswerTask, context: Context) -> AnswerTask:
    """What is asked while a run trains: one pass alone."""
    return replace(task, write=False, blind="", baselines=()) if context.config.quick and task.one_pass else task


def answer_of(task: AnswerTask, found: Put, context: Context, **about: Any) -> Answer:
    """The scores of what was said, beside the baselines. about: what else the details say."""

    def result() -> Result:
        controls, details = baselines(task, {one.row: found.question(one.row) for one in found.said[""]}, context)
        scores = scores_of(task, found, "", found.said[""])
        if task.blind:
            scores += scores_of(task, found, f" ({BLIND})", found.said[BLIND])
        for name, written in controls.items():
            scores += texts_of(task, found, f" ({name})", found.said[""], written)
        details = {**details, **about, "answers": answered(found)}
        return Result(scores=scores, details=details, left_out=left_out(task, found))

    return Answer(splits=(found.split,), result=result)


def questions_of(task: AnswerTask, context: Context) -> Questions:
    (key,) = keys_of(task)
    opened = context.opened[key]
    assert isinstance(opened, Questions)
    return opened


def kinds_of(task: AnswerTask, found: Put, rows: Sequence[Row]) -> list[str | None]:
    """None for all, and then each kind where there are several."""
    kinds = list(dict.fromkeys(found.question(one.row).kind for one in rows))
    return [None, *(kinds if task.by_kind and len(kinds) > 1 else [])]


def name_of(kind: str | None, control: str) -> str:
    return f"{TASK}{control}" if kind is None else f"{TASK}:{kind or 'other'}{control}"


def scores_of(task: AnswerTask, found: Put, control: str, rows: Sequence[Row]) -> list[Score]:
    """Of what the model said: its texts, their likelihood and its choices, all together and kind by kind."""
    scores = []
    for kind in kinds_of(task, found, rows):
        some, name = found.of_kind(kind, rows), name_of(kind, control)
        texts = [one.text for one in some if one.text is not None]
        scores += likelihood_scores(name, found, some) if task.one_pass else []
        scores += answer_scores(name, found.told(some, texts), task.metrics) if texts else []
        cut = np.array([one.cut for one in some], float)
        scores += [_score(name, "truncated", mean(cut), found.told(some, texts))] if texts else []
        scores += choices_of(name, found, some)
    return scores


def texts_of(
    task: AnswerTask, found: Put, control: str, rows: Sequence[Row], written: Mapping[int, str]
) -> list[Score]:
    """Of texts that no model wrote, by row."""
    scores = []
    for kind in kinds_of(task, found, rows):
        some = found.of_kind(kind, rows)
        told = found.told(some, [written[one.row] for one in some])
        scores += answer_scores(name_of(kind, control), told, task.metrics)
    return scores


def likelihood_scores(name: str, found: Put, rows: Sequence[Row]) -> list[Score]:
    """Exact match by one pass, and bits per byte, of the reference; its end counts."""
    references = [found.question(one.row).reference for one in rows]
    nats = np.array([one.nats for one in rows], float)
    lost = int((~np.isfinite(nats)).sum())
    why = f"{lost} of {len(nats)} surprises are not finite" if lost else ""
    told = found.told(rows, references)
    exactly = _score(name, "exact_one_pass", mean(np.array([one.exact for one in rows], float)), told)
    bits = _score(name, "bits_per_byte", bits_per_byte(nats, references), told)
    return [exactly, replace(bits, chance=8.0, unknown=why)]


def choices_of(name: str, found: Put, rows: Sequence[Row]) -> list[Score]:
    """Of the questions with choices, of which one at least is an answer."""
    asked, some = [], []
    for one in rows:
        right = right_choices(found.question(one.row))
        if one.choices and right:
            nats, tokens = np.array(one.choices, float).T
            asked.append(Choices(-nats, tokens, right))
            some.append(one)
    if not asked:
        return []
    told = found.told(some, [""] * len(some))
    return choice_scores(name, asked, tuple(told.items), tuple(told.clusters))


def right_choices(question: Question) -> frozenset[int]:
    """The places of those that are an answer, by the rule of `vqa_text`."""
    known = set(map(vqa_text, question.answers))
    return frozenset(at for at, choice in enumerate(question.choices) if vqa_text(choice) in known)


def _score(name: str, metric: str, statistic: Any, told: Told) -> Score:
    named: dict[str, Any] = {"items": tuple(told.items), "clusters": tuple(told.clusters)}
    return Score(task=name, metric=metric, statistic=statistic, n=len(told.answers), chance=0.0, **named)


def answered(
    found: Put, rows: Sequence[Row] | None = None, documents: Mapping[str, Sequence[str]] | None = None
) -> list[Answered]:
    """A record of each question, what was written for it, and after which documents."""
    records = []
    for one in found.said[""] if rows is None else rows:
        asked = found.question(one.row)
        if one.text is not None:
            told = {"question": asked.question, "answers": asked.answers, "kind": asked.kind, "written": one.text}
            names = tuple((documents or {}).get(asked.key, ()))
            correct = bool(exact(one.text, asked.answers))
            records.append(Answered(task=TASK, key=asked.key, correct=correct, documents=names, **told))
    return records


def left_out(task: AnswerTask, found: Put) -> list[str]:
    """A line for each thing that the scores do not cover."""
    rows, lines = found.said[""], []
    asked = [found.question(one.row) for one in rows]
    few = sum(len(one.answers) < FEWEST_PEOPLE for one in asked)
    if "vqa" in task.metrics and few:
        lines.append(
            f"{few} of {len(asked)} questions have fewer than {FEWEST_PEOPLE} answers: no VQA accuracy of them"
        )
    several = sum(len(set(one.answers)) > 1 for one in asked)
    if task.one_pass and several:
        lines.append(f"{several} of {len(asked)} questions have several answers: one pass is of the reference alone")
    if cut := sum(one.cut for one in rows):
        told = f"{cut} of {len(rows)} answers were cut after {found.split.max_tokens} tokens"
        lines.append(f"{TASK}: {told}; --max-tokens allows more")
    if wrong := sum(bool(one.choices) and not right_choices(one) for one in asked):
        lines.append(f"{wrong} of {len(asked)} questions have no right one among their choices")
    if found.alone:
        lines.append(f"blind: {found.alone} pictures and sounds had no other of their batch to be swapped with")
    return lines


def check_chats(told: str, model: Any) -> None:
    """UserError where the model reads no conversations."""
    reads = model.config.chat is not None and isinstance(model, Interface)
    if not reads:
        raise UserError(f"{told} needs a model that reads {MESSAGES}; train one with model.chat, or import one")
