"""Our tokenizers as transformers and open_clip know them.

For writing, ids are those of the whole vocabulary: marks are special tokens at their places in it, and text comes after
them, behind the begin mark. No mark is ever read out of a text, and no end mark is put behind one: tools that score a
text would count it. A text tower's own tokenizer has its own ids, with its marks around them; open_clip's has one id
more, for padding, which is none of the text's, so that the model can tell from the ids alone which of them are real.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers, processors
from transformers import PreTrainedTokenizerFast

from mmfm.config import TokenizerSpec, require
from mmfm.data.vocabulary import MARKS, Vocabulary
from mmfm.preprocessing.tokenizer import Reader, Tokenizer

NAMES = tuple(f"<|{mark.replace(' ', '-')}|>" for mark in MARKS)
KINDS = ("BPE", "WordPiece", "WordLevel", "Unigram")
PAD = "<|mmfm-pad|>"  # of open_clip


def reading_tokenizer(reader: Reader, longest: int = 0) -> PreTrainedTokenizerFast:
    """Of a text tower with a tokenizer of its own: the ids that it reads, marks included; truncation cuts alike.

    longest: the most ids, marks included (`Tokenizer.longest`); 0: as many as the tower has positions for.
    """
    inner = _framed(reader.inner.to_str(), reader.words)
    return _fast(inner, pad_token=inner.id_to_token(reader.words.pad), model_max_length=longest or reader.words.context)


def write_tokenizer(tokenizer: Tokenizer, words: TokenizerSpec | None, context: int, folder: Path) -> int:
    """open_clip's, into `folder`, for texts of `context` ids at most; returns the id of padding."""
    inner = _framed((tokenizer.reader or tokenizer).to_json(), words)
    require(inner.token_to_id(PAD) is None, f"the tokenizer has a token {PAD!r} of its own; rename it there")
    inner.add_special_tokens([PAD])
    found = _fast(inner, pad_token=PAD, model_max_length=context)
    found.save_pretrained(folder)
    return int(found.convert_tokens_to_ids(PAD))  # pyright: ignore[reportArgumentType]


def _framed(text: str, words: TokenizerSpec | None) -> tokenizers.Tokenizer:
    """A tokenizer of this JSON that puts the tower's marks around a text, and lowers it where the tower does."""
    inner = tokenizers.Tokenizer.from_str(json.dumps(json.loads(text) | {"post_processor": None}))
    if words is not None and (words.begin or words.end):
        names = {number: str(inner.id_to_token(number)) for number in (*words.begin, *words.end)}
        parts = [*(names[number] for number in words.begin), "$A", *(names[number] for number in words.end)]
        marks = [(name, number) for number, name in names.items()]
        template = processors.TemplateProcessing(single=" ".join(parts), special_tokens=marks)
        inner.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
    if words is not None and words.lower:
        steps = [normalizers.Lowercase(), *([] if inner.normalizer is None else [inner.normalizer])]
        inner.normalizer = normalizers.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    return inner


def _fast(inner: tokenizers.Tokenizer | dict[str, Any], padding_side: str = "right", **how: Any) -> Any:
    """As transformers has them: what looks like a mark in a text is text."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(inner)) if isinstance(inner, dict) else inner,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        padding_side=padding_side,
        model_input_names=["input_ids", "attention_mask"],
        **how,
    )


def hf_tokenizer(tokenizer: Tokenizer, vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """Its ids of a text are `vocabulary.shared` of `tokenizer.encode`, after the begin mark; with truncation=True no
    more of them than the model reads."""
    tree = json.loads(tokenizer.inner.to_str())
    offset = vocabulary.span("text").start
    require(offset == len(NAMES), "the vocabulary should open with its marks")
    _shift(tree["model"], offset)
    marks = [_special(place, name) for place, name in enumerate(NAMES)]
    tree["added_tokens"] = marks + [{**token, "id": token["id"] + offset} for token in tree["added_tokens"]]
    tree["post_processor"] = None
    begin, end, pad = (NAMES[i] for i in (vocabulary.begin("text"), vocabulary.end, vocabulary.pad))
    longest = {"model_max_length": 1 + tokenizer.limits.read} if tokenizer.limits.read else {}
    marked = {"bos_token": begin, "eos_token": end, "add_bos_token": True, "add_eos_token": False}
    found = _fast(tree, pad_token=pad, padding_side="left", **marked, **longest)
    assert found.convert_tokens_to_ids(list(NAMES)) == list(range(offset))
    return found


def _shift(model: dict[str, Any], offset: int) -> None:
    """Every id of the model `offset` higher; the marks take the first places."""
    kind, vocab = model.get("type"), model["vocab"]
    require(kind in KINDS, f"a tokenizer of kind {kind!r} cannot be exported; kinds are {', '.join(KINDS)}")
    words = {word for word, _ in vocab} if isinstance(vocab, list) else set(vocab)
    clash = sorted(words & set(NAMES))
    require(not clash, f"the tokenizer has a token called {clash[:1]} of its own; rename it there")
    if isinstance(vocab, list):
        model["vocab"] = [[name, 0.0] for name in NAMES] + vocab
        model["unk_id"] = None if model.get("unk_id") is None else model["unk_id"] + offset
    else:
        marks = {name: place for place, name in enumerate(NAMES)}
        model["vocab"] = marks | {word: number + offset for word, number in vocab.items()}


def _special(place: int, name: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": place, "content": name, **flags}
