"""`mmfm chat --documents`: what is found by a question stands before it, and the answer is followed by its sources."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmfm.config import require
from mmfm.inference.chat_args import ChatArgs
from mmfm.inference.documents import Document, Library, documents_of, readable, with_documents
from mmfm.inference.retrievers import WORDS, check_retriever, index_of
from mmfm.preprocessing.chat import parse_messages


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """words: documents that share no word with a question, whose score is 0, are not put before it."""

    library: Library
    k: int
    words: bool

    def before(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[str]]:
        """The messages with the documents that are found by the user's last turns, and the keys of these. Questions
        before the last one have none: what was found for them is read once. UserError where the last has no words."""
        parse_messages([dict(message) for message in messages], "messages")
        plain = [{**message, "content": _pieces(message["content"])} for message in messages]
        turns = [_words(message["content"]) for message in plain if message["role"] == "user"]
        told = "documents are found by the words of a question, and this one has none; write it as text"
        require(bool(turns and turns[-1]), told)
        some = self.library.retrieve(list(filter(None, turns)), self.k)
        found = [one for one in some if one.score > 0 or not self.words]
        return with_documents(plain, [one.document for one in found]), [one.key for one in found]


def read_documents(args: ChatArgs) -> list[Document]:
    """Those that are asked for, so that a mistake in them is told before a model is loaded."""
    if not args.documents:
        return []
    check_retriever(args.retriever)
    return documents_of(args.documents)


def shelf_of(args: ChatArgs, documents: Sequence[Document], model: Any) -> Shelf | None:
    """None where there are no documents. UserError: the model cannot read what is nothing but a picture."""
    if not documents:
        return None
    library = Library.of(documents, index_of(args.retriever, model))
    read = readable(documents, model.config.image is not None)
    return Shelf(library=replace(library, documents=read), k=args.k, words=args.retriever == WORDS)


def tell(keys: Sequence[str]) -> None:
    """On the standard error, as the standard output is the answers alone."""
    named = ", ".join(keys) if keys else "none, no document has a word of the question"
    print(f"sources: {named}", file=sys.stderr, flush=True)


def _pieces(content: Any) -> list[Mapping[str, Any]]:
    listed = [content] if isinstance(content, str) else content
    return [{"type": "text", "text": piece} if isinstance(piece, str) else piece for piece in listed]


def _words(content: Sequence[Mapping[str, Any]]) -> str:
    return " ".join(piece["text"] for piece in content if piece["type"] == "text").strip()
