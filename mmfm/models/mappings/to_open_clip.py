"""Our `Vit` and `TextTower` as towers of open_clip: the tables of names the other way round.

What open_clip lacks is folded where that changes nothing: a bias of the stem goes into the positions, and the position
of the class token, which ours has none of, is zero.
"""

import re
from typing import Any

import torch

from mmfm.config import TextTower, Vit, require
from mmfm.models.mappings.mapping import Foreign, Part, Weights

NAMES = (
    (r"^blocks\.", "transformer.resblocks."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.scale([12])\.", r".ls_\1."),
    (r"\.attn\.qkv\.", ".attn.in_proj_"),
    (r"\.attn\.proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"^position$", "positional_embedding"),
    (r"^embedding\.", "token_embedding."),
    (r"^norm_pre\.", "ln_pre."),
)
IMAGE = ((r"^stem\.", "conv1."), (r"^norm\.", "ln_post."), (r"^prefix$", "class_embedding"))
TEXT = ((r"^norm\.", "ln_final."),)


def to_open_clip(part: Part, weights: Weights) -> tuple[Foreign, Weights]:
    """What `convert` takes back: `vision_cfg` or `text_cfg` with `quick_gelu`, and the tower's state.

    Its projection is not among the weights (`visual.proj`, `text_projection`): a tower has none. Names are those of a
    tower alone; in a whole model an image tower's begin with "visual.". UserError: open_clip has no such tower.
    """
    require(isinstance(part, Vit | TextTower), f"open_clip has towers of images and texts, not a {type(part).__name__}")
    assert isinstance(part, Vit | TextTower)
    if isinstance(part, Vit):
        modality, contract, cfg, table = "image", part.pixels, {"vision_cfg": _image_cfg(part)}, (*NAMES, *IMAGE)
        named = _image(weights)
    else:
        modality, contract, cfg, table = "text", part.words, {"text_cfg": _text_cfg(part)}, (*NAMES, *TEXT)
        named = weights | {"embedding.weight": weights["embedding.weight"][:-1]}  # the last: of a masked token
    found = {}
    for name, tensor in named.items():
        for pattern, replacement in table:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor.contiguous()
    architecture = cfg | {"quick_gelu": part.activation == "quick_gelu"}
    return Foreign(library="open_clip", architecture=architecture, modality=modality, contract=contract), found


def _image(weights: Weights) -> Weights:
    done = {name: tensor for name, tensor in weights.items() if not name.startswith("renormalise.")}
    bias = done.pop("stem.bias", None)
    position = done["position"] if bias is None else done["position"] + bias
    done["position"] = torch.cat([torch.zeros_like(position[:1]), position])
    done["prefix"] = done["prefix"][0]
    return done


def _image_cfg(part: Vit) -> dict[str, Any]:
    require(part.stem == "patch" and part.channels == 3, "open_clip's image tower has a stem of patches, of 3 channels")
    require(part.prefix == 1, f"open_clip's image tower has a class token alone before its patches, not {part.prefix}")
    require(part.norm_post, "open_clip's image tower has a norm after its last block")
    cfg = {
        "image_size": [part.height_px, part.width_px],
        "patch_size": part.patch_px,
        "head_width": part.width // part.heads,
        "no_ln_pre": not part.norm_pre,
    }
    return cfg | _style(part) | ({"ls_init_value": part.layer_scale} if part.layer_scale else {})


def _text_cfg(part: TextTower) -> dict[str, Any]:
    filled = part.words is not None and part.words.fill
    require(part.context > 0, "open_clip's text tower has learned positions, not rotary ones; say TextTower.context")
    require(part.causal or filled, "open_clip's text tower is causal, or it sees the padding; this one is neither")
    cfg = {"context_length": part.context, "vocab_size": part.vocabulary, "heads": part.heads}
    return cfg | _style(part) | {"no_causal_mask": not part.causal}


def _style(part: Vit | TextTower) -> dict[str, Any]:
    require(part.activation != "silu", f"open_clip's towers have GELU in their MLPs, not {part.activation}")
    cfg: dict[str, Any] = {
        "width": part.width,
        "layers": part.depth,
        "mlp_ratio": (part.hidden or 4 * part.width) / part.width,
    }
    tanh = {"act_kwargs": {"approximate": "tanh"}} if part.activation == "gelu_tanh" else {}
    return cfg | tanh | {"norm_kwargs": {"eps": part.eps}}
