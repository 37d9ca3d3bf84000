"""Log-mel frames back into sound, without anything learned: powers by bins into powers by frequency, then phases.

Griffin and Lim (1984) alternate between the magnitudes that are wanted and the nearest sound; the step ahead is that of
Perraudin, Balazs and Sondergaard (2013). The same frames give the same sound, alone or in a batch.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from mmfm import config
from mmfm.config import require
from mmfm.models.mel import SILENCE, LogMel

ITERATIONS = 32  # of the phases; a hundred more gain little
MOMENTUM = 0.99
UPDATES = 8  # of the powers
WORDS = 1 << 32


class GriffinLim(nn.Module):
    """The way back of `mel.absolute`, whose frames it takes; `mel` is there for the way forth."""

    def __init__(self, cfg: config.Mel, iterations: int = ITERATIONS) -> None:
        super().__init__()
        require(cfg.recipe == "centred", f"Mel.recipe={cfg.recipe!r} forgets how loud a sound is; use 'centred' here")
        require(
            2 * cfg.hop_ms <= cfg.window_ms,
            f"Mel: phases are found where windows overlap by half: hop_ms={cfg.hop_ms} is over half of "
            f"window_ms={cfg.window_ms}",
        )
        self.mel, self.iterations = LogMel(cfg), iterations
        with torch.device("cpu"):  # as for LogMel
            self.back = nn.Buffer(torch.linalg.pinv(self.mel.banks.double()).float())

    def forward(
        self, mel: Float[Tensor, "n frames bins"], keep: Bool[Tensor, "n frames"]
    ) -> tuple[Float[Tensor, "n samples"], Bool[Tensor, "n samples"]]:
        """A hop of samples for each frame; they may exceed 1. mel: natural logarithms of power, `LogMel.absolute`'s."""
        real = keep.repeat_interleave(self.mel.hop_samples, dim=1)
        with torch.autocast(mel.device.type, enabled=False):
            wanted = self.magnitude(mel) * keep.unsqueeze(-1)
            now = torch.polar(wanted, _phases(wanted))
            before = torch.zeros_like(now)
            for _ in range(self.iterations):
                again = self.frames(self.wave(now, keep) * real)
                ahead = again - before * (MOMENTUM / (1 + MOMENTUM))
                now = wanted * ahead / ahead.abs().clamp(min=1e-16)
                before = again
            return self.wave(now, keep) * real, real

    def magnitude(self, mel: Float[Tensor, "n frames bins"]) -> Float[Tensor, "n frames frequencies"]:
        """The square root of powers, none negative, whose mel bins come near (Lee and Seung, 2001)."""
        banks = self.mel.banks.float()
        bins = mel.float().exp() - SILENCE
        power = (bins.clamp(min=0) @ self.back.float()).clamp(min=SILENCE)
        for _ in range(UPDATES):
            power = power * (bins.clamp(min=0) @ banks.T) / (power @ banks @ banks.T).clamp(min=SILENCE**2)
        return power.sqrt()

    def frames(self, wave: Float[Tensor, "n samples"]) -> Complex[Tensor, "n frames frequencies"]:
        """As LogMel cuts them."""
        window, hop = self.mel.window.float(), self.mel.hop_samples
        before = len(window) // 2
        padded = F.pad(wave, (before, len(window) - before - hop))
        return torch.fft.rfft(padded.unfold(1, len(window), hop) * window, n=self.mel.fft_size)

    def wave(
        self, frames: Complex[Tensor, "n frames frequencies"], keep: Bool[Tensor, "n frames"]
    ) -> Float[Tensor, "n samples"]:
        """The sound whose frames are nearest, of those that are kept (Griffin and Lim, eq. 6)."""
        window, hop = self.mel.window.float(), self.mel.hop_samples
        cut = torch.fft.irfft(frames, n=self.mel.fft_size)[..., : len(window)] * window
        total = _overlap(cut * keep.unsqueeze(-1), hop)
        weight = _overlap(window.square() * keep.unsqueeze(-1), hop)
        at = len(window) // 2
        return (total / weight.clamp(min=1e-4))[:, at : at + keep.shape[1] * hop]


def _overlap(frames: Float[Tensor, "n frames window"], hop: int) -> Float[Tensor, "n samples"]:
    """Frames added where they lie, each a hop after the one before, and zeros for a window more."""
    n, count, window = frames.shape
    parts = math.ceil(window / hop)
    cut = F.pad(frames, (0, parts * hop - window)).unflatten(2, (parts, hop))
    total = frames.new_zeros(n, count + 2 * parts, hop)
    for part in range(parts):
        total[:, part : part + count] += cut[:, :, part]
    return total.flatten(1)


def _phases(like: Float[Tensor, "n frames frequencies"]) -> Float[Tensor, "n frames frequencies"]:
    """Angles that look random, each by its place alone: neither a seed nor a neighbour changes a sound."""
    frame = torch.arange(like.shape[1], device=like.device)[:, None]
    frequency = torch.arange(like.shape[2], device=like.device)
    mixed = (frame * 0x9E3779B1 + frequency * 0x85EBCA77) % WORDS
    for factor in (0x2C1B3C6D, 0x297A2D39):  # both below 2^30, so that no product leaves 63 bits
        mixed = ((mixed ^ (mixed >> 15)) * factor) % WORDS
    return ((mixed ^ (mixed >> 15)) * (2 * math.pi / WORDS)).to(like.dtype).expand_as(like)
