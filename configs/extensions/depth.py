"""A modality of one's own: depth maps, float arrays [height, width] in `.npy` files, read by a small convolution.

    model=Model(modalities=(Depth(),), ...)
    data=Data(train=(Source(shards="data/depth", modalities=("depth", "text")),))
    contrastive=(Contrastive(pair=("depth", "text")),)  # of a Run

Shards are indexed with it (`mmfm data index data/depth --extension depth.py`), and so is a run opened:
`mmfm.load("runs/depth", extensions=["depth.py"]).encode_own("depth", ["a.npy"])`.
"""

import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mmfm.config import Modality, UserError
from mmfm.data.batch import Tokens
from mmfm.preprocessing import BadSample


class DepthTower(nn.Module):
    """Depth in metres, on a logarithmic scale, cut into patches."""

    def __init__(self, width: int, patch_px: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch_px, stride=patch_px)
        self.mix = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, keep: Tensor) -> Tokens:
        tokens = self.patches(x.clamp(min=0.01).log()[:, None]).flatten(2).transpose(1, 2)
        tokens = tokens + self.mix(tokens)
        return Tokens(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=x.device))


@dataclass(frozen=True, kw_only=True)
class Depth(Modality):
    name: ClassVar[str] = "depth"
    files: ClassVar[tuple[str, ...]] = ("npy",)
    size_px: int = 16
    patch_px: int = 4

    def __post_init__(self) -> None:
        if self.size_px % self.patch_px:
            raise UserError(f"Depth.size_px={self.size_px} is no multiple of patch_px={self.patch_px}")

    def decode(self, data: bytes) -> Tensor:
        try:
            array = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError) as why:
            raise BadSample("own_damaged", f"the .npy cannot be read ({why}); write it again") from None
        if array.shape != (self.size_px, self.size_px) or not np.issubdtype(array.dtype, np.floating):
            raise BadSample("own_damaged", f"the depth map is {array.dtype} {array.shape}; resize it")
        return torch.from_numpy(array.astype(np.float32))

    def tower(self) -> DepthTower:
        return DepthTower(self.width, self.patch_px)
