"""Towers of other libraries as ours and back: the same function, and nothing lost or made up on the way."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchaudio
from peers import (
    DINO,
    OPEN_CLIP,
    PICTURE,
    SMALL,
    SPEECH,
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
from mmfm.data.batch import Tokens
from mmfm.models.layers import ACTIVATIONS
from mmfm.models.mappings import Foreign, convert, give_back, shapes_of
from mmfm.models.text_transformer import TextTransformer
from mmfm.models.vit import VisionTransformer, normalise, resize_positions

Made = tuple[nn.Module, Foreign]
TIME, KEEP = 9, padded([9, 5, 7], 9)
CONFORMER = {"input_dim": 32, "num_heads": 4, "ffn_dim": 48, "num_layers": 2, "depthwise_conv_kernel_size": 5}
CLIPS: dict[str, dict[str, object]] = {
    "plain": {},
    "quickgelu": {"quick_gelu": True},
    "custom text": {"custom": True},
    "scaled": {"vision_cfg": OPEN_CLIP["vision_cfg"] | {"ls_init_value": 0.1, "no_ln_pre": True, "mlp_ratio": 2.0}},
    "tanh": {
        "vision_cfg": OPEN_CLIP["vision_cfg"] | {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-3}},
        "text_cfg": OPEN_CLIP["text_cfg"] | {"act_kwargs": {"approximate": "tanh"}, "no_causal_mask": True},
    },
}


def conformer(**changes: object) -> Made:
    theirs = shaken(torchaudio.models.Conformer(**(CONFORMER | changes)))
    return theirs, Foreign(library="torchaudio", architecture=CONFORMER | changes, modality="audio")


def w2v_bert(**changes: object) -> Made:
    return of_hf("Wav2Vec2BertModel", "audio", **(SPEECH | changes))


TIMM: dict[str, Callable[[], Made]] = {
    "timm vit": lambda: of_timm("vit_tiny_patch16_224"),
    "timm mean pool": lambda: of_timm("vit_tiny_patch16_224", global_pool="avg"),
    "timm oblong": lambda: of_timm("vit_tiny_patch16_224", img_size=(32, 48)),
    "timm deit": lambda: of_timm("deit_tiny_patch16_224"),
    "timm deit distilled": lambda: of_timm("deit_tiny_distilled_patch16_224"),
    "timm clip": lambda: of_timm("vit_base_patch32_clip_224"),
    "timm clip quickgelu": lambda: of_timm("vit_base_patch32_clip_quickgelu_224"),
    "timm dinov2 registers": lambda: of_timm("vit_small_patch14_reg4_dinov2"),
    "timm siglip": lambda: of_timm("vit_base_patch16_siglip_224"),
}
HF: dict[str, Callable[[], Made]] = {
    "ViT": lambda: of_hf("ViTModel", "image", **SMALL, **PICTURE),
    "DeiT": lambda: of_hf("DeiTModel", "image", **SMALL, **PICTURE),
    "DINOv2": lambda: of_hf("Dinov2Model", "image", **DINO),
    "DINOv2 registers": lambda: of_hf("Dinov2WithRegistersModel", "image", **DINO),
    "CLIP": lambda: of_hf("CLIPVisionModel", "image", **SMALL, **PICTURE),
    "SigLIP": lambda: of_hf("SiglipVisionModel", "image", **SMALL, **PICTURE),
}
TEXTS: dict[str, Callable[[], Made]] = {
    "CLIP text": lambda: of_hf("CLIPTextModel", "text", **TEXT),
    "SigLIP text": lambda: of_hf("SiglipTextModel", "text", **TEXT),
}
SOUNDS: dict[str, Callable[[], Made]] = {"torchaudio": conformer, "w2v-BERT": w2v_bert}
OPEN: dict[str, Callable[[], Made]] = {
    f"open_clip {modality} {name}": lambda modality=modality, changes=changes: of_open_clip(modality, **changes)
    for modality in ("image", "text")
    for name, changes in CLIPS.items()
}
FAMILIES = TIMM | HF | TEXTS | SOUNDS | OPEN


def same(found: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def tower_of(theirs: nn.Module, source: Foreign) -> nn.Module:
    """Of a whole CLIP the image tower; its text tower is the model itself, or a part of it."""
    if source.library != "open_clip":
        return theirs
    return theirs.visual if source.modality == "image" else getattr(theirs, "text", theirs)


def inputs_of(source: Foreign) -> Tensor:
    if source.modality == "image":
        size = source.architecture.get("kwargs", {}).get("img_size", 32)
        return drawn(2, 3, *(size if isinstance(size, tuple) else (size, size)))
    return (
        ids_of(3, TIME) if source.modality == "text" else drawn(3, TIME, 32 if source.library == "torchaudio" else 16)
    )


def theirs_of(theirs: nn.Module, source: Foreign, x: Tensor) -> Tensor:
    """Tokens as the library computes them; nothing of a sound is padding, as torchaudio's convolution would see it."""
    if source.library == "timm":
        return theirs.forward_features(x)
    if source.library == "open_clip":
        return open_clip_tokens(theirs, source.modality, x)
    if source.library == "torchaudio":
        return theirs(x, torch.tensor([TIME] * 3))[0]
    if source.modality == "audio":
        return theirs(x, attention_mask=torch.ones(3, TIME)).last_hidden_state
    return theirs(x).last_hidden_state


def ours_of(tower: nn.Module, source: Foreign, x: Tensor) -> Tensor:
    if source.modality == "image":
        return tower(x).x
    if source.modality == "text":
        return tower(x, torch.ones_like(x, dtype=torch.bool)).x
    x = x if source.library == "torchaudio" else x.reshape(3, 2 * TIME, 8)
    return tower(Tokens(x, torch.ones(x.shape[:2], dtype=torch.bool))).x


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tower_in_both_directions(name: str) -> None:
    """Into ours: all tokens and the gradient at the input. Back into a fresh module of the library's: its tokens again;
    and from there the same weights as before, to the bit."""
    with double():
        theirs, source = FAMILIES[name]()
        converted, tower = ours(source, theirs.state_dict())
        inputs = [inputs_of(source) for _ in range(2)]
        for x in inputs if inputs[0].is_floating_point() else ():
            x.requires_grad_()
        found, expected = ours_of(tower, source, inputs[0]), theirs_of(theirs, source, inputs[1])
        same(found, expected)
        if inputs[0].requires_grad:
            weight = drawn(*found.shape, seed=2)
            pairs = zip((found, expected), inputs, strict=True)
            gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y, x in pairs]
            same(*gradients, atol=1e-11)
            assert gradients[0].abs().max() > 1e-3
        other, _ = FAMILIES[name]()
        half = tower_of(other, source)
        shapes = shapes_of(half)
        if half is other and source.library == "open_clip":
            shapes = {key: shape for key, shape in shapes.items() if not key.startswith("visual.")}
        state = give_back(source, converted.part, converted.weights, shapes)
        assert not half.load_state_dict(state, strict=False).unexpected_keys
        same(theirs_of(other, source, inputs_of(source)), expected.detach(), atol=1e-11)
        again = convert(source, other.state_dict())
    assert again.part == converted.part
    assert all(torch.equal(tensor, again.weights[key]) for key, tensor in converted.weights.items())


@pytest.mark.parametrize("name", [*TEXTS, "open_clip text plain", "w2v-BERT"])
def test_padding_changes_nothing(name: str) -> None:
    """Of several lengths in a batch and of one alone, the real tokens are the library's."""
    with double():
        theirs, source = FAMILIES[name]()
        _, tower = ours(source, theirs.state_dict())
        x = inputs_of(source)
        if source.modality == "audio":
            expected = theirs(x, attention_mask=KEEP.long()).last_hidden_state
            frames = x.reshape(3, 2 * TIME, 8)
            tokens = tower(Tokens(frames, KEEP.repeat_interleave(2, dim=1)))
            assert torch.equal(tokens.keep, KEEP)
            same(tokens.x[KEEP], expected[KEEP])
            return same(tower(Tokens(frames[1:2, :10], torch.ones(1, 10, dtype=torch.bool))).x[0], expected[1, :5])
        whole = source.library == "open_clip"
        expected = theirs_of(theirs, source, x) if whole else theirs(x, attention_mask=KEEP.long()).last_hidden_state
        same(tower(x, KEEP).x[KEEP], expected[KEEP])
        same(tower(x[1:2, :5], KEEP[1:2, :5]).x[0], expected[1, :5])


def test_torchaudios_conformer_sees_the_padding_and_ours_need_not() -> None:
    """With `mask_conv=False` ours has torchaudio's leak. As converted, a clip gives what torchaudio's gives alone."""
    with double():
        theirs, source = conformer()
        converted, tower = ours(source, theirs.state_dict())
        frames, lengths = drawn(3, TIME, 32), KEEP.sum(1)
        expected, _ = theirs(frames, lengths)
        leaky = built(replace(converted.part, mask_conv=False))
        leaky.load_state_dict(converted.weights)
        same(leaky(Tokens(frames, KEEP)).x[KEEP], expected[KEEP])
        found = tower(Tokens(frames, KEEP)).x
        assert (found - expected)[KEEP].abs().max() > 1e-2
        for row, length in enumerate(lengths.tolist()):
            same(found[row, :length], theirs(frames[row : row + 1, :length], torch.tensor([length]))[0][0])


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


TRAPS = {  # what the source has, and how a careless import would have it
    "CLIP of transformers is QuickGELU": (HF["CLIP"], {"activation": "gelu"}),
    "SigLIP of transformers is tanh": (HF["SigLIP"], {"activation": "gelu"}),
    "SigLIP of timm is exact": (TIMM["timm siglip"], {"activation": "gelu_tanh"}),
    "CLIP of timm is exact": (TIMM["timm clip"], {"activation": "quick_gelu"}),
    "CLIP's eps": (HF["CLIP"], {"eps": 1e-6}),
    "ViT's eps": (HF["ViT"], {"eps": 1e-6}),
    "the last norm": (TIMM["timm mean pool"], {"norm_post": True}),
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
    theirs, source = TIMM["timm dinov2 registers"]()
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
    theirs, source = HF["ViT"]()
    lost = {name: tensor for name, tensor in theirs.state_dict().items() if name != "layers.1.attention.k_proj.bias"}
    with pytest.raises(UserError, match=r"a part of what is 'blocks.1.attn.qkv.bias' here"):
        convert(source, lost)


def test_a_tensor_of_another_shape_is_named() -> None:
    theirs, source = TIMM["timm dinov2 registers"]()
    whole = theirs.state_dict()
    with pytest.raises(UserError, match=r"prefix of the source is \[1, 32\], of Vit \[5, 32\]"):
        convert(source, {name: tensor for name, tensor in whole.items() if name != "reg_token"})
    with pytest.raises(UserError, match=r"blocks.0.mlp.fc1.bias of the source is \[9\], of Vit \[128\]"):
        convert(source, whole | {"blocks.0.mlp.fc1.bias": torch.zeros(9)})


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
    "group norm": (lambda: conformer(use_group_norm=True), "a group norm over time"),
    "order": (lambda: conformer(convolution_first=True), "the convolution before the attention"),
    "rotary": (lambda: w2v_bert(position_embeddings_type="rotary"), "rotary positions"),
    "adapter": (lambda: w2v_bert(add_adapter=True), "an adapter"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_place_is_refused_with_the_way_out(name: str) -> None:
    make, said = REFUSED[name]
    theirs, source = make()
    with pytest.raises(UserError, match=said) as error:
        convert(source, theirs.state_dict())
    assert "import it wrapped, as a Tower" in str(error.value)


NOT_THERE = {
    "registers": (
        Vit(patch_px=8, height_px=32, width_px=32, width=32, depth=2, heads=4, prefix=5),
        "for 4 of the tokens",
    ),
    "norm": (
        Vit(patch_px=8, height_px=32, width_px=32, width=32, depth=2, heads=4, prefix=1, norm_post=False),
        r"has \['ln_p\w+.bias'\]",
    ),
    "stem": (Vit(stem="conv", patch_px=8, height_px=32, width_px=32, width=32, depth=2, heads=4, prefix=1), "no place"),
}


@pytest.mark.parametrize("name", NOT_THERE)
def test_what_another_library_has_not_is_refused(name: str) -> None:
    part, said = NOT_THERE[name]
    theirs, source = of_open_clip("image")
    with pytest.raises(UserError, match=said):
        give_back(source, part, built(part).state_dict(), shapes_of(theirs.visual))


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
    theirs, source = TIMM["timm deit"]()
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
    theirs, source = TEXTS["CLIP text"]()
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
