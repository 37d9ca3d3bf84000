"""An audio conformer over log-mel frames that is computed here, on the device (arXiv 2005.08100).

Every operation over time is masked, so that a padded clip gives what it gives alone: silence is laid around the clip,
convolutions see zeros beyond its end, and means are taken over real frames only. With other choices of
`config.Conformer` it is torchaudio's, or w2v-BERT 2.0 (arXiv 2312.05187).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmfm import config
from mmfm.data.batch import Tokens
from mmfm.models.adapters import through
from mmfm.models.dropout import Dropout, DropoutKey
from mmfm.models.execution import TrainedBlock
from mmfm.models.layers import (
    Attention,
    KeyMask,
    Mlp,
    RelativeKeys,
    key_mask,
    positions_of,
    rotary_cos_sin,
)
from mmfm.models.mel import RECIPES, KaldiMel, LogMel
from mmfm.models.packing import Packed, Places, pack, pad_packed, real_places, worth_packing
from mmfm.models.varlen import take, takes_kernel

__all__ = ["AudioConformer", "KaldiMel", "LogMel"]


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

    def token_counts(self, lengths: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        return (lengths + 3) // 4


class Stack(nn.Module):
    """Two frames beside each other become one token; the last odd frame is left out, unless it is the only one."""

    def __init__(self, bins: int, width: int, eps: float) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(2 * bins, eps=eps), nn.Linear(2 * bins, width)

    def forward(self, frames: Tokens) -> Tokens:
        odd = frames.x.shape[1] % 2
        x, keep = F.pad(frames.x, (0, 0, 0, odd)), F.pad(frames.keep, (0, odd))
        keep = torch.cat([keep[:, :1], keep[:, 3::2]], dim=1)
        return Tokens(self.out(self.norm(x.unflatten(1, (-1, 2)).flatten(2))) * keep.unsqueeze(-1), keep)

    def token_counts(self, lengths: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        return (lengths // 2).where(lengths > 1, lengths)


def stem(cfg: config.Conformer) -> nn.Module:
    """Frames -> tokens of the blocks' width."""
    if cfg.stem == "conv":
        return Subsample(cfg.mel.bins, cfg.width)
    return Stack(cfg.mel.bins, cfg.width, cfg.eps) if cfg.stem == "stack" else nn.Identity()


class FixedNorm(nn.Module):
    """A batch norm that uses the statistics it was given and never gathers new ones: it ties no sample to another."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)), eps
        self.running_mean, self.running_var = nn.Buffer(torch.zeros(width)), nn.Buffer(torch.ones(width))

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        return (x - self.running_mean) * ((self.running_var + self.eps).rsqrt() * self.weight) + self.bias


NORMS = {"layer": nn.LayerNorm, "fixed": FixedNorm}


class ConvModule(nn.Module):
    """Pointwise, gate, depthwise over time, norm, pointwise. No batch norm gathers statistics: it would see padding."""

    def __init__(self, cfg: config.Conformer) -> None:
        super().__init__()
        width, kernel, bias = cfg.width, cfg.kernel, cfg.conv_bias
        self.masked, self.before = cfg.mask_conv, kernel - 1 if cfg.causal else 0
        padding = 0 if cfg.causal else kernel // 2
        self.inner = nn.Linear(width, 2 * width, bias=bias)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=padding, groups=width, bias=bias)
        self.norm, self.out = NORMS[cfg.conv_norm](width, eps=cfg.eps), nn.Linear(width, width, bias=bias)

    def forward(
        self, x: Float[Tensor, "batch time width"], keep: Bool[Tensor, "batch time"] | Packed
    ) -> Float[Tensor, "batch time width"]:
        return self.finish(self.over_time(self.gate(x), keep))

    def gate(
        self, x: Float[Tensor, "batch time width"], noise: DropoutKey | None = None
    ) -> Float[Tensor, "batch time width"]:
        return F.glu(through(self.inner, x, noise))

    def over_time(
        self, x: Float[Tensor, "batch time width"], keep: Bool[Tensor, "batch time"] | Packed
    ) -> Float[Tensor, "batch time width"]:
        """The convolution, which is all that sees neighbours."""
        if isinstance(keep, Packed):
            return keep.over_time(x, self._convolved)
        # After the gate: the bias of `inner` would revive zeros that were masked earlier.
        return self._convolved(x * keep.unsqueeze(-1) if self.masked else x)

    def finish(
        self, x: Float[Tensor, "batch time width"], noise: DropoutKey | None = None
    ) -> Float[Tensor, "batch time width"]:
        return through(self.out, F.silu(self.norm(x)), noise)

    def _convolved(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        return self.depthwise(F.pad(x.transpose(1, 2), (self.before, 0))).transpose(1, 2)


class ConformerBlock(TrainedBlock):
    """Half a feed-forward, attention, convolution, half a feed-forward."""

    PIECES = ("_start", "_gate", "_finish")

    def __init__(self, cfg: config.Conformer, dropout: float) -> None:
        super().__init__()
        width, hidden = cfg.width, cfg.hidden or 4 * cfg.width
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=cfg.eps) for _ in range(5))
        self.before, self.after = Mlp(width, hidden, cfg.activation), Mlp(width, hidden, cfg.activation)
        near = RelativeKeys(width // cfg.heads, cfg.left, cfg.right) if cfg.position == "relative" else None
        self.attn, self.conv = Attention(width, cfg.heads, relative=near), ConvModule(cfg)
        self.dropouts = nn.ModuleList(Dropout(dropout) for _ in range(4))

    def forward(self, x, keep: Bool[Tensor, "batch time"] | Packed, mask, turn, noise: DropoutKey | None = None):
        """keep: which tokens are real; or where the clips of one row stand, as `mask` then says too."""
        return self.through(self._forward, x, keep, mask, turn, noise, draws=noise is None)

    def _forward(self, x, keep, mask, turn, noise):
        x, *heads = self.piece("_start")(x, turn, noise)
        x, gated = self.piece("_gate")(x, self.attn.attend(*heads, mask), noise)
        return self.piece("_finish")(x, self.conv.over_time(gated, keep), noise)

    def _start(self, x, turn, noise):
        x = x + self.dropouts[0](self.before(self.norms[0](x), noise), noise) / 2
        return x, *self.attn.project(self.norms[1](x), turn, noise)

    def _gate(self, x, read, noise):
        x = x + self.dropouts[1](through(self.attn.proj, read, noise), noise)
        return x, self.conv.gate(self.norms[2](x), noise)

    def _finish(self, x, convolved, noise):
        x = x + self.dropouts[2](self.conv.finish(convolved, noise), noise)
        x = x + self.dropouts[3](self.after(self.norms[3](x), noise), noise) / 2
        return self.norms[4](x)


class AudioConformer(nn.Module):
    """Log-mel frames in, as many tokens out as the stem makes of them. `mel` turns a waveform into frames."""

    def __init__(self, cfg: config.Conformer, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, self.head_dim = cfg.width, cfg.width // cfg.heads
        self.rotary = cfg.position == "rotary"
        self.packs = cfg.mask_conv and cfg.position != "relative"
        self.mel, self.subsample = RECIPES[cfg.mel.recipe](cfg.mel), stem(cfg)
        self.blocks = nn.ModuleList(ConformerBlock(cfg, dropout) for _ in range(cfg.depth))

    def forward(
        self,
        frames: Tokens,
        seeds: Int[Tensor, " batch"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Tokens:
        """`seeds`: of dropout, one for each row. Clips of several lengths pass the blocks as one row of real tokens,
        but for an imported encoder's whose blocks see the padding or each key's distance. lengths: of the clips, in
        frames, on the CPU; None: the device is asked."""
        x, keep = self.subsample(frames)
        places, rows = positions_of(keep), None if seeds is None else seeds[:, None]
        if not self.packs or not worth_packing(keep):
            x = self._read(x, keep, key_mask(keep), places, rows)
            return Tokens(x * keep.unsqueeze(-1) if self.packs else x, keep)
        real = real_places(keep, None if lengths is None else self.token_counts(lengths))
        row = pack([Places(real)], x.device, takes_kernel(x, self.head_dim))
        rows = None if rows is None else row.of(rows.expand_as(keep))
        x = self._read(take(x.flatten(0, 1), row.source)[None], row.packed, row.packed, row.of(places), rows)
        return Tokens(pad_packed(x[0], row.source, (keep.shape[0], keep.shape[1])), keep)

    def token_counts(self, lengths: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """How many tokens clips of so many frames give."""
        return self.subsample.token_counts(lengths) if isinstance(self.subsample, Subsample | Stack) else lengths

    def _read(
        self,
        x: Float[Tensor, "batch time width"],
        keep: Bool[Tensor, "batch time"] | Packed,
        mask: KeyMask | Packed,
        places: Int[Tensor, "batch time"],
        seeds: Int[Tensor, "batch #time"] | None,
    ) -> Float[Tensor, "batch time width"]:
        turn = rotary_cos_sin(places, self.head_dim) if self.rotary else None
        noise = None if seeds is None else DropoutKey(seeds, places)
        for block in self.blocks:
            x = block(x, keep, mask, turn, noise)
        return x
