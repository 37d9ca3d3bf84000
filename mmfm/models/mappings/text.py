"""Text towers of open_clip and of transformers' CLIP and SigLIP, as our `TextTower`: tokens, before any pooling.

Ours has one row more in its table, for a masked token: the tokenizer's own mask where there is one, else the mean row.
"""

from dataclasses import replace

import torch

from mmfm.config import TextTower, TokenizerSpec
from mmfm.models.mappings.image import CLIP_NAMES, OPEN_CLIP_NAMES
from mmfm.models.mappings.mapping import Foreign, Layout, Part, Shapes, activation_of, allow, hf_config, open_clip_style
from mmfm.models.mappings.table import Weights


def words_of(foreign: Foreign) -> TokenizerSpec | None:
    return foreign.contract if isinstance(foreign.contract, TokenizerSpec) else None


def hf_text(foreign: Foreign) -> TextTower:
    cfg = hf_config(foreign)
    kind = cfg["model_type"]
    return TextTower(
        width=cfg["hidden_size"],
        depth=cfg["num_hidden_layers"],
        heads=cfg["num_attention_heads"],
        hidden=cfg["intermediate_size"],
        activation=activation_of(cfg["hidden_act"], kind),
        eps=cfg["layer_norm_eps"],
        context=cfg["max_position_embeddings"],
        causal=kind.startswith("clip"),
        vocabulary=cfg["vocab_size"],
        words=words_of(foreign),
    )


def open_clip_text(foreign: Foreign) -> TextTower:
    cfg, name = foreign.architecture["text_cfg"], "open_clip's text tower"
    width = cfg.get("width", 512)
    allow(name, not cfg.get("hf_model_name"), "a model of transformers")
    allow(name, not cfg.get("embed_cls"), "a class token behind the text")
    allow(name, cfg.get("ls_init_value") is None, "scaled branches")
    activation, eps = open_clip_style(foreign.architecture, cfg, name)
    return TextTower(
        width=width,
        depth=cfg.get("layers", 12),
        heads=cfg.get("heads", 8),
        hidden=int(width * cfg.get("mlp_ratio", 4.0)),
        activation=activation,
        eps=eps,
        context=cfg.get("context_length", 77),
        causal=not cfg.get("no_causal_mask", False),
        vocabulary=cfg.get("vocab_size", 49408),
        words=words_of(foreign),
    )


def fit(part: Part, weights: Weights, foreign: Foreign) -> Weights:
    assert isinstance(part, TextTower)
    done, table = dict(weights), weights.get("embedding.weight")
    if table is not None:
        mask = part.words.mask if part.words is not None else -1
        row = table[mask] if mask >= 0 else table.mean(0)
        done["embedding.weight"] = torch.cat([table, row[None]])
    return done


def unfit(part: Part, weights: Weights, shapes: Shapes) -> Weights:
    """Without the row of a masked token."""
    return weights | {"embedding.weight": weights["embedding.weight"][:-1]}


OPEN_CLIP = Layout(
    library="open_clip",
    modality="text",
    kinds=("",),
    part=open_clip_text,
    fit=fit,
    unfit=unfit,
    scopes=("text.",),
    outside=r"visual\.|(logit_scale|logit_bias)$|text_projection(\.|$)",
    table=OPEN_CLIP_NAMES,
)
CLIP = Layout(
    library="hf",
    modality="text",
    kinds=("clip_text_model",),
    part=hf_text,
    fit=fit,
    unfit=unfit,
    scopes=("text_model.",),
    outside=r"embeddings\.position_ids$",
    beside=r"vision_model\.|(visual|text)_projection\.|(logit_scale|logit_bias)$",
    table=CLIP_NAMES,
)
SIGLIP = replace(CLIP, kinds=("siglip_text_model",), outside=r"head\.|embeddings\.position_ids$")
LAYOUTS = (OPEN_CLIP, CLIP, SIGLIP)
