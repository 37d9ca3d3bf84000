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

from mmfm.data.sample import Sample, last_part
from mmfm.datasets.numbers_plan import name, splits
from mmfm.evals.judges.contract import HeldOut, seen
from mmfm.preprocessing.image import decode_image

SIDE, WHITE = 8, 16.0  # of a scan: px, and its brightest value
COPIES, DEGREES, STRETCH, SLANT, SHIFT_PX, BLUR, NOISE = 16, 12.0, 0.12, 0.2, 0.4, 0.6, 0.04
DIRECTIONS, EDGES = 8, 0.7  # of edges, and their weight beside the pixels
ASKED, SAME = 200, 0.01  # pairs that it is tried on; mean difference of two scans, below which they are one
FAINT = 0.15  # a half with less contrast shows nothing

Scans = Float[Tensor, "n 8 8"]


class Digits:
    """Trained when it is made, in about a second; always the same."""

    name: str = "digits"
    of: Literal["image", "audio"] = "image"
    learned_from: str = "the scans of digits that the test splits of `numbers` are drawn from"

    def __init__(self) -> None:
        scans, digits = load_digits(return_X_y=True)
        own = next(split.scans for split in splits() if split.name == "test")
        learned = torch.from_numpy(np.asarray(scans)[own.start : own.stop] / WHITE).float().view(-1, SIDE, SIDE)
        self._learned, self._all = learned, (np.asarray(scans).reshape(-1, SIDE, SIDE), np.asarray(digits))
        generator = torch.Generator().manual_seed(0)
        shown = torch.cat([learned, *(disturbed(learned, generator) for _ in range(COPIES))])
        gamma: Any = 2.0  # scikit-learn's own annotation knows only names
        self._svc = SVC(C=3.0, gamma=gamma)
        self._svc.fit(described(shown), np.tile(np.asarray(digits)[own.start : own.stop], COPIES + 1))

    def met(self, sample: Sample) -> bool:
        """By the scans themselves, in a picture of their own size or a whole multiple of it."""
        part = last_part(sample, "image")
        if part is None:
            return False
        sides = halves(seen([decode_image(part[1])])[0])
        return bool(((sides[:, None] - self._learned).abs().mean((2, 3)).amin(1) < SAME).any())

    def held_out(self) -> HeldOut:
        """Pairs of the scans that only the val split is drawn from."""
        scans, digits = self._all
        own = next(split.scans for split in splits() if split.name == "val")
        pairs = np.random.Generator(np.random.Philox(0)).integers(own.start, own.stop, (ASKED, 2)).tolist()
        pixels = np.rint(scans * (255 / WHITE)).astype(np.uint8)
        things = [torch.from_numpy(np.concatenate([pixels[a], pixels[b]], 1))[None] for a, b in pairs]
        wanted = [name(int(10 * digits[a] + digits[b])) for a, b in pairs]
        right = sum(a == b for a, b in zip(self.read(things), wanted, strict=True))
        return HeldOut(
            on="pairs of the scans that only the val split of `numbers` is drawn from", right=right, of=len(wanted)
        )

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
