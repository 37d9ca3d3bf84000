"""To open_clip and back, and from what `mmfm.pretrained` wraps: one tower in all its forms."""

import json
from dataclasses import replace

import open_clip
import pytest
import torch
from peers import OPEN_CLIP, SMALL, TEXT, built, double, drawn, ids_of, of_open_clip, open_clip_tokens, ours, shaken
from torch import Tensor, nn
from transformers import CLIPTextConfig, Dinov2Config

from mmfm.config import EncoderSpec, ImagePreprocess, TextTower, TokenizerSpec, Trunk, UserError, Vit
from mmfm.models.mappings import Part, convert, foreign, to_open_clip
from mmfm.pretrained import build

IMAGE = Vit(
    height_px=32, width_px=16, patch_px=8, width=32, depth=2, heads=4, prefix=1, norm_pre=True, eps=1e-4, hidden=40,
    mean=(0.4, 0.5, 0.6), std=(0.3,),
)  # fmt: skip
WORDS = TextTower(width=32, depth=2, heads=4, context=9, causal=True, vocabulary=20, eps=1e-5)
FILLED = TokenizerSpec(sha256="0" * 64, context=9, fill=True)
PARTS: dict[str, Part] = {
    "image": replace(IMAGE, patch_bias=False, activation="quick_gelu"),
    "image with a bias in its stem": IMAGE,
    "image without a first norm": replace(IMAGE, norm_pre=False, activation="gelu_tanh"),
    "image with scales": replace(IMAGE, layer_scale=0.5),
    "text": replace(WORDS, activation="quick_gelu"),
    "text that sees all": replace(WORDS, causal=False, words=FILLED, activation="gelu_tanh", hidden=48),
}


def whole(part: Part, weights: dict[str, Tensor]) -> nn.Module:
    """open_clip's model with this tower, strictly loaded; its projections and the other tower are as they come."""
    source, state = to_open_clip(part, weights)
    cfg = OPEN_CLIP | dict(source.architecture)
    model = open_clip.CLIP(**cfg).eval()
    projection = "proj" if source.modality == "image" else "text_projection"
    tower = model.visual if source.modality == "image" else model
    shapes = {name: tensor.shape for name, tensor in tower.state_dict().items() if not name.startswith("visual.")}
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: shape for name, shape in shapes.items() if name not in (projection, "logit_scale")
    }
    assert not tower.load_state_dict(state, strict=False).unexpected_keys
    return model


@pytest.mark.parametrize("name", PARTS)
def test_our_tower_is_a_tower_of_open_clip(name: str) -> None:
    """open_clip builds it from the configuration, finds every tensor, and gives the same tokens."""
    part = PARTS[name]
    with double(), torch.no_grad():
        tower = shaken(built(part))
        model = whole(part, tower.state_dict())
        if isinstance(part, Vit):
            x = drawn(2, 3, 32, 16)
            shown = tower.renormalise(x)  # open_clip's transform does it, with `contract.mean` and `.std`
            torch.testing.assert_close(tower(x).x, open_clip_tokens(model, "image", shown), rtol=0, atol=1e-11)
        else:
            ids = ids_of(3, 9)
            found = tower(ids, torch.ones_like(ids, dtype=torch.bool)).x
            torch.testing.assert_close(found, open_clip_tokens(model, "text", ids), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", PARTS)
def test_there_and_back(name: str) -> None:
    """The part is what it was, but for a stem's bias that went into the positions; so are the tokens."""
    part = PARTS[name]
    with double(), torch.no_grad():
        tower = shaken(built(part))
        source, state = to_open_clip(part, tower.state_dict())
        converted, again = ours(source, state)
        if isinstance(part, Vit):
            scale = converted.part.layer_scale if part.layer_scale else 0.0  # where it started is not in the weights
            same = replace(part, patch_bias=False, hidden=part.hidden or 4 * part.width, layer_scale=scale)
            assert converted.part == same
            x = drawn(2, 3, 32, 16)
            torch.testing.assert_close(again(x).x, tower(x).x, rtol=0, atol=1e-11)
        else:
            assert converted.part == replace(part, hidden=part.hidden or 4 * part.width)
            ids = ids_of(3, 9)
            keep = torch.ones_like(ids, dtype=torch.bool)
            assert torch.equal(again(ids, keep).x, tower(ids, keep).x)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_from_open_clip_and_back(modality: str) -> None:
    """Every tensor of its tower is the same again; a class token has its position within it."""
    theirs, source = of_open_clip(modality, quick_gelu=True)
    converted = convert(source, theirs.state_dict())
    _, state = to_open_clip(converted.part, converted.weights)
    before = (theirs.visual if modality == "image" else theirs).state_dict()
    for name, tensor in state.items():
        if name == "class_embedding":
            torch.testing.assert_close(tensor, before[name] + before["positional_embedding"][0])
        elif name == "positional_embedding" and modality == "image":
            assert torch.equal(tensor[1:], before[name][1:]) and not tensor[0].any()
        else:
            assert torch.equal(tensor, before[name]), name


REFUSED = {
    "registers": (replace(IMAGE, prefix=5), "a class token alone before its patches, not 5"),
    "no token": (replace(IMAGE, prefix=0), "a class token alone before its patches, not 0"),
    "stem": (replace(IMAGE, stem="conv"), "a stem of patches"),
    "norm": (replace(IMAGE, norm_post=False), "a norm after its last block"),
    "silu": (replace(IMAGE, activation="silu"), "not silu"),
    "rotary": (replace(WORDS, context=0), "learned positions, not rotary ones"),
    "padding": (replace(WORDS, causal=False), "causal, or it sees the padding"),
    "trunk": (Trunk(width=32, depth=1, heads=4, kv_heads=4), "images and texts, not a Trunk"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_open_clip_has_not_is_refused(name: str) -> None:
    part, said = REFUSED[name]
    with pytest.raises(UserError, match=said):
        to_open_clip(part, built(part).state_dict())


@pytest.mark.parametrize("pool", ["", "avg"])
def test_a_model_of_timm_within_open_clip(pool: str) -> None:
    """As SigLIP's image tower in open_clip is: the same tokens, from the weights of the whole or of the tower."""
    vision = {
        "image_size": 160,
        "timm_model_name": "test_vit",
        "timm_pool": pool,
        "timm_proj": "linear" if pool else "",
    }
    theirs, source = of_open_clip("image", vision_cfg=vision, custom=True)
    part = convert(source, theirs.visual.state_dict()).part
    converted, tower = ours(source, theirs.state_dict())
    assert part == converted.part
    x = drawn(2, 3, 160, 160).float()
    torch.testing.assert_close(tower(x).x, theirs.visual.trunk.forward_features(x), rtol=0, atol=1e-5)


PIXELS = ImagePreprocess(height_px=32, width_px=32, resize_mode="crop", mean=(0.5,), std=(0.5,))
CLIP_WORDS = TokenizerSpec(sha256="0" * 64, context=9, begin=(1,), end=(2,))
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2, "patch_size": 8}
BLUEPRINTS = {
    "timm": {
        "library": "timm",
        "architecture": {
            "name": "vit_tiny_patch16_224",
            "kwargs": {"img_size": [32, 32], "depth": 2, "num_classes": 0},
        },
        "width": 192,
        "pixels": PIXELS,
    },
    "hf image": {
        "library": "hf",
        "architecture": {"config": Dinov2Config(**VISION, image_size=32).to_dict()},
        "width": 32,
        "pixels": PIXELS,
    },
    "hf text": {
        "library": "hf",
        "architecture": {
            "config": CLIPTextConfig(**SMALL, **{k: v for k, v in TEXT.items() if k not in SMALL}).to_dict()
        },
        "width": 32,
        "words": CLIP_WORDS,
    },
    "open_clip image": {
        "library": "open_clip",
        "architecture": {"embed_dim": 16, "quick_gelu": True, "tower": OPEN_CLIP["vision_cfg"]},
        "width": 32,
        "pixels": PIXELS,
    },
    "open_clip text": {
        "library": "open_clip",
        "architecture": {"embed_dim": 16, "quick_gelu": False, "tower": OPEN_CLIP["text_cfg"]},
        "width": 32,
        "words": CLIP_WORDS,
    },
}


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_what_is_wrapped_becomes_ours(name: str) -> None:
    """From the blueprint and the weights of a wrapped encoder: the same tokens, and the same contract."""
    made = BLUEPRINTS[name]
    image = "pixels" in made
    blueprint = EncoderSpec(
        **made | {"architecture": json.dumps(made["architecture"])}, modality="image" if image else "text"
    )
    wrapped = shaken(build(blueprint))
    converted, tower = ours(foreign(blueprint), wrapped.state_dict())
    if image:
        assert isinstance(converted.part, Vit) and converted.part.pixels == PIXELS
        x = drawn(2, 3, 32, 32).float()
        return torch.testing.assert_close(tower(x).x, wrapped(x).x, rtol=0, atol=1e-5)
    assert isinstance(converted.part, TextTower) and converted.part.words == CLIP_WORDS
    ids = ids_of(3, 7)
    keep = torch.arange(7) < torch.tensor([7, 4, 5])[:, None]
    torch.testing.assert_close(tower(ids, keep).x[keep], wrapped(ids, keep).x[keep], rtol=0, atol=1e-5)
