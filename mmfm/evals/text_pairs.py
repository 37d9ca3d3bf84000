"""Questions of conversations for a model without turns: one of "text>text" reads what the user says, and writes.

An encoder-decoder, or a trunk that reads a text from both sides, so answers the questions that a chat model answers,
and is scored as it is: figures have the same names, so that both are compared question by question. What is no text
alone, or more than one question, is not asked and is counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from mmfm.config import require
from mmfm.config.task import parse
from mmfm.data.batch import Batch
from mmfm.data.decode import Example
from mmfm.data.sample import Sample, meta_of
from mmfm.evals.answering import Part, Put, answer_of, put_by, questions_of, quick
from mmfm.evals.answers import Answer, Context
from mmfm.evals.predict import Loaded, able_rows
from mmfm.evals.questions import Question, Questions, asking, question_of
from mmfm.evals.reading import Read, Reader
from mmfm.evals.replies import Replies
from mmfm.evals.split import Evaluable, device_of
from mmfm.evals.suite import Answer as AnswerTask
from mmfm.inference.interface import Interface
from mmfm.inference.pipeline import without_last
from mmfm.objectives.task_pass import forward_task
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.chat import parse_messages
from mmfm.preprocessing.tokenizer import Tokenizer

TASK = "text>text"
STATES_AT_ONCE = 2_048  # times the vocabulary is what the logits take


def reads_pairs(model: Evaluable) -> bool:
    """Whether questions are put to it so: it has no turns, and was trained to write a text behind one."""
    return isinstance(model, Interface) and model.config.chat is None and TASK in model.tasks


def check_pairs(told: str, task: AnswerTask) -> None:
    """UserError for what only a model of conversations can be asked."""
    named = next((name for name in ("documents", "blind") if getattr(task, name)), "")
    require(not named, f"{told}: {named} is for a model that reads conversations, and this reads {TASK}; leave it out")


@dataclass(frozen=True, kw_only=True)
class PairReader(Reader):
    """Reads a conversation of one question as two texts, the question and the reference."""

    tokenizer: Tokenizer

    def read(self, sample: Sample) -> Read:
        """Raises BadSample, also where one of the texts is longer than is read."""
        question, messages = question_of(sample), parse_messages(meta_of(asking(sample))["messages"], sample.where)
        parts = [piece for message in messages for piece in message.content if not isinstance(piece, str)]
        if [message.role for message in messages] != ["user", "assistant"] or parts:
            why = f"is no single question of words alone, which is what {TASK} reads"
            raise BadSample("messages_no_pair", f"{sample.where} {why}; ask a model with a chat template")
        texts = (question.question, question.reference)
        held = [self.tokenizer.held(text) for text in texts]
        if held[0].read_cut or held[1].written_cut:
            told = f"{sample.where}: its question or answer is longer than is read"
            raise BadSample("messages_too_long", f"{told}; {self.tokenizer.limits.remedy}")
        asked, answer = (Example(key=sample.key, text=text) for text in texts)
        return Read(replace(answer, before=(asked,)), (question.reference,), False)


@dataclass(frozen=True, kw_only=True)
class Head:
    """The questions of a batch, put."""

    model: Interface
    one_pass: bool
    max_tokens: int

    def __call__(self, loaded: Loaded) -> Part:
        batch = loaded.batch.to(device_of(self.model))
        able = sorted(able_rows(parse(TASK), batch))
        known = likelihood(self.model, batch) if self.one_pass and able else {}
        said = self.written(batch) if self.max_tokens and able else {}
        given = Replies(
            rows=able,
            nats=[known[row][0] for row in able if known],
            exact=[known[row][1] for row in able if known],
            texts=[said[row][0] for row in able if said],
            cut=[said[row][1] for row in able if said],
            choices=[[] for _ in able],
        )
        return Part(infos=loaded.infos, bad=loaded.bad, given=given, blind=None, alone=0)

    def written(self, batch: Batch) -> dict[int, tuple[str, bool]]:
        """By row what is written greedily, and whether it was cut."""
        rows, texts = self.model.write(TASK, without_last(batch, "text")[0], self.max_tokens)
        ends = [getattr(text, "finish", "stop") for text in texts]
        return {row: (str(text), end == "length") for row, text, end in zip(rows, texts, ends, strict=True)}


@torch.no_grad()
def likelihood(model: Interface, batch: Batch) -> dict[int, tuple[float, bool]]:
    """By row the nats of the answer and its end, and whether each token of it is the likeliest that may be written."""
    output = forward_task(model.core, parse(TASK), batch)
    if output is None:
        return {}
    vocabulary = model.core.vocabulary
    allowed = torch.zeros(vocabulary.size, dtype=torch.bool, device=model.core.device)
    allowed[[*vocabulary.span("text"), vocabulary.end]] = True
    nats, right = [], []
    for states, labels in zip(output.states.split(STATES_AT_ONCE), output.labels.split(STATES_AT_ONCE), strict=True):
        logits = model.core.logits(states).float()
        nats.append(F.cross_entropy(logits, labels, reduction="none").double().cpu())
        right.append((logits.masked_fill(~allowed, -torch.inf).argmax(-1) == labels).cpu())
    zeros = torch.zeros(batch.size, dtype=torch.float64)
    sums = zeros.index_add(0, output.sample_ids, torch.cat(nats)).tolist()
    wrong = zeros.index_add(0, output.sample_ids, (~torch.cat(right)).double()).tolist()
    return {row: (sums[row], wrong[row] == 0) for row in output.rows.tolist()}


def put_pairs(task: AnswerTask, questions: Questions, context: Context) -> Put:
    """Ask the model every question once."""
    model = context.model
    assert isinstance(model, Interface)
    reader = PairReader(model=model.config, decode=context.config.decode, tokenizer=model.tokenizer)

    def head(asked: Sequence[Question | None], max_tokens: int) -> Head:
        return Head(model=model, one_pass=task.one_pass, max_tokens=max_tokens)

    return put_by(reader, head, task, questions, context)


def answer_pairs(task: AnswerTask, context: Context) -> Answer:
    """The scores of `suite.Answer` of a model that reads pairs."""
    task = quick(task, context)
    return answer_of(task, put_pairs(task, questions_of(task, context), context), context, reads=TASK)
