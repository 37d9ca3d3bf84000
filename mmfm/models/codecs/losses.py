"""How far what is decoded lies from what was encoded. Pure functions; each gives one number per item, lower is nearer.

Letters: n items. What lies beyond a sound's end changes none of its numbers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float
from torch import Tensor

SIZES = (256, 512, 1024, 2048)  # samples in a window: at 16 kHz, 16 to 128 ms
QUIET = 1e-5  # magnitudes below it are as good as silence


class Judged(NamedTuple):
    """What a discriminator says of the parts of each item, higher for what is more real, and which of them are real."""

    said: Float[Tensor, "n down across"]
    keep: Bool[Tensor, "n down"]


def absolute_error(found: Float[Tensor, "n *dims"], wanted: Float[Tensor, "n *dims"]) -> Float[Tensor, " n"]:
    return (found - wanted).abs().flatten(1).mean(1)


def squared_error(found: Float[Tensor, "n *dims"], wanted: Float[Tensor, "n *dims"]) -> Float[Tensor, " n"]:
    return (found - wanted).square().flatten(1).mean(1)


def spectra(
    waves: Float[Tensor, "n samples"], keep: Bool[Tensor, "n samples"], size: int
) -> tuple[Complex[Tensor, "n frames frequencies"], Bool[Tensor, "n frames"]]:
    """A frame for each started quarter of a window, around its first sample; silence before and after."""
    hop = size // 4
    window = torch.hann_window(size, device=waves.device)
    count = (waves.shape[1] + hop - 1) // hop
    padded = F.pad(waves.float() * keep, (size // 2, count * hop + size // 2 - waves.shape[1]))
    frames = padded.unfold(1, size, hop)[:, :count]
    with torch.autocast(waves.device.type, enabled=False):
        return torch.fft.rfft(frames * window / window.sum()), keep[:, ::hop]


def spectral_distance(
    found: Float[Tensor, "n samples"],
    wanted: Float[Tensor, "n samples"],
    keep: Bool[Tensor, "n samples"],
    sizes: Sequence[int] = SIZES,
) -> Float[Tensor, " n"]:
    """Mean over window sizes of spectral convergence plus the mean absolute difference of logarithms of magnitudes.

    arXiv 1910.11480, eqs. 3 to 5: the linear part weighs what is loud, the logarithm what is quiet. Zero for equal
    sounds; a sound of half the amplitude is at 0.5 + log 2.
    """
    total = found.new_zeros(len(found), dtype=torch.float32)
    for size in sizes:
        (a, real), (b, _) = spectra(found, keep, size), spectra(wanted, keep, size)
        a, b, weight = _magnitude(a), _magnitude(b), real.unsqueeze(-1)
        linear = _root(((a - b) * weight).square().sum((1, 2))) / _root((b * weight).square().sum((1, 2)))
        logs = ((a.clamp(min=QUIET).log() - b.clamp(min=QUIET).log()).abs() * weight).sum((1, 2))
        total = total + linear + logs / (real.sum(1) * a.shape[2]).clamp(min=1)
    return total / len(sizes)


def judged_apart(real: Sequence[Judged], fake: Sequence[Judged]) -> Float[Tensor, " n"]:
    """What a discriminator minimises: 1 or more for what is real, -1 or less for what is decoded (hinge).

    arXiv 1705.02894, eq. 2, averaged over the discriminator's maps.
    """
    both = zip(real, fake, strict=True)
    return torch.stack([_mean(F.relu(1 - a.said), a.keep) + _mean(F.relu(1 + b.said), b.keep) for a, b in both]).mean(0)


def judged_real(fake: Sequence[Judged]) -> Float[Tensor, " n"]:
    """What a codec minimises: that its discriminator takes what it decodes for real (arXiv 1705.02894, eq. 3)."""
    return torch.stack([-_mean(part.said, part.keep) for part in fake]).mean(0)


def _magnitude(x: Complex[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """With a slope of zero, not of nan, where a frame is silent."""
    return _root(x.real.square() + x.imag.square())


def _root(x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    return x.clamp(min=1e-12).sqrt()


def _mean(said: Float[Tensor, "n down across"], keep: Bool[Tensor, "n down"]) -> Float[Tensor, " n"]:
    """Over the parts that are kept."""
    weight = keep.unsqueeze(-1)
    return (said * weight).sum((1, 2)) / (weight.sum((1, 2)) * said.shape[2]).clamp(min=1)
