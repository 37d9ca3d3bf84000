"""A codec of sounds: log-mel frames, some of them to a step, a finite scalar grid, and frames again, which a vocoder
turns into sound. What is learned are frames; the phases are found anew each time.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmfm import config
from mmfm.data.batch import Ids
from mmfm.data.vocabulary import CodeFormat
from mmfm.models.codecs.discriminator import Patches, adversarial
from mmfm.models.codecs.fsq import Quantiser
from mmfm.models.codecs.full_precision import Exact, exactly
from mmfm.models.codecs.vocoder import GriffinLim
from mmfm.models.mel import SILENCE

SILENT = math.log(SILENCE)
CRITIC_DEPTH = 2
LOUDEST = 12.0  # above what a full-scale sound reaches; a decoder that is hardly trained may ask for anything
MIDDLE, SPREAD = -8.0, 5.0  # of natural log-mel power: silence at 1e-8 is -18.4, speech about -2


class Residual(nn.Module):
    """x + f(x) over time, with what is padded put to zero before each convolution, so that nobody sees it."""

    def __init__(self, width: int, kernel: int = 5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.second = nn.Conv1d(width, width, 1)

    def forward(self, x: Float[Tensor, "n time width"], keep: Bool[Tensor, "n time"]) -> Float[Tensor, "n time width"]:
        inner = F.silu(self.norm(x)) * keep.unsqueeze(-1)
        return x + self.second(F.silu(self.first(inner.mT))).mT


class AudioAutoencoder(Exact):
    """`books` codes for every `stack` frames, those of one step beside each other."""

    def __init__(self, cfg: config.AudioCodec) -> None:
        super().__init__()
        self.sound, self.form, self.stack, self.books = (
            cfg.sound,
            CodeFormat(cfg.sizes),
            cfg.frame_stack,
            cfg.num_codebooks,
        )
        self.vocoder = GriffinLim(cfg.mel)
        self.step_samples = cfg.frame_stack * self.vocoder.mel.hop_samples
        self.enter = nn.Linear(cfg.frame_stack * cfg.mel.bins, cfg.width)
        self.encoder = nn.ModuleList(Residual(cfg.width) for _ in range(cfg.depth))
        self.quantisers = nn.ModuleList(Quantiser(cfg.width, cfg.levels) for _ in range(cfg.num_codebooks))
        self.decoder = nn.ModuleList(Residual(cfg.width) for _ in range(cfg.depth))
        self.leave = nn.Linear(cfg.width, cfg.frame_stack * cfg.mel.bins)
        self.scales, self.adversarial = cfg.scales, cfg.adversarial
        self.critic = Patches(1, cfg.width // 4, CRITIC_DEPTH) if cfg.adversarial else None

    def frames(
        self, x: Float[Tensor, "n samples"], keep: Bool[Tensor, "n samples"]
    ) -> tuple[Float[Tensor, "n steps frames"], Bool[Tensor, "n steps"]]:
        """Log-mel power of about zero mean and unit deviation, the frames of a step in one row; silence at the end."""
        mel, real = self.vocoder.mel.absolute(x.to(self.dtype), keep)
        mel = (mel.masked_fill(~real.unsqueeze(-1), SILENT) - MIDDLE) / SPREAD
        more = -mel.shape[1] % self.stack
        mel = F.pad(mel.to(self.dtype), (0, 0, 0, more), value=(SILENT - MIDDLE) / SPREAD)
        steps = F.pad(real, (0, more)).unflatten(1, (-1, self.stack)).any(2)
        return mel.unflatten(1, (-1, self.stack)).flatten(2), steps

    def code_counts(self, lengths: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """How many codes sounds of so many samples have."""
        return (self.vocoder.mel.frame_counts(lengths) + self.stack - 1) // self.stack * self.books

    def quantised(
        self, frames: Float[Tensor, "n steps frames"], keep: Bool[Tensor, "n steps"]
    ) -> tuple[Float[Tensor, "n steps width"], Int[Tensor, "n steps books"]]:
        """Each book codes what those before it have left (residual quantisation, arXiv 2107.03312)."""
        x = self.enter(frames)
        for block in self.encoder:
            x = block(x, keep)
        found, codes = torch.zeros_like(x), []
        for quantiser in self.quantisers:
            part, code = quantiser(x - found)
            found = found + part
            codes.append(code)
        return found, torch.stack(codes, dim=2)

    def rebuilt(
        self, x: Float[Tensor, "n steps width"], keep: Bool[Tensor, "n steps"]
    ) -> Float[Tensor, "n steps frames"]:
        for block in self.decoder:
            x = block(x, keep)
        return self.leave(x)

    def encode(self, x: Float[Tensor, "n samples"], keep: Bool[Tensor, "n samples"]) -> Ids:
        with exactly(x):
            frames, steps = self.frames(x, keep)
            codes = self.quantised(frames, steps)[1] + self._starts
        return Ids(codes.flatten(1) * steps.repeat_interleave(self.books, 1), steps.repeat_interleave(self.books, 1))

    def decode(
        self, ids: Int[Tensor, "n codes"], keep: Bool[Tensor, "n codes"]
    ) -> tuple[Float[Tensor, "n samples"], Bool[Tensor, "n samples"]]:
        codes, steps = ids.unflatten(1, (-1, self.books)) - self._starts, keep.unflatten(1, (-1, self.books)).all(2)
        x = torch.zeros(*steps.shape, self.enter.out_features, device=ids.device, dtype=self.dtype)
        for book, quantiser in enumerate(self.quantisers):
            assert isinstance(quantiser, Quantiser)
            with exactly(x):
                x = x + quantiser.vectors(codes[..., book] % quantiser.size)
        with exactly(x):
            frames = self.rebuilt(x, steps).unflatten(2, (self.stack, -1)).flatten(1, 2)
        frames = (frames.float() * SPREAD + MIDDLE).clamp(SILENT, LOUDEST)
        wave, real = self.vocoder(frames, steps.repeat_interleave(self.stack, 1))
        return wave.clamp(-1, 1), real

    def losses(self, x: Tensor, keep: Tensor, draws: Tensor | None = None) -> dict[str, Float[Tensor, ""]]:
        """Mean absolute and mean squared error of a clip's frames, in deviations of log power, and of their means over
        so many frames as `scales` says, summed over clips."""
        frames, steps = self.frames(x, keep)
        found = self.rebuilt(self.quantised(frames, steps)[0], steps).to(frames.dtype)
        found, wanted = (part.unflatten(2, (self.stack, -1)).flatten(1, 2) for part in (found, frames))
        real = steps.repeat_interleave(self.stack, 1)
        losses = {f"frames of {scale}": _error(found, wanted, real, scale).sum() for scale in self.scales}
        if self.critic is not None:
            judged, apart = adversarial(self.critic, found.unsqueeze(1), wanted.unsqueeze(1), real)
            losses |= {"judged": self.adversarial * judged, "apart": apart}
        return losses

    @property
    def dtype(self) -> torch.dtype:
        return self.enter.weight.dtype

    @property
    def _starts(self) -> Int[Tensor, " books"]:
        return torch.arange(self.books, device=self.enter.weight.device) * self.form.sizes[0]


def _error(
    found: Float[Tensor, "n frames bins"],
    wanted: Float[Tensor, "n frames bins"],
    keep: Bool[Tensor, "n frames"],
    scale: int,
) -> Float[Tensor, " n"]:
    """Absolute and squared, of means over `scale` frames, the last of a clip perhaps over fewer."""
    error = (found - wanted) * keep.unsqueeze(-1)
    if scale > 1:  # sums over what is real: a mean by avg_pool1d would count the padding behind a clip's end
        more = -error.shape[1] % scale
        held = F.pad(keep, (0, more)).unflatten(1, (-1, scale)).sum(2)
        error = F.pad(error, (0, 0, 0, more)).unflatten(1, (-1, scale)).sum(2) / held.clamp(min=1).unsqueeze(-1)
        keep = held > 0
    count = keep.sum(1).clamp(min=1) * error.shape[2]
    return (error.abs() + error.square()).sum((1, 2)) / count
