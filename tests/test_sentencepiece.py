"""SigLIP's spiece.model without sentencepiece: written here byte by byte, read, and cut into the likeliest pieces."""

import base64
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from mmfm.config import UserError
from mmfm.preprocessing.tokenizer import parse_reader
from mmfm.pretrained.sentencepiece import read, siglip_words

PIECES = [
    ("<unk>", 0.0),
    ("</s>", 0.0),
    ("▁", -3.0),
    ("▁a", -1.0),
    ("▁cat", -2.0),
    ("c", -4.0),
    ("at", -4.0),
    ("s", -2.0),
]


def block(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2, len(data)]) + data


def spiece(pieces: list[tuple[str, float]] = PIECES) -> bytes:
    scored = [block(1, block(1, name.encode()) + b"\x15" + struct.pack("<f", score)) for name, score in pieces]
    return b"".join(scored) + block(2, bytes([3 << 3, 1]))


def test_texts_are_cut_into_the_best_pieces(tmp_path: Path) -> None:
    """Lower case, no punctuation, single spaces, an end mark, and the unknown as one id."""
    (tmp_path / "spiece.model").write_bytes(spiece())
    words, text = siglip_words(tmp_path / "spiece.model", None, 16, "here")
    assert (words.begin, words.end, words.pad, words.context, words.lower) == ((), (1,), 1, 16, True)
    reader = parse_reader(text, words, "here")
    assert reader.encode("A  cat!") == [3, 4, 1]
    assert reader.encode("cats") == [4, 7, 1]
    assert reader.encode("a zz") == [3, 2, 0, 1]


KEPT = json.loads((Path(__file__).parent / "sentencepiece.json").read_text("utf-8"))


@pytest.mark.parametrize("kind", ["unigram", "bytes"])
def test_a_trained_model_is_cut_as_the_library_cuts(kind: str, tmp_path: Path) -> None:
    """Models that sentencepiece trained, with its own rules of normalisation, and the ids that it gave for each text
    once that is in lower case, without punctuation, and with single spaces: empty, long, in many scripts."""
    made = KEPT["models"][kind]
    (tmp_path / "spiece.model").write_bytes(base64.b64decode(made["model"]))
    pieces = read(tmp_path / "spiece.model")
    assert [[name, pytest.approx(score, abs=1e-6)] for name, score in pieces.scored[:12]] == made["pieces"]
    assert (pieces.unknown, pieces.bytes_too, len(pieces.charsmap)) == (2, kind == "bytes", 1_050)
    words, text = siglip_words(tmp_path / "spiece.model", None, 1_000, "here")
    reader = parse_reader(text, replace(words, context=1_000), "here")
    assert len(made["ids"]) > 20
    assert {given: reader.encode(given) for given in made["ids"]} == {g: [*ids, 1] for g, ids in made["ids"].items()}


def test_a_trained_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(base64.b64decode(KEPT["models"]["bpe"]["model"]))
    with pytest.raises(UserError, match=r"this SentencePiece model is no unigram one; add its tokenizer\.json"):
        read(tmp_path / "spiece.model")


@pytest.mark.parametrize("data", [spiece()[:-1], b"\xff" * 40, b"", spiece([])])
def test_a_damaged_model_is_one_line(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(data)
    with pytest.raises(UserError, match="is no SentencePiece model, or is damaged") as caught:
        read(tmp_path / "spiece.model")
    assert "\n" not in str(caught.value)
