"""`mmfm chat --documents`: what is found by a question stands before it, and the answer is followed by its sources."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmfm.config import require
from mmfm.inference.chat_args import ChatArgs
from mmfm.inference.documents import Library, documents_of, index_of, with_documents
from mmfm.preprocessing.chat import parse_messages


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """words: documents that share no word with a question, whose score is 0, are not put before it."""

    library: Library
    k: int
    words: bool

    def before(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[str]]:
        """The messages with the documents that are found by their last question, and the keys of these. Those before
        have none: what was found for them is read once. UserError where the question has no words."""
        parse_messages([dict(message) for message in messages], "messages")
        plain = [{**message, "content": _pieces(message["content"])} for message in messages]
        asked = next((message["content"] for message in reversed(plain) if message["role"] == "user"), [])
        query = " ".join(piece["text"] for piece in asked if piece["type"] == "text").strip()
        require(bool(query), "documents are found by the words of a question, and this one has none; write it as text")
        found = [one for one in self.library.retrieve(query, self.k) if one.score > 0 or not self.words]
        return with_documents(plain, [one.text for one in found]), [one.key for one in found]


def shelf_of(args: ChatArgs, model: Any) -> Shelf | None:
    """None where no documents are asked for."""
    if not args.documents:
        return None
    library = Library.of(documents_of(args.documents), index_of(args.retriever, model))
    return Shelf(library=library, k=args.k, words=args.retriever == "bm25")


def tell(keys: Sequence[str]) -> None:
    """On the standard error, as the standard output is the answers alone."""
    named = ", ".join(keys) if keys else "none, no document has a word of the question"
    print(f"sources: {named}", file=sys.stderr, flush=True)


def _pieces(content: Any) -> list[Mapping[str, Any]]:
    listed = [content] if isinstance(content, str) else content
    return [{"type": "text", "text": piece} if isinstance(piece, str) else piece for piece in listed]
