"""Distances agree with other formulas of the same thing, and voices are compared as they were planted."""

import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from torch import nn
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from mmfm.config import UserError

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import speaker
from distances import features, frechet, kid, mmd

Pair = tuple[np.ndarray, np.ndarray]


def sets(n: int, m: int, d: int) -> Pair:
    """Two sets with other means and other, correlated coordinates."""
    draw = np.random.default_rng(0)
    return draw.normal(size=(n, d)) @ draw.normal(size=(d, d)), draw.normal(size=(m, d)) @ draw.normal(size=(d, d)) + 1


def test_frechet_is_the_textbooks() -> None:
    """Scipy's root of the product of covariances, and torchmetrics' eigenvalues of it, give the same."""
    a, b = sets(60, 50, 8)
    root = np.real(scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)))
    gap = a.mean(0) - b.mean(0)
    wanted = gap @ gap + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet(a, b) == pytest.approx(wanted, rel=1e-9)
    means, covariances = [torch.tensor(x.mean(0)) for x in (a, b)], [torch.tensor(np.cov(x.T)) for x in (a, b)]
    theirs = _compute_fid(means[0], covariances[0], means[1], covariances[1])
    assert frechet(a, b) == pytest.approx(float(theirs), rel=1e-6)


def test_frechet_of_what_is_known() -> None:
    """Zero of a set and itself and symmetric, fewer items than numbers too; a shift by v costs |v|^2, a scale by s the
    variance times (s - 1)^2."""
    a, b = sets(20, 30, 40)
    assert frechet(a, a) == pytest.approx(0.0, abs=1e-8 * np.cov(a.T).trace())
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-9)
    assert frechet(a, a + 0.5) == pytest.approx(40 * 0.25, rel=1e-8)
    centred = a - a.mean(0)
    assert frechet(centred, 3 * centred) == pytest.approx(4 * np.cov(a.T).trace(), rel=1e-9)


def test_mmd_is_the_unbiased_sum_over_pairs() -> None:
    """scikit-learn's kernel without its diagonal, and torchmetrics' estimator, give the same."""
    a, b = sets(12, 12, 5)
    kernel = {"degree": 3, "gamma": 1 / 5, "coef0": 1}
    aa, bb, ab = polynomial_kernel(a, a, **kernel), polynomial_kernel(b, b, **kernel), polynomial_kernel(a, b, **kernel)
    pairs = [(i, j) for i in range(12) for j in range(12)]
    apart = [(i, j) for i, j in pairs if i != j]
    wanted = np.mean([aa[p] for p in apart]) + np.mean([bb[p] for p in apart]) - 2 * np.mean([ab[p] for p in pairs])
    assert mmd(a, b) == pytest.approx(wanted, rel=1e-9)
    theirs = poly_mmd(torch.tensor(a), torch.tensor(b), degree=3, gamma=1 / 5, coef=1.0)
    assert mmd(a, b) == pytest.approx(float(theirs), rel=1e-6)


def test_kid_of_one_and_of_two_sources() -> None:
    """Around zero where both sets are drawn alike, clearly above where not; the same seed draws the same subsets."""
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(200, 6)), draw.normal(size=(200, 6))
    same, other = kid(a, b, subsets=50), kid(a, b + 1, subsets=50)
    assert same.low < 0 < same.high and same.subset == 100
    assert other.low > same.high
    assert kid(a, b, subsets=50) == same != kid(a, b, subsets=50, seed=1)
    whole = np.mean([mmd(a[draw.permutation(200)[:100]], b[draw.permutation(200)[:100]]) for _ in range(200)])
    assert same.value == pytest.approx(whole, abs=0.02)


def test_features_are_asked_at_rest() -> None:
    """Dropout is off while features are made and on again afterwards; batches are joined in order."""
    module = nn.Dropout(0.5).train()
    batches = [torch.ones(2, 3), 2 * torch.ones(1, 3)]
    assert features(module, batches).tolist() == [[1.0] * 3, [1.0] * 3, [2.0] * 3]
    assert module.training
    assert features(lambda batch: batch * 2, batches).sum() == 24


def test_distances_name_their_mistakes() -> None:
    """No batch, features that are no rows, ones that are not finite, other numbers, and too few items."""
    for module, batches, words in (
        (nn.Identity(), [], "there is no batch to make features of; give at least one"),
        (nn.Identity(), [torch.ones(2, 3, 4)], r"features have shapes \[\(2, 3, 4\)\]; a module must give \[n, d\]"),
        (nn.Identity(), [torch.full((2, 3), torch.inf)], "features hold values that are not finite"),
    ):
        with pytest.raises(UserError, match=words):
            features(module, batches)
    a = np.zeros((3, 4))
    with pytest.raises(UserError, match="features of 4 and of 5 numbers; use one module for both"):
        frechet(a, np.zeros((3, 5)))
    with pytest.raises(UserError, match="sets of 3 and 1 items; a distance needs at least two of each"):
        mmd(a, a[:1])
    with pytest.raises(UserError, match="there must be one subset of two items at least"):
        kid(a, a, subsets=0)


def test_nearer_counts_the_others_that_are_farther() -> None:
    """Planted on a circle: two of four others are farther, one is as far and counts half, one is left out."""
    angles = torch.tensor([0.0, 30.0, 60.0, -60.0, 90.0, 10.0]).deg2rad()
    unit = torch.stack([angles.cos(), angles.sin()], 1)
    prompt, answer, others = unit[1:2], unit[:1], torch.stack([unit[2], unit[3], unit[1], unit[5]])
    keep = torch.tensor([[True, True, True, False]])
    assert speaker.nearer(prompt, answer, others, keep).tolist() == pytest.approx([2.5 / 3])
    assert speaker.nearer(prompt, answer, others, ~keep).tolist() == [0.0]
    with pytest.raises(UserError, match="a row has no other voice to be compared with"):
        speaker.nearer(prompt, answer, others, torch.zeros(1, 4, dtype=torch.bool))


def test_a_voice_is_made_of_the_same_mel_powers() -> None:
    """transformers' spectrogram, cut into parts by hand, gives the same vector; one shorter than a part is padded."""
    torch.manual_seed(0)
    encoder = speaker.VoiceEncoder().eval()
    banks = mel_filter_bank(201, 40, 0.0, 8_000.0, 16_000, norm="slaney", mel_scale="slaney")
    for seconds, parts in ((3.0, 3), (1.55, 1)):
        wave = 0.3 * np.random.default_rng(0).normal(size=round(16_000 * seconds)).astype(np.float32)
        padded = np.pad(wave, (0, (77 * (parts - 1) + 160) * 160 - len(wave)))
        mel = spectrogram(
            padded, window_function(400, "hann"), 400, 160, power=2.0, pad_mode="constant", mel_filters=banks
        )
        cut = np.stack([mel.T[77 * part : 77 * part + 160] for part in range(parts)]).astype(np.float32)
        wanted = nn.functional.normalize(encoder(torch.from_numpy(cut)).mean(0), dim=0)
        torch.testing.assert_close(encoder.voice(torch.from_numpy(wave)), wanted, rtol=1e-3, atol=1e-5)


def test_quiet_sounds_are_raised_and_loud_ones_left() -> None:
    """A whisper and a thousandth of it are one voice; a shout is not lowered."""
    torch.manual_seed(0)
    encoder = speaker.VoiceEncoder().eval()
    wave = torch.randn(30_000) * 0.03
    torch.testing.assert_close(encoder.voice(wave), encoder.voice(wave / 1_000), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(encoder.voice(2 * wave), encoder.voice(4 * wave), rtol=0.0, atol=1e-4)


def test_parts_cover_a_sound() -> None:
    """The last part is at least three quarters real, unless it is the only one."""
    for samples in range(1, 80_000, 997):
        firsts = speaker.starts(samples)
        assert firsts == list(range(0, 77 * len(firsts), 77))
        assert len(firsts) == 1 or samples - firsts[-1] * 160 >= 0.75 * 160 * 160
        assert samples - (firsts[-1] + 160) * 160 < 77 * 160  # what no part hears


def test_no_encoder_of_voices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel that is not installed is named, with the command that installs it."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(
        UserError, match="the package resemblyzer, which tells voices apart, is not installed; pip inst"
    ):
        speaker.speaker([torch.ones(10)], 16_000)


def test_what_rested_is_as_it_was() -> None:
    """A part that was at rest among others that train still is, after features were asked."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)).train()
    module[0].eval()
    features(module, [torch.ones(3, 2)])
    assert [part.training for part in module.modules()] == [True, False, True]
