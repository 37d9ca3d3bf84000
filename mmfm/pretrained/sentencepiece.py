"""A SentencePiece model (spiece.model) as a tokenizer.json: SigLIP's tokenizer, which has no other file.

The file is a protobuf message (google/sentencepiece, sentencepiece_model.proto), of which five kinds of field are read
here; nothing of it is executed, and neither sentencepiece nor protobuf needs to be installed.
"""

import string
from collections.abc import Iterator
from pathlib import Path
from struct import unpack
from typing import Any, NamedTuple

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from mmfm.config import TokenizerSpec, UserError, require
from mmfm.pretrained.source import read_json
from mmfm.pretrained.tokenizer_spec import lowers, require_room, sha256

NORMAL, UNIGRAM = 1, 1  # kinds of a piece and of a model
WIDTHS = {1: 8, 5: 4}  # bytes of the wire types of a fixed size
AGAIN = "copy the whole folder again"
SPACE = "▁"


class Pieces(NamedTuple):
    """In their order, by which ids go. charsmap: how letters are normalised, as SentencePiece compiled it."""

    scored: list[tuple[str, float]]
    unknown: int
    bytes_too: bool
    charsmap: bytes


def read(path: Path) -> Pieces:
    """UserError: it is damaged, or no unigram model."""
    try:
        return _read(path.read_bytes())
    except (IndexError, UnicodeDecodeError, TypeError, ValueError) as why:
        if isinstance(why, UserError):
            raise
        raise UserError(f"{path} is no SentencePiece model, or is damaged ({why}); {AGAIN}") from None
    except OSError as why:
        raise UserError(f"{path}: {why.strerror}; {AGAIN}") from None


def _read(data: bytes) -> Pieces:
    scored: list[tuple[str, float]] = []
    trained: dict[int, Any] = {}
    charsmap = b""
    for field, value in _fields(data):
        if field == 1:
            piece = dict(_fields(value))
            (score,) = unpack("<f", piece.get(2, bytes(4)))
            scored.append((piece[1].decode("utf-8") if 1 in piece else "", score))
        elif field == 2:
            trained = dict(_fields(value))
        elif field == 3:
            charsmap = dict(_fields(value)).get(2, b"")
    require(trained.get(3, UNIGRAM) == UNIGRAM, "this SentencePiece model is no unigram one; add its tokenizer.json")
    unknown = int(trained.get(40, 0))
    if not 0 <= unknown < len(scored):
        raise ValueError(f"it has {len(scored)} pieces")
    return Pieces(scored, unknown, bool(trained.get(35, 0)), charsmap)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers of fields and their values: an int, or bytes."""
    at = 0
    while at < len(data):
        key, at = _number(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _number(data, at)
        else:
            size = WIDTHS.get(kind)
            if size is None:
                if kind != 2:
                    raise ValueError(f"wire type {kind} at byte {at}")
                size, at = _number(data, at)
            value, at = data[at : at + size], at + size
            if at > len(data):
                raise ValueError("it ends too early")
        yield key >> 3, value


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A varint, and the place behind it."""
    found = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        found |= (byte & 127) << shift
        if byte < 128:
            return found, at
    raise ValueError(f"no number at byte {at}")


def siglip(pieces: Pieces, lower: bool = True) -> tokenizers.Tokenizer:
    """transformers' SiglipTokenizer: lower case, no punctuation, single spaces; then the pieces of the best score."""
    made = tokenizers.Tokenizer(models.Unigram(pieces.scored, pieces.unknown, pieces.bytes_too))
    marks = "".join(f"\\{letter}" for letter in string.punctuation)
    steps: list[Any] = [normalizers.Replace(SPACE, " ")]
    steps += [normalizers.Lowercase()] if lower else []
    steps += [
        normalizers.Replace(Regex(f"[{marks}]"), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    steps += [normalizers.Precompiled(pieces.charsmap)] if pieces.charsmap else []
    steps += [normalizers.Replace(Regex(" +"), " "), normalizers.Strip()]  # a character may have become a space
    made.normalizer = normalizers.Sequence(steps)
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=False)
    made.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    return made


def siglip_words(model: Path, settings: Path | None, context: int, where: str) -> tuple[TokenizerSpec, str]:
    """The contract and tokenizer.json of a SiglipTokenizer. settings: its tokenizer_config.json, where there is one."""
    said = {} if settings is None else read_json(settings)
    pieces = read(model)
    numbers = {piece: number for number, (piece, _) in enumerate(pieces.scored)}
    end, pad = (_mark(said.get(name, "</s>")) for name in ("eos_token", "pad_token"))
    for mark in (end, pad):
        require(mark in numbers, f"{where}: its spiece.model has no piece {mark!r}, which its tokenizer needs; {AGAIN}")
    inner = siglip(pieces, bool(said.get("do_lower_case", True)))
    text = inner.to_str()
    words = TokenizerSpec(
        sha256=sha256(text),
        context=min(context, int(said.get("model_max_length", 64))),
        end=(numbers[end],),
        pad=numbers[pad],
        lower=lowers(inner),
    )
    require_room(words, where)
    return words, text


def _mark(said: Any) -> str:
    return str(said.get("content")) if isinstance(said, dict) else str(said)
