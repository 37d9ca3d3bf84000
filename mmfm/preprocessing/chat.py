"""Conversations as token ids: messages, a template around them, and which ids are learned. No torch in it.

A message's text is encoded as text alone, so that nothing in it can be a mark of the template; it stands without white
space at its ends, as tokens would else run across the marks, but where the template says `strip=False`. An id below
zero stands for what is no text.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mmfm.config import ChatTemplate, require
from mmfm.config.chat import END as END
from mmfm.config.chat import PARTS as PARTS
from mmfm.config.chat import ROLES
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.tokenizer import Tokenizer

CONTENT = 'a text, or a list of {"type": "text", "text": ...}, {"type": "image"} and {"type": "audio"}'


class Part(NamedTuple):
    """A picture or a sound that a message mentions."""

    kind: Literal["image", "audio"]


class Message(NamedTuple):
    """One turn. learn: whether an answer is learned."""

    role: str
    content: tuple[str | Part, ...]
    learn: bool = True

    @property
    def texts(self) -> list[str]:
        """Its texts, in order; white space at both ends of the message is none of them."""
        return [piece for piece in _stripped(self.content) if isinstance(piece, str)]


class ChatIds(NamedTuple):
    """A conversation as local ids of texts, and below zero what is none. learn: which are predicted. turns: of each id
    the number of its message."""

    ids: list[int]
    learn: list[bool]
    turns: list[int]

    def first(self, count: int) -> "ChatIds":
        """Its first ids alone."""
        return ChatIds(self.ids[:count], self.learn[:count], self.turns[:count])

    def mentions(self, kind: str) -> int:
        """How many parts of this kind it has."""
        return self.ids.count(PARTS[kind])


def parse_messages(tree: Any, where: str) -> list[Message]:
    """What "messages" of a .json holds. Raises BadSample for what is no conversation; where: shard and key."""
    listed = isinstance(tree, list) and len(tree) > 0
    _check(listed, "messages_missing", f'{where}: its .json has no list of "messages"; write them, or leave it out')
    return [_message(one, f"{where}: message {number}") for number, one in enumerate(tree)]


def _message(tree: Any, where: str) -> Message:
    _check(isinstance(tree, Mapping), "messages_content", f"{where} is no object with a role and a content")
    role, learn = tree.get("role"), tree.get("learn", True)
    _check(role in ROLES, "messages_role", f"{where} is of the role {role!r}; roles are {', '.join(ROLES)}")
    _check(isinstance(learn, bool), "messages_content", f'{where}: "learn" is {learn!r}, and not true or false')
    content = tree.get("content")
    pieces = [content] if isinstance(content, str) else content
    _check(isinstance(pieces, list | tuple), "messages_content", f"{where}: its content must be {CONTENT}")
    return Message(role, tuple(_piece(piece, where) for piece in pieces), learn)


def _piece(piece: Any, where: str) -> str | Part:
    if isinstance(piece, str):
        return piece
    kind = piece.get("type") if isinstance(piece, Mapping) else None
    if kind == "text" and isinstance(piece.get("text"), str):
        return piece["text"]
    if kind not in ("image", "audio"):
        told = f"{where}: a piece of its content is {str(piece)[:80]}; content is {CONTENT}"
        raise BadSample("messages_content", told)
    return Part(kind)


def encode_chat(
    messages: Sequence[Message], template: ChatTemplate, tokenizer: Tokenizer, *, reply: bool = False, where: str = ""
) -> ChatIds:
    """The ids of a conversation. reply: it ends with the opening of an answer, which is to be written.

    Raises BadSample for a text that holds what opens a turn, where the tokenizer has no special tokens to tell them
    apart; UserError for a template that this tokenizer cannot have.
    """
    found = ChatIds([], [], [])
    _put(found, tokenizer.with_marks(template.prefix), False, 0)
    if template.default_system is not None and not any(message.role == "system" for message in messages):
        messages = [Message("system", (template.default_system,)), *messages]
    for number, message in enumerate(messages):
        _turn(found, message, number, template, tokenizer, where)
    if reply:
        _put(found, tokenizer.with_marks(template.assistant[0]), False, len(messages))
    return found


def _turn(
    found: ChatIds, message: Message, number: int, template: ChatTemplate, tokenizer: Tokenizer, where: str
) -> None:
    around = template.around(message.role)
    if around is None:
        told = f"{where}: message {number} is of the {message.role}, which this model's chat template has no turn for"
        raise BadSample("messages_role", f"{told}; put its text into the first turn of the user")
    before, after = around
    pieces = _stripped(message.content) if template.strip else [piece for piece in message.content if piece != ""]
    learn = message.role == "assistant" and message.learn and bool(pieces)  # not that an answer is nothing
    _put(found, tokenizer.with_marks(before), False, number)
    for piece in pieces:
        if isinstance(piece, str):
            _check_marks(piece, template, tokenizer, where)
            _put(found, tokenizer.encode(piece), learn, number)
        else:
            _put(found, [PARTS[piece.kind]], False, number)
    if message.role == "assistant":
        _put(found, [end_of(template, tokenizer)], learn, number)
        after = after.removeprefix(template.end)
    _put(found, tokenizer.with_marks(after), False, number)


def end_of(template: ChatTemplate, tokenizer: Tokenizer) -> int:
    """The local id that ends an answer, or `END`."""
    if not template.end:
        return END
    ids = tokenizer.with_marks(template.end)
    told = f"ChatTemplate.end={template.end!r} is {len(ids)} tokens here, and must be one; name a special token"
    require(len(ids) == 1, f"{told}, or leave it empty for the vocabulary's own end mark")
    return ids[0]


def check_template(template: ChatTemplate, tokenizer: Tokenizer) -> None:
    """UserError for a template whose marks this tokenizer does not have."""
    end_of(template, tokenizer)


def _put(found: ChatIds, ids: Sequence[int], learn: bool, turn: int) -> None:
    found.ids.extend(ids)
    found.learn.extend([learn] * len(ids))
    found.turns.extend([turn] * len(ids))


def _stripped(content: tuple[str | Part, ...]) -> list[str | Part]:
    pieces = list(content)
    if pieces and isinstance(pieces[0], str):
        pieces[0] = pieces[0].lstrip()
    if pieces and isinstance(pieces[-1], str):
        pieces[-1] = pieces[-1].rstrip()
    return [piece for piece in pieces if piece != ""]


def _check_marks(text: str, template: ChatTemplate, tokenizer: Tokenizer, where: str) -> None:
    """Where a role is opened by plain text, a message must not hold it."""
    for role in ROLES:
        mark = (template.around(role) or ("", ""))[0].strip()
        if mark and mark in text and tokenizer.with_marks(mark) == tokenizer.encode(mark):
            told = f"{where}: a message holds {text.count(mark)} times {mark!r}, which opens a turn of the {role}"
            raise BadSample("messages_mark", f"{told}, and this tokenizer has no special token for it; change the text")


def shown(found: ChatIds, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """A conversation for people, in runs of what is learned and what is not: marks are seen, parts stand as <image>."""
    others = {mark: f"<{kind}>" for kind, mark in PARTS.items()} | {END: "<end>"}
    runs: list[tuple[str, bool]] = []
    start = 0
    for at in range(1, len(found.ids) + 1):
        here = found.ids[start]
        same = at < len(found.ids) and found.learn[at] == found.learn[start] and here >= 0 and found.ids[at] >= 0
        if same:
            continue
        text = others[here] if here < 0 else tokenizer.inner.decode(found.ids[start:at], skip_special_tokens=False)
        runs.append((text, found.learn[start]))
        start = at
    return runs


def require_learned(found: ChatIds, whole: ChatIds, where: str) -> None:
    """BadSample where nothing of a conversation would be learned, all of it or what is read of it."""
    if any(found.learn):
        return
    told = f"{where}: none of its {len(whole.ids)} tokens is learned: it has no answer of the assistant's"
    if any(whole.learn):
        told = (
            f"{where}: of its {len(whole.ids)} tokens the first {len(found.ids)} are read, and none of them is learned"
        )
        raise BadSample(
            "messages_unlearned", f"{told}; raise data.max_text_tokens, or cut what comes before the answer"
        )
    raise BadSample("messages_unlearned", f"{told}; write one, or leave the sample out")


def check_mentions(found: ChatIds, counts: Mapping[str, int], where: str) -> None:
    """BadSample where the parts of a sample are not those that its messages mention."""
    require_mentioned({kind: found.mentions(kind) for kind in PARTS}, counts, where)


def require_mentioned(mentioned: Mapping[str, int], held: Mapping[str, int], where: str) -> None:
    """The same of counts by kind."""
    for kind in PARTS:
        named, there = mentioned.get(kind, 0), held.get(kind, 0)
        told = f"{where}: its messages mention {named} parts of {kind}, and it holds {there}; give as many"
        _check(named == there, "messages_parts", told)


def _check(holds: bool, code: str, message: str) -> None:
    if not holds:
        raise BadSample(code, message)
