"""Encoders of other libraries give what their own library gives, through source, blueprint and a file of weights."""

from pathlib import Path

import open_clip
import pytest
import timm
import torch
import torchaudio
import transformers as hf
from safetensors.torch import load, save
from torch import Tensor, nn
from toy_encoders import (
    BLOCKS,
    CONVS,
    LAYERED,
    PICTURE,
    WORDS,
    hf_folder,
    moved,
    open_clip_folder,
    timm_folder,
    wordpieces,
)

from mmfm.config import EncoderSpec, Tower, UserError
from mmfm.config.serialization import parse, write
from mmfm.pretrained import Encoder, build, resolve

CLIP = {"text_config": BLOCKS | WORDS, "vision_config": PICTURE}
DINO = {name: value for name, value in PICTURE.items() if name != "intermediate_size"}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
IMAGES = {
    "vit": (hf.ViTConfig(**PICTURE), lambda m: m),
    "dinov2": (hf.Dinov2Config(**DINO), lambda m: m),
    "dinov3": (hf.DINOv3ViTConfig(num_register_tokens=2, **PICTURE), lambda m: m),
    "swin": (hf.SwinConfig(**SWIN), lambda m: m),
    "convnext": (hf.ConvNextConfig(hidden_sizes=[8, 16, 16, 32], depths=[1] * 4, image_size=64), lambda m: m),
    "clip": (hf.CLIPConfig(**CLIP), lambda m: m.vision_model),
    "siglip": (hf.SiglipConfig(**CLIP), lambda m: m.vision_model),
}  # fmt: skip
TEXTS = {
    "bert": (hf.BertConfig(max_position_embeddings=40, **BLOCKS, **WORDS), lambda m: m),
    "roberta": (hf.RobertaConfig(max_position_embeddings=40, **BLOCKS, **WORDS), lambda m: m),
    "modernbert": (hf.ModernBertConfig(max_position_embeddings=40, **BLOCKS, **WORDS), lambda m: m),
    "t5": (hf.T5Config(d_model=16, d_ff=32, num_layers=2, num_heads=2, d_kv=8, **WORDS), lambda m: m.encoder),
    "gpt2": (hf.GPT2Config(n_positions=40, n_embd=16, n_layer=2, n_head=2, **WORDS), lambda m: m),
    "llama": (hf.LlamaConfig(num_key_value_heads=1, **BLOCKS, **WORDS), lambda m: m),
    "qwen3": (hf.Qwen3Config(num_key_value_heads=1, head_dim=8, **BLOCKS, **WORDS), lambda m: m),
    "clip": (hf.CLIPConfig(**CLIP), lambda m: m.text_model),
}
SOUNDS = {
    "wav2vec2-layer": (hf.Wav2Vec2Config(**LAYERED), True),
    "wav2vec2-group": (hf.Wav2Vec2Config(**CONVS), False),
    "hubert": (hf.HubertConfig(**LAYERED), True),
    "wavlm": (hf.WavLMConfig(**LAYERED), True),
    "w2v-bert": (hf.Wav2Vec2BertConfig(feature_projection_input_dim=160, **BLOCKS), True),
    "parakeet": (hf.ParakeetEncoderConfig(subsampling_conv_channels=16, **BLOCKS), True),
}
WHISPER = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2}
WHISPER |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_start_token_id": 1}


def through(source: Path | str, modality: str, **tower: object) -> Encoder:
    """All the way: resolved, blueprint and weights to bytes and back, built anew, loaded strictly."""
    found = resolve(Tower(source=str(source), **tower), modality)
    assert found.weights is not None
    blueprint = parse(EncoderSpec, write(found.blueprint), "blueprint")
    weights = load(save({name: value.contiguous() for name, value in found.weights.items()}))
    torch.manual_seed(99)  # build must owe nothing to the draws
    encoder = build(blueprint)
    encoder.load_state_dict(weights, strict=True)
    return encoder.eval()


def same(ours: Tensor, theirs: Tensor, bound: float = 0.0) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 1e-3  # or any difference would be small
    assert (ours - theirs).abs().max() <= bound


def pictures(*shape: int) -> Tensor:
    return torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(1))


def texts() -> tuple[Tensor, Tensor]:
    """Two rows, the second with padding that is not zero."""
    ids = torch.randint(5, 50, (2, 9), generator=torch.Generator().manual_seed(2))
    return ids, torch.arange(9) < torch.tensor([[9], [5]])


def sounds(rate_hz: int = 16_000) -> tuple[Tensor, Tensor]:
    """One second and half of one; padding is noise."""
    waves = torch.randn(2, rate_hz, generator=torch.Generator().manual_seed(3))
    return waves, torch.arange(rate_hz) < torch.tensor([[rate_hz], [rate_hz // 2 + 77]])


@pytest.mark.parametrize("name", IMAGES)
@torch.no_grad()
def test_hf_images(name: str, tmp_path: Path) -> None:
    """Tokens are last_hidden_state to the bit; of a map, its places in reading order."""
    config, part = IMAGES[name]
    native = part(hf_folder(tmp_path, config))
    encoder = through(tmp_path, "image")
    pixels = encoder.blueprint.pixels
    x = pictures(pixels.height_px, pixels.width_px)
    theirs = native(pixel_values=x).last_hidden_state
    theirs = theirs.flatten(2).transpose(1, 2) if theirs.ndim == 4 else theirs
    same(encoder(x).x, theirs)
    assert encoder.width == theirs.shape[-1]


@pytest.mark.parametrize("name", TEXTS)
@torch.no_grad()
def test_hf_texts(name: str, tmp_path: Path) -> None:
    """Real tokens are the model's own, and what stands in the padding changes none of them."""
    config, part = TEXTS[name]
    native = part(hf_folder(tmp_path, config, wordpieces()))
    encoder = through(tmp_path, "text")
    ids, keep = texts()
    tokens = encoder(ids, keep)
    theirs = native(input_ids=ids * keep, attention_mask=keep.long()).last_hidden_state
    same(tokens.x[keep], theirs[keep])
    assert torch.equal(tokens.keep, keep)
    alone = encoder(ids[1:, :5], keep[1:, :5])
    same(tokens.x[1:, :5], alone.x, 1e-5)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM's own
@pytest.mark.parametrize("name", SOUNDS)
@torch.no_grad()
def test_hf_sounds(name: str, tmp_path: Path) -> None:
    """Features are those of its own extractor, tokens the model's own; padded sounds equal lone ones where it masks."""
    config, invariant = SOUNDS[name]
    extractor = [hf.SeamlessM4TFeatureExtractor()] if name == "w2v-bert" else []
    native = hf_folder(tmp_path, config, *extractor)
    encoder = through(tmp_path, "audio")
    waves, keep = sounds()
    features, real = encoder.features(waves, keep)
    own = hf.AutoFeatureExtractor.from_pretrained(tmp_path) if extractor else encoder.extractor
    clips = [wave[k].numpy() for wave, k in zip(waves, keep, strict=True)]
    made = own(clips, sampling_rate=16_000, return_tensors="pt", padding=True, return_attention_mask=True)
    same(features, made[native.main_input_name])
    if not invariant:  # trained without a mask; with one, its extractor normalises over each clip's own samples
        del made["attention_mask"]
    tokens = encoder(features, real)
    same(tokens.x, native(**made).last_hidden_state)
    lone = encoder(*encoder.features(waves[1:, : int(keep[1].sum())], keep[1:, : int(keep[1].sum())]))
    assert tokens.keep.sum(1)[1] == lone.x.shape[1] and lone.keep.all()
    gap = (tokens.x[1][tokens.keep[1]] - lone.x[0]).abs().max()
    assert gap < 1e-5 if invariant else gap > 1e-3


@torch.no_grad()
def test_whisper(tmp_path: Path) -> None:
    """Its window is 30 s: `keep` marks the tokens of sound; a window of 30 s asked for is the same encoder."""
    native = hf_folder(tmp_path, hf.WhisperConfig(**WHISPER, **WORDS)).encoder
    encoder = through(tmp_path, "audio")
    waves, keep = sounds()
    features, real = encoder.features(waves, keep)
    made = hf.WhisperFeatureExtractor()(
        [waves[0].numpy(), waves[1][keep[1]].numpy()], sampling_rate=16_000, return_tensors="pt"
    )
    same(features, made["input_features"])
    tokens = encoder(features, real)
    same(tokens.x, native(made["input_features"]).last_hidden_state)
    assert tokens.x.shape[1] == 1_500 and tokens.keep.sum(1).tolist() == [50, 26]
    whole = through(tmp_path, "audio", window_seconds=30.0)
    same(whole(*whole.features(waves, keep)).x, tokens.x)


@torch.no_grad()
def test_a_shorter_window(tmp_path: Path) -> None:
    """Positions are cut, so that a tenth of the window has a tenth of the tokens; they are near those of a model with
    the shorter table, and that is what they equal."""
    config = hf.WhisperConfig(**WHISPER, **WORDS)
    native = hf_folder(tmp_path, config).encoder
    encoder = through(tmp_path, "audio", window_seconds=3.0)
    waves, keep = sounds()
    features, real = encoder.features(waves, keep)
    tokens = encoder(features, real)
    assert encoder.blueprint.sound.window_seconds == 3.0 and features.shape[-1] == 300
    assert tokens.x.shape[1] == 150 and tokens.keep.sum(1).tolist() == [50, 26]
    native.embed_positions = nn.Embedding.from_pretrained(native.embed_positions.weight[:150])
    native.max_source_positions = native.config.max_source_positions = 150
    same(tokens.x, native(features).last_hidden_state)
    long, real = torch.cat([waves] * 5, 1), torch.cat([keep | True] * 5, 1)
    assert encoder.features(long, real)[0].shape[-1] == 300, "longer clips are cut to the window"


@torch.no_grad()
def test_fixed_windows_without_order(tmp_path: Path) -> None:
    """Of spectrogram transformers, whose tokens are patches of a filled window, all tokens are real."""
    native = hf_folder(tmp_path, hf.ASTConfig(**BLOCKS))
    encoder = through(tmp_path, "audio")
    waves, keep = sounds()
    tokens = encoder(*encoder.features(waves, keep))
    clips = [wave[k].numpy() for wave, k in zip(waves, keep, strict=True)]
    made = hf.ASTFeatureExtractor()(clips, sampling_rate=16_000, return_tensors="pt")
    same(tokens.x, native(**made).last_hidden_state)
    assert tokens.keep.all()


TIMM = {
    "test_vit": {},
    "test_vit3": {},
    "test_resnet": {},
    "test_convnext": {},
    "test_efficientnet": {},
    "vit_small_patch14_reg4_dinov2": {"img_size": 28, "depth": 2, "embed_dim": 32, "num_heads": 2},
    "vit_small_patch16_dinov3": {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2},
    "vit_base_patch16_siglip_224": {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2},
    "naflexvit_base_patch16_gap": {"depth": 2, "embed_dim": 32, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "depths": (1, 1), "embed_dim": 16, "num_heads": (1, 2)},
}


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_timm(name: str, tmp_path: Path) -> None:
    """Tokens are forward_features to the bit, channels first or last; what the pool alone reads is no parameter."""
    native = timm_folder(tmp_path, name, **TIMM[name])
    encoder = through(tmp_path, "image")
    pixels = encoder.blueprint.pixels
    x = pictures(pixels.height_px, pixels.width_px)
    theirs = native.forward_features(x)
    theirs = theirs["patches"] if isinstance(theirs, dict) else theirs
    if theirs.ndim == 4:
        first = theirs.shape[1] == native.num_features
        theirs = theirs.flatten(2).transpose(1, 2) if first else theirs.flatten(1, 2)
    same(encoder(x).x, theirs)
    with torch.enable_grad():
        encoder(x).x.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


TEXT_CFG = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VIT_CFG = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
PROMPTS = ("a photo of a cat", "the quick brown fox, 42 times")


@pytest.fixture
def clip(tmp_path: Path) -> nn.Module:
    return open_clip_folder(tmp_path, {"embed_dim": 8, "vision_cfg": VIT_CFG, "text_cfg": TEXT_CFG})


@torch.no_grad()
def test_open_clip(clip: nn.Module, tmp_path: Path) -> None:
    """open_clip's pool and projection on our tokens give its embeddings, of pictures and of texts as it pads them."""
    x = pictures(32, 32)
    image, text = through(tmp_path, "image"), through(tmp_path, "text")
    same(image(x).x[:, 0] @ clip.visual.proj, clip.encode_image(x), 1e-6)
    pixels = image.blueprint.pixels
    assert (pixels.mean, pixels.std, pixels.resize_mode) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "stretch")
    ids = open_clip.SimpleTokenizer(context_length=16)(list(PROMPTS))
    keep = torch.arange(16) <= ids.argmax(1)[:, None]
    ends = text(ids[:, :12], keep[:, :12]).x[torch.arange(2), ids.argmax(1)]
    same(ends @ clip.text_projection, clip.encode_text(ids), 1e-6)


@torch.no_grad()
def test_open_clip_with_pools(tmp_path: Path) -> None:
    """CoCa's class token stands at the end of its context, whatever the padding; its image pool reads our tokens."""
    cfg = {"embed_dim": 8, "custom_text": True}
    cfg["vision_cfg"] = VIT_CFG | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4}
    cfg["text_cfg"] = TEXT_CFG | {"embed_cls": True}
    model = open_clip_folder(tmp_path, cfg)
    x = pictures(32, 32)
    image, text = through(tmp_path, "image"), through(tmp_path, "text")
    pooled, _ = model.visual._pool(image(x).x)
    same(pooled @ model.visual.proj, model.encode_image(x), 1e-6)
    ids = open_clip.SimpleTokenizer(context_length=16)(list(PROMPTS))
    keep = torch.arange(16) <= ids.argmax(1)[:, None]
    tokens = text(ids[:, :12], keep[:, :12])
    assert tokens.x.shape[1] == 17 and tokens.keep.sum(1).tolist() == [count + 1 for count in keep.sum(1).tolist()]
    same(tokens.x[:, -1] @ model.text.text_projection, model.encode_text(ids), 1e-6)


@torch.no_grad()
def test_open_clip_around_timm(tmp_path: Path) -> None:
    """A timm tower inside open_clip, at its own size and, with its positions resized, at another."""
    vision = {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear", "image_size": 160}
    model = open_clip_folder(tmp_path, {"embed_dim": 8, "vision_cfg": vision, "text_cfg": TEXT_CFG})
    encoder, x = through(tmp_path, "image"), pictures(160, 160)
    head = model.visual.trunk.forward_head(encoder(x).x)
    same(model.visual.head(head), model.encode_image(x), 1e-6)
    model.visual.set_input_size((192, 160))
    other, x = through(tmp_path, "image", height_px=192), pictures(192, 160)
    same(other(x).x, model.visual.trunk.forward_features(x))


@torch.no_grad()
def test_open_clip_resnet(tmp_path: Path) -> None:
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "patch_size": None}
    model = open_clip_folder(tmp_path, {"embed_dim": 8, "vision_cfg": vision, "text_cfg": TEXT_CFG})
    encoder, x = through(tmp_path, "image"), pictures(64, 64)
    places = encoder(x).x.transpose(1, 2).unflatten(2, (2, 2))
    same(model.visual.attnpool(places), model.encode_image(x), 1e-6)


@torch.no_grad()
def test_open_clip_at_another_size(clip: nn.Module, tmp_path: Path) -> None:
    """The positions are those that open_clip itself makes for that size."""
    theirs = open_clip.create_model(f"local-dir:{tmp_path}", force_image_size=(48, 32)).eval()
    encoder, x = through(tmp_path, "image", height_px=48), pictures(48, 32)
    same(encoder(x).x[:, 0] @ theirs.visual.proj, theirs.encode_image(x), 1e-6)
    assert encoder.blueprint.pixels.height_px == 48


@torch.no_grad()
def test_timm_and_hf_at_another_size(tmp_path: Path) -> None:
    """Positions are resized by the library; a size that its patches do not divide is refused in words."""
    timm_folder(tmp_path / "t", "test_vit")
    theirs = timm.create_model(f"local-dir:{tmp_path / 't'}", pretrained=True, num_classes=0, img_size=(96, 64)).eval()
    x = pictures(96, 64)
    same(through(tmp_path / "t", "image", height_px=96, width_px=64)(x).x, theirs.forward_features(x))
    native, x = hf_folder(tmp_path / "h", hf.ViTConfig(**PICTURE)), pictures(48, 32)
    ours = through(tmp_path / "h", "image", height_px=48)(x).x
    same(ours, native(x, interpolate_pos_encoding=True).last_hidden_state)
    timm_folder(tmp_path / "r", "test_resnet")
    assert through(tmp_path / "r", "image", height_px=96)(pictures(96, 160)).x.shape[1] == 3 * 5, "a convnet takes any"
    with pytest.raises(UserError, match="100 x 160 px; try a size that its patches divide"):
        resolve(Tower(source=str(tmp_path / "t"), height_px=100), "image")


@pytest.mark.parametrize("normalize", [False, True])
@torch.no_grad()
def test_torchaudio(normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are the model's output for these lengths; a clip is normalised over its own samples alone."""
    params = {"extractor_mode": "layer_norm", "extractor_conv_layer_config": [(16, 10, 5), (16, 3, 2), (16, 3, 2)]}
    params |= {"extractor_conv_bias": True, "encoder_embed_dim": 16, "encoder_projection_dropout": 0.0}
    params |= {"encoder_pos_conv_kernel": 16, "encoder_pos_conv_groups": 2, "encoder_num_layers": 2}
    params |= {"encoder_num_heads": 2, "encoder_attention_dropout": 0.0, "encoder_ff_interm_features": 32}
    params |= {"encoder_ff_interm_dropout": 0.0, "encoder_dropout": 0.0, "encoder_layer_norm_first": True}
    params |= {"encoder_layer_drop": 0.0, "aux_num_out": None}
    torch.manual_seed(0)
    native = moved(torchaudio.models.wav2vec2_model(**params))

    class Toy(torchaudio.pipelines.Wav2Vec2Bundle):
        def _get_state_dict(self, dl_kwargs: object) -> dict[str, Tensor]:
            return native.state_dict()

    monkeypatch.setattr(
        torchaudio.pipelines, "TOY", Toy("toy.pth", params, 16_000, normalize, "Wav2Vec2"), raising=False
    )
    encoder = through("torchaudio:TOY", "audio")
    waves, keep = sounds()
    tokens = encoder(*encoder.features(waves, keep))
    if not normalize:
        theirs, lengths = native(waves * keep, keep.sum(1))
        same(tokens.x, theirs)
        assert tokens.keep.sum(1).tolist() == lengths.tolist()
    lone, own = waves[1:, : int(keep[1].sum())], torchaudio.pipelines.TOY.get_model()
    theirs, _ = own(lone)
    same(tokens.x[1:, : theirs.shape[1]], theirs, 1e-5)


def test_build_owes_all_to_the_seed(clip: nn.Module, tmp_path: Path) -> None:
    """Random weights: the same seed gives the same encoder, and another seed another."""
    for modality in ("image", "text"):
        found = resolve(Tower(source=str(tmp_path), weights="random"), modality)
        assert found.weights is None
        drawn = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            drawn.append(nn.utils.parameters_to_vector(build(found.blueprint).parameters()))
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
