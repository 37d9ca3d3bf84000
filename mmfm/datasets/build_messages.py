"""Conversations of other people's tables as samples: `messages` in the .json, and its pictures and sounds, counted.

Known are the forms of OpenAI (`messages`; content a text, or parts of which image_url and input_audio hold the bytes),
of ms-swift (`messages`, marks <image> and <audio> in the text, and the columns `images` and `audios`), of LLaVA and
ShareGPT (`conversations` of from and value, marks likewise), of The Cauldron (`texts` of user and assistant, all
`images` before the first), and pairs of columns: instruction, input and output (Alpaca), query and response. A mark
counts in a content that is a text; in a list of parts it is text.

A part without a file of its own takes the next one of its column. What does not fit is left out by its row, under the
codes that training has; extra columns go into the .json, as `kind`, `answers` and `choices` do that evaluation reads.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

from mmfm.config.chat import MESSAGES
from mmfm.preprocessing import BadSample

ROUNDS = "texts"  # The Cauldron's, if objects of user and assistant: else it is captions
TALKS = (MESSAGES, "conversations", "conversation", ROUNDS)  # columns that hold lists of turns
PAIRS = {"instruction": ("input", "output"), "query": ("", "response")}  # the question: what it is about, the answer
MEDIA = {"image": ("images", "image"), "audio": ("audios", "audio")}
UNREAD = ("videos", "video", "tools", "rejected_response", "rejected_messages")
ROLES = {
    **{name: "user" for name in ("user", "human")},
    **{name: "assistant" for name in ("assistant", "gpt", "chatgpt", "model", "bot")},
    **{name: "system" for name in ("system", "developer")},
}
MARK = re.compile(r"<(image|audio|video)>")
PIECES = {"input_text": "text", "output_text": "text", "image_url": "image", "input_image": "image",
          "audio_url": "audio", "input_audio": "audio", "text": "text", "image": "image", "audio": "audio"}  # fmt: skip
FIELDS = {"image": ("image_url", "image", "url", "path"), "audio": ("input_audio", "audio_url", "audio", "url", "path")}
LEARNED = ("learn", "loss", "loss_scale", "weight", "train")  # whose names say whether a turn is learned
TURN = {"role", "content", "from", "value", *LEARNED}

Kind = Literal["image", "audio"]


class Media(NamedTuple):
    """A picture or a sound that a conversation mentions, in order. value: a path, bytes, or an object of them."""

    kind: Kind
    value: Any


class Talk(NamedTuple):
    """A conversation in the form of mmfm's .json, and what it mentions. Other fields of a turn stay in it, unread."""

    messages: list[dict[str, Any]]
    media: list[Media]


def is_talk(names: Iterable[str], records: Sequence[Mapping[str, Any]]) -> str:
    """The column of a table that holds conversations, by its name and its first value; empty: none."""
    lower = {name.lower(): name for name in names}
    for name in (lower[name] for name in TALKS if name in lower):
        first = next((record[name] for record in records if record.get(name) is not None), None)
        found = _listed(first)
        rounds = isinstance(found, list) and all(isinstance(one, Mapping) and "assistant" in one for one in found)
        if isinstance(found, list) and (rounds or name.lower() != ROUNDS):
            return name
    return next((lower[name] for name, (_, answer) in PAIRS.items() if name in lower and answer in lower), "")


def media_columns(names: Iterable[str]) -> dict[str, str]:
    """Which columns hold the pictures and sounds that marks stand for, by usual names."""
    lower = {name.lower(): name for name in names}
    return {kind: next((lower[name] for name in usual if name in lower), "") for kind, usual in MEDIA.items()}


def used_columns(column: str) -> set[str]:
    """What belongs to the conversation beside its own column, and so is not said again in the .json."""
    pair = PAIRS.get(column.lower())
    return {column, "system", *(("history", *pair) if pair else ())}


def talk_of(record: Mapping[str, Any], column: str, media: Mapping[str, str], where: str) -> Talk:
    """The conversation in a row. Raises BadSample for what is none, by its row."""
    unread = next((name for name in UNREAD if record.get(name)), "")
    _check(not unread, "messages_content", f"{where} has {unread!r}, which is not read; leave the row out")
    held = {kind: _values(record.get(name)) if name else [] for kind, name in media.items()}
    pending: dict[str, Iterator[Any]] = {kind: iter(values) for kind, values in held.items()}
    talk, marks = Talk([], []), dict.fromkeys(held, 0)
    turns = _turns(record, column, where)
    if column.lower() == ROUNDS:
        turns = _after_media(turns, held)
    for number, turn in enumerate(turns):
        told = f"{where}: message {number}"
        pieces: list[dict[str, str]] = []
        for kind, value in _pieces(turn, told):
            if kind == "text":
                pieces.append({"type": "text", "text": value})
                continue
            marks[kind] += value is None
            pieces.append({"type": kind})
            talk.media.append(Media(kind, next(pending[kind], None) if value is None else value))
        talk.messages.append(_message(turn, pieces, told))
    for kind, count in marks.items():
        where_held = f"the column {media[kind]!r}" if media.get(kind) else "the row"
        told = f"{where} has {count} marks <{kind}> or parts without a file, and {where_held} holds {len(held[kind])}"
        _check(count == len(held[kind]), "messages_parts", f"{told}; give as many files as marks")
    told = f"{where}: none of its {len(talk.messages)} messages is an answer to be learned; write one, or leave it out"
    _check(any(map(_is_answer, talk.messages)), "messages_unlearned", told)
    return talk


def _is_answer(message: Mapping[str, Any]) -> bool:
    content = message["content"]
    said = content.strip() if isinstance(content, str) else content
    return message["role"] == "assistant" and message.get("learn", True) and bool(said)


def _message(turn: Mapping[str, Any], pieces: list[dict[str, str]], where: str) -> dict[str, Any]:
    """As the .json has it: a content of one text is that text."""
    given = turn.get("role", turn.get("from"))
    role = ROLES.get(given) if isinstance(given, str) else None
    known = ", ".join(ROLES)
    _check(role is not None, "messages_role", f"{where} is of the role {given!r}, and none of {known}")
    whole = len(pieces) == 1 and pieces[0]["type"] == "text"
    message: dict[str, Any] = {"role": role, "content": pieces[0]["text"] if whole else pieces or ""}
    learn = _learned(turn, where)
    if learn is not None and role == "assistant":
        message["learn"] = learn
    _check(not learn or role == "assistant", "messages_role", f"{where} is of the {role}, and only answers are learned")
    return message | {name: value for name, value in turn.items() if name not in TURN and value is not None}


def _learned(turn: Mapping[str, Any], where: str) -> bool | None:
    """Whether a turn is learned, where it says so. Raises BadSample for a weight between."""
    found = {name: turn[name] for name in LEARNED if turn.get(name) is not None}
    for name, value in found.items():
        told = f"{where}: its {name!r} is {value!r}; a turn is learned (1) or not (0), and nothing between"
        _check(isinstance(value, int | float) and value in (0, 1), "messages_content", told)
    return all(map(bool, found.values())) if found else None


# Turns of every form


def _turns(record: Mapping[str, Any], column: str, where: str) -> list[Mapping[str, Any]]:
    value: Any = _listed(record.get(column))
    if isinstance(value, str) and column.lower() in PAIRS:
        turns = _pair(record, column, where)
    else:
        told = f"{where}: its column {column!r} holds no list of messages; write some, or leave the row out"
        _check(isinstance(value, list) and len(value) > 0, "messages_missing", told)
        _check(all(isinstance(one, Mapping) for one in value), "messages_content", f"{where}: a message is no object")
        turns = [turn for one in cast(list[Mapping[str, Any]], value) for turn in _both(one)]
    return [*_system(record), *turns]


def _system(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    system = record.get("system")
    return [{"role": "system", "content": system}] if isinstance(system, str) and system else []


def _both(turn: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Two turns where an object holds both, {"human": ..., "assistant": ...}."""
    asked = next((name for name in ("human", "user") if name in turn), None)
    if asked is None or "assistant" not in turn:
        return [turn]
    rest = {name: value for name, value in turn.items() if name not in (asked, "assistant")}
    return [{"role": "user", "content": turn[asked]}, {"role": "assistant", "content": turn["assistant"], **rest}]


def _after_media(turns: list[Mapping[str, Any]], held: Mapping[str, Sequence[Any]]) -> list[Mapping[str, Any]]:
    """A form without marks: all files come before the first question."""
    marks = [{"type": kind} for kind, values in held.items() for _ in values]
    plain = all(isinstance(turn.get("content"), str) for turn in turns)
    if not marks or not plain:
        return turns
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    first = next((at for at, turn in enumerate(turns) if turn.get("role") == "user"), 0)
    parts[first]["content"] = [*marks, *parts[first]["content"]]
    return list(parts)


def _pair(record: Mapping[str, Any], column: str, where: str) -> list[Mapping[str, Any]]:
    """A question with what it is about, and its answer, after the rounds of `history`."""
    about, answer = PAIRS[column.lower()]
    lower = {name.lower(): value for name, value in record.items()}
    rounds = list(_listed(record.get("history")) or [])
    whole = all(isinstance(one, list | tuple) and len(one) == 2 for one in rounds)
    _check(whole, "messages_content", f"{where}: its history is no list of pairs, a question and an answer")
    rounds.append(["\n".join(text for text in (record[column], lower.get(about)) if text), lower.get(answer)])
    return [{"role": role, "content": text} for one in rounds for role, text in zip(("user", "assistant"), one)]  # noqa: B905


def _pieces(turn: Mapping[str, Any], where: str) -> Iterator[tuple[Any, Any]]:
    """("text", the text), or (kind, its file); None: the next file of its column."""
    content = turn.get("content", turn.get("value"))
    if isinstance(content, str):
        yield from _marked(content, where)
        return
    told = f"{where}: its content is a {type(content).__name__}, and neither a text nor a list of parts"
    _check(isinstance(content, Sequence), "messages_content", told)
    for piece in content:
        yield _piece({"type": "text", "text": piece} if isinstance(piece, str) else piece, where)


def _marked(text: str, where: str) -> Iterator[tuple[Any, Any]]:
    """A text, parted where it has marks."""
    end = 0
    for mark in MARK.finditer(text):
        _check(mark[1] != "video", "messages_content", f"{where} mentions a video, which is not read; leave it out")
        if mark.start() > end:
            yield "text", text[end : mark.start()]
        yield mark[1], None
        end = mark.end()
    if text[end:]:
        yield "text", text[end:]


def _piece(piece: Any, where: str) -> tuple[Any, Any]:
    named = piece.get("type") if isinstance(piece, Mapping) else None
    kind = PIECES.get(named) if isinstance(named, str) else None
    told = f"{where}: a part of its content is {str(piece)[:80]}, of no kind that is read ({', '.join(PIECES)})"
    _check(kind is not None, "messages_content", told)
    if kind == "text":
        _check(isinstance(piece.get("text"), str), "messages_content", told)
        return kind, piece["text"]
    return kind, next((_file(piece[name]) for name in FIELDS[str(kind)] if piece.get(name) is not None), None)


def _file(value: Any) -> Any:
    """OpenAI's {"url": ...} and {"data": base64, "format": "wav"}; else what a cell of a table may be."""
    if isinstance(value, Mapping) and isinstance(value.get("data"), str):
        return f"data:audio/{value.get('format', '')};base64,{value['data']}"
    return value["url"] if isinstance(value, Mapping) and "url" in value else value


def _values(value: Any) -> list[Any]:
    """The files of a cell: none, one, or a list."""
    found = value if isinstance(value, list | tuple) else [value]
    return [one for one in found if one is not None and one != ""]


def _listed(value: Any) -> Any:
    """A cell of a CSV may hold a list as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return list(value) if isinstance(value, tuple) else value


def _check(holds: bool, code: str, message: str) -> None:
    if not holds:
        raise BadSample(code, message)
