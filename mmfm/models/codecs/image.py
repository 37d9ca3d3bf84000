"""A codec of pictures: strided convolutions down to one vector for each patch, a finite scalar grid, and back up."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from mmfm import config
from mmfm.data.batch import Ids
from mmfm.data.vocabulary import CodeFormat
from mmfm.models.codecs.discriminator import Patches, adversarial
from mmfm.models.codecs.fsq import Quantiser
from mmfm.models.codecs.full_precision import Exact, exactly
from mmfm.models.codecs.losses import absolute_error, squared_error

CRITIC_DEPTH = 2


class Residual(nn.Module):
    """x + f(x) with two 3 by 3 convolutions behind a norm (ResNet's pre-activation form, arXiv 1603.05027)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "n width height across"]) -> Float[Tensor, "n width height across"]:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class ImageAutoencoder(Exact):
    """Codes of a picture, row by row from its upper left corner."""

    step_samples = 0

    def __init__(self, cfg: config.ImageCodec) -> None:
        super().__init__()
        self.pixels, self.form = cfg.pixels, CodeFormat(cfg.sizes, cfg.length)
        self.grid = (cfg.height_px // cfg.patch_px, cfg.width_px // cfg.patch_px)
        halvings = int(math.log2(cfg.patch_px))
        widths = [max(8, cfg.width >> place) for place in reversed(range(halvings + 1))]
        down = [part for a, b in pairwise(widths) for part in _halve(a, b)]
        up = [part for a, b in pairwise(widths[::-1]) for part in _double(a, b)]
        middle = [nn.Sequential(*(Residual(cfg.width) for _ in range(cfg.depth))) for _ in range(2)]
        self.encoder = nn.Sequential(nn.Conv2d(cfg.channels, widths[0], 3, padding=1), *down, middle[0])
        self.decoder = nn.Sequential(middle[1], *up, nn.Conv2d(widths[0], cfg.channels, 3, padding=1))
        self.quantiser = Quantiser(cfg.width, cfg.levels)
        self.adversarial = cfg.adversarial
        self.critic = Patches(cfg.channels, cfg.width, CRITIC_DEPTH) if cfg.adversarial else None

    def forward(
        self, x: Float[Tensor, "n channels height width"]
    ) -> tuple[Float[Tensor, "n channels height width"], Int[Tensor, "n codes"]]:
        """Pictures in -1..1 as they are decoded, with gradients, and their codes."""
        found, codes = self.coded(x)
        return self.decoder(found.permute(0, 3, 1, 2)), codes.flatten(1)

    def coded(
        self, x: Float[Tensor, "n channels height width"]
    ) -> tuple[Float[Tensor, "n down across size"], Int[Tensor, "n down across"]]:
        """Of each patch the vector of its code, and the code."""
        return self.quantiser(self.encoder(x).permute(0, 2, 3, 1))

    def encode(self, x: UInt8[Tensor, "n channels height width"], keep: Bool[Tensor, "n 1"]) -> Ids:
        with exactly(x):
            codes = self.coded(scaled(x, self.dtype))[1].flatten(1)
        return Ids(codes, keep.expand(-1, codes.shape[1]))

    def decode(
        self, ids: Int[Tensor, "n codes"], keep: Bool[Tensor, "n codes"]
    ) -> tuple[UInt8[Tensor, "n channels height width"], Bool[Tensor, "n 1"]]:
        with exactly(ids):
            z = self.quantiser.vectors(ids).unflatten(1, self.grid)
            x = self.decoder(z.permute(0, 3, 1, 2))
        return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8), keep[:, :1]

    def losses(self, x: Tensor, keep: Tensor, draws: Tensor | None = None) -> dict[str, Float[Tensor, ""]]:
        """Mean absolute and mean squared error of the values in -1..1, of each picture, summed over the pictures."""
        wanted = scaled(x, self.dtype)
        found = self(wanted)[0].to(wanted.dtype)
        losses = {
            "absolute": absolute_error(found, wanted).sum(),
            "squared": squared_error(found, wanted).sum(),
        }
        if self.critic is not None:
            real, apart = adversarial(self.critic, found, wanted, keep.expand(-1, found.shape[2]))
            losses |= {"judged": self.adversarial * real, "apart": apart}
        return losses

    @property
    def dtype(self) -> torch.dtype:
        return self.quantiser.enter.weight.dtype


def scaled(x: Tensor, dtype: torch.dtype) -> Tensor:
    """0..255 -> -1..1."""
    return x.to(dtype) / 127.5 - 1


def _halve(width: int, wider: int) -> list[nn.Module]:
    return [nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, wider, 4, stride=2, padding=1)]


def _double(width: int, narrower: int) -> list[nn.Module]:
    """Each pixel becomes four, which a convolution then tells apart: no checkerboard (Odena et al., Distill 2016)."""
    return [nn.GroupNorm(1, width), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(width, narrower, 3, padding=1)]
