"""Text <-> token ids, losslessly: every tokenizer made here works on UTF-8 bytes, so no string is unknown to it.

"bytes" is the same machinery with no merges: 256 ids, each the value of a byte.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import torch
from jaxtyping import Int
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from mmfm.config import Run, TokenizerSpec, UserError, require
from mmfm.preprocessing.text_limits import NO_LIMITS, WHY, Limits, limits_of


@dataclass(frozen=True)
class Reader:
    """How a text tower from elsewhere wants its texts: its own tokenizer's ids, with its marks, cut to its context."""

    inner: tokenizers.Tokenizer
    words: TokenizerSpec
    text: str  # of its tokenizer.json, as `words` hashes it

    @property
    def room(self) -> int:
        """Tokens of a text that the tower has positions for, beside its marks."""
        return self.words.context - len(self.words.begin) - len(self.words.end)

    def plain(self, text: str) -> list[int]:
        """The ids of the whole text, without marks."""
        whole = text.encode("utf-8", errors="replace").decode("utf-8")
        return self.inner.encode(whole.lower() if self.words.lower else whole, add_special_tokens=False).ids

    def framed(self, ids: Sequence[int]) -> list[int]:
        """What the tower reads of these: no more than it has positions for, its marks, and what fills up."""
        words = self.words
        row = [*words.begin, *ids[: self.room], *words.end]
        return row + [words.pad] * (words.context - len(row)) if words.fill else row

    def encode(self, text: str) -> list[int]:
        return self.framed(self.plain(text))

    def to_json(self) -> str:
        return self.text


class TextIds(NamedTuple):
    """What is held of a text: the ids that are read and those that are written, and whether it goes on beyond them."""

    read: list[int]
    written: list[int]
    read_cut: bool
    written_cut: bool


@dataclass(frozen=True)
class Tokenizer:
    """Ids 0 to size - 1. Marks such as begin and end are no text: they belong to the vocabulary, not here.

    These ids are written, and read too unless the text tower has a tokenizer of its own: then that is `reader`. Of a
    text longer than `limits` only the beginning is read and written; `excess` says which those are.
    """

    inner: tokenizers.Tokenizer
    reader: Reader | None = None
    limits: Limits = NO_LIMITS

    def limited(self, run: Run) -> "Tokenizer":
        """As this run reads texts."""
        return replace(self, limits=limits_of(run))

    def __call__(self, texts: Any) -> Int[Tensor, "n time"]:
        """Ids as the text tower reads them, padded with -1 to the longest; called as open_clip's tokenizers."""
        rows = [texts] if isinstance(texts, str) else texts
        wrong = next((type(text).__name__ for text in rows if not isinstance(text, str)), "")
        require(not wrong, f"a text is a string, not {wrong}")
        ids = [torch.tensor(self.read(text), dtype=torch.int64) for text in rows]
        if not ids:
            return torch.zeros(0, 0, dtype=torch.int64)
        return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)

    def read(self, text: str) -> list[int]:
        """The ids that the text tower reads."""
        return self.held(text).read

    def held(self, text: str) -> TextIds:
        """What is read and written of a text, within `limits`."""
        ids, limits = self.encode(text), self.limits
        written = ids[: limits.written] if limits.written else ids
        if self.reader is None:
            read = ids[: limits.read] if limits.read else ids
            return TextIds(read, written, len(read) < len(ids), len(written) < len(ids))
        own, room = self.reader.plain(text), self._room
        return TextIds(self.reader.framed(own[:room]), written, len(own) > room, len(written) < len(ids))

    def excess(self, text: str) -> str:
        """How a text is too long to be read whole, and what helps; empty where it is not."""
        count = len(self.encode(text) if self.reader is None else self.reader.plain(text))
        if not self._room or count <= self._room:
            return ""
        tower = self.reader is not None and self._room == self.reader.room
        limits = replace(self.limits, by="tower") if tower else self.limits
        told = f"a text of {count} tokens is longer than the {self._room} that are read"
        return f"{told} ({WHY[limits.by]}); {limits.remedy}"

    @property
    def longest(self) -> int:
        """The most ids that the text tower reads of a text, its marks included; 0: any number."""
        if self.reader is None:
            return self.limits.read
        words = self.reader.words
        return words.context if words.fill else self._room + len(words.begin) + len(words.end)

    @property
    def _room(self) -> int:
        """Tokens that are read of a text; 0: all."""
        rooms = (self.limits.read, 0 if self.reader is None else self.reader.room)
        return min([room for room in rooms if room], default=0)

    @cached_property
    def size(self) -> int:
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """The ids of exactly this text. What looks like a special token in it is text too."""
        whole = text.encode("utf-8", errors="replace").decode("utf-8")  # a lone surrogate, as JSON allows, becomes "?"
        return self.inner.encode(whole, add_special_tokens=False).ids

    def with_marks(self, text: str) -> list[int]:
        """The ids of a part of a template: what looks like a special token in it is one."""
        if text not in self._marked:
            self._marked[text] = self._marking.encode(text, add_special_tokens=False).ids
        return self._marked[text]

    @cached_property
    def _marked(self) -> dict[str, list[int]]:
        return {}

    @cached_property
    def _marking(self) -> tokenizers.Tokenizer:
        inner = tokenizers.Tokenizer.from_str(self.inner.to_str())
        inner.encode_special_tokens = False
        return inner

    def decode(self, ids: Sequence[int]) -> str:
        """The text of any ids at all: broken UTF-8 becomes U+FFFD, and ids that are none of ours are left out."""
        size = self.size
        return self.inner.decode([index for index in ids if 0 <= index < size], skip_special_tokens=True)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for tokenizers that give equal ids, whatever their limits."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=8).hexdigest()

    def to_json(self) -> str:
        """What `load_tokenizer` reads: a tokenizer.json of Hugging Face `tokenizers`."""
        return self.inner.to_str(pretty=True)


def load_tokenizer(spec: str | Path) -> Tokenizer:
    """`"bytes"`, or the path of a tokenizer.json."""
    if str(spec) == "bytes":
        vocabulary = {character: byte for byte, character in enumerate(_characters())}
        return _byte_level(models.BPE(vocab=vocabulary, merges=[]))
    try:
        text = Path(spec).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as why:
        reason = why.strerror if isinstance(why, OSError) else "it is not UTF-8"
        raise UserError(f"tokenizer {str(spec)!r}: {reason}; give 'bytes' or the path of a tokenizer.json") from None
    return parse_tokenizer(text, where=str(spec))


def parse_tokenizer(text: str, where: str = "tokenizer.json") -> Tokenizer:
    """The tokenizer that `to_json` wrote."""
    try:
        inner = tokenizers.Tokenizer.from_str(text)
    except Exception as why:  # the Rust side raises bare Exception
        raise UserError(f"{where} is no tokenizer.json ({' '.join(str(why).split())}); restore or rebuild it") from None
    require(inner.get_vocab_size() > 0, f"{where} has an empty vocabulary; rebuild it")
    return _plain(inner)


def parse_reader(text: str, words: TokenizerSpec, where: str) -> Reader:
    """A text tower's tokenizer.json, which must be the one that its contract names."""
    found = hashlib.sha256(text.encode()).hexdigest()
    require(
        found == words.sha256,
        f"{where} is not the tokenizer of this tower (SHA-256 {found[:12]}, not {words.sha256[:12]}); restore it",
    )
    return Reader(parse_tokenizer(text, where).inner, words, text)


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte-pair merges learned from `texts`, never across words. The same texts give the same tokenizer."""
    require(size >= 256, f"a tokenizer of {size} ids cannot hold the 256 bytes; ask for at least 256")
    tokenizer = _byte_level(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=[], show_progress=False)
    tokenizer.inner.train_from_iterator(texts, trainer)
    return tokenizer


def _byte_level(model: models.Model) -> Tokenizer:
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    return _plain(inner)


def _plain(inner: tokenizers.Tokenizer) -> Tokenizer:
    """Without what a foreign tokenizer.json may ask for: padding, truncation, special tokens recognised in text."""
    inner.no_padding()
    inner.no_truncation()
    inner.encode_special_tokens = True
    return Tokenizer(inner)


def _characters() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2): its own, or one from 256 on."""
    own = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in own else next(others)) for byte in range(256)]
