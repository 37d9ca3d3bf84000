"""Layouts at full size, and the parts under torch.export: what toy sizes and eager runs could hide."""

from collections.abc import Callable
from dataclasses import replace

import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn

from mmfm.config import Conformer, Mel, TextTower, Trunk, Vit
from mmfm.data.batch import Tokens
from mmfm.models.conformer import AudioConformer
from mmfm.models.mappings import Foreign, convert
from mmfm.models.text_transformer import TextTransformer
from mmfm.models.transformer import Segment, UnifiedTransformer
from mmfm.models.vit import VisionTransformer


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module.eval()


@pytest.mark.parametrize(
    "name",
    [
        "deit3_small_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "vit_base_patch16_clip_quickgelu_224",
        "vit_base_patch16_siglip_224",
    ],
)
def test_a_model_of_timm_as_it_is_named(name: str) -> None:
    """By its name alone: tokens within a hundred-thousandth of their largest, at the size that it has."""
    theirs = shaken(timm.create_model(name, pretrained=False))
    converted = convert(Foreign(library="timm", architecture={"name": name}, modality="image"), theirs.state_dict())
    assert isinstance(converted.part, Vit)
    tower = VisionTransformer(converted.part).eval()
    tower.load_state_dict(converted.weights, strict=True)
    x = drawn(1, 3, converted.part.height_px, converted.part.width_px)
    with torch.no_grad():
        expected = theirs.forward_features(x)
        torch.testing.assert_close(tower(x).x, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-B-16-SigLIP"])
@pytest.mark.parametrize("modality", ["image", "text"])
def test_towers_of_open_clip_as_they_are_named(name: str, modality: str) -> None:
    """From open_clip's own configuration: tokens within a hundred-thousandth of their largest."""
    cfg = open_clip.get_model_config(name)
    assert cfg is not None
    theirs = shaken(open_clip.create_model(name, pretrained=None, force_custom_text=True))
    half = theirs.visual if modality == "image" else theirs.text
    converted = convert(Foreign(library="open_clip", architecture=cfg, modality=modality), half.state_dict())
    with torch.no_grad():
        if isinstance(converted.part, Vit):
            tower = VisionTransformer(converted.part).eval()
            x = drawn(1, 3, converted.part.height_px, converted.part.width_px)
            found, expected = _load(tower, converted.weights)(x).x, _tokens(half, x)
        else:
            assert isinstance(converted.part, TextTower)
            tower = TextTransformer(converted.part, converted.part.vocabulary).eval()
            ids = torch.randint(1, 30_000, (2, converted.part.context), generator=torch.Generator().manual_seed(1))
            keep = torch.ones_like(ids, dtype=torch.bool)
            found, expected = _load(tower, converted.weights)(ids, keep).x, _text_tokens(half, ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def _load(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    module.load_state_dict(weights, strict=True)
    return module


def _tokens(visual: nn.Module, x: Tensor) -> Tensor:
    if hasattr(visual, "trunk"):
        return visual.trunk.forward_features(x)
    out = visual.forward_intermediates(
        x, 1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
    )
    return torch.cat([out["image_intermediates_prefix"][-1], out["image_intermediates"][-1]], 1)


def _text_tokens(text: nn.Module, ids: Tensor) -> Tensor:
    how = {"normalize_intermediates": True, "intermediates_only": True, "output_fmt": "NLC"}
    return text.forward_intermediates(ids, 1, **how)["text_intermediates"][-1]


class Called(nn.Module):
    """A part as a function of tensors."""

    def __init__(self, part: nn.Module, how: Callable[..., object]) -> None:
        super().__init__()
        self.part, self.how = part, how

    def forward(self, x: Tensor, keep: Tensor) -> object:
        return self.how(self.part, x, keep)


SPEECH = Conformer(
    mel=Mel(recipe="kaldi"), stem="stack", width=32, depth=2, heads=4, kernel=5, causal=True, conv_bias=False,
    position="relative", left=3, right=2,
)  # fmt: skip
TRUNK = Trunk(
    width=32, depth=2, heads=4, kv_heads=2, head_dim=16, qk_norm=True, qkv_bias=True, max_position_embeddings=64,
    rope_scaling=(8.0, 1.0, 4.0, 16.0),
)  # fmt: skip
TEXT = TextTower(width=32, depth=2, heads=4, context=64, causal=True, activation="gelu_tanh")


def encoded(part: nn.Module, x: Tensor, keep: Tensor) -> Tensor:
    return part(Tokens(x, keep)).x


EXPORTED = {  # the part, how it is called, the channels of its input, what its time must be a multiple of
    "learned text": (lambda: TextTransformer(TEXT, 20), lambda part, x, keep: part(x, keep).x, 0, 1),
    "rotary text": (lambda: TextTransformer(replace(TEXT, context=0), 20), lambda part, x, keep: part(x, keep).x, 0, 1),
    "w2v-BERT": (lambda: AudioConformer(SPEECH), encoded, 80, 2),
    "torchaudio": (
        lambda: AudioConformer(
            Conformer(
                mel=Mel(bins=32), stem="none", width=32, depth=2, heads=4, kernel=5, conv_norm="fixed", position="none"
            )
        ),
        encoded,
        32,
        1,
    ),
    "trunk": (
        lambda: UnifiedTransformer(TRUNK),
        lambda part, x, keep: part([Segment(Tokens(x, keep), causal=True)])[0],
        32,
        1,
    ),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_a_part_is_exported_with_free_batch_and_time(name: str) -> None:
    """Exported at one size and run at another, padded: the eager numbers."""
    make, how, channels, step = EXPORTED[name]
    model = Called(shaken(make()), how).eval()

    def inputs(batch: int, time: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(0, 20, (batch, time), generator=torch.Generator().manual_seed(time))
        keep = torch.arange(time) < torch.tensor([[time], [time - 3]]).repeat(batch, 1)[:batch]
        return (drawn(batch, time, channels) if channels else ids), keep

    free = {0: torch.export.Dim("batch", min=1, max=32), 1: step * torch.export.Dim("time", min=2, max=30)}
    program = torch.export.export(model, inputs(2, 12), dynamic_shapes=(free, free))
    for sizes in ((2, 12), (5, 18)):
        torch.testing.assert_close(program.module()(*inputs(*sizes)), model(*inputs(*sizes)))
