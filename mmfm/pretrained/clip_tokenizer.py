"""open_clip's tokenizers as a tokenizer.json: CLIP's merges come with open_clip, others with a repository or folder.

Not copied is ftfy's repair of broken encodings and rare HTML entities; curly quotes and the usual entities are.
"""

import re
import string
from pathlib import Path
from typing import Any

import open_clip
import tokenizers
from huggingface_hub import constants
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from mmfm.config import TokenizerSpec, UserError, require
from mmfm.pretrained.source import fetching
from mmfm.pretrained.tokenizer_spec import require_room, sha256, words_of_hf

REPOSITORY = re.compile(r"[\w.\-]+(/[\w.\-]+)?")
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # of CLIP
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&#x27;": "'", "&nbsp;": " "}
QUOTES = {"[‘’‚‛]": "'", "[“”„‟]": '"', "ﬁ": "fi", "ﬂ": "fl", "ﬀ": "ff", "…": "…"}


def words_of(name: str, cfg: dict[str, Any]) -> tuple[TokenizerSpec, str]:
    """The contract and tokenizer.json of a text tower's configuration.

    A tower that sees all places at once, padding too, was trained on texts filled to its context.
    """
    context = int(cfg.get("context_length", 77))
    fill = bool(cfg.get("no_causal_mask", False)) and not cfg.get("embed_cls", False)
    options = dict(cfg.get("tokenizer_kwargs", {}))
    if cfg.get("hf_tokenizer_name"):
        words, text = _of_hf(name, cfg, options, context, fill)
    else:
        require(
            not cfg.get("tokenizer_mode"), f"{name}: tokenizer mode {cfg.get('tokenizer_mode')} is not offered here"
        )
        text = clip_bpe(options.pop("clean", "lower"), options.pop("additional_special_tokens", None) or ()).to_str()
        options.pop("reduction_mask", None)  # of training: which words of a long text to leave out
        require(not options, f"{name}: its tokenizer has options that are not known here: {', '.join(options)}")
        marks = open_clip.SimpleTokenizer()
        pad = int(cfg.get("pad_id", 0))
        words = TokenizerSpec(
            sha256=sha256(text),
            context=context,
            begin=(marks.sot_token_id,),
            end=(marks.eot_token_id,),
            pad=pad,
            lower='"Lowercase"' in text,
            fill=fill,
        )
    require_room(words, name)
    return words, text


def clip_bpe(clean: str = "lower", more: tuple[str, ...] = ()) -> tokenizers.Tokenizer:
    """CLIP's byte-level BPE, built from the merges in open_clip's wheel."""
    theirs = open_clip.SimpleTokenizer(additional_special_tokens=list(more) or None)
    made = tokenizers.Tokenizer(
        models.BPE(
            vocab=theirs.encoder, merges=[(left, right) for left, right in theirs.bpe_ranks], end_of_word_suffix="</w>"
        )
    )
    made.normalizer = normalizers.Sequence(cleaning(clean))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    return made


def cleaning(clean: str) -> list[normalizers.Normalizer]:
    """open_clip's `clean` functions, as steps."""
    known = ("lower", "whitespace", "canonicalize")
    require(clean in known, f"open_clip cleans texts by {', '.join(known)}, not {clean!r}")
    steps: list[normalizers.Normalizer] = [normalizers.Replace(entity, letter) for entity, letter in ENTITIES.items()]
    steps += [normalizers.Replace(Regex(quote), letter) for quote, letter in QUOTES.items()]
    steps += [normalizers.NFC()]
    if clean == "canonicalize":
        steps += [normalizers.Replace("_", " "), normalizers.Replace(Regex(f"[{_escaped(string.punctuation)}]"), "")]
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    return steps if clean == "whitespace" else [*steps, normalizers.Lowercase()]


def _escaped(letters: str) -> str:
    return "".join(f"\\{letter}" for letter in letters)


def _of_hf(
    name: str, cfg: dict[str, Any], options: dict[str, Any], context: int, fill: bool
) -> tuple[TokenizerSpec, str]:
    """A transformers tokenizer, with open_clip's cleaning put before its own."""
    from transformers import AutoTokenizer

    mode, clean = cfg.get("tokenizer_mode"), options.pop("clean", "whitespace")
    require(not mode, f"{name}: tokenizer mode {mode} is not offered here")
    require(not options.pop("strip_sep_token", False), f"{name}: a tokenizer whose end mark is cut is not offered here")
    require(not options, f"{name}: its tokenizer has options that are not known here: {', '.join(options)}")
    place = name.removeprefix("local-dir:") if name.startswith("local-dir:") else str(cfg["hf_tokenizer_name"])
    own = name.startswith("local-dir:") or (REPOSITORY.fullmatch(place) is not None and not Path(place).exists())
    require(own, f"{name} names the tokenizer {place[:80]!r}, which is no repository; do not trust it")
    with fetching(name, f"the tokenizer of {place}", str(constants.HF_HUB_CACHE)):
        tokenizer: Any = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        raise UserError(f"{name}: its tokenizer is not made of a tokenizer.json, which is what can be kept")
    own = [] if inner.normalizer is None else [inner.normalizer]
    inner.normalizer = normalizers.Sequence([*cleaning(clean), *own])
    return words_of_hf(tokenizer, context, fill)
