"""Tiles of a large picture: which grid, which pixels, and in which order."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from mmfm.preprocessing import BadSample
from mmfm.preprocessing.image import picture
from mmfm.preprocessing.tiles import tile_grid, tiled


@pytest.mark.parametrize(
    ("size", "most", "expected"),
    [
        ((224, 224), 6, (1, 1)),
        ((100, 60), 6, (1, 1)),  # smaller than the tower's input, whatever its shape
        ((50, 220), 6, (1, 1)),
        ((50, 400), 6, (1, 2)),  # no more columns than its pixels fill
        ((300, 300), 6, (1, 1)),  # 2 x 2 would be more than twice its pixels
        ((448, 448), 6, (2, 2)),
        ((448, 448), 3, (1, 1)),
        ((1000, 1000), 9, (3, 3)),
        ((600, 1200), 6, (1, 2)),
        ((600, 1200), 8, (2, 4)),
        ((1200, 600), 8, (4, 2)),
        ((400, 600), 6, (2, 3)),
        ((200, 1300), 6, (1, 6)),
    ],
)
def test_the_grid_is_nearest_in_shape(size: tuple[int, int], most: int, expected: tuple[int, int]) -> None:
    assert tile_grid(size, (224, 224), most) == expected


@pytest.mark.parametrize("most", [4, 6, 12])
def test_of_large_pictures_it_is_that_of_transformers(most: int) -> None:
    """Theirs gives columns and rows; all sizes here fill as many tiles as there may be on both sides."""
    draw = np.random.default_rng(most)
    for height, width in draw.integers(most * 32, 3_000, (200, 2)).tolist():
        columns, rows = get_optimal_tiled_canvas((height, width), (32, 32), 1, most)
        assert tile_grid((height, width), (32, 32), most) == (rows, columns)


def test_a_wide_tile_makes_fewer_columns() -> None:
    assert tile_grid((448, 896), (224, 448), 6) == (2, 2)


def stored(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


HOW: dict[str, Any] = {"channels": 3, "height_px": 8, "width_px": 8}


def test_whole_first_and_then_tiles_row_by_row() -> None:
    """Planted: six colours in two rows of three, of twice the tiles' size."""
    colours = np.arange(6, dtype=np.uint8) * 40 + 10
    pixels = np.repeat(np.repeat(colours.reshape(2, 3), 16, 0), 16, 1)[..., None].repeat(3, 2)
    data = stored(pixels)
    whole, *tiles = tiled(data, 6, **HOW)
    assert torch.equal(whole, picture(data, **HOW)) and len(tiles) == 6
    assert [int(tile[0, 4, 4]) for tile in tiles] == colours.tolist()
    assert all(tile.shape == (3, 8, 8) and bool((tile[:, 2:6, 2:6] == tile[0, 4, 4]).all()) for tile in tiles)


def test_at_its_own_size_tiles_are_the_picture() -> None:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    _, *tiles = tiled(stored(pixels), 6, **HOW)
    rows = [torch.cat(tiles[start : start + 3], 2) for start in (0, 3)]
    assert torch.equal(torch.cat(rows, 1), torch.from_numpy(pixels).permute(2, 0, 1))


def test_a_small_picture_is_whole_alone_and_a_damaged_one_is_refused() -> None:
    assert len(tiled(stored(np.zeros((8, 8, 3), np.uint8)), 6, **HOW)) == 1
    with pytest.raises(BadSample) as caught:
        tiled(b"no picture", 6, **HOW)
    assert caught.value.code == "image_damaged"
