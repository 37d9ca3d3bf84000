"""Documents that are found by a question, to be read before it is answered (RAG, arXiv 2005.11401): texts, pictures.

    library = Library.of(documents_of("data/packages/records"), index_of("bm25"))
    library.retrieve("What is the homepage of hello?", 3)  # [Found(document, score), ...]

What compares them is an index (`mmfm.inference.retrievers`). Letters: q queries, n documents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mmfm.config import RemoteCache, UserError, require
from mmfm.config.modalities import FILES
from mmfm.data.sample import last_part, text_of
from mmfm.data.sources import open_shards
from mmfm.preprocessing import BadSample

MOST_TURNS = 3  # of the user's, by which a question of a conversation is looked up
FADING = 0.5  # what each turn counts, of the one after it

Scores = Callable[[Sequence[str]], Float[np.ndarray, "q n"]]
Piece = Mapping[str, Any]


class Document(NamedTuple):
    """A text, or a picture's file with or without one."""

    key: str
    text: str
    picture: bytes | None = None

    @property
    def pieces(self) -> list[Piece]:
        """As the content of a message has it, with an empty line after it."""
        seen = [] if self.picture is None else [{"type": "image", "image": self.picture}]
        return [*seen, {"type": "text", "text": f"{self.text.strip()}\n\n"}]


Index = Callable[[Sequence[Document]], Scores]


class Found(NamedTuple):
    """A document and how well it fits a query, in the index's own measure."""

    document: Document
    score: float

    @property
    def key(self) -> str:
        return self.document.key


@dataclass(frozen=True, kw_only=True)
class Library:
    """Documents and what compares queries with them."""

    documents: tuple[Document, ...]
    scores: Scores

    @staticmethod
    def of(documents: Sequence[Document], index: Index) -> "Library":
        told = "there are no documents to be looked for; name shards of samples with a text or a picture"
        require(bool(documents), told)
        return Library(documents=tuple(documents), scores=index(documents))

    def retrieve(self, query: str | Sequence[str], k: int = 3) -> list[Found]:
        """The k best, best first; among equals the first. query: a question, or the turns of a user up to it."""
        return self.retrieve_all([[query] if isinstance(query, str) else query], k)[0]

    def retrieve_all(self, queries: Sequence[Sequence[str]], k: int) -> list[list[Found]]:
        require(k > 0, f"k={k} must be above 0")
        scores = self.scores_of(queries)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return [
            [Found(self.documents[at], float(row[at])) for at in places]
            for row, places in zip(scores, best.tolist(), strict=True)
        ]

    def scores_of(self, queries: Sequence[Sequence[str]]) -> Float[np.ndarray, "q n"]:
        """Of turns the sum of their scores: the last one's, half of that before it, and so on. So "And its version?" is
        about what was asked before, and a question that names something else is about that."""
        turns = [query[-MOST_TURNS:] for query in queries]
        weights = [FADING ** (len(own) - 1 - at) for own in turns for at in range(len(own))]
        starts = np.cumsum([0, *map(len, turns)])[:-1]
        single = self.scores([text for own in turns for text in own])
        return np.add.reduceat(single * np.array(weights)[:, None], starts, axis=0)


def documents_of(shards: str, store: RemoteCache | None = None) -> list[Document]:
    """The samples of shards that have a text or a picture, by their keys. UserError: two of one key, or a text that is
    none."""
    opened = open_shards([shards], store or RemoteCache())
    wanted = ("txt", "json", *(extension for extension, kind in FILES.items() if kind == "image"))
    found: dict[str, Document] = {}
    for sample in (opened.read(number, wanted) for number in range(len(opened))):
        try:
            text = text_of(sample)
        except BadSample as why:
            raise UserError(str(why)) from None
        told = f"{sample.where}: another document has this key, by which answers name it; give each a key of its own"
        require(sample.key not in found, told)
        _, picture = last_part(sample, "image") or ("", None)
        if text is not None or picture is not None:
            found[sample.key] = Document(sample.key, text or "", picture)
    return list(found.values())


def readable(documents: Sequence[Document], sees: bool) -> tuple[Document, ...]:
    """As a model reads them: without their pictures where it reads none. UserError: nothing is left of one."""
    if sees:
        return tuple(documents)
    silent = [one.key for one in documents if not one.text]
    told = f"{len(silent)} of {len(documents)} documents are pictures without a text, such as {silent[:1]}"
    require(not silent, f"{told}, and this model reads no pictures; write captions, or take one with an image tower")
    return tuple(one._replace(picture=None) for one in documents)


def with_documents(messages: Sequence[Any], documents: Sequence[Document]) -> list[Any]:
    """The conversation, as dictionaries of a role and a content, with documents before its last question. UserError:
    nobody asks anything in it."""
    asked = next((at for at in reversed(range(len(messages))) if messages[at]["role"] == "user"), None)
    if asked is None:
        raise UserError("documents are put before a question, and these messages hold none of the user's")
    content = messages[asked]["content"]
    pieces = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    whole = [piece for one in documents for piece in one.pieces]
    whole = joined([*whole, *pieces[:1]]) + pieces[1:]
    alone = len(whole) == 1 and whole[0]["type"] == "text"
    told = {**messages[asked], "content": whole[0]["text"] if alone else whole}
    return [*messages[:asked], told, *messages[asked + 1 :]] if documents else list(messages)


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """With neighbouring texts as one."""
    found: list[Piece] = []
    for piece in pieces:
        if found and found[-1]["type"] == piece["type"] == "text":
            found[-1] = {"type": "text", "text": found[-1]["text"] + piece["text"]}
        else:
            found.append(piece)
    return found
