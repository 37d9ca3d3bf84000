"""Vision transformers of timm, open_clip and transformers, as our `Vit`.

A class token with a position is one vector here, so the prefix is their sum; positions are those of patches.
"""

from dataclasses import replace
from typing import Any, cast

import timm
import torch
from torch import nn

from mmfm.compat.open_clip import TimmModel
from mmfm.compat.timm import (
    Attention,
    Block,
    LayerScale,
    Mlp,
    PatchEmbed,
    VisionTransformer,
    VisionTransformerDistilled,
)
from mmfm.config import ImagePreprocess, Vit
from mmfm.models.mappings.mapping import Foreign, Layout, Part, Weights, allow
from mmfm.models.mappings.settings import CLIP_NAMES, OPEN_CLIP_NAMES, activation_of, hf_config, open_clip_style, pair
from mmfm.models.vit import resize_positions

SCALE = 1e-5  # where fresh layer scales start; those of a source replace it


def seen_as(vit: Vit, foreign: Foreign) -> Vit:
    """With what the source expects of a picture."""
    pixels = foreign.contract
    if not isinstance(pixels, ImagePreprocess):
        return vit
    return replace(
        vit,
        height_px=pixels.height_px,
        width_px=pixels.width_px,
        resize_mode=pixels.resize_mode,
        crop_pct=pixels.crop_pct,
        interpolation=pixels.interpolation,
        resizer=pixels.resizer,
        odd=pixels.odd,
        mean=pixels.mean,
        std=pixels.std,
    )


def gathered(part: Part, weights: Weights, source: tuple[int, int], antialias: bool = True) -> Weights:
    """What stands before the patches as one prefix, its positions added; positions for the part's grid."""
    assert isinstance(part, Vit)
    done = dict(weights)
    first = [done.pop(name).view(-1, part.width) for name in ("class", "distilled", "registers") if name in done]
    if "position" not in done:
        return done
    table = done["position"].view(-1, part.width)
    grid = (
        source if 0 <= len(table) - source[0] * source[1] <= part.prefix else part.grid
    )  # as many need not be the same
    extra = len(table) - grid[0] * grid[1]
    allow("the source", 0 <= extra <= part.prefix, f"{len(table)} positions for {grid[0]} x {grid[1]} patches")
    if first:
        prefix = torch.cat(first)
        done["prefix"] = torch.cat([prefix[:extra] + table[:extra], prefix[extra:]])
    if grid == part.grid:
        return done | {"position": table[extra:]}
    return done | {"position": resize_positions(table[extra:], grid, part.grid, antialias)}


def timm_model(foreign: Foreign) -> Any:
    """Without weights, to read its choices off. open_clip has timm's models within its own."""
    made = foreign.architecture
    with torch.device("meta"):
        if foreign.library == "timm":
            cfg = made.get("pretrained_cfg")
            return timm.create_model(made["name"], pretrained=False, pretrained_cfg=cfg, **made.get("kwargs", {}))
        cfg = made["vision_cfg"]
        how = {"pool": cfg.get("timm_pool", "avg"), "proj": cfg.get("timm_proj", "linear")}
        return cast(Any, TimmModel(cfg["timm_model_name"], made.get("embed_dim", 1), **how)).trunk


def timm_kind(foreign: Foreign) -> str:
    return type(timm_model(foreign)).__name__


def timm_vit(foreign: Foreign) -> Vit:
    """timm's, DeiT's, CLIP's, DINOv2's and SigLIP's ViT differ in choices that the module shows."""
    model = timm_model(foreign)
    name = f"timm's {model.pretrained_cfg['architecture']}"
    allow(name, {type(model)} <= {VisionTransformer, VisionTransformerDistilled}, f"the class {type(model).__name__}")
    block, stem = model.blocks[0], model.patch_embed
    allow(name, [type(x) for x in (block, block.attn, block.mlp)] == [Block, Attention, Mlp], "blocks of another kind")
    extras = (block.attn.q_norm, block.attn.k_norm, getattr(block.attn, "norm", None), block.mlp.norm, stem.norm)
    allow(name, all(isinstance(part, nn.Identity | None) for part in extras), "norms within its attention, MLP or stem")
    allow(name, [type(stem)] == [PatchEmbed] and model.pos_embed is not None, "another stem, or no table of positions")
    allow(name, block.attn.qkv.bias is not None and block.attn.proj.bias is not None, "attention without biases")
    allow(name, stem.patch_size[0] == stem.patch_size[1], "patches that are not square")
    vit = Vit(
        height_px=stem.img_size[0],
        width_px=stem.img_size[1],
        patch_px=stem.patch_size[0],
        channels=stem.proj.in_channels,
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        hidden=block.mlp.fc1.out_features,
        activation=activation_of(block.mlp.act, name),
        eps=block.norm1.eps,
        prefix=model.num_prefix_tokens,
        patch_bias=stem.proj.bias is not None,
        norm_pre=not isinstance(model.norm_pre, nn.Identity),
        norm_post=not isinstance(model.norm, nn.Identity),
        layer_scale=SCALE if isinstance(block.ls1, LayerScale) else 0.0,
    )
    return seen_as(vit, foreign)


def hf_vit(foreign: Foreign) -> Vit:
    cfg = hf_config(foreign)
    kind, width, patch = cfg["model_type"], cfg["hidden_size"], pair(cfg["patch_size"])
    height_px, width_px = pair(cfg["image_size"])
    dino, clip = kind.startswith("dinov2"), kind.startswith("clip")
    allow(f"this {kind}", cfg.get("qkv_bias", True), "attention without biases")
    allow(f"this {kind}", not cfg.get("use_swiglu_ffn"), "gated MLPs")
    allow(f"this {kind}", patch[0] == patch[1], "patches that are not square")
    vit = Vit(
        height_px=height_px,
        width_px=width_px,
        patch_px=patch[0],
        channels=cfg["num_channels"],
        width=width,
        depth=cfg["num_hidden_layers"],
        heads=cfg["num_attention_heads"],
        hidden=int(width * cfg["mlp_ratio"]) if dino else cfg["intermediate_size"],
        activation=activation_of(cfg["hidden_act"], kind),
        eps=cfg["layer_norm_eps"],
        prefix={"deit": 2, "siglip_vision_model": 0}.get(kind, 1) + cfg.get("num_register_tokens", 0),
        patch_bias=not clip,
        norm_pre=clip,
        norm_post=not clip,  # CLIP's last norm is of what it pools, not of its tokens
        layer_scale=SCALE if dino else 0.0,
    )
    return seen_as(vit, foreign)


def open_clip_vit(foreign: Foreign) -> Vit:
    cfg, name = foreign.architecture["vision_cfg"], "open_clip's image tower"
    patch, (height_px, width_px) = pair(cfg.get("patch_size", 16)), pair(cfg.get("image_size", 224))
    width = cfg.get("width", 768)
    allow(name, isinstance(cfg.get("layers", 12), int), "convolutions")
    allow(name, not cfg.get("attentional_pool"), "an attentional pool")
    allow(name, not cfg.get("final_ln_after_pool"), "a last norm after its pool")
    allow(name, patch[0] == patch[1], "patches that are not square")
    activation, eps = open_clip_style(foreign.architecture, cfg, name)
    vit = Vit(
        height_px=height_px,
        width_px=width_px,
        patch_px=patch[0],
        width=width,
        depth=cfg.get("layers", 12),
        heads=width // cfg.get("head_width", 64),
        hidden=int(width * cfg.get("mlp_ratio", 4.0)),
        activation=activation,
        eps=eps,
        prefix=1,
        patch_bias=False,
        norm_pre=not cfg.get("no_ln_pre", False),
        layer_scale=SCALE if cfg.get("ls_init_value") is not None else 0.0,
    )
    return seen_as(vit, foreign)


def fit_timm(part: Part, weights: Weights, foreign: Foreign) -> Weights:
    size = timm_model(foreign).patch_embed.grid_size
    return gathered(part, weights, (size[0], size[1]))


def fit_hf(part: Part, weights: Weights, foreign: Foreign) -> Weights:
    assert isinstance(part, Vit)
    cfg = hf_config(foreign)
    height_px, width_px = pair(cfg["image_size"])
    antialias = cfg["model_type"] == "dinov2_with_registers"  # the only one that transformers resizes with it
    return gathered(part, weights, (height_px // part.patch_px, width_px // part.patch_px), antialias)


def fit_open_clip(part: Part, weights: Weights, foreign: Foreign) -> Weights:
    assert isinstance(part, Vit)
    height_px, width_px = pair(foreign.architecture["vision_cfg"].get("image_size", 224))
    return gathered(part, weights, (height_px // part.patch_px, width_px // part.patch_px))


TIMM = Layout(
    library="timm",
    modality="image",
    kinds=("VisionTransformer", "VisionTransformerDistilled"),
    part=timm_vit,
    fit=fit_timm,
    outside=(r"(head|head_dist|fc_norm|attn_pool)\.",),
    renames=(
        (r"^patch_embed\.proj\.", "stem."),
        (r"^cls_token$", "class"),
        (r"^dist_token$", "distilled"),
        (r"^reg_token$", "registers"),
        (r"^pos_embed$", "position"),
        (r"\.ls([12])\.gamma$", r".scale\1.gamma"),
    ),
)
OTHER_TOWER = (
    r"(text|transformer|token_embedding|ln_final)\.|(positional_embedding|text_projection|logit_scale|logit_bias)$"
)
TIMM_IN_OPEN_CLIP = replace(
    TIMM,
    library="open_clip",
    scopes=("visual.trunk.", "trunk."),
    beside=rf"(visual\.)?head\.|{OTHER_TOWER}",
)
OPEN_CLIP = Layout(
    library="open_clip",
    modality="image",
    kinds=("",),
    part=open_clip_vit,
    fit=fit_open_clip,
    scopes=("visual.",),
    outside=(r"proj$",),
    beside=OTHER_TOWER,
    renames=OPEN_CLIP_NAMES,
)
VIT = Layout(  # as transformers 5 names them, and as it saves them
    library="hf",
    modality="image",
    kinds=("vit", "deit", "dinov2", "dinov2_with_registers"),
    part=hf_vit,
    fit=fit_hf,
    scopes=("vit.", "deit.", "dinov2.", "dinov2_with_registers."),
    outside=(r"pooler\.|(cls_|distillation_)?classifier\.|embeddings\.mask_token$",),
    renames=(
        (r"^(encoder\.layer|layers)\.", "blocks."),
        (r"\.attention\.(?:attention\.)?(q|k|v)(?:_proj|uery|ey|alue)\.", r".attn.\1."),
        (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.layer_scale([12])\.lambda1$", r".scale\1.gamma"),
        (r"^layernorm\.", "norm."),
        (r"^embeddings\.patch_embeddings\.projection\.", "stem."),
        (r"^embeddings\.cls_token$", "class"),
        (r"^embeddings\.distillation_token$", "distilled"),
        (r"^embeddings\.register_tokens$", "registers"),
        (r"^embeddings\.position_embeddings$", "position"),
    ),
)
CLIP = Layout(
    library="hf",
    modality="image",
    kinds=("clip_vision_model",),
    part=hf_vit,
    fit=fit_hf,
    scopes=("vision_model.",),
    outside=(r"post_layernorm\.", r"embeddings\.position_ids$"),
    beside=r"text_model\.|(visual|text)_projection\.|(logit_scale|logit_bias)$",
    renames=CLIP_NAMES,
)
SIGLIP = replace(
    CLIP,
    kinds=("siglip_vision_model",),
    outside=(r"head\.", r"embeddings\.position_ids$"),
)
LAYOUTS = (TIMM, TIMM_IN_OPEN_CLIP, OPEN_CLIP, VIT, CLIP, SIGLIP)
