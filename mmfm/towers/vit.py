"""A vision transformer: patches or a convolutional stem, learned positions, pre-norm blocks."""

import itertools

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from mmfm import config
from mmfm.batch import Tokens
from mmfm.layers import Noise, encoder_block, positions_of


def patch_stem(channels: int, width: int, patch_px: int) -> nn.Module:
    """One linear map per square patch (arXiv 2010.11929)."""
    return nn.Conv2d(channels, width, kernel_size=patch_px, stride=patch_px)


def conv_stem(channels: int, width: int, patch_px: int) -> nn.Module:
    """Halve the sides by 3x3 convolutions, with doubling channels, until patch_px is reached (arXiv 2106.14881)."""
    halvings = patch_px.bit_length() - 1
    sizes = [width // 2 ** (halvings - i) for i in range(halvings + 1)]
    # One group: a norm of the sample's own, where a batch norm would tie the samples and the ranks together.
    layers: list[nn.Module] = [nn.Conv2d(channels, sizes[0], 3, padding=1), nn.GroupNorm(1, sizes[0]), nn.GELU()]
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(width, width, 1))


STEMS = {"patch": patch_stem, "conv": conv_stem}


class VisionTransformer(nn.Module):
    """uint8 pixels in, one token per patch out, row by row."""

    def __init__(self, cfg: config.Vit, dropout: float = 0.0) -> None:
        super().__init__()
        self.width = cfg.width
        self.stem = STEMS[cfg.stem](cfg.channels, cfg.width, cfg.patch_px)
        self.position = nn.Parameter(cfg.width**-0.5 * torch.randn(cfg.tokens, cfg.width))
        self.blocks = nn.ModuleList(encoder_block(cfg.width, cfg.heads, dropout) for _ in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.width, eps=1e-6)

    def forward(
        self, pixels: Float[Tensor, "batch channels height width"], seeds: Int[Tensor, " batch"] | None = None
    ) -> Tokens:
        """`pixels` as `normalise` gives them; `seeds`: of dropout, one for each row."""
        x = self.stem(pixels).flatten(2).transpose(1, 2) + self.position
        keep = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        noise = None if seeds is None else Noise(seeds, positions_of(keep))
        for block in self.blocks:
            x = block(x, noise=noise)
        return Tokens(self.norm(x), keep)


def normalise(
    pixels: UInt8[Tensor, "batch channels height width"], dtype: torch.dtype
) -> Float[Tensor, "batch channels height width"]:
    """0..255 -> -1..1, on the device, so that loaders move a quarter of the bytes."""
    return pixels.to(dtype) / 127.5 - 1
