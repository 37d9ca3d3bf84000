"""Native parts against independent implementations, with weights copied over: timm, transformers, torchaudio, scipy."""

import math

import numpy as np
import pytest
import timm
import torch
import torchaudio
from transformers import LlamaConfig, LlamaModel

from mmfm.config import Mel, Trunk, Vit
from mmfm.data.batch import Tokens
from mmfm.models.conformer import LogMel
from mmfm.models.transformer import Segment, UnifiedTransformer
from mmfm.models.vit import VisionTransformer, normalise
from mmfm.preprocessing.audio import resample


def shake(module: torch.nn.Module) -> None:
    """All norms one and all biases zero would hide a swap."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


def test_the_vision_tower_is_timms():
    """A patch ViT without class token has timm's block names, weights and output."""
    theirs = timm.models.VisionTransformer(
        img_size=(32, 48),
        patch_size=8,
        embed_dim=32,
        depth=3,
        num_heads=4,
        class_token=False,
        num_classes=0,
        global_pool="",
    ).eval()
    shake(theirs)
    ours = VisionTransformer(Vit(height_px=32, width_px=48, patch_px=8, width=32, depth=3, heads=4))
    names = {"patch_embed.proj.": "stem.", "pos_embed": "position"}
    state = theirs.state_dict()
    for old, new in names.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    state["position"] = state["position"][0]
    ours.load_state_dict(state, strict=True)
    pixels = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    x = normalise(pixels, torch.float32)
    assert x.min() >= -1 and x.max() <= 1
    torch.testing.assert_close(ours(x).x, theirs.forward_features(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_trunk_is_a_llama(kv_heads):
    """One causal segment, padded on the right: the states of transformers' LlamaModel, grouped heads included."""
    config = LlamaConfig(
        vocab_size=10, hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=64, rms_norm_eps=1e-6,
    )  # fmt: skip
    theirs = LlamaModel(config).eval()
    shake(theirs)
    ours = UnifiedTransformer(Trunk(width=32, depth=2, heads=4, kv_heads=kv_heads, mlp_ratio=2.5))
    ours.load_state_dict(from_llama(theirs.state_dict(), depth=2), strict=True)
    x = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(1))
    keep = torch.arange(7) < torch.tensor([7, 4, 5])[:, None]
    expected = theirs(inputs_embeds=x, attention_mask=keep.long()).last_hidden_state
    found = ours([Segment(Tokens(x, keep), causal=True)])[0]
    torch.testing.assert_close(found[keep], expected[keep], rtol=0, atol=1e-5)


def from_llama(state: dict[str, torch.Tensor], depth: int) -> dict[str, torch.Tensor]:
    """Names and fused matrices of the trunk for the weights of a LlamaModel."""
    out = {"norm.weight": state["norm.weight"]}
    for i in range(depth):
        old, new = f"layers.{i}.", f"blocks.{i}."
        qkv = [state[f"{old}self_attn.{name}_proj.weight"] for name in "qkv"]
        gate_up = [state[f"{old}mlp.{name}_proj.weight"] for name in ("gate", "up")]
        out |= {
            f"{new}norm1.weight": state[f"{old}input_layernorm.weight"],
            f"{new}norm2.weight": state[f"{old}post_attention_layernorm.weight"],
            f"{new}attn.qkv.weight": torch.cat(qkv),
            f"{new}attn.proj.weight": state[f"{old}self_attn.o_proj.weight"],
            f"{new}mlp.gate_up.weight": torch.cat(gate_up),
            f"{new}mlp.down.weight": state[f"{old}mlp.down_proj.weight"],
        }
    return out


def tone(hz: float, rate_hz: int, seconds: float = 0.5) -> np.ndarray:
    return np.sin(2 * math.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz).astype(np.float32)


def frames(cfg: Mel, wave: np.ndarray) -> torch.Tensor:
    x = torch.from_numpy(wave)[None]
    return LogMel(cfg)(x, torch.ones_like(x, dtype=torch.bool)).x[0]


def test_log_mel_is_torchaudios():
    """torchaudio's MelSpectrogram with silence around the clip, then our logarithm and centring."""
    cfg = Mel(bins=40)
    wave = np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    theirs = torchaudio.transforms.MelSpectrogram(
        sample_rate=16_000, n_fft=512, win_length=400, hop_length=160, f_min=20.0, f_max=7_600.0, n_mels=40,
        center=True, pad_mode="constant",
    )(torch.from_numpy(wave)).T[:50].clamp(min=1e-8).log()  # fmt: skip
    torch.testing.assert_close(frames(cfg, wave), (theirs - theirs.mean()) / 4, rtol=0, atol=1e-4)


def test_a_telephone_band_does_not_hear_the_missing_half():
    """Noise at 16 kHz and the same by way of 8 kHz: in a band up to 3,800 Hz the frames agree to a tenth of what they
    differ by in the whole band."""
    wave = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    narrow = resample(resample(wave, 16_000, 8_000), 8_000, 16_000)
    apart = {}
    for name, high_hz in (("telephone", 3_800.0), ("wide", 7_600.0)):
        cfg = Mel(bins=40, high_hz=high_hz)
        apart[name] = (frames(cfg, wave) - frames(cfg, narrow)).abs().mean().item()
    assert apart["telephone"] < apart["wide"] / 10


def test_the_mel_peak_follows_the_tone():
    """A tone's loudest bin is the one whose centre is nearest on the mel scale (HTK's formula, written out here)."""
    cfg = Mel(bins=40)

    def mel(hz: float) -> float:
        return 2_595 * math.log10(1 + hz / 700)

    centres = np.linspace(mel(cfg.low_hz), mel(cfg.high_hz), cfg.bins + 2)[1:-1]
    for hz in (300.0, 1_000.0, 4_000.0):
        found = frames(cfg, tone(hz, cfg.rate_hz))[25].argmax().item()
        assert abs(found - np.abs(centres - mel(hz)).argmin()) <= 1
