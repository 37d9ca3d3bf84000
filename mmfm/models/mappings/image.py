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
from mmfm.config import ImagePreprocess, Vit, require
from mmfm.models.mappings.mapping import (
    Foreign,
    Layout,
    Part,
    Shapes,
    activation_of,
    allow,
    hf_config,
    open_clip_style,
    pair,
)
from mmfm.models.mappings.table import Table, Weights
from mmfm.models.vit import resize_positions

PREFIX = ("class", "distilled", "registers")  # in the order of our prefix
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
    first = [done.pop(name).view(-1, part.width) for name in PREFIX if name in done]
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


def spread(part: Part, weights: Weights, shapes: Shapes) -> Weights:
    """The inverse of `gathered`: the prefix as the tokens that these shapes have, which have no position of their own.

    A bias of the stem that the library has no place for is added to the positions; one that ours lacks is zero.
    """
    assert isinstance(part, Vit)
    done = dict(weights)
    position, prefix = done.pop("position"), done.pop("prefix", torch.zeros(0, part.width))
    if "stem.bias" in done and "stem.bias" not in shapes:
        position = position + done.pop("stem.bias")
    if "stem.bias" in shapes:
        done.setdefault("stem.bias", torch.zeros(part.width).to(position))
    for name in PREFIX:
        if name in shapes:
            count = shapes[name].numel() // part.width
            done[name], prefix = prefix[:count], prefix[count:]
    require(not len(prefix), f"the other library has no place for {len(prefix)} of the tokens before the patches")
    before = shapes["position"].numel() // part.width - len(position)
    require(before >= 0, "the other library has another grid of patches; give a model of this size")
    return done | {"position": torch.cat([position.new_zeros(before, part.width), position])}


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


BLOCK = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
TIMM_NAMES = Table(
    *((f"blocks.*.{name}", f"blocks.*.{name}") for name in BLOCK),
    *((f"blocks.*.scale{n}", f"blocks.*.ls{n}") for n in (1, 2)),
    ("norm", "norm"),
    ("norm_pre", "norm_pre"),
    ("stem", "patch_embed.proj"),
    ("class", "cls_token"),
    ("distilled", "dist_token"),
    ("registers", "reg_token"),
    ("position", "pos_embed"),
)
OPEN_CLIP_NAMES = Table(  # both towers
    ("blocks.*.norm1", "transformer.resblocks.*.ln_1"),
    ("blocks.*.norm2", "transformer.resblocks.*.ln_2"),
    ("blocks.*.scale1", "transformer.resblocks.*.ls_1"),
    ("blocks.*.scale2", "transformer.resblocks.*.ls_2"),
    ("blocks.*.attn.qkv", "transformer.resblocks.*.attn.in_proj_"),
    ("blocks.*.attn.proj", "transformer.resblocks.*.attn.out_proj"),
    ("blocks.*.mlp.fc1", "transformer.resblocks.*.mlp.c_fc"),
    ("blocks.*.mlp.fc2", "transformer.resblocks.*.mlp.c_proj"),
    ("norm", "ln_post | ln_final"),
    ("norm_pre", "ln_pre"),
    ("stem", "conv1"),
    ("class", "class_embedding"),
    ("position", "positional_embedding"),
    ("embedding", "token_embedding"),
)
CLIP_NAMES = Table(  # transformers' CLIP and SigLIP, both towers
    ("blocks.*.norm1", "encoder.layers.*.layer_norm1"),
    ("blocks.*.norm2", "encoder.layers.*.layer_norm2"),
    ("blocks.*.attn.qkv", "encoder.layers.*.self_attn.{q,k,v}_proj"),
    ("blocks.*.attn.proj", "encoder.layers.*.self_attn.out_proj"),
    ("blocks.*.mlp.fc1", "encoder.layers.*.mlp.fc1"),
    ("blocks.*.mlp.fc2", "encoder.layers.*.mlp.fc2"),
    ("norm", "post_layernorm | final_layer_norm"),
    ("norm_pre", "pre_layrnorm"),
    ("stem", "embeddings.patch_embedding"),
    ("class", "embeddings.class_embedding"),
    ("position", "embeddings.position_embedding.weight"),
    ("embedding", "embeddings.token_embedding"),
)
VIT_BLOCK = {  # as transformers 5 names them in memory, and as it saves them
    "norm1": "layernorm_before | norm1",
    "norm2": "layernorm_after | norm2",
    "attn.qkv": "attention.{q,k,v}_proj | attention.attention.{query,key,value}",
    "attn.proj": "attention.o_proj | attention.output.dense",
    "mlp.fc1": "mlp.fc1 | intermediate.dense",
    "mlp.fc2": "mlp.fc2 | output.dense",
    "scale1.gamma": "layer_scale1.lambda1",
    "scale2.gamma": "layer_scale2.lambda1",
}
VIT_LISTS = ("layers.*.", "encoder.layer.*.")
VIT_NAMES = Table(
    *(
        (f"blocks.*.{name}", " | ".join(at + one for at in VIT_LISTS for one in them.split(" | ")))
        for name, them in VIT_BLOCK.items()
    ),
    ("norm", "layernorm"),
    ("stem", "embeddings.patch_embeddings.projection"),
    ("class", "embeddings.cls_token"),
    ("distilled", "embeddings.distillation_token"),
    ("registers", "embeddings.register_tokens"),
    ("position", "embeddings.position_embeddings"),
)
TIMM = Layout(
    library="timm",
    modality="image",
    kinds=("VisionTransformer", "VisionTransformerDistilled"),
    part=timm_vit,
    fit=fit_timm,
    unfit=spread,
    outside=r"(head|head_dist|fc_norm|attn_pool)\.",
    table=TIMM_NAMES,
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
    unfit=spread,
    scopes=("visual.",),
    outside=r"proj$",
    beside=OTHER_TOWER,
    table=OPEN_CLIP_NAMES,
)
VIT = Layout(
    library="hf",
    modality="image",
    kinds=("vit", "deit", "dinov2", "dinov2_with_registers"),
    part=hf_vit,
    fit=fit_hf,
    unfit=spread,
    scopes=("vit.", "deit.", "dinov2.", "dinov2_with_registers."),
    outside=r"pooler\.|(cls_|distillation_)?classifier\.|embeddings\.mask_token$",
    table=VIT_NAMES,
)
CLIP = Layout(
    library="hf",
    modality="image",
    kinds=("clip_vision_model",),
    part=hf_vit,
    fit=fit_hf,
    unfit=spread,
    scopes=("vision_model.",),
    outside=r"post_layernorm\.|embeddings\.position_ids$",
    beside=r"text_model\.|(visual|text)_projection\.|(logit_scale|logit_bias)$",
    table=CLIP_NAMES,
)
SIGLIP = replace(CLIP, kinds=("siglip_vision_model",), outside=r"head\.|embeddings\.position_ids$")
LAYOUTS = (TIMM, TIMM_IN_OPEN_CLIP, OPEN_CLIP, VIT, CLIP, SIGLIP)
