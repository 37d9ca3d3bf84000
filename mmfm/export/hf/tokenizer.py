"""Our tokenizer as transformers knows one: the ids of the whole vocabulary, and the begin mark before every text.

Marks are special tokens at their places in the vocabulary, and text comes after them. No mark is ever read out of a
text, and no end mark is put behind one: tools that score a text would count it.
"""

import json
from typing import Any

import tokenizers
from tokenizers import normalizers, processors
from transformers import PreTrainedTokenizerFast

from mmfm.config import require
from mmfm.data.vocabulary import MARKS, Vocabulary
from mmfm.preprocessing.tokenizer import Reader, Tokenizer

NAMES = tuple(f"<|{mark.replace(' ', '-')}|>" for mark in MARKS)
KINDS = ("BPE", "WordPiece", "WordLevel", "Unigram")


def reading_tokenizer(reader: Reader, longest: int = 0) -> PreTrainedTokenizerFast:
    """Of a text tower with a tokenizer of its own: the ids that it reads, marks included; truncation cuts alike.

    longest: the most ids, marks included (`Tokenizer.longest`); 0: as many as the tower has positions for.
    """
    tree, words = json.loads(reader.inner.to_str()), reader.words
    tree["post_processor"] = None
    inner = tokenizers.Tokenizer.from_str(json.dumps(tree))
    names = {number: str(inner.id_to_token(number)) for number in (*words.begin, *words.end)}
    parts = [*(names[number] for number in words.begin), "$A", *(names[number] for number in words.end)]
    marks = [(name, number) for number, name in names.items()]
    template = processors.TemplateProcessing(single=" ".join(parts), special_tokens=marks)
    inner.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
    if words.lower:
        steps = [normalizers.Lowercase(), *([] if inner.normalizer is None else [inner.normalizer])]
        inner.normalizer = normalizers.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=inner.id_to_token(words.pad),
        model_max_length=longest or words.context,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
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
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(tree)),
        **longest,
        bos_token=begin,
        eos_token=end,
        pad_token=pad,
        add_bos_token=True,
        add_eos_token=False,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
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
