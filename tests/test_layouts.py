"""Towers of other libraries in our own modules: the same function, and nothing lost or made up on the way."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from peers import (
    DINO,
    OPEN_CLIP,
    PICTURE,
    SMALL,
    TEXT,
    built,
    double,
    drawn,
    ids_of,
    of_hf,
    of_open_clip,
    of_timm,
    open_clip_tokens,
    ours,
    padded,
    shaken,
)  # fmt: skip
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from mmfm.config import ImagePreprocess, TextTower, TokenizerSpec, UserError, Vit
from mmfm.models.layers import ACTIVATIONS
from mmfm.models.mappings import Foreign, convert, find
from mmfm.models.text_transformer import TextTransformer
from mmfm.models.vit import VisionTransformer, normalise, resize_positions

Made = tuple[nn.Module, Foreign]
TIMM: dict[str, Callable[[], Made]] = {
    "vit": lambda: of_timm("vit_tiny_patch16_224"),
    "mean pool": lambda: of_timm("vit_tiny_patch16_224", global_pool="avg"),
    "oblong": lambda: of_timm("vit_tiny_patch16_224", img_size=(32, 48)),
    "deit": lambda: of_timm("deit_tiny_patch16_224"),
    "deit distilled": lambda: of_timm("deit_tiny_distilled_patch16_224"),
    "clip": lambda: of_timm("vit_base_patch32_clip_224"),
    "clip quickgelu": lambda: of_timm("vit_base_patch32_clip_quickgelu_224"),
    "dinov2": lambda: of_timm("vit_small_patch14_dinov2"),
    "dinov2 registers": lambda: of_timm("vit_small_patch14_reg4_dinov2"),
    "siglip": lambda: of_timm("vit_base_patch16_siglip_224"),
}
HF: dict[str, Callable[[], Made]] = {
    "ViT": lambda: of_hf("ViTModel", "image", **SMALL, **PICTURE),
    "DeiT": lambda: of_hf("DeiTModel", "image", **SMALL, **PICTURE),
    "DINOv2": lambda: of_hf("Dinov2Model", "image", **DINO),
    "DINOv2 registers": lambda: of_hf("Dinov2WithRegistersModel", "image", **DINO),
    "CLIP": lambda: of_hf("CLIPVisionModel", "image", **SMALL, **PICTURE),
    "SigLIP": lambda: of_hf("SiglipVisionModel", "image", **SMALL, **PICTURE),
}
CLIPS: dict[str, Callable[[str], Made]] = {
    "plain": lambda modality: of_open_clip(modality),
    "quickgelu": lambda modality: of_open_clip(modality, quick_gelu=True),
    "custom text": lambda modality: of_open_clip(modality, custom=True),
    "scaled": lambda modality: of_open_clip(
        modality, vision_cfg=OPEN_CLIP["vision_cfg"] | {"ls_init_value": 0.1, "no_ln_pre": True, "mlp_ratio": 2.0}
    ),
    "tanh": lambda modality: of_open_clip(
        modality,
        vision_cfg=OPEN_CLIP["vision_cfg"] | {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-3}},
        text_cfg=OPEN_CLIP["text_cfg"] | {"act_kwargs": {"approximate": "tanh"}, "no_causal_mask": True},
    ),
}
TEXTS: dict[str, Callable[[], Made]] = {
    "CLIP": lambda: of_hf("CLIPTextModel", "text", **TEXT),
    "SigLIP": lambda: of_hf("SiglipTextModel", "text", **TEXT),
}


def same(found: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def same_with_gradient(one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """The same tokens, and the same gradient at the input of a loss that weighs each of them differently."""
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    found, expected = one(inputs[0]), other(inputs[1])
    same(found, expected)
    weight = drawn(*found.shape, seed=2)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y, x in zip((found, expected), inputs, strict=True)]
    same(*gradients, atol=1e-11)
    assert gradients[0].abs().max() > 1e-3


@pytest.mark.parametrize("name", TIMM)
def test_timms_vision_transformers(name: str) -> None:
    """All tokens, prefix included, and their gradient are those of `forward_features`."""
    with double():
        theirs, source = TIMM[name]()
        _, tower = ours(source, theirs.state_dict())
        size = source.architecture["kwargs"]["img_size"]
        x = drawn(2, 3, *(size if isinstance(size, tuple) else (size, size)))
        same_with_gradient(lambda x: tower(x).x, theirs.forward_features, x)


@pytest.mark.parametrize("name", HF)
def test_vision_transformers_of_transformers(name: str) -> None:
    """`last_hidden_state` and its gradient."""
    with double():
        theirs, source = HF[name]()
        _, tower = ours(source, theirs.state_dict())
        same_with_gradient(
            lambda x: tower(x).x, lambda x: theirs(pixel_values=x).last_hidden_state, drawn(2, 3, 32, 32)
        )


@pytest.mark.parametrize("name", CLIPS)
def test_image_towers_of_open_clip(name: str) -> None:
    """All tokens after the last norm, from the weights of the whole model and from those of the tower alone."""
    with double():
        theirs, source = CLIPS[name]("image")
        whole, tower = ours(source, theirs.state_dict())
        same_with_gradient(lambda x: tower(x).x, lambda x: open_clip_tokens(theirs, "image", x), drawn(2, 3, 32, 32))
    alone = convert(source, theirs.visual.state_dict())
    assert alone.part == whole.part and all(torch.equal(alone.weights[k], v) for k, v in whole.weights.items())


@pytest.mark.parametrize("name", CLIPS)
def test_text_towers_of_open_clip(name: str) -> None:
    """The tokens of whole texts; in a causal tower also those of a text beside a longer one, alone and padded."""
    with double():
        theirs, source = CLIPS[name]("text")
        converted, tower = ours(source, theirs.state_dict())
        ids, keep = ids_of(3, 9), padded([9, 5, 7], 9)
        expected = open_clip_tokens(theirs, "text", ids)
        same(tower(ids, torch.ones_like(keep)).x, expected)
        assert isinstance(converted.part, TextTower)
        if converted.part.causal:
            same(tower(ids, keep).x[keep], expected[keep])
            same(tower(ids[1:2, :5], keep[1:2, :5]).x, expected[1:2, :5])


@pytest.mark.parametrize("name", TEXTS)
def test_text_towers_of_transformers(name: str) -> None:
    """The real tokens' states, of texts of several lengths in a batch and of one alone."""
    with double():
        theirs, source = TEXTS[name]()
        _, tower = ours(source, theirs.state_dict())
        ids, keep = ids_of(3, 9), padded([9, 5, 7], 9)
        expected = theirs(input_ids=ids, attention_mask=keep.long()).last_hidden_state
        same(tower(ids, keep).x[keep], expected[keep])
        same(tower(ids[1:2, :5], keep[1:2, :5]).x[0], expected[1, :5])


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_whole_model_of_transformers_gives_either_tower(kind: str, modality: str, tmp_path: Path) -> None:
    """From the configuration and the saved weights of both towers together: that tower, and nothing of the other."""
    with double():
        theirs, source = of_hf(f"{kind}Model", modality, text_config=TEXT, vision_config=SMALL | PICTURE)
        theirs.save_pretrained(tmp_path)
        _, tower = ours(source, load_file(tmp_path / "model.safetensors"))
        if modality == "image":
            x = drawn(2, 3, 32, 32)
            return same(tower(x).x, theirs.vision_model(pixel_values=x).last_hidden_state)
        ids = ids_of(2, 9)
        same(tower(ids, torch.ones_like(ids, dtype=torch.bool)).x, theirs.text_model(input_ids=ids).last_hidden_state)


@pytest.mark.parametrize("name", HF)
def test_names_on_disk_are_not_those_in_memory(name: str, tmp_path: Path) -> None:
    """transformers 5 renames tensors as it loads and saves under the older names: both give the same weights."""
    theirs, source = HF[name]()
    theirs.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert (set(saved) == set(theirs.state_dict())) == (name in ("CLIP", "SigLIP"))
    from_file, from_memory = convert(source, saved), convert(source, theirs.state_dict())
    assert from_file.weights.keys() == from_memory.weights.keys()
    assert all(torch.equal(tensor, from_memory.weights[name]) for name, tensor in from_file.weights.items())


def test_a_classifier_gives_its_tower() -> None:
    """ViTForImageClassification: the tower is the same as that of its inner model; the classifier has no place."""
    with double():
        theirs, source = of_hf("ViTForImageClassification", "image", **SMALL, **PICTURE)
        _, tower = ours(source, theirs.state_dict())
        x = drawn(2, 3, 32, 32)
        same(tower(x).x, theirs.vit(pixel_values=x).last_hidden_state)


TRAPS = {  # what the source has, and how a careless import would have it
    "CLIP of transformers is QuickGELU": (HF["CLIP"], {"activation": "gelu"}),
    "SigLIP of transformers is tanh": (HF["SigLIP"], {"activation": "gelu"}),
    "SigLIP of timm is exact": (TIMM["siglip"], {"activation": "gelu_tanh"}),
    "CLIP of timm is exact": (TIMM["clip"], {"activation": "quick_gelu"}),
    "CLIP's eps": (HF["CLIP"], {"eps": 1e-6}),
    "ViT's eps": (HF["ViT"], {"eps": 1e-6}),
    "the last norm": (TIMM["mean pool"], {"norm_post": True}),
}


@pytest.mark.parametrize("name", TRAPS)
def test_a_wrong_choice_is_another_function(name: str) -> None:
    """The weights fit all the same, and the tokens are off by ten thousand times what parity allows."""
    make, wrong = TRAPS[name]
    with double():
        theirs, source = make()
        converted, tower = ours(source, theirs.state_dict())
        assert isinstance(converted.part, Vit)
        other = built(replace(converted.part, **wrong))
        left = other.load_state_dict(converted.weights, strict=False)
        assert not left.unexpected_keys and all(key.startswith("norm.") for key in left.missing_keys)
        x = drawn(2, 3, 32, 32)
        assert (other(x).x - tower(x).x).abs().max() > 1e-8


def test_the_activations_are_three() -> None:
    """At 1: exact GELU, its tanh form and QuickGELU to six digits, from their formulas; no two agree."""
    one = torch.tensor([1.0], dtype=torch.float64)
    expected = {"gelu": 0.841345, "gelu_tanh": 0.841192, "quick_gelu": 0.845796, "silu": 0.731059}
    assert {name: round(act(one).item(), 6) for name, act in ACTIVATIONS.items()} == expected


def test_a_tensor_too_many_too_few_or_misshapen_is_named() -> None:
    """Each of the mistakes says which tensor, on one line."""
    theirs, source = TIMM["dinov2 registers"]()
    whole = theirs.state_dict()
    with pytest.raises(UserError, match=r"Vit has no place for \['blocks.0.attn.rope'\]"):
        convert(source, whole | {"blocks.0.attn.rope": torch.zeros(1)})
    for lost, said in {
        "blocks.1.ls2.gamma": "blocks.1.scale2.gamma",
        "patch_embed.proj.bias": "stem.bias",
        "norm.weight": "norm.weight",
        "pos_embed": "position",
    }.items():
        with pytest.raises(UserError, match=rf"no tensor for \['{said}'\] of Vit"):
            convert(source, {name: tensor for name, tensor in whole.items() if name != lost})
    with pytest.raises(UserError, match=r"prefix of the source is \[1, 32\], of Vit \[5, 32\]"):
        convert(source, {name: tensor for name, tensor in whole.items() if name != "reg_token"})
    with pytest.raises(UserError, match=r"blocks.0.mlp.fc1.bias of the source is \[9\], of Vit \[128\]"):
        convert(source, whole | {"blocks.0.mlp.fc1.bias": torch.zeros(9)})


def test_a_lost_key_is_named_before_it_is_fused() -> None:
    """Of queries, keys and values one is missing: the error says which, and beside what."""
    theirs, source = HF["ViT"]()
    for lost in "qkv":
        weights = theirs.state_dict()
        del weights[f"layers.1.attention.{lost}_proj.bias"]
        with pytest.raises(UserError, match=rf"lack what is \['blocks.1.attn.{lost}.bias'\] here"):
            convert(source, weights)


REFUSED = {
    "qk norm": (lambda: of_timm("vit_tiny_patch16_224", qk_norm=True), "norms within its attention"),
    "gated": (lambda: of_hf("Dinov2Model", "image", **DINO, use_swiglu_ffn=True), "gated MLPs"),
    "no bias": (lambda: of_hf("ViTModel", "image", **SMALL, **PICTURE, qkv_bias=False), "attention without biases"),
    "pool": (
        lambda: of_open_clip("image", vision_cfg=OPEN_CLIP["vision_cfg"] | {"attentional_pool": True}),
        "an attentional pool",
    ),
    "cls": (lambda: of_open_clip("text", text_cfg=OPEN_CLIP["text_cfg"] | {"embed_cls": True}), "a class token behind"),
    "norm": (
        lambda: of_open_clip("text", text_cfg=OPEN_CLIP["text_cfg"] | {"scale_fc": True, "block_type": "custom"}),
        "scale_fc=True",
    ),
    "swin": (
        lambda: (
            nn.Identity(),
            Foreign(library="timm", architecture={"name": "swin_tiny_patch4_window7_224"}, modality="image"),
        ),
        "no layout for timm's SwinTransformer",
    ),
    "bert": (
        lambda: (nn.Identity(), Foreign(library="hf", architecture={"model_type": "bert"}, modality="text")),
        "no layout for hf's bert",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_place_is_refused_with_the_way_out(name: str) -> None:
    make, said = REFUSED[name]
    theirs, source = make()
    with pytest.raises(UserError, match=said) as error:
        convert(source, theirs.state_dict())
    assert "import it wrapped, as a Tower" in str(error.value)


def test_a_layout_is_found_by_family() -> None:
    """A family is known before its choices are looked at; a modality that it has not, and a stranger, are not."""
    for make in (*TIMM.values(), *HF.values(), *TEXTS.values()):
        assert find(make()[1]) is not None
    assert find(replace(HF["ViT"]()[1], modality="text")) is None
    assert find(Foreign(library="torchaudio", architecture={"extractor_mode": "layer_norm"}, modality="audio")) is None


@pytest.mark.parametrize(("old", "new"), [((4, 4), (6, 6)), ((4, 6), (3, 8)), ((7, 7), (2, 2))])
def test_positions_are_resized_as_timm_does(old: tuple[int, int], new: tuple[int, int]) -> None:
    """Bicubic with antialiasing, up, down and to another shape."""
    table = drawn(old[0] * old[1], 8).float()
    theirs = resample_abs_pos_embed(table[None], new_size=list(new), old_size=list(old), num_prefix_tokens=0)
    torch.testing.assert_close(resize_positions(table, old, new), theirs[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_another_size_of_picture(name: str) -> None:
    """At once by the tower, and ahead by conversion for a contract of that size: both as timm's at a dynamic size."""
    theirs, source = of_timm(name, dynamic_img_size=True)
    x = drawn(2, 3, 48, 24).float()
    expected = theirs.forward_features(x)
    _, tower = ours(source, theirs.state_dict())
    torch.testing.assert_close(tower(x).x, expected, rtol=0, atol=1e-5)
    converted, tower = ours(replace(source, contract=ImagePreprocess(height_px=48, width_px=24)), theirs.state_dict())
    assert isinstance(converted.part, Vit) and converted.part.grid == (6, 3) == tower.grid
    torch.testing.assert_close(tower(x).x, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ViT", "DINOv2", "DINOv2 registers", "SigLIP"])
@pytest.mark.parametrize("size", [(48, 40), (16, 24)])
def test_another_size_of_picture_as_transformers_has_it(name: str, size: tuple[int, int]) -> None:
    """Converted for a contract of that size, positions are as transformers interpolates them, antialiased or not."""
    theirs, source = HF[name]()
    contract = ImagePreprocess(height_px=size[0], width_px=size[1])
    _, tower = ours(replace(source, contract=contract), theirs.state_dict())
    x = drawn(2, 3, *size).float()
    how = {} if name.startswith("DINO") else {"interpolate_pos_encoding": True}
    torch.testing.assert_close(tower(x).x, theirs(pixel_values=x, **how).last_hidden_state, rtol=0, atol=2e-5)


def test_a_picture_of_the_stored_size_is_exported_without_interpolation() -> None:
    """Also with a free batch size; a picture of another size needs one."""
    part = Vit(height_px=32, width_px=32, patch_px=8, width=32, depth=1, heads=4, prefix=2, mean=(0.4,), std=(0.3,))
    torch.manual_seed(0)
    tower = VisionTransformer(part).eval()
    batch = torch.export.Dim("batch", min=2, max=9)
    for px, count in ((32, 0), (48, 1)):
        x = drawn(3, 3, px, px).float()
        program = torch.export.export(tower, (x,), dynamic_shapes=({0: batch},))
        assert sum("upsample" in str(node.target) for node in program.graph.nodes) == count
        other = drawn(5, 3, px, px, seed=2).float()
        torch.testing.assert_close(program.module()(other).x, tower(other).x)


def test_the_tower_renormalises() -> None:
    """Fed -1..1 it gives what timm's gives for the same picture under its own mean and deviation."""
    mean, std = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    theirs, source = TIMM["deit"]()
    contract = ImagePreprocess(
        height_px=32, width_px=32, resize_mode="crop", crop_pct=0.9, interpolation="bicubic", mean=mean, std=std
    )
    converted, tower = ours(replace(source, contract=contract), theirs.state_dict())
    assert isinstance(converted.part, Vit) and converted.part.pixels == contract
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    rgb = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    found = tower(normalise(pixels, torch.float32)).x
    torch.testing.assert_close(found, theirs.forward_features(rgb), rtol=0, atol=1e-5)
    assert not any("renormalise" in name for name in convert(source, theirs.state_dict()).weights)


def test_a_masked_token_is_the_mean_of_all_or_the_tokenizers_own() -> None:
    """The row that no source has: of the mean row; where the contract says an id, that id's."""
    theirs, source = TEXTS["CLIP"]()
    table = theirs.state_dict()["embeddings.token_embedding.weight"]
    row = convert(source, theirs.state_dict()).weights["embedding.weight"][-1]
    torch.testing.assert_close(row, table.mean(0))
    words = TokenizerSpec(sha256="0" * 64, context=12, mask=7)
    converted = convert(replace(source, contract=words), theirs.state_dict())
    assert torch.equal(converted.weights["embedding.weight"][-1], table[7])
    assert isinstance(converted.part, TextTower) and converted.part.words == words


def test_a_text_beyond_the_learned_positions_is_refused() -> None:
    tower = TextTransformer(TextTower(width=32, depth=1, heads=4, context=6), 20)
    ids = ids_of(1, 7)
    with pytest.raises(UserError, match=r"a text of 7 tokens exceeds TextTower\.context=6"):
        tower(ids, torch.ones_like(ids, dtype=torch.bool))


CHOSEN = {
    "image": Vit(
        height_px=16, width_px=16, patch_px=8, width=32, depth=2, heads=4, prefix=3, norm_pre=True, norm_post=False,
        layer_scale=0.5, activation="quick_gelu", hidden=40, eps=1e-5, patch_bias=False,
    ),
    "text": TextTower(
        width=32, depth=2, heads=4, context=9, causal=True, vocabulary=20, activation="gelu_tanh", hidden=40
    ),
}  # fmt: skip


def test_what_is_dropped_belongs_to_the_row() -> None:
    """In training, with the choices of other libraries: a row alone is the row in its batch."""
    torch.manual_seed(0)
    seeds, x = torch.arange(3), drawn(3, 3, 16, 16).float()
    vit = VisionTransformer(CHOSEN["image"], dropout=0.5).train()
    whole = vit(x, seeds).x
    assert not torch.equal(whole, vit(x, seeds + 1).x)
    torch.testing.assert_close(vit(x[1:2], seeds[1:2]).x, whole[1:2])
    ids, keep = ids_of(3, 9), padded([9, 5, 7], 9)
    text = TextTransformer(CHOSEN["text"], 20, dropout=0.5).train()
    whole = text(ids, keep, seeds).x
    torch.testing.assert_close(text(ids[1:2, :5], keep[1:2, :5], seeds[1:2]).x[0], whole[1, :5])
    shift = torch.cat([ids[1:2, :1], ids[1:2, :5]], 1)  # padded on the left: places count real tokens
    left = torch.tensor([[False, True, True, True, True, True]])
    torch.testing.assert_close(text(shift, left, seeds[1:2]).x[0, 1:], whole[1, :5])


def test_a_causal_tower_sees_nothing_that_follows() -> None:
    """The gradient of a token's state at later embeddings is zero, at earlier ones it is not."""
    tower = shaken(TextTransformer(CHOSEN["text"], 20))
    ids = ids_of(1, 9)
    states = tower(ids, torch.ones_like(ids, dtype=torch.bool)).x
    (gradient,) = torch.autograd.grad(states[0, 4].sum(), tower.position)
    assert gradient[:5].abs().sum(1).min() > 0 and not gradient[5:].any()
