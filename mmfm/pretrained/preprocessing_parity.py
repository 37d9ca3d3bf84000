"""How pictures are prepared, here and by the library that an encoder comes from: compared on pictures, not believed.

Ours is a `ImagePreprocess`. Theirs is the library's own processor, run on the same pictures, none of which is
square. Of the ways that could be meant the nearest is taken, and none that is further off than `MOST` of 255 levels.
"""

import io
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmfm.config import ImagePreprocess, UserError
from mmfm.preprocessing.image import MODES
from mmfm.preprocessing.image import picture as decoded

MOST = 2.0  # of 255: two libraries round a resized picture each in its own way
SAME = 0.5  # of a level: there is nothing better to look for
CHOICES = {"resize_mode": ("shortest", "stretch"), "interpolation": ("bicubic", "bilinear")}
CHOICES |= {"odd": ("even", "down"), "resizer": ("torch", "pillow")}
# Of the probes: height and width, of the tower's size, and some columns more, to leave an odd number at the sides.
SHAPES = ((1.31, 1.74, 0), (1.9, 1.05, 0), (0.43, 0.61, 0), (0.43, 0.61, 1), (0.43, 0.61, 2), (0.43, 0.61, 3))
Shapes = Sequence[tuple[float, float, int]]
FITTING: Shapes = ((1.0, 1.0, 0),)  # for a codec: a run chooses how pictures come to its size, and only levels count
Process = Callable[[Image.Image], Tensor]  # a picture to normalised pixels [channels, height, width]


def probes(height_px: int, width_px: int, channels: int = 3, shapes: Shapes = SHAPES) -> list[Image.Image]:
    """Ramps with edges and noise up to white and black: larger and smaller than is wanted, lying and standing."""
    draw = np.random.default_rng(0)
    made = []
    for down, across, more in shapes:
        rows, columns = (max(8, round(scale * side)) for scale, side in ((down, height_px), (across, width_px)))
        columns += more
        ramp = np.linspace(0, 160, rows)[:, None, None] + np.linspace(0, 60, columns)[None, :, None]
        ramp = ramp * np.array([1.0, 0.6, 0.3]) + 70.0 * ((np.arange(columns) // 7 % 2)[None, :, None])
        picture = Image.fromarray((ramp + draw.integers(-60, 60, (rows, columns, 3))).clip(0, 255).astype(np.uint8))
        made.append(picture.convert(MODES[channels]))
    return made


def stored(picture: Image.Image) -> bytes:
    """Without loss, and quick to read again."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=0)
    return file.getvalue()


def ours(pixels: ImagePreprocess, picture: Image.Image | bytes) -> Tensor:
    """As a tower is given it: normalised, [channels, height, width]."""
    names = ("channels", "height_px", "width_px", "resize_mode", "crop_pct", "interpolation", "resizer", "odd")
    data = picture if isinstance(picture, bytes) else stored(picture)
    x = decoded(data, **{name: getattr(pixels, name) for name in names})
    mean, std = (torch.tensor(values)[:, None, None] for values in (pixels.mean, pixels.std))
    return (x.float() / 255 - mean) / std


def apart(pixels: ImagePreprocess, wanted_of: Iterable[tuple[bytes, Tensor]]) -> float:
    """The largest difference on any of the pictures, in levels of 255. Infinite between unlike shapes."""
    std, most = torch.tensor(pixels.std)[:, None, None], 0.0
    for data, wanted in wanted_of:
        found = ours(pixels, data)
        if wanted.shape != found.shape:
            return float("inf")
        most = max(most, float(((wanted - found) * std).abs().max()) * 255)
    return most if most == most else float("inf")


def settled(
    source: str, ways: Iterable[ImagePreprocess], theirs: Process, library: str, shapes: Shapes = SHAPES
) -> ImagePreprocess:
    """The way that is nearest to the library's own. UserError where none is within `MOST`."""
    known = list(dict.fromkeys(ways))
    if known[0].channels not in MODES:
        told = f"{source} reads pictures of {known[0].channels} channels; only grey and RGB pictures are read here"
        raise UserError(f"{told}; give an encoder of 1 or 3 channels")
    pictures = probes(known[0].height_px, known[0].width_px, known[0].channels, shapes)
    try:
        wanted = [(stored(picture), theirs(picture)) for picture in pictures]
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as why:
        told = " ".join(f"{type(why).__name__}: {why}".split())[:200]
        raise UserError(f"{source}: its {library} cannot prepare a picture ({told}); give another encoder") from None
    best, gap = known[0], float("inf")
    for way in known:
        found = apart(way, wanted)
        best, gap = (way, found) if found < gap else (best, gap)
        if gap < SAME:
            break
    if not gap <= MOST:
        raise UserError(
            f"{source}: {library} prepares pictures as cannot be done here: they differ by {gap:.3g} of 255 levels, "
            f"and {MOST:g} is the most; give an encoder whose pictures are resized (bilinear or bicubic), cropped at "
            "the middle and normalised"
        )
    return best


def variants(first: ImagePreprocess, centrals: Iterable[float] = ()) -> list[ImagePreprocess]:
    """`first`, and what else its library's settings could mean, of the same size."""
    found = [first]
    for crop_pct in dict.fromkeys((first.crop_pct, *centrals, 1.0)):
        ordered = [dict.fromkeys((getattr(first, name), *values)) for name, values in CHOICES.items()]
        for values in itertools.product(*ordered):
            how: dict[str, Any] = dict(zip(CHOICES, values, strict=True))
            found.append(replace(first, crop_pct=crop_pct, **how))
    return found
