"""A conversation as people hold it, to a model and back: messages with pictures and sounds, and the answer."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from mmfm.config import Run, UserError, require
from mmfm.data.batch import Batch
from mmfm.data.conversations import conversations_of, repeated, template_of
from mmfm.generation import Finish, GenerationConfig, stream_on, write_on
from mmfm.generation.chat import read_chats
from mmfm.inference.message_parts import own_parts
from mmfm.inference.modality_options import check_names
from mmfm.inference.processing import Text, kind_of
from mmfm.inference.processor import Processor
from mmfm.models.model import UnifiedModel
from mmfm.preprocessing.chat import END, PARTS, ChatIds, encode_chat, end_of, parse_messages
from mmfm.preprocessing.tokenizer import Tokenizer

MAX_TOKENS = 256  # of an answer, where nothing is said
NOT_HERE = ("guidance", "guide", "best_of", "num_steps")
Messages = Sequence[Mapping[str, Any]]


class Asked(NamedTuple):
    """A conversation that is to be answered: its ids, and its pictures and sounds in order of mention."""

    ids: ChatIds
    things: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Chatting:
    """Answers by one model, and continuations of texts."""

    core: UnifiedModel
    run: Run
    tokenizer: Tokenizer

    def asked(self, messages: Messages) -> Asked:
        """Messages as OpenAI has them: {"role", "content"}, the content a text or a list of {"type": "text", "text"},
        {"type": "image", "image"} and {"type": "audio", "audio"}, each a path, a file's bytes, a picture of Pillow, an
        array of pixels or a `Sound`; or of the API's own parts (`message_parts`). UserError for what is no conversation
        that can be answered, or mentions what the model cannot read."""
        require(isinstance(messages, Sequence) and not isinstance(messages, str), 'give a list of {"role", "content"}')
        template = template_of(self.run.model)
        require(len(messages) > 0, "there are no messages; give at least one of the user")
        messages = own_parts(messages)
        parsed = parse_messages(messages, "messages")
        require(parsed[-1].role == "user", f"the last message is of the {parsed[-1].role}; end with one of the user")
        ids = encode_chat(parsed, template, self.tokenizer, reply=True, where="messages")
        things = {kind: _given(messages, kind) for kind in PARTS}
        for kind, given in things.items():
            told = f"the messages hold {kind}, and this model has no {kind} tower; leave it out"
            require(not given or kind in self.core.towers, told)
        return Asked(ids, {kind: given for kind, given in things.items() if given})

    def continued(self, text: str) -> Asked:
        """A text that is to be continued, as a language model without a template does."""
        ids = self.tokenizer.encode(text)
        require(bool(ids), "an empty text has no token to continue; give some text")
        return Asked(ChatIds(ids, [False] * len(ids), [0] * len(ids)), {})

    def batch(self, asked: Sequence[Asked]) -> Batch:
        processor = Processor(self.run, self.tokenizer)
        asked = [self._tiled(one, processor) for one in asked] if self.run.model.tiles else asked
        read = processor.batch([one.things for one in asked])
        chats = conversations_of([(row, one.ids) for row, one in enumerate(asked)])
        return replace(read, chats=chats).to(self.core.device)

    def _tiled(self, asked: Asked, processor: Processor) -> Asked:
        """Each picture whole, and then its tiles."""
        parts = [processor.tiles(thing) for thing in asked.things.get("image", ())]
        if not parts:
            return asked
        images = [tile for part in parts for tile in part]
        return Asked(repeated(asked.ids, [*map(len, parts)]), {**asked.things, "image": images})

    @property
    def end(self) -> int:
        """The local id that ends an answer."""
        template = self.run.model.chat
        return END if template is None else end_of(template, self.tokenizer)

    def write(self, asked: Sequence[Asked], how: GenerationConfig, size: int = 0) -> list[Text]:
        """An answer to each, so many at a time; 0: all at once. None depends on the others."""
        require(size >= 0, f"batch_size={size} must not be negative; 0: all at once")
        step = size or max(len(asked), 1)
        parts = [asked[start : start + step] for start in range(0, len(asked), step)]
        return [text for part in parts for text in self._write(part, how)]

    def _write(self, asked: Sequence[Asked], how: GenerationConfig) -> list[Text]:
        begun = read_chats(self.core, self.batch(asked), how, self.end)
        found = write_on(begun, how, decode=self.tokenizer.decode)
        assert found.texts is not None
        chances = found.logprobs or [None] * len(found.texts)
        return [Text(*each) for each in zip(found.texts, found.finish, chances, strict=True)]

    def stream(self, asked: Asked, how: GenerationConfig) -> Generator[str, None, Finish]:
        """An answer, piece by piece; returns whether it came to its end."""
        if how.num_beams > 1:
            (whole,) = self.write([asked], how)
            yield whole
            return whole.finish
        finish: Finish = "stop"
        begun = read_chats(self.core, self.batch([asked]), how, self.end)
        for piece in stream_on(begun, how, decode=self.tokenizer.decode):
            if piece.text:
                yield piece.text
            finish = piece.finish or finish
        return finish


def answering(options: Mapping[str, Any], seed: int = 0) -> GenerationConfig:
    """How an answer is written: greedily, unless something else is said. UserError for what is no option here."""
    chosen = {name: value for name, value in options.items() if value is not None}
    check_names(chosen)
    for name in NOT_HERE:
        require(name not in chosen, f"{name} is not for conversations; leave it out")
    if isinstance(chosen.get("stop"), str):
        raise UserError(f"stop={chosen['stop']!r} is one string; give several as a tuple, even if it is one")
    kinds = {"stop": tuple, "temperature": float, "repetition_penalty": float}
    chosen |= {name: kinds[name](chosen[name]) for name in kinds.keys() & chosen.keys()}
    return GenerationConfig(**{"max_tokens": MAX_TOKENS, "seed": seed, **chosen})


def _given(messages: Messages, kind: str) -> list[Any]:
    """What the parts of this kind hold, in order of mention."""
    found = []
    for message in messages:
        content = message.get("content")
        for piece in content if isinstance(content, list | tuple) else ():
            if isinstance(piece, Mapping) and piece.get("type") == kind:
                thing = piece.get(kind)
                told = f'a part of the type "{kind}" holds nothing; give {{"type": "{kind}", "{kind}": ...}}'
                require(thing is not None, told)
                kind_of(kind, thing)
                found.append(thing)
    return found
