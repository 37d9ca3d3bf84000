"""Which part of a picture is kept, and to what size it is resized: whole, its middle, or a random part."""

import math
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

# Of an item's uniform numbers (data/augment.py lays them out): which decide the crop, and which the mirror.
CROP_DRAWS, MIRROR_DRAW = slice(56, 59), 59
ASPECTS, TRIES = (3 / 4, 4 / 3), 10  # of a random crop: width by height, and attempts before its middle is taken
Fit = Literal["stretch", "crop", "shortest"]
Odd = Literal["even", "down"]


class Box(NamedTuple):
    """A part of a picture, in pixels of the upright picture."""

    top: int
    left: int
    height: int
    width: int


def middle_box(height: int, width: int, aspect: float, crop_pct: float = 1.0) -> Box:
    """The largest part of this aspect (width by height), from the middle; `crop_pct` of its sides."""
    high, wide = min(height, max(1, round(width / aspect))), min(width, max(1, round(height * aspect)))
    high, wide = max(1, round(crop_pct * high)), max(1, round(crop_pct * wide))
    return Box((height - high) // 2, (width - wide) // 2, high, wide)


def slim_box(height: int, width: int, most: float) -> Box:
    """The middle of a picture whose longer side is over `most` of the shorter; else all of it."""
    high, wide = min(height, max(1, int(most * width))), min(width, max(1, int(most * height)))
    return Box((height - high) // 2, (width - wide) // 2, high, wide)


def resized(box: Box, height_px: int, width_px: int, resize_mode: Fit, crop_pct: float) -> tuple[int, int]:
    """Rows and columns of all that is in the box, of which the middle is then taken.

    As torchvision's Resize of one number, or for a size that is not square as timm's ResizeKeepRatio.
    """
    rows, columns = (math.floor(side / crop_pct + 1e-6) for side in (height_px, width_px))
    if resize_mode == "stretch":
        return rows, columns
    if rows != columns:
        ratio = min(box.height / rows, box.width / columns)
        return max(rows, round(box.height / ratio)), max(columns, round(box.width / ratio))
    longer = int(rows * max(box.height, box.width) / min(box.height, box.width))
    return (rows, longer) if box.height <= box.width else (longer, columns)


def middle(
    image: UInt8[Tensor, "channels rows columns"], height_px: int, width_px: int, odd: Odd = "even"
) -> UInt8[Tensor, "channels height_px width_px"]:
    """Where it cannot be the very middle, half a pixel is rounded to the even one (torchvision) or down."""
    whole = round if odd == "even" else math.floor
    top, left = whole((image.shape[1] - height_px) / 2), whole((image.shape[2] - width_px) / 2)
    return image[:, top : top + height_px, left : left + width_px]


def random_box(height: int, width: int, draws: Float[np.ndarray, " k"], crop: float) -> Box:
    """The part that torchvision's RandomResizedCrop of scale (1 - crop, 1) would take, decided by the draws alone.

    It tries up to ten times, which needs more numbers than there are draws: they key a generator instead.
    """
    key = int.from_bytes(draws[CROP_DRAWS].astype("<f4").tobytes(), "little")
    numbers = np.random.Generator(np.random.Philox(key=key)).random((TRIES + 1, 2)).tolist()
    down, across = numbers[TRIES]
    low, high = map(math.log, ASPECTS)
    for u, v in numbers[:TRIES]:
        area, aspect = height * width * (1 - crop + crop * u), math.exp(low + (high - low) * v)
        part_width, part_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < part_width <= width and 0 < part_height <= height:
            top, left = int(down * (height - part_height + 1)), int(across * (width - part_width + 1))
            return Box(top, left, part_height, part_width)
    return middle_box(height, width, min(max(width / height, ASPECTS[0]), ASPECTS[1]))


def scaled_box(box: Box, size: tuple[int, int], decoded: tuple[int, ...]) -> Box:
    """The box in pixels of a picture that was decoded at less than its size."""
    if size == decoded:
        return box
    down, across = decoded[0] / size[0], decoded[1] / size[1]
    top, left = min(decoded[0] - 1, round(box.top * down)), min(decoded[1] - 1, round(box.left * across))
    bottom, right = round((box.top + box.height) * down), round((box.left + box.width) * across)
    return Box(top, left, max(1, bottom - top), max(1, right - left))
