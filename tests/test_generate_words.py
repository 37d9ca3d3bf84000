"""Text as it is written: pieces join to the whole, characters stay whole, stop strings cut exactly."""

import pytest
import torch

from mmfm.generation import Detokenizer
from mmfm.preprocessing.tokenizer import load_tokenizer, train_tokenizer

TEXTS = ["plain", "", "Käse für 5 € 🦊🦊 und 漢字", "a\ufffdb", "two\nlines\n\n", "e\u0301 🏳️‍🌈 end"]
BYTES = load_tokenizer("bytes")
MERGED = train_tokenizer(TEXTS * 3, 300)


def written(words: Detokenizer, ids: list[int]) -> list[str]:
    pieces = [words.add(index) for index in ids if not words.stopped]
    return [*pieces, words.end()]


@pytest.mark.parametrize("tokenizer", [BYTES, MERGED])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_and_break_no_character(tokenizer, text):
    """Each piece is the text so far: no piece ends within a character, and all are out as soon as they are sure."""
    words = Detokenizer(tokenizer.decode)
    pieces = written(words, tokenizer.encode(text))
    assert "".join(pieces) == words.text == text
    assert "\ufffd" not in "".join(pieces[:-1]).replace("a\ufffdb", "")


def test_any_bytes_at_all_join_to_what_the_tokenizer_says():
    """Random bytes, most of them no UTF-8: the pieces are the decoded whole, broken characters included."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(0, 256, (40,), generator=draw).tolist()
        assert "".join(written(Detokenizer(BYTES.decode), ids)) == BYTES.decode(ids)


def test_a_character_comes_with_its_last_byte():
    words = Detokenizer(BYTES.decode)
    assert [words.add(byte) for byte in "a€b".encode()] == ["a", "", "", "€", "b"]


@pytest.mark.parametrize("tokenizer", [BYTES, MERGED])
@pytest.mark.parametrize(
    ("stop", "left"),
    [
        (("stop",), "go on, st, sto, "),
        (("on, st", "go on, sto"), "go "),
        (("!",), "go on, st, sto, stop it"),
        (("it!?",), "go on, st, sto, stop it!"),
        (("g",), ""),
        (("to, s", "st,"), "go on, "),
    ],
)
def test_stop_strings_cut_exactly(tokenizer, stop, left):
    """Before the first that occurs, wherever tokens end; what only begins like one is not lost."""
    words, text = Detokenizer(tokenizer.decode, stop), "go on, st, sto, stop it!"
    assert "".join(written(words, tokenizer.encode(text))) == words.text == left
    assert words.stopped == (left != text)


def test_a_stop_string_within_one_token():
    """A token that holds the stop string and more gives only what is before it."""
    words = Detokenizer(
        lambda ids: "".join(["one two", " three stop four", " five"][index] for index in ids), ("stop",)
    )
    assert written(words, [0, 1, 2]) == ["one two", " three ", ""] and words.stopped
