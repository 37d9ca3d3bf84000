"""Our tokenizers as open_clip reads one: the same ids, the tower's marks around them, and one id more.

That id is padding. It is none of the text's, so the model can tell from the ids alone which of them are real.
"""

from pathlib import Path

import tokenizers
from tokenizers import normalizers, processors
from transformers import PreTrainedTokenizerFast

from mmfm.config import TokenizerSpec, require
from mmfm.preprocessing.tokenizer import Tokenizer

PAD = "<|mmfm-pad|>"


def write_tokenizer(tokenizer: Tokenizer, words: TokenizerSpec | None, context: int, folder: Path) -> int:
    """Into `folder`, for texts of `context` ids at most; returns the id of padding."""
    inner = tokenizers.Tokenizer.from_str((tokenizer.reader or tokenizer).to_json())
    require(inner.token_to_id(PAD) is None, f"the tokenizer has a token {PAD!r} of its own; rename it there")
    inner.post_processor = _marks(inner, words)  # pyright: ignore[reportAttributeAccessIssue]
    if words is not None and words.lower:
        parts = [normalizers.Lowercase(), *([] if inner.normalizer is None else [inner.normalizer])]
        inner.normalizer = normalizers.Sequence(parts)  # pyright: ignore[reportAttributeAccessIssue]
    inner.add_special_tokens([PAD])
    found = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        model_max_length=context,
        split_special_tokens=True,  # what looks like a mark in a text is text
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    found.save_pretrained(folder)
    return int(found.convert_tokens_to_ids(PAD))  # pyright: ignore[reportArgumentType]


def _marks(inner: tokenizers.Tokenizer, words: TokenizerSpec | None) -> processors.TemplateProcessing | None:
    if words is None or not (words.begin or words.end):
        return None
    names = {number: str(inner.id_to_token(number)) for number in (*words.begin, *words.end)}
    parts = [*(names[n] for n in words.begin), "$A", *(names[n] for n in words.end)]
    return processors.TemplateProcessing(
        single=" ".join(parts), special_tokens=[(name, n) for n, name in names.items()]
    )
