"""An audio conformer over log-mel frames that is computed here, on the device (arXiv 2005.08100).

Every operation over time is masked, so that a padded clip gives what it gives alone: silence is laid around the clip,
convolutions see zeros beyond its end, and means are taken over real frames only.
"""

import math

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmfm import config
from mmfm.batch import Tokens
from mmfm.layers import Attention, Dropout, Mlp, Noise, key_mask, positions_of, rotary


class LogMel(nn.Module):
    """Waveform -> log-mel frames, centred on each clip's own mean. Buffers are saved: they are part of the model."""

    def __init__(self, cfg: config.Mel) -> None:
        super().__init__()
        self.window_samples = round(cfg.window_ms * cfg.rate_hz / 1000)
        self.hop_samples = round(cfg.hop_ms * cfg.rate_hz / 1000)
        self.fft_size = 2 ** math.ceil(math.log2(self.window_samples))
        banks = AF.melscale_fbanks(
            self.fft_size // 2 + 1, cfg.low_hz, cfg.high_hz, cfg.bins, cfg.rate_hz, norm=None, mel_scale="htk"
        )
        self.banks, self.window = nn.Buffer(banks), nn.Buffer(torch.hann_window(self.window_samples))

    def forward(self, wave: Float[Tensor, "batch samples"], keep: Bool[Tensor, "batch samples"]) -> Tokens:
        """One frame per started hop, its window centred on the hop's first sample; silence before and after."""
        wave = wave * keep
        hops = math.ceil(wave.shape[1] / self.hop_samples)
        half = self.window_samples // 2
        end = (hops - 1) * self.hop_samples + self.window_samples - half - wave.shape[1]
        frames = F.pad(wave, (half, max(end, 0))).unfold(1, self.window_samples, self.hop_samples)[:, :hops]
        with torch.autocast(wave.device.type, enabled=False):  # powers span more than bf16 can tell apart
            power = torch.fft.rfft(frames.to(self.window.dtype) * self.window, n=self.fft_size).abs().square()
            mel = (power @ self.banks).clamp(min=1e-8).log()
        real = keep[:, :: self.hop_samples]
        weight = real.unsqueeze(-1)
        centred = mel - (mel * weight).sum((1, 2), keepdim=True) / (
            weight.sum((1, 2), keepdim=True) * mel.shape[2]
        ).clamp(min=1)
        return Tokens((centred * weight / 4).to(wave.dtype), real)


class Subsample(nn.Module):
    """Two strided convolutions over time and frequency: four frames become one token."""

    def __init__(self, bins: int, width: int) -> None:
        super().__init__()
        channels = max(width // 4, 8)
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.out = nn.Linear(channels * math.ceil(math.ceil(bins / 2) / 2), width)

    def forward(self, frames: Tokens) -> Tokens:
        x, keep = frames.x.unsqueeze(1), frames.keep
        for conv in (self.conv1, self.conv2):
            x, keep = F.relu(conv(x * keep[:, None, :, None])), keep[:, ::2]
        return Tokens(self.out(x.transpose(1, 2).flatten(2)), keep)


class ConvModule(nn.Module):
    """Pointwise, gate, depthwise over time, norm, pointwise. LayerNorm, since a batch norm would see the padding."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "batch time width"], keep: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time width"]:
        # Masked after the gate: the bias of `inner` would revive zeros that were masked earlier.
        x = F.glu(self.inner(x)) * keep.unsqueeze(-1)
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return self.out(F.silu(self.norm(x)))


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward."""

    def __init__(self, cfg: config.Conformer, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(cfg.width) for _ in range(5))
        self.before, self.after = Mlp(cfg.width, 4 * cfg.width), Mlp(cfg.width, 4 * cfg.width)
        self.attn, self.conv = Attention(cfg.width, cfg.heads), ConvModule(cfg.width, cfg.kernel)
        self.dropouts = nn.ModuleList(Dropout(dropout) for _ in range(4))

    def forward(self, x, keep: Bool[Tensor, "batch time"], mask, turn, noise: Noise | None = None):
        x = x + self.dropouts[0](self.before(self.norms[0](x)), noise) / 2
        x = x + self.dropouts[1](self.attn(self.norms[1](x), mask, turn), noise)
        x = x + self.dropouts[2](self.conv(self.norms[2](x), keep), noise)
        x = x + self.dropouts[3](self.after(self.norms[3](x)), noise) / 2
        return self.norms[4](x)


class AudioConformer(nn.Module):
    """Log-mel frames in, one token per four frames out. `mel` turns a waveform into frames."""

    def __init__(self, cfg: config.Conformer, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, self.head_dim = cfg.width, cfg.width // cfg.heads
        self.mel, self.subsample = LogMel(cfg.mel), Subsample(cfg.mel.bins, cfg.width)
        self.blocks = nn.ModuleList(ConformerBlock(cfg, dropout) for _ in range(cfg.depth))

    def forward(self, frames: Tokens, seeds: Int[Tensor, " batch"] | None = None) -> Tokens:
        """`seeds`: of dropout, one for each row."""
        x, keep = self.subsample(frames)
        places = positions_of(keep)
        mask, turn = key_mask(keep), rotary(places, self.head_dim)
        noise = None if seeds is None else Noise(seeds, places)
        for block in self.blocks:
            x = block(x, keep, mask, turn, noise)
        return Tokens(x, keep)
