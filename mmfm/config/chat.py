"""Conversations: how messages become tokens, and how they are learned."""

from dataclasses import dataclass
from typing import Literal

from mmfm.config.base import Checked, require

ROLES = ("system", "user", "assistant")
PARTS = {"image": -1, "audio": -2}  # in ids of a conversation: all tokens of a part, in order of mention
END = -3  # and the vocabulary's own end mark
MESSAGES = "messages"  # what a source provides, and a model reads, where samples are conversations


@dataclass(frozen=True, kw_only=True)
class ChatTemplate(Checked):
    """What stands around the text of each turn. Special tokens of the tokenizer become their ids here, and only here:
    what looks like one in a message is text. Without any, as with "bytes", these are texts, and a message that holds
    the one that opens a turn is refused."""

    prefix: str = ""  # once, before all
    system: tuple[str, str] | None = ("", "\n")  # before and after the text of such a turn; None: it has no such turns
    user: tuple[str, str] = ("", "\n")
    assistant: tuple[str, str] = ("", "\n")
    end: str = ""  # ends an answer, as one id, and begins what is after it; empty: the vocabulary's own end mark
    strip: bool = True  # take white space off both ends of each message; False where it says something, as in code
    default_system: str | None = None  # the text of a system turn that is put before a conversation without one

    def __post_init__(self) -> None:
        told = f"ChatTemplate.assistant={self.assistant} must say after an answer first what ends it, end={self.end!r}"
        require(self.assistant[1].startswith(self.end), told)
        told = f"ChatTemplate.default_system={self.default_system!r} has no place where system=None; leave it out"
        require(self.system is not None or self.default_system is None, told)

    def around(self, role: str) -> tuple[str, str] | None:
        """What stands before and after the text of this role; None: it has no such turns."""
        return {"system": self.system, "user": self.user, "assistant": self.assistant}[role]


CHATML = ChatTemplate(
    system=("<|im_start|>system\n", "<|im_end|>\n"),
    user=("<|im_start|>user\n", "<|im_end|>\n"),
    assistant=("<|im_start|>assistant\n", "<|im_end|>\n"),
    end="<|im_end|>",
)


@dataclass(frozen=True, kw_only=True)
class Chat(Checked):
    """Learn the assistant's turns of conversations, token by token, each answer's end included."""

    weight: float = 1.0
    turns: Literal["all", "last"] = "all"  # "last": of a conversation the last answer alone
    # what counts alike: every learned token, or every answer, however long
    per: Literal["token", "turn"] = "token"

    def __post_init__(self) -> None:
        require(self.weight >= 0, f"Chat.weight={self.weight} must not be negative")

    @property
    def name(self) -> str:
        return "chat"


@dataclass(frozen=True, kw_only=True)
class Embedded(Checked):
    """A text source without a tower: the trunk's own table reads it, causally as a language model does, or from both
    sides (a prefix, as in T5 and UniLM)."""

    causal: bool = True

    @property
    def words(self) -> None:
        """It has no tokenizer of its own."""
        return None
