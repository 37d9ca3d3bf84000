"""What a proof must see: far places, padding that is real, tolerances that grow with the numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from toy_encoders import BLOCKS, LAYERED, hf_folder, open_clip_folder

from mmfm.config import ImagePreprocess, Tower, UserError
from mmfm.data.batch import Items, Tokens
from mmfm.export import importer
from mmfm.models.imported import Kept
from mmfm.models.mappings import Foreign, convert
from mmfm.models.vit import VisionTransformer
from mmfm.pretrained import build, resolve
from mmfm.pretrained.encoder import _alike, architecture
from mmfm.pretrained.hf_encoders import HfSound, measured

SEAMLESS = {
    "hidden_size": 16, "speech_encoder_layers": 2, "speech_encoder_attention_heads": 2,
    "feature_projection_input_dim": 160,
    "speech_encoder_intermediate_size": 32, "adaptor_kernel_size": 8, "adaptor_stride": 8, "num_adapter_layers": 1,
    "add_adapter": True, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 64, "t2u_vocab_size": 32,
    "t2u_encoder_layers": 1, "t2u_decoder_layers": 1, "t2u_encoder_ffn_dim": 32, "t2u_decoder_ffn_dim": 32,
    "t2u_encoder_attention_heads": 2, "t2u_decoder_attention_heads": 2, "unit_hifi_gan_vocab_size": 32,
    "upsample_initial_channel": 64, "unit_embed_dim": 16, "lang_embed_dim": 8, "spkr_embed_dim": 8,
}  # fmt: skip


def waves(rate_hz: int = 16_000) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(2, rate_hz * 2, generator=torch.Generator().manual_seed(3))
    return x, torch.arange(rate_hz * 2) < torch.tensor([[rate_hz * 2], [round(rate_hz * 0.7)]])


CONFIGS = {
    "seamless": (hf.SeamlessM4TConfig(**SEAMLESS), hf.SeamlessM4TFeatureExtractor()),
    "w2v-bert with an adapter": (
        hf.Wav2Vec2BertConfig(feature_projection_input_dim=160, add_adapter=True, output_hidden_size=16, **BLOCKS),
        hf.SeamlessM4TFeatureExtractor(),
    ),
    "wav2vec 2": (hf.Wav2Vec2Config(**LAYERED), hf.Wav2Vec2FeatureExtractor(return_attention_mask=True)),
}


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_real_tokens_are_as_many_as_alone(name: str, tmp_path: Path) -> None:
    """Of a padded sound, however its library calls the method that would say it."""
    config, extractor = CONFIGS[name]
    hf_folder(tmp_path, config, extractor)
    found = resolve(Tower(source=str(tmp_path)), "audio")
    encoder = build(found.blueprint).eval()
    encoder.load_state_dict(found.weights)
    x, keep = waves()
    both, length = encoder(*encoder.features(x, keep)), int(keep[1].sum())
    lone = encoder(*encoder.features(x[1:, :length], keep[1:, :length]))
    assert both.keep.sum(1).tolist() == [both.x.shape[1], int(lone.keep.sum())]
    assert both.x.shape[1] > int(lone.keep.sum()), "some of it is padding"
    assert "lengths" in architecture(found.blueprint)


def test_a_rule_that_does_not_hold_is_seen(tmp_path: Path) -> None:
    """A model that gives as many tokens as it likes."""
    config, extractor = CONFIGS["wav2vec 2"]
    hf_folder(tmp_path, config, extractor)
    encoder = build(resolve(Tower(source=str(tmp_path)), "audio").blueprint).eval()
    assert isinstance(encoder, HfSound)
    right = measured(encoder)
    assert right is not None and right.holds and right.stride == 20

    def odd(x: torch.Tensor, keep: torch.Tensor) -> Tokens:
        return Tokens(torch.zeros(1, int(x.shape[1] ** 0.5), 4), torch.ones(1, int(x.shape[1] ** 0.5)).bool())

    encoder.forward = odd  # type: ignore[method-assign]
    wrong = measured(encoder)
    assert wrong is not None and not wrong.holds


def test_tolerances_grow_with_the_numbers() -> None:
    """A difference of 0.01 is nothing among thousands, and one of 1e-5 is much among hundredths of a thousandth."""
    large = torch.tensor([5_000.0, 1.0])
    assert _alike(large + 0.01, large) and not _alike(large + 1.0, large)
    small = torch.tensor([5e-5, 1e-6])
    assert not _alike(small + 1e-5, small)


def test_a_trunk_is_compared_at_its_far_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary positions that go wrong behind the hundredth token alone: twelve tokens would not show it."""
    from test_importing import language

    language(tmp_path / "source")
    proof = importer.import_source(str(tmp_path / "source"), tmp_path / "out")
    assert proof.longest == proof.window > 64
    whole = importer.Segment

    def forgetful(tokens: Tokens, **more: object) -> object:
        far = torch.arange(tokens.x.shape[1])[None, :, None] >= 60
        return whole(Tokens(tokens.x * ~far, tokens.keep), **more)

    monkeypatch.setattr(importer, "Segment", forgetful)
    with pytest.raises(UserError, match="differs from its source"):
        importer.import_source(str(tmp_path / "source"), tmp_path / "wrong")


def test_a_padded_row_that_is_another_is_no_crash() -> None:
    """Other real tokens among longer rows than alone: one line, not a number that JSON does not have."""
    items = Items(x=torch.zeros(2, 6), keep=torch.arange(6) < torch.tensor([[6], [3]]), rows=torch.arange(2))

    def run(given: Items) -> Tokens:
        return Tokens(torch.ones(len(given.x), given.x.shape[1], 2), torch.ones(given.x.shape, dtype=torch.bool))

    with pytest.raises(UserError, match="other tokens than alone"):
        importer.compare("x", "audio", "Tower", "torch", items, run, run)


@torch.no_grad()
def test_as_many_patches_in_another_grid(tmp_path: Path) -> None:
    """4 x 4 positions for 2 x 8 patches are resized: of open_clip's own ViT, and of transformers' as ours."""
    vision = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model = open_clip_folder(tmp_path / "o", {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text})
    found = resolve(Tower(source=str(tmp_path / "o"), height_px=16, width_px=64), "image")
    table = model.visual.positional_embedding
    grid = table[1:].view(4, 4, -1).permute(2, 0, 1)[None]
    grid = torch.nn.functional.interpolate(grid, (2, 8), mode="bicubic", antialias=True)[0].flatten(1).T
    assert torch.equal(found.weights["trunk.positional_embedding"], torch.cat([table[:1], grid]))
    config = hf.ViTConfig(image_size=32, patch_size=8, **BLOCKS)
    theirs = hf_folder(tmp_path / "h", config)
    what = Foreign(
        library="hf",
        architecture=config.to_dict(),
        modality="image",
        contract=ImagePreprocess(height_px=16, width_px=64),
    )
    made = convert(what, theirs.state_dict())
    ours = VisionTransformer(made.part).eval()
    ours.load_state_dict(made.weights)
    x = torch.randn(1, 3, 16, 64)
    wanted = theirs(pixel_values=x, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(ours(x).x, wanted, rtol=0, atol=1e-5)


def test_kept_tokens_belong_to_their_precision(tmp_path: Path) -> None:
    """What was made under bf16 is not served to fp32, nor what was prepared in another way."""
    encoder, kept = torch.nn.Linear(4, 4), Kept(tmp_path, "none")
    x, keep, calls = torch.randn(1, 4), torch.ones(1, 4, dtype=torch.bool), []

    def encode(x: torch.Tensor, keep: torch.Tensor) -> Tokens:
        calls.append(1)
        return Tokens(encoder(x)[:, None], torch.ones(1, 1, dtype=torch.bool))

    with torch.autocast("cpu", torch.bfloat16):
        assert kept(x, keep, encoder, encode).x.dtype == torch.bfloat16
    assert kept(x, keep, encoder, encode).x.dtype == torch.float32 and len(calls) == 2
    kept(x, keep, encoder, encode)
    assert len(calls) == 2, "and in each it is made once"
    blueprint = resolve(Tower(source="timm:test_vit", weights="random"), "image").blueprint
    other = replace(blueprint, pixels=replace(blueprint.pixels, resize_mode="stretch", crop_pct=0.5))
    for contract in (blueprint, other):
        Kept(tmp_path, "none")(x, keep, encoder, encode, contract)
    assert len(calls) == 4
