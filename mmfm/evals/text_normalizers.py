"""What a comparison of transcripts forgives: the normalizers of word and character error rates, by name.

    verbatim         nothing but white space, as jiwer compares
    plain            also case, the form of accents, and one final full stop: `metrics.normalised`
    letters          also punctuation and signs that only shape a word: `metrics.letters`
    whisper_basic    what Whisper's paper applies to other languages than English (arXiv 2212.04356, appendix C)
    whisper_english  what it applies to English; `spellings`, its table of British and American spellings, is part of
                     each Whisper tokenizer as normalizer.json, and without it these are two words

Both sides of a comparison always pass the same normalizer. Whisper's are those of transformers.
"""

import json
from collections.abc import Callable
from pathlib import Path

from mmfm.config import UserError, require
from mmfm.evals.metrics import letters, normalised
from mmfm.evals.suite import SPELLINGS

Normalizer = Callable[[str], str]


def verbatim(text: str) -> str:
    """The words as they stand, with one space between."""
    return " ".join(text.split())


OURS: dict[str, Normalizer] = {"verbatim": verbatim, "plain": normalised, "letters": letters}


def normalizer(name: str, spellings: Path | None = None) -> Normalizer:
    """The rule of this name. UserError: `spellings` is no JSON of words. Whisper's two need transformers."""
    require(name in SPELLINGS, f"spelling={name!r}: there are {', '.join(SPELLINGS)}")
    if name in OURS:
        return OURS[name]
    from mmfm.compat.transformers import BasicTextNormalizer, EnglishTextNormalizer

    rule = BasicTextNormalizer() if name == "whisper_basic" else EnglishTextNormalizer(_table(spellings))
    return lambda text: verbatim(rule(text))


def _table(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as why:
        raise UserError(f"{path} cannot be read ({why}); give the normalizer.json of a Whisper tokenizer") from None
    good = isinstance(table, dict) and all(isinstance(word, str) for word in table.values())
    require(good, f"{path} is no table of words; give the normalizer.json of a Whisper tokenizer")
    return table
