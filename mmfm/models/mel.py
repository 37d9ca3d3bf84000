"""Waveform -> log-mel frames, on the device. What lies beyond a clip's end changes none of its frames."""

import math

import torch
import torch.nn.functional as F
import torchaudio.compliance.kaldi
import torchaudio.functional as AF
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmfm import config
from mmfm.data.batch import Tokens
from mmfm.models.packing import pad_packed, real_places, worth_packing
from mmfm.runtime.transfer import to_device

SILENCE = 1e-8  # power below which a mel bin says no more


class LogMel(nn.Module):
    """Waveform -> log-mel frames, centred on each clip's own mean. Buffers are saved: they are part of the model."""

    def __init__(self, cfg: config.Mel) -> None:
        super().__init__()
        self.window_samples = round(cfg.window_ms * cfg.rate_hz / 1000)
        self.hop_samples = round(cfg.hop_ms * cfg.rate_hz / 1000)
        self.fft_size = 2 ** math.ceil(math.log2(self.window_samples))
        with torch.device("cpu"):  # constants are real even in a model that is built on the meta device
            banks = AF.melscale_fbanks(
                self.fft_size // 2 + 1, cfg.low_hz, cfg.high_hz, cfg.bins, cfg.rate_hz, norm=None, mel_scale="htk"
            )
            self.banks, self.window = nn.Buffer(banks), nn.Buffer(torch.hann_window(self.window_samples))

    def forward(
        self,
        wave: Float[Tensor, "batch samples"],
        keep: Bool[Tensor, "batch samples"],
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Tokens:
        """One frame per started hop, its window centred on the hop's first sample; silence before and after. lengths:
        of the clips, in samples, on the CPU; None: the device is asked."""
        mel, real = self.absolute(wave, keep, lengths)
        weight = real.unsqueeze(-1)
        centred = mel - (mel * weight).sum((1, 2), keepdim=True) / (
            weight.sum((1, 2), keepdim=True) * mel.shape[2]
        ).clamp(min=1)
        return Tokens((centred * weight / 4).to(wave.dtype), real)

    def frame_counts(self, lengths: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """How many frames clips of so many samples give."""
        return (lengths + self.hop_samples - 1) // self.hop_samples

    def absolute(
        self,
        wave: Float[Tensor, "batch samples"],
        keep: Bool[Tensor, "batch samples"],
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Tokens:
        """The same frames as the logarithm of their power, with their level, in single precision or better.

        Frames beyond a clip's end are of no use, and cost nothing where clips differ in length.
        """
        wave = wave * keep
        hops = (wave.shape[1] + self.hop_samples - 1) // self.hop_samples  # of any length: an export traces it
        half = self.window_samples // 2
        end = (hops - 1) * self.hop_samples + self.window_samples - half - wave.shape[1]
        frames = F.pad(wave, (half, end)).unfold(1, self.window_samples, self.hop_samples)
        real = keep[:, :: self.hop_samples]
        if not worth_packing(real):
            return Tokens(self._log_power(frames), real)
        known = real_places(real, None if lengths is None else self.frame_counts(lengths))
        index = to_device(known.flatten().nonzero().squeeze(1), wave.device)
        of_real = frames[index // real.shape[1], index % real.shape[1]]
        return Tokens(pad_packed(self._log_power(of_real), index, (real.shape[0], real.shape[1])), real)

    def _log_power(self, frames: Float[Tensor, "*any samples"]) -> Float[Tensor, "*any bins"]:
        exact = torch.promote_types(self.window.dtype, torch.float32)  # a model in half precision hears in single
        with torch.autocast(frames.device.type, enabled=False):  # powers span more than bf16 can tell apart
            spectrum = torch.fft.rfft(frames.to(exact) * self.window.to(exact), n=self.fft_size)
            power = spectrum.real.square() + spectrum.imag.square()
            return (power @ self.banks.to(exact)).clamp(min=SILENCE).log()


class KaldiMel(nn.Module):
    """Kaldi's filter bank, each bin then with mean zero and deviation one over the clip: what w2v-BERT 2.0 was fed.

    Frames lie within the clip; one shorter than a window is one frame of it and silence.
    """

    def __init__(self, cfg: config.Mel) -> None:
        super().__init__()
        self.window_samples = round(cfg.window_ms * cfg.rate_hz / 1000)
        self.hop_samples = round(cfg.hop_ms * cfg.rate_hz / 1000)
        self.fft_size = 2 ** math.ceil(math.log2(self.window_samples))
        with torch.device("cpu"):  # as for LogMel
            banks, _ = torchaudio.compliance.kaldi.get_mel_banks(
                cfg.bins, self.fft_size, cfg.rate_hz, cfg.low_hz, cfg.high_hz, 100.0, -500.0, 1.0
            )
            self.banks = nn.Buffer(F.pad(banks, (0, 1)).T.contiguous())
            self.window = nn.Buffer(torch.hann_window(self.window_samples, periodic=False).pow(0.85))

    def frame_counts(self, lengths: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """How many frames clips of so many samples give."""
        return ((lengths - self.window_samples) // self.hop_samples).clamp(min=0) + 1

    def forward(
        self,
        wave: Float[Tensor, "batch samples"],
        keep: Bool[Tensor, "batch samples"],
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Tokens:
        wave = F.pad(wave * keep, (0, max(0, self.window_samples - wave.shape[1]))) * 2**15
        frames = wave.unfold(1, self.window_samples, self.hop_samples)
        frames = frames - frames.mean(2, keepdim=True)
        frames = frames - 0.97 * F.pad(frames, (1, 0), mode="replicate")[..., :-1]
        exact = torch.promote_types(self.window.dtype, torch.float32)  # a model in half precision hears in single
        with torch.autocast(wave.device.type, enabled=False):  # as for LogMel
            spectrum = torch.fft.rfft(frames.to(exact) * self.window.to(exact), n=self.fft_size)
            power = spectrum.real.square() + spectrum.imag.square()
            mel = (power @ self.banks.to(exact)).clamp(min=torch.finfo(torch.float32).eps).log()
        last = (keep.sum(1, keepdim=True) - self.window_samples) // self.hop_samples
        real = torch.arange(mel.shape[1], device=mel.device) <= last.clamp(min=0)
        weight = real.unsqueeze(-1)
        count = weight.sum(1, keepdim=True)
        centred = (mel - (mel * weight).sum(1, keepdim=True) / count) * weight
        variance = centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)
        return Tokens((centred / (variance + 1e-7).sqrt()).to(wave.dtype), real)


RECIPES = {"centred": LogMel, "kaldi": KaldiMel}
