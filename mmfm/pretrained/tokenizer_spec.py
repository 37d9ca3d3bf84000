"""What a text encoder's tokenizer does, as a tokenizer.json and the marks round it: begin + plain ids + end.

The marks are measured, not read from the post-processor's program: a text's ids with them, less its ids without.
"""

import hashlib
from typing import Any

import tokenizers

from mmfm.config import TokenizerSpec, UserError, require
from mmfm.preprocessing.tokenizer import parse_tokenizer

PROBE = "a B"
LONGEST = 2**20  # transformers says "no limit" with a number far above this


def words_of_hf(tokenizer: Any, context: int, fill: bool = False) -> tuple[TokenizerSpec, str]:
    """Of a transformers tokenizer, which must be backed by `tokenizers`; and its tokenizer.json.

    context: the longest sequence the model takes; the tokenizer may set a lower limit. fill: whether the model wants
    every text padded to it; a tokenizer that gives no attention mask says so too.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"{type(tokenizer).__name__} is not made of a tokenizer.json; save one with the library's own converter"
        )
    text = backend.to_str()
    inner = parse_tokenizer(text).inner  # as ours will read it: what looks like a mark in a text is text
    begin, end = marks(list(tokenizer(PROBE)["input_ids"]), inner.encode(PROBE, add_special_tokens=False).ids)
    limit = tokenizer.model_max_length
    fill = fill or "attention_mask" not in tokenizer.model_input_names
    made = TokenizerSpec(
        sha256=sha256(text),
        context=min(context, limit) if limit < LONGEST else context,
        begin=begin,
        end=end,
        pad=_first(tokenizer.pad_token_id, tokenizer.eos_token_id, 0),
        lower=lowers(inner),
        mask=_first(tokenizer.mask_token_id, -1),
        fill=fill,
    )
    return made, text


def marks(whole: list[int], plain: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and after `plain` in `whole`."""
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start]), tuple(whole[start + len(plain) :])
    raise UserError(f"the tokenizer's ids of {PROBE!r} with marks, {whole}, do not hold those without, {plain}")


def lowers(inner: tokenizers.Tokenizer) -> bool:
    capital, small = (inner.encode(text, add_special_tokens=False).ids for text in ("QUICK BROWN", "quick brown"))
    return capital == small


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def require_room(words: TokenizerSpec, where: str) -> None:
    room = words.context - len(words.begin) - len(words.end)
    require(room > 0, f"{where}: a context of {words.context} leaves no room for text between its marks")


def _first(*values: int | None) -> int:
    return next(int(value) for value in values if value is not None)
