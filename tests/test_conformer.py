"""Our conformer and its frames: those of transformers' extractor, padded or alone, and what no neighbour may change."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchaudio
from peers import SPEECH, drawn, of_hf, ours, padded, shaken
from torch import Tensor, nn
from transformers import SeamlessM4TFeatureExtractor

from mmfm.config import AudioPreprocess, Conformer, Mel, UserError
from mmfm.models.conformer import AudioConformer
from mmfm.models.mappings import Foreign, convert
from mmfm.models.mel import KaldiMel, LogMel
from mmfm.preprocessing.audio import resample

TIME = 9


def w2v_bert(**changes: object) -> tuple[nn.Module, Foreign]:
    return of_hf("Wav2Vec2BertModel", "audio", **(SPEECH | changes))


def clips() -> tuple[list[np.ndarray], Tensor, Tensor]:
    """Three sounds of different lengths, and the same as a batch padded with noise."""
    draw = np.random.default_rng(0)
    waves = [0.1 * draw.standard_normal(size).astype(np.float32) for size in (8_000, 5_000, 6_333)]
    batch = torch.randn(3, 8_000, generator=torch.Generator().manual_seed(0))
    for row, wave in enumerate(waves):
        batch[row, : len(wave)] = torch.from_numpy(wave)
    return waves, batch, padded([len(wave) for wave in waves], 8_000)


def test_frames_are_those_of_the_extractor() -> None:
    """Of a padded batch, each clip's frames are what transformers' extractor makes of the clip alone, and as many."""
    waves, batch, keep = clips()
    frames = KaldiMel(Mel(bins=80, high_hz=8_000.0, recipe="kaldi"))(batch, keep)
    extractor = SeamlessM4TFeatureExtractor(stride=1)
    for row, wave in enumerate(waves):
        theirs = extractor(wave, sampling_rate=16_000, pad_to_multiple_of=None, return_tensors="pt")["input_features"]
        assert int(frames.keep[row].sum()) == theirs.shape[1] and frames.keep[row, : theirs.shape[1]].all()
        torch.testing.assert_close(frames.x[row, : theirs.shape[1]], theirs[0], rtol=0, atol=2e-3)
        assert not frames.x[row, theirs.shape[1] :].any()


def test_from_the_waveform_to_the_tokens() -> None:
    """Extractor and model of transformers against `mel` and the tower: a padded batch, odd numbers of frames too."""
    waves, batch, keep = clips()
    theirs, source = w2v_bert(feature_projection_input_dim=160)
    _, tower = ours(source, theirs.state_dict())
    found = tower(tower.mel(batch, keep))
    assert tower.mel(batch, keep).keep.sum(1).remainder(2).any()
    inputs = SeamlessM4TFeatureExtractor()(waves, sampling_rate=16_000, return_tensors="pt")
    expected = theirs(**inputs).last_hidden_state
    real = inputs["attention_mask"].bool()
    assert torch.equal(found.keep, real)
    torch.testing.assert_close(found.x[real], expected[real], rtol=0, atol=5e-3)


def test_a_very_short_clip_is_one_frame() -> None:
    """Two samples among longer clips: one real token, finite, and the same alone."""
    part = Conformer(mel=Mel(recipe="kaldi"), stem="stack", width=32, depth=1, heads=4, position="relative", left=2)
    tower = shaken(AudioConformer(part))
    batch, keep = drawn(2, 3_000).float(), padded([3_000, 2], 3_000)
    tokens = tower(tower.mel(batch, keep))
    assert tokens.keep.sum(1).tolist() == [8, 1] and tokens.x[tokens.keep].isfinite().all()
    alone = tower(tower.mel(batch[1:, :2], keep[1:, :2]))
    torch.testing.assert_close(alone.x[0, :1], tokens.x[1, :1])


def test_frames_of_other_settings_are_refused() -> None:
    """An extractor that is not ours in one number would feed the tower something else without a word."""
    theirs, source = w2v_bert(feature_projection_input_dim=160)
    said = SeamlessM4TFeatureExtractor().to_json_string()
    contract = AudioPreprocess(rate_hz=16_000, extractor=said)
    assert convert(replace(source, contract=contract), theirs.state_dict()).part.mel.recipe == "kaldi"
    other = replace(contract, extractor=said.replace('"stride": 2', '"stride": 1'))
    with pytest.raises(UserError, match=r"frames made with \{'stride': 1\}"):
        convert(replace(source, contract=other), theirs.state_dict())


CHOSEN = {
    "torchaudio": Conformer(
        mel=Mel(bins=32), stem="none", width=32, depth=2, heads=4, kernel=5, conv_norm="fixed", position="none"
    ),
    "w2v-BERT": Conformer(
        mel=Mel(recipe="kaldi"), stem="stack", width=32, depth=2, heads=4, kernel=5, causal=True, conv_bias=False,
        position="relative", left=3, right=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOSEN)
def test_a_row_alone_is_the_row_in_its_batch(name: str) -> None:
    """In training, at a dropout of a half, waveforms of several lengths: no neighbour, no padding, no statistics."""
    tower = shaken(AudioConformer(CHOSEN[name], dropout=0.5)).train()
    _, batch, keep = clips()
    seeds = torch.arange(3)
    before = {key: value.clone() for key, value in tower.named_buffers()}
    whole = tower(tower.mel(batch, keep), seeds)
    assert not torch.equal(whole.x, tower(tower.mel(batch, keep), seeds + 1).x)
    alone = tower(tower.mel(batch[1:2, :5_000], keep[1:2, :5_000]), seeds[1:2])
    length = int(alone.keep.sum())
    assert length == int(whole.keep[1].sum())
    torch.testing.assert_close(alone.x[0, :length], whole.x[1, :length], rtol=0, atol=2e-4)
    assert all(torch.equal(value, before[key]) for key, value in tower.named_buffers())


def test_a_causal_convolution_looks_back_only() -> None:
    """Without attention over time: what is heard later changes nothing earlier."""
    part = replace(CHOSEN["w2v-BERT"], stem="none", mel=Mel(bins=32))
    tower = shaken(AudioConformer(part))
    conv, keep = tower.blocks[0].conv, torch.ones(1, TIME, dtype=torch.bool)
    x = drawn(1, TIME, 32).float().requires_grad_()
    (gradient,) = torch.autograd.grad(conv(x, keep)[0, 4].sum(), x)
    assert gradient[0, :5].abs().sum(1).min() > 0 and not gradient[0, 5:].any()


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
