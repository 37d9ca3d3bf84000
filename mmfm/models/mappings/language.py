"""Causal language models of Llama's family, as our `Trunk`, with the table of their words and their output."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmfm.config import Trunk, require
from mmfm.data.vocabulary import Vocabulary
from mmfm.models.mappings.mapping import ACTIVATIONS, Foreign, Layout, activation_of, allow, hf_config
from mmfm.models.mappings.table import Table

CONTEXT = 2_048  # tokens that clients who ask for a limit are told, of a trunk that has none
STRETCH = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def trunk(foreign: Foreign) -> Trunk:
    cfg = hf_config(foreign)
    kind = cfg["model_type"]
    rope = cfg["rope_parameters"]
    turns = rope.get("rope_type", "default")
    allow(f"this {kind}", turns in ("default", "llama3"), f"{turns} positions")
    allow(f"this {kind}", not cfg.get("mlp_bias"), "MLPs with biases")
    bias = kind == "qwen2" or bool(cfg.get("attention_bias"))
    return Trunk(
        width=cfg["hidden_size"],
        depth=cfg["num_hidden_layers"],
        heads=cfg["num_attention_heads"],
        kv_heads=cfg["num_key_value_heads"],
        head_dim=cfg.get("head_dim") or cfg["hidden_size"] // cfg["num_attention_heads"],
        hidden=cfg["intermediate_size"],
        activation=activation_of(cfg["hidden_act"], kind),
        eps=cfg["rms_norm_eps"],
        rope_theta=float(rope["rope_theta"]),
        rope_scaling=tuple(float(rope[name]) for name in STRETCH) if turns == "llama3" else (),
        qkv_bias=bias,
        out_bias=bias and kind != "qwen2",
        qk_norm=kind == "qwen3",
        max_position_embeddings=window(cfg),
        tie_embeddings=bool(cfg["tie_word_embeddings"]),
    )


def language_config(part: Trunk, ids: int) -> dict[str, Any]:
    """The inverse of `trunk`: transformers' configuration of a Llama, Qwen2 or Qwen3 with a table of so many ids.

    UserError: a trunk that is none of them.
    """
    kind = "qwen3" if part.qk_norm else "qwen2" if part.qkv_bias and not part.out_bias else "llama"
    told = "transformers' Llama and Qwen have biases for queries, keys and values alone, or for the output too"
    require(part.qkv_bias or not part.out_bias, f"{told}; this trunk has one for the output alone")
    require(kind != "qwen3" or part.qkv_bias == part.out_bias, f"{told}, of a trunk that norms queries: both or none")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": part.rope_theta}
    if part.rope_scaling:
        rope |= {"rope_type": "llama3"} | dict(zip(STRETCH, part.rope_scaling, strict=True))
        rope["original_max_position_embeddings"] = int(rope["original_max_position_embeddings"])
    return {
        "model_type": kind,
        "vocab_size": ids,
        "hidden_size": part.width,
        "num_hidden_layers": part.depth,
        "num_attention_heads": part.heads,
        "num_key_value_heads": part.kv_heads,
        "head_dim": part.head_dim or part.width // part.heads,
        "intermediate_size": part.hidden or round(part.mlp_ratio * part.width),
        "hidden_act": next(name for name, ours in ACTIVATIONS.items() if ours == part.activation),
        "rms_norm_eps": part.eps,
        "rope_parameters": rope,
        "max_position_embeddings": part.max_position_embeddings or CONTEXT,
        "tie_word_embeddings": part.tie_embeddings,
    } | ({} if kind == "qwen2" else {"attention_bias": part.qkv_bias})


def window(cfg: dict[str, Any]) -> int:
    """How long a sentence may be before a layer looks back at a part of it only; 0: as long as one likes."""
    sliding = cfg.get("sliding_window") if cfg.get("use_sliding_window", True) else None
    return int(sliding or 0)


def place_embeddings(
    table: Float[Tensor, "ids width"], fresh: Float[Tensor, "size width"], vocabulary: Vocabulary
) -> Float[Tensor, "size width"]:
    """`fresh`, with the rows of a language model's table where the vocabulary has text; marks and codes stay fresh.

    Fresh rows are brought to the length that the model's rows have on average. A table may be longer than its tokenizer
    is: the rows behind are left out. Also for an output that is not tied. UserError: too short, or of another width.
    """
    span = vocabulary.span("text")
    require(
        len(table) >= len(span) and table.shape[1] == fresh.shape[1],
        f"a table of {len(table)} words x {table.shape[1]} does not fit a vocabulary of {len(span)} words x "
        f"{fresh.shape[1]}; give the tokenizer that came with the language model",
    )
    words = table[: len(span)].to(fresh)
    placed = fresh * (words.norm(dim=1).mean() / fresh.norm(dim=1).mean().clamp(min=1e-12))
    return torch.cat([placed[: span.start], words, placed[span.stop :]])


LLAMA = Layout(
    library="hf",
    modality="text",
    kinds=("llama", "mistral", "qwen2", "qwen3"),
    part=trunk,
    scopes=("model.",),
    outside=r".*\.rotary_emb\.inv_freq$",
    table=Table(
        ("blocks.*.norm1", "layers.*.input_layernorm"),
        ("blocks.*.norm2", "layers.*.post_attention_layernorm"),
        ("blocks.*.attn.qkv", "layers.*.self_attn.{q,k,v}_proj"),
        ("blocks.*.attn.proj", "layers.*.self_attn.o_proj"),
        ("blocks.*.attn.q_norm", "layers.*.self_attn.q_norm"),
        ("blocks.*.attn.k_norm", "layers.*.self_attn.k_norm"),
        ("blocks.*.mlp.gate_up", "layers.*.mlp.{gate,up}_proj"),
        ("blocks.*.mlp.down", "layers.*.mlp.down_proj"),
        ("norm", "norm"),
        ("embedding", "embed_tokens"),
        ("output", "lm_head"),
    ),
)
LAYOUTS = (LLAMA,)
