"""Two handwritten digits, read half by half: an SVC on the scans that only the test split of `numbers` is drawn from.

It learns from 360 scans of the few writers that no training and no validation picture shows, each with 16 copies moved,
turned, slanted, blurred and made noisy, because what it reads comes out of a codec. Chosen on the scans of the training
split, sharp and softened: right .948 and .916; SVCs of the pixels alone .929 to .944 and .912 to .914, the three
nearest neighbours .945 and .911, a small network .883 and .893.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor

from mmfm.data.numbers_plan import name, splits
from mmfm.evals.judges.contract import seen

SIDE, WHITE = 8, 16.0  # of a scan: px, and its brightest value
COPIES, DEGREES, STRETCH, SLANT, SHIFT_PX, BLUR, NOISE = 16, 12.0, 0.12, 0.2, 0.4, 0.6, 0.04
DIRECTIONS, EDGES = 8, 0.7  # of edges, and their weight beside the pixels
FAINT = 0.15  # a half with less contrast shows nothing

Scans = Float[Tensor, "n 8 8"]


class Digits:
    """Trained when it is made, in about a second; always the same."""

    name: str = "digits"
    of: Literal["image", "audio"] = "image"

    def __init__(self) -> None:
        scans, digits = load_digits(return_X_y=True)
        own = next(split.scans for split in splits() if split.name == "test")
        learned = torch.from_numpy(np.asarray(scans)[own.start : own.stop] / WHITE).float().view(-1, SIDE, SIDE)
        generator = torch.Generator().manual_seed(0)
        shown = torch.cat([learned, *(disturbed(learned, generator) for _ in range(COPIES))])
        gamma: Any = 2.0  # scikit-learn's own annotation knows only names
        self._svc = SVC(C=3.0, gamma=gamma)
        self._svc.fit(described(shown), np.tile(np.asarray(digits)[own.start : own.stop], COPIES + 1))

    def read(self, things: Sequence[Tensor], rate_hz: int = 0) -> list[str]:
        """The name of the number, tens on the left; "" where a half shows nothing."""
        if not things:
            return []
        sides = torch.cat([halves(picture) for picture in seen(things)])
        blank = (sides.amax((1, 2)) - sides.amin((1, 2)) < FAINT).view(-1, 2).any(1)
        digits = self._svc.predict(described(sides)).reshape(-1, 2)
        return ["" if none else name(int(10 * a + b)) for (a, b), none in zip(digits, blank.tolist(), strict=True)]


def halves(picture: Float[Tensor, "height width"]) -> Float[Tensor, "2 8 8"]:
    """Left and right at the size of a scan: means of the pixels that fall on each of its own."""
    return F.adaptive_avg_pool2d(picture[None, None], (SIDE, 2 * SIDE))[0, 0].view(SIDE, 2, SIDE).transpose(0, 1)


def disturbed(scans: Scans, generator: torch.Generator) -> Scans:
    """Each scan moved, turned, stretched and slanted, then blurred and made noisy, at random."""
    n = len(scans)

    def draw(size: int, most: float) -> Tensor:
        return (2 * torch.rand(n, size, generator=generator) - 1) * most

    angle, scale, slant = draw(1, DEGREES) * torch.pi / 180, 1 + draw(2, STRETCH), draw(1, SLANT)
    move = draw(2, 2 * SHIFT_PX / SIDE)
    rows = (
        torch.cat([angle.cos() * scale[:, :1], slant - angle.sin(), move[:, :1]], 1),
        torch.cat([angle.sin(), angle.cos() * scale[:, 1:], move[:, 1:]], 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), [n, 1, 2 * SIDE, 2 * SIDE], align_corners=False)
    large = F.interpolate(scans[:, None], scale_factor=2, mode="bilinear")
    moved = F.avg_pool2d(F.grid_sample(large, grid, align_corners=False), 2)
    kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
    share, loud = (torch.rand(n, 1, 1, 1, generator=generator) for _ in range(2))
    blurred = torch.lerp(moved, F.conv2d(moved, kernel[None, None], padding=1), BLUR * share)
    noise = NOISE * loud * torch.randn(moved.shape, generator=generator)
    return (blurred + noise).clamp(0, 1)[:, 0]


def described(scans: Scans) -> Float[np.ndarray, "n d"]:
    """The pixels, and where edges of which direction are; either part of length one, so contrast does not matter."""
    around = F.pad(scans, (1, 1, 1, 1))
    across, down = around[:, 1:-1, 2:] - around[:, 1:-1, :-2], around[:, 2:, 1:-1] - around[:, :-2, 1:-1]
    angle, size = torch.atan2(down, across), torch.hypot(across, down)
    turns = torch.arange(DIRECTIONS).view(-1, 1, 1) * (2 * torch.pi / DIRECTIONS)
    along = torch.cos(angle[:, None] - turns).clamp(min=0).square() * size[:, None]
    edges = F.normalize(F.avg_pool2d(along, 2).flatten(1), eps=1e-6).sqrt()
    return torch.cat([EDGES * edges, F.normalize(scans.flatten(1), eps=1e-6)], 1).numpy()
