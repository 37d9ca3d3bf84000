"""Conversations whose last answer is asked for: what shards hold of them, and how they are put to a model.

The last answer of the assistant is the reference, and what stands behind it is not asked. Further keys of the .json:
"kind", by which scores are told apart; "answers", all that are right, where they are more than the reference (for VQA
accuracy those of several people); "choices" to choose among; "text", what is translated or summarised, where the
question holds more; "document", the key of the document that holds the answer; "program", by which an answer of code is
run (`mmfm.evals.pass_at`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from mmfm.config import MESSAGES, RemoteCache, require
from mmfm.data.conversations import with_chat
from mmfm.data.decode import Example, read_example
from mmfm.data.member_names import modality_of, numbered
from mmfm.data.sample import Sample, meta_of
from mmfm.data.shard_specs import parts_of
from mmfm.data.sources import open_shards
from mmfm.evals.collection import Item, Opened
from mmfm.evals.pass_at import Program, program_of
from mmfm.evals.reading import Read, Reader
from mmfm.evals.split import spread
from mmfm.inference.documents import Document, with_documents
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.chat import PARTS, Message, parse_messages
from mmfm.preprocessing.tokenizer import Tokenizer

LISTS = ("answers", "choices")


class Question(NamedTuple):
    """What is known of a conversation besides what the model sees. question: the texts of the last turn of the user;
    earlier: those of the turns before it; source: what of the question is the text that is worked on. reference: the
    assistant's last answer, else the first of `answers`, which are all that are right."""

    key: str
    kind: str
    question: str
    source: str
    reference: str
    answers: tuple[str, ...]
    choices: tuple[str, ...]
    document: str
    earlier: tuple[str, ...] = ()
    program: Program | None = None

    @property
    def turns(self) -> tuple[str, ...]:
        """The words of the user, by which documents are found."""
        return (*filter(None, self.earlier), self.question)


@dataclass(frozen=True, kw_only=True)
class Questions(Opened):
    """Conversations of shards by their number. asked: what each asks; None: it cannot be used, as reading it says."""

    asked: tuple[Question | None, ...]


def open_questions(shards: str, root: Path, store: RemoteCache) -> Questions:
    """The samples of shards whose .json holds messages; the others are counted. UserError: there are none."""
    spec = rooted(shards, root)
    opened = open_shards([spec], store)
    held, asked, keys = [], [], []
    for number in range(len(opened)):
        sample = opened.read(number, ("json",))
        try:
            if MESSAGES not in meta_of(sample):
                continue
            asked.append(question_of(sample))
        except BadSample:
            asked.append(None)
        held.append(number)
        keys.append(sample.key)
    require(any(asked), f"{spec}: none of its {len(opened)} samples is a conversation with an answer of the assistant")
    ignored = opened.ignored.copy()
    if len(held) < len(opened):
        ignored["samples without messages"] = len(opened) - len(held)
    return Questions(
        items=tuple(Item(key=key) for key in keys),
        parts=lambda number: opened[held[number]].parts,
        where=lambda number: opened.where(held[number]),
        ignored=ignored,
        source=f"conversations of {shards}",
        asked=tuple(asked),
    )


def spread_over_kinds(questions: Questions, limit: int | None) -> tuple[int, ...]:
    """As `spread`, but of each kind its share, whatever their order; those that cannot be used count as one."""
    kinds = ["" if one is None else one.kind for one in questions.asked]
    order = sorted(range(len(kinds)), key=kinds.__getitem__)
    return tuple(sorted(order[place] for place in spread(len(order), limit)))


def rooted(shards: str, root: Path) -> str:
    """A specification whose parts begin at this folder."""
    return shards if "://" in shards else ",".join(str(root / part) for part in parts_of(shards))


def holds_messages(shards: str, store: RemoteCache) -> bool:
    """Whether the first sample is a conversation, as all of such shards are."""
    try:
        return MESSAGES in meta_of(open_shards([shards], store).read(0, ("json",)))
    except BadSample:
        return False


def question_of(sample: Sample) -> Question:
    """Raises BadSample for a .json that holds no question with an answer."""
    meta = meta_of(sample)
    messages = parse_messages(meta.get(MESSAGES), sample.where)
    given = {name: _texts(meta.get(name, []), name, sample.where) for name in LISTS}
    last = _last(messages, bool(given["answers"]))
    said = "".join(messages[last].texts).strip() if last is not None else ""
    answers = given["answers"] or ((said,) if said else ())
    asked = [one for one in messages[:last] if one.role == "user"]
    if not answers or not asked:
        why = "its messages hold no question of the user with an answer of the assistant behind it, or in its answers"
        raise BadSample("messages_unanswered", f"{sample.where}: {why}; write both")
    *earlier, question = ("".join(one.texts).strip() for one in asked)
    plain: dict[str, Any] = {
        name: meta[name] if isinstance(meta.get(name), str) else "" for name in ("kind", "text", "document")
    }
    plain["source"] = plain.pop("text") or question
    plain["program"] = program_of(meta.get("program"), sample.where)
    told: dict[str, Any] = {"reference": said or answers[0], "answers": answers, "choices": given["choices"]}
    return Question(key=sample.key, question=question, earlier=tuple(earlier), **told, **plain)


def _last(messages: Sequence[Message], answered: bool) -> int | None:
    """The place of the assistant's answer to the last question; None where that is only in a list of answers."""
    places = {role: [at for at, one in enumerate(messages) if one.role == role] for role in ("user", "assistant")}
    last = max(places["assistant"], default=None)
    return None if last is None or (answered and max(places["user"], default=-1) > last) else last


def _texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    good = isinstance(value, list) and all(isinstance(text, str) and text.strip() for text in value)
    if not good:
        raise BadSample(
            f"messages_{name}", f"{where}: its {name} are no list of texts that say something; write them so"
        )
    return tuple(text.strip() for text in value)


def asking(sample: Sample, documents: Sequence[Document] = ()) -> Sample:
    """The sample with messages up to the answer that is asked for, of which nothing else is learned, and with these
    documents before its question. Raises BadSample."""
    question, meta = question_of(sample), meta_of(sample)
    last = _last(parse_messages(meta[MESSAGES], sample.where), "answers" in meta)
    answer = question.reference if last is None else meta[MESSAGES][last]["content"]
    told = with_documents([{**message, "learn": False} for message in meta[MESSAGES][:last]], documents)
    told.append({"role": "assistant", "content": answer})
    parts = sample.parts
    if any(one.picture is not None for one in documents):
        told, parts = _with_pictures(told, parts)
    return replace(sample, parts={**parts, "json": json.dumps({**meta, MESSAGES: told}).encode()})


def _with_pictures(messages: Sequence[Any], parts: Mapping[str, bytes]) -> tuple[list[Any], dict[str, bytes]]:
    """Pictures that stand in the messages as parts of the sample, all of which are counted anew, in order of mention;
    what is mentioned and not there is left to the reader to refuse."""
    own = sorted((numbered(name), name) for name in parts if modality_of(name) in PARTS)
    rest = iter([(extension, parts[name]) for (_, extension), name in own])
    made: list[tuple[str, bytes]] = []

    def counted(piece: Any) -> Any:
        kind = piece["type"] if isinstance(piece, Mapping) else "text"
        if kind not in PARTS:
            return piece
        given = ("jpg", piece["image"]) if isinstance(piece.get("image"), bytes) else next(rest, None)
        made.extend([] if given is None else [given])
        return {"type": kind}

    told = [
        message if isinstance(message["content"], str) else {**message, "content": [*map(counted, message["content"])]}
        for message in messages
    ]
    files = {f"{number}.{extension}": data for number, (extension, data) in enumerate([*made, *rest])}
    return told, {name: data for name, data in parts.items() if modality_of(name) not in PARTS} | files


@dataclass(frozen=True, kw_only=True)
class QuestionReader(Reader):
    """Reads a sample as a conversation that is asked. before: the documents that stand before its question, by its
    key."""

    tokenizer: Tokenizer
    before: Callable[[str], Sequence[Document]] = lambda key: ()

    def read(self, sample: Sample) -> Read:
        """Raises BadSample, also where a conversation is longer than is read: its answer would be cut."""
        asked = asking(sample, self.before(sample.key))
        decode = replace(self.decode, tiles=self.model.tiles)
        example = with_chat(read_example(asked, self.model, decode, tuple(PARTS)), self.model, self.tokenizer)
        if example.chat_cut:
            told = (
                f"{sample.where}: a conversation of more than the {self.tokenizer.limits.written} tokens that are read"
            )
            raise BadSample("messages_too_long", f"{told}; {self.tokenizer.limits.remedy}")
        if _interrupted(example):
            told = f"{sample.where}: its answer holds a picture or a sound between its words, which nothing can write"
            raise BadSample("messages_content", f"{told}; ask for a text")
        return Read(example, (), False)


def _interrupted(example: Example) -> bool:
    """Whether something else lies between the first and the last token that is learned."""
    assert example.chat is not None
    places = [at for at, learned in enumerate(example.chat.learn) if learned]
    return len(places) <= places[-1] - places[0]
