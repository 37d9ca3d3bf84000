"""Documents that are looked for: BM25 by its formula, embeddings by their cosines, and their place in messages."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from planted import image_bytes, saved_run, shard

from mmfm.config import UserError
from mmfm.inference.documents import Document, Library, documents_of, with_documents
from mmfm.inference.load import load_model
from mmfm.inference.retrievers import Embedder, bm25, by_meaning, by_words, index_of, search_words

TEXTS = ("the cat sat", "the dog sat on the dog", "a bird", "libx2-dev: headers of lib x2.so")


def weight(count: int, length: int, held: int) -> float:
    """A word that occurs so often in a document of so many words, and in so many of the four (k1 1.2, b 0.75)."""
    mean = sum(len(search_words(text)) for text in TEXTS) / 4
    rare = math.log(1 + (4 - held + 0.5) / (held + 0.5))
    return rare * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / mean))


def test_bm25_is_its_formula() -> None:
    """Of words that occur once or twice, in one document or two; those that no document has change nothing."""
    scores = bm25(TEXTS)(["dog sat", "sat sat zebra", "zebra", ""])
    assert scores[0].tolist() == pytest.approx([weight(1, 3, 2), weight(2, 6, 1) + weight(1, 6, 2), 0, 0])
    assert scores[1].tolist() == pytest.approx([2 * weight(1, 3, 2), 2 * weight(1, 6, 2), 0, 0])
    assert not scores[2:].any()


def test_names_are_found_whole_and_by_their_parts() -> None:
    assert search_words("(libX2-dev), Straße!") == ["libx2", "dev", "libx2-dev", "strasse"]
    library = Library.of([Document(str(at), text) for at, text in enumerate(TEXTS)], by_words)
    assert [library.retrieve(query, 1)[0].key for query in ("What is libx2-dev?", "x2.so", "BIRD")] == ["3", "3", "2"]


def test_the_best_come_first_and_among_equals_the_first() -> None:
    planted = {"q": [1.0, 0.0], "a": [0.6, 0.8], "b": [1.0, 0.0], "c": [0.6, 0.8], "d": [-1.0, 0.0]}
    index = by_meaning(Embedder(lambda texts: F.normalize(torch.tensor([planted[text] for text in texts]), dim=-1)))
    library = Library.of([Document(f"key {text}", text) for text in "abcd"], index)
    found = library.retrieve("q", 3)
    assert [one.key for one in found] == ["key b", "key a", "key c"]
    assert [one.score for one in found] == pytest.approx([1.0, 0.6, 0.6]) and found[0].document.text == "b"
    assert len(library.retrieve("q", 9)) == 4


def test_a_conversation_is_looked_up_by_its_last_turns() -> None:
    """The score of each turn of three, half of the next one's weight; what stands before these is forgotten."""
    library = Library.of([Document(str(at), text) for at, text in enumerate(TEXTS)], by_words)
    turns = ["libx2-dev", "bird", "dog", "cat sat"]
    single = library.scores(turns)
    (both, alone) = library.scores_of([turns, ["bird"]])
    assert both == pytest.approx(single[3] + single[2] / 2 + single[1] / 4) and alone == pytest.approx(single[1])
    assert [one.key for one in library.retrieve(["bird", "and that?"], 1)] == ["2"]


def test_pictures_are_found_by_what_they_show() -> None:
    """Where the retriever embeds them; beside texts; and where it does not, or by words, each needs a text."""
    space = {"red?": 0, "a text of green": 1, b"red": 0, b"blue": 2, "green?": 1, "blue?": 2}

    def place(things: list) -> torch.Tensor:
        return F.one_hot(torch.tensor([space[thing] for thing in things]), 3).float()

    documents = [Document("b", "", b"blue"), Document("t", "a text of green"), Document("r", "", b"red")]
    library = Library.of(documents, by_meaning(Embedder(place, place)))
    assert [library.retrieve(query, 1)[0].key for query in ("red?", "green?", "blue?")] == ["r", "t", "b"]
    with pytest.raises(UserError, match=r"2 of 3 documents have no text, such as \['b'\], and the retriever embeds no"):
        Library.of(documents, by_meaning(Embedder(place)))
    with pytest.raises(UserError, match=r"2 of 3 documents have no text, by whose words they are found, .*\['b'\]"):
        Library.of(documents, by_words)


def test_a_model_of_texts_and_pictures_finds_pictures(tmp_path: Path) -> None:
    """Its embeddings of the very files; a document's are those of its picture also where it has a text."""
    folder = saved_run(tmp_path).folder
    files = {key: image_bytes(seed) for seed, key in enumerate("ab")}
    documents = documents_of(
        shard(tmp_path / "d" / "0.tar", {"a": {"png": files["a"]}, "b": {"png": files["b"], "txt": "b"}})
    )
    assert documents == [Document("a", "", files["a"]), Document("b", "b", files["b"])]
    model, pictures = load_model(folder), [Image.open(io.BytesIO(file)) for file in files.values()]
    expected = model.encode_text(["who?"], normalize=True) @ model.encode_image(pictures, normalize=True).T
    for index in (index_of("model", model), index_of(str(folder))):
        assert Library.of(documents, index).scores(["who?"]) == pytest.approx(expected.numpy(), abs=1e-5)
    with pytest.raises(UserError, match="a document's picture cannot be read"):
        Library.of([Document("c", "", b"rubbish")], index_of("model", model))


def test_documents_of_shards(tmp_path: Path) -> None:
    """Texts of the .txt or the .json; two of one key are refused, as an answer names its documents by them."""
    folder = shard(tmp_path / "d" / "0.tar", {"a": {"txt": " one "}, "b": {"json": json.dumps({"text": "two"})}})
    assert documents_of(folder) == [Document("a", "one"), Document("b", "two")]
    shard(tmp_path / "d" / "1.tar", {"a": {"txt": "three"}})
    with pytest.raises(UserError, match="another document has this key"):
        documents_of(folder)
    with pytest.raises(UserError, match="there are no documents to be looked for"):
        Library.of([], by_words)


def test_retrievers_by_name(tmp_path: Path) -> None:
    """The embeddings of the model that answers find each text by itself; what is no retriever is refused."""
    folder, documents = saved_run(tmp_path).folder, [Document(str(at), text) for at, text in enumerate(TEXTS)]
    libraries = [Library.of(documents, one) for one in (index_of("model", load_model(folder)), index_of(str(folder)))]
    for library in libraries:
        assert [library.retrieve(text, 1)[0].key for text in TEXTS] == ["0", "1", "2", "3"]
    first, second = (library.scores(["a bird sat"]) for library in libraries)
    assert first == pytest.approx(second)
    assert index_of("bm25") is by_words
    with pytest.raises(UserError, match="retriever='model' needs a model with a tower for text"):
        index_of("model")
    with pytest.raises(UserError, match="retriever='bm52': give 'bm25', 'model', the folder of a run"):
        index_of("bm52")


def words(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


PICTURE = {"type": "image", "image": "a.png"}


@pytest.mark.parametrize(
    "content, expected",
    [
        ("who?", "d1\n\nd2\n\nwho?"),
        ([words("who?")], "d1\n\nd2\n\nwho?"),
        ([PICTURE, words("who?")], [words("d1\n\nd2\n\n"), PICTURE, words("who?")]),
    ],
)
def test_documents_stand_before_the_last_question(content: Any, expected: Any) -> None:
    """And nowhere else; the messages that were given stay as they are."""
    before = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    given = [*before, {"role": "user", "content": content}]
    kept = json.dumps(given)
    documents = [Document("1", "d1 "), Document("2", "d2")]
    assert with_documents(given, documents) == [*before, {"role": "user", "content": expected}]
    assert json.dumps(given) == kept and with_documents(given, []) == given
    with pytest.raises(UserError, match="hold none of the user's"):
        with_documents(before[1:], documents)
