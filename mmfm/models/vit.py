"""A vision transformer: patches or a convolutional stem, learned positions, pre-norm blocks.

With other choices of `config.Vit` it is timm's, CLIP's, DINOv2's or SigLIP's: tokens before the patches, a norm before
the first block, scaled branches, another activation. Only patches have positions; what stands before them has none.
"""

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from mmfm import config
from mmfm.data.batch import Tokens
from mmfm.models.dropout import DropoutKey
from mmfm.models.layers import encoder_block, positions_of


def patch_stem(channels: int, width: int, patch_px: int, bias: bool = True) -> nn.Module:
    """One linear map per square patch (arXiv 2010.11929)."""
    return nn.Conv2d(channels, width, kernel_size=patch_px, stride=patch_px, bias=bias)


def conv_stem(channels: int, width: int, patch_px: int, bias: bool = True) -> nn.Module:
    """Halve the sides by 3x3 convolutions, with doubling channels, until patch_px is reached (arXiv 2106.14881)."""
    halvings = patch_px.bit_length() - 1
    sizes = [width // 2 ** (halvings - i) for i in range(halvings + 1)]
    # One group: a norm of the sample's own, where a batch norm would tie the samples and the ranks together.
    layers: list[nn.Module] = [nn.Conv2d(channels, sizes[0], 3, padding=1), nn.GroupNorm(1, sizes[0]), nn.GELU()]
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(width, width, 1, bias=bias))


STEMS = {"patch": patch_stem, "conv": conv_stem}


class Renormalise(nn.Module):
    """Pixels of -1..1, as `normalise` gives them, with the mean and deviation that a source was trained with."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # Constants are real even in a model that is built on the meta device, and are saved: they are part of it.
        means, deviations = (torch.tensor(x, device="cpu")[:, None, None] for x in (mean, std))
        self.gain, self.offset = nn.Buffer(0.5 / deviations), nn.Buffer((0.5 - means) / deviations)

    def forward(self, pixels: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        return pixels * self.gain + self.offset


def resize_positions(
    position: Float[Tensor, "old width"], old: tuple[int, int], new: tuple[int, int], antialias: bool = True
) -> Float[Tensor, "new width"]:
    """A table of rows x columns places for another grid: bicubic, antialiased as in timm, or not as in transformers."""
    grid = position.float().unflatten(0, old).permute(2, 0, 1)[None]
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=antialias)
    return grid[0].flatten(1).T.to(position.dtype)


class VisionTransformer(nn.Module):
    """Pixels in; out come the tokens of `prefix`, then one per patch, row by row."""

    def __init__(self, cfg: config.Vit, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, self.grid, self.patch_px = cfg.width, cfg.grid, cfg.patch_px
        plain = set(cfg.mean) == set(cfg.std) == {0.5}
        self.renormalise = nn.Identity() if plain else Renormalise(cfg.mean, cfg.std)
        self.stem = STEMS[cfg.stem](cfg.channels, cfg.width, cfg.patch_px, cfg.patch_bias)
        self.position = nn.Parameter(cfg.width**-0.5 * torch.randn(cfg.tokens, cfg.width))
        self.prefix = nn.Parameter(cfg.width**-0.5 * torch.randn(cfg.prefix, cfg.width)) if cfg.prefix else None
        self.norm_pre = nn.LayerNorm(cfg.width, eps=cfg.eps) if cfg.norm_pre else nn.Identity()
        self.blocks = nn.ModuleList(
            encoder_block(
                cfg.width,
                cfg.heads,
                dropout,
                hidden=cfg.hidden,
                eps=cfg.eps,
                activation=cfg.activation,
                layer_scale=cfg.layer_scale,
            )
            for _ in range(cfg.depth)
        )
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.eps) if cfg.norm_post else nn.Identity()

    def forward(
        self,
        pixels: Float[Tensor, "batch channels height width"],
        seeds: Int[Tensor, " batch"] | None = None,
        read: Int[Tensor, "batch kept"] | None = None,
    ) -> Tokens:
        """`pixels` as `normalise` gives them, of any multiple of the patch; `seeds`: of dropout, one for each row.
        `read`: the patches that enter the blocks, each at its own position; others have tokens of zero. None: all."""
        patches = self.stem(self.renormalise(pixels))
        x = patches.flatten(2).transpose(1, 2) + self._positions(patches.shape[2], patches.shape[3])
        if self.prefix is not None:
            x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], dim=1)
        keep = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        places = positions_of(keep)
        if read is not None:
            places = torch.cat([places[:, : self.prefix_length], read + self.prefix_length], dim=1)
            x = x.gather(1, places[:, :, None].expand(-1, -1, self.width))
        x = self.norm_pre(x)
        noise = None if seeds is None else DropoutKey(seeds[:, None], places)
        for block in self.blocks:
            x = block(x, noise=noise)
        x = self.norm(x)
        if read is not None:
            at = places[:, :, None].expand(-1, -1, self.width)
            x = x.new_zeros(*keep.shape, self.width).scatter(1, at, x)
        return Tokens(x, keep)

    @property
    def prefix_length(self) -> int:
        return 0 if self.prefix is None else len(self.prefix)

    def _positions(self, rows: int, columns: int) -> Float[Tensor, "patches width"]:
        same = (rows, columns) == self.grid  # then there is nothing to export but a table
        return self.position if same else resize_positions(self.position, self.grid, (rows, columns))


def normalise(
    pixels: UInt8[Tensor, "batch channels height width"], dtype: torch.dtype
) -> Float[Tensor, "batch channels height width"]:
    """0..255 -> -1..1, on the device, so that loaders move a quarter of the bytes."""
    return pixels.to(dtype) / 127.5 - 1
