"""A large picture as several: whole, and then tile by tile, each of the size that a tower reads.

The grid of rows x columns is that of InternVL (arXiv 2404.16821, section 3.2) and GOT-OCR: the one whose shape is
nearest to the picture's, stretched to it and cut. A picture that a tower reads whole as it is gets no tiles.
"""

import math
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from mmfm.preprocessing.image import decode_image, picture, resize


def tile_grid(size: tuple[int, int], tile: tuple[int, int], most: int) -> tuple[int, int]:
    """Rows and columns of tiles for a picture, at most `most` of them; (1, 1): it is read whole alone. size, tile:
    (height, width) in pixels.

    There are no more rows or columns than its pixels fill. Of two grids of one shape the larger one is taken where
    the picture has more than half of its pixels.
    """
    height, width = size
    down, across = (math.ceil(side / part) for side, part in zip(size, tile, strict=True))
    area, aspect = height * width, width / height * tile[0] / tile[1]
    best, nearest = (1, 1), math.inf
    for rows, columns in _grids(min(down, most), min(across, most), most):
        difference = abs(aspect - columns / rows)
        fills = area > 0.5 * tile[0] * tile[1] * rows * columns
        if difference < nearest or (difference == nearest and fills):
            best, nearest = (rows, columns), difference
    return best


def _grids(down: int, across: int, most: int) -> list[tuple[int, int]]:
    """All of at most `most` tiles, the smallest first."""
    every = [(rows, columns) for rows in range(1, down + 1) for columns in range(1, across + 1)]
    return sorted((grid for grid in every if math.prod(grid) <= most), key=math.prod)


def tiled(data: bytes, most: int, **how: Any) -> list[UInt8[Tensor, "channels height_px width_px"]]:
    """The picture as `picture(data, **how)` gives it, and then its tiles, row by row. Raises BadSample."""
    whole = picture(data, **how)
    pixels = decode_image(data, channels=how["channels"])
    height, width = how["height_px"], how["width_px"]
    rows, columns = tile_grid((pixels.shape[1], pixels.shape[2]), (height, width), most)
    if rows * columns == 1:
        return [whole]
    canvas = resize(pixels, rows * height, columns * width, how.get("interpolation", "bicubic"))
    tiles = canvas.unflatten(1, (rows, height)).unflatten(3, (columns, width)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    return [whole, *(tile.contiguous() for tile in tiles)]
