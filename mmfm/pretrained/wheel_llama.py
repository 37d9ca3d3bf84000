"""A language model of Llama's family out of a gguf file, under the names and with the configuration of transformers.

gguf's own code makes floats of few-bit numbers, and they are what transformers makes of the file, bit for bit, in a
quarter of the time. Strict: every tensor of the file is used.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from mmfm.config import UserError, require
from mmfm.pretrained.chat_template import JinjaTemplate

SPECIAL = 3  # gguf's type of a token that is a mark
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], str, JinjaTemplate | None]:
    """The configuration as a plain dict, the weights in float32, the tokenizer.json, and the chat template, if any.

    Errors:
        ModuleNotFoundError: gguf is not installed.
        UserError: another architecture, or a tensor that Llama has not.
    """
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)
    said = {name: field.contents() for name, field in reader.fields.items()}
    kind = said["general.architecture"]
    require(kind == "llama", f"{path.name} holds a model of the family {kind!r}; read here is 'llama'")
    config = configuration(said, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = {}
    for tensor in reader.tensors:
        own, name = renamed(tensor.name)
        value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        weights[name] = torch.from_numpy(unfolded(value, heads[own]) if own in heads else value.copy())
    if config["tie_word_embeddings"]:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return config, weights, tokenizer(said), template(said)


def template(said: dict[str, Any]) -> JinjaTemplate | None:
    """The chat template, with the marks that it may name."""
    text, tokens = said.get("tokenizer.chat_template"), said["tokenizer.ggml.tokens"]
    places = {f"{name}_token": said.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    named = {name: tokens[place] for name, place in places.items() if place is not None}
    return JinjaTemplate(text=text, tokens=named) if text else None


def renamed(name: str) -> tuple[str, str]:
    """gguf's name of the kind of tensor, and transformers' name of this one."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    layer, own = found.groups() if found else (None, "")
    if layer is None and own in OUTSIDE:
        return own, f"{OUTSIDE[own]}.weight"
    if layer is not None and own in LAYER:
        return own, f"model.layers.{layer}.{LAYER[own]}.weight"
    raise UserError(f"{name} is no tensor of Llama; give a gguf file of a plain Llama")


def unfolded(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys, the halves of a head's pairs apart, as transformers turns them; gguf has them beside."""
    pairs = rows.reshape(heads, len(rows) // heads // 2, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def configuration(said: dict[str, Any], tied: bool) -> dict[str, Any]:
    """transformers' LlamaConfig as a plain dict."""
    from transformers import LlamaConfig

    own = {name.removeprefix("llama."): value for name, value in said.items() if name.startswith("llama.")}
    config = LlamaConfig(
        vocab_size=own["vocab_size"],
        hidden_size=own["embedding_length"],
        intermediate_size=own["feed_forward_length"],
        num_hidden_layers=own["block_count"],
        num_attention_heads=own["attention.head_count"],
        num_key_value_heads=own["attention.head_count_kv"],
        max_position_embeddings=own["context_length"],
        rms_norm_eps=own["attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": own["rope.freq_base"]},
        tie_word_embeddings=tied,
        bos_token_id=said.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=said.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=said.get("tokenizer.ggml.padding_token_id"),
    )
    plain = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in plain.items() if name != "_name_or_path"}


def tokenizer(said: dict[str, Any]) -> str:
    """tokenizer.json of a byte-level BPE.

    transformers' own reader leaves out that `smollm` splits digits from each other and from the white space before.
    """
    own = {name: said[f"tokenizer.ggml.{name}"] for name in ("pre", "tokens", "token_type", "merges")}
    require(own["pre"] == "smollm", f"the tokenizer splits texts as {own['pre']!r} does; read here is 'smollm'")
    vocabulary = {token: number for number, token in enumerate(own["tokens"])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(pair.split(" ")) for pair in own["merges"]]))
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    made.pre_tokenizer = pre_tokenizers.Sequence(split)
    made.decoder = decoders.ByteLevel()
    marks = [token for token, kind in zip(own["tokens"], own["token_type"], strict=True) if kind == SPECIAL]
    made.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    return made.to_str()
