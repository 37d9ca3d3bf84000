"""What of an item is to be made anew: `mask`, in the words of its modality.

Pictures: "left", "right", "top", "bottom", half of it. Sounds: seconds, as "0.5-1.0". Texts: each _ stands for one
token. Of all of them: a fraction, of places that the seed chooses, whole turns of codes; 1 is everything.
"""

import math
import re

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmfm.config import ImagePreprocess, Run, UserError, require
from mmfm.data.decode import contracts_of
from mmfm.models.codecs import Codec
from mmfm.preprocessing.tokenizer import Tokenizer
from mmfm.runtime.randomness import hash_uniform, splitmix64

MaskSpec = str | float | None
SIDES = ("left", "right", "top", "bottom")
MARK = "_"
TINY = 1e-9  # seconds
DRAWN = 7  # tells these draws from others of the same seed
HOW = {
    "image": f"a fraction such as 0.5, or one of {', '.join(SIDES)}",
    "audio": "a fraction such as 0.5, or seconds such as 0.5-1.0",
    "text": f"a fraction such as 0.5, or write {MARK} for each token to be found",
}


def fraction(mask: MaskSpec) -> float | None:
    """The number that it is, if it is one."""
    try:
        return None if mask is None else float(mask)
    except ValueError:
        return None


def check_hide(mask: MaskSpec, modality: str) -> None:
    """UserError where this says nothing of an item of this modality."""
    part = fraction(mask)
    if mask is None:
        return
    told = f"mask={mask!r} of {modality}: give {HOW[modality]}"
    if part is not None:
        require(0 < part <= 1, f"mask={mask} is no part of a whole; give a fraction above 0 and at most 1")
    else:
        require((modality == "image" and mask in SIDES) or (modality == "audio" and bool(_seconds(mask))), told)


def _seconds(mask: MaskSpec) -> tuple[float, float] | None:
    found = re.fullmatch(r"(\d*\.?\d+)-(\d*\.?\d+)", str(mask))
    return (float(found[1]), float(found[2])) if found and float(found[1]) < float(found[2]) else None


def scattered(keep: Bool[Tensor, "n t"], part: float, seeds: Int[Tensor, " n"], books: int = 1) -> Bool[Tensor, "n t"]:
    """round(part * turns) whole turns of each row, at least one, of those that are real."""
    turns = keep[:, ::books]
    drawn = hash_uniform(splitmix64(seeds)[:, None] + torch.arange(turns.shape[1], device=keep.device), DRAWN)
    order = drawn.masked_fill(~turns, torch.inf).argsort(dim=1).argsort(dim=1)
    count = (turns.sum(1) * part).round().clamp(min=1)
    return ((order < count[:, None]) & turns).repeat_interleave(books, 1)[:, : keep.shape[1]] & keep


def side_of(side: str, grid: tuple[int, int]) -> Bool[Tensor, " t"]:
    """Half of a picture's codes, which go row by row; of an odd number the greater part."""
    rows, columns = grid
    down, across = torch.arange(rows)[:, None].expand(grid), torch.arange(columns)[None].expand(grid)
    half = {
        "left": 2 * across < columns,
        "right": 2 * across + 1 >= columns,
        "top": 2 * down < rows,
        "bottom": 2 * down + 1 >= rows,
    }
    return half[side].flatten()


def within(mask: str, codec: Codec, rate_hz: int, places: int) -> Bool[Tensor, " t"]:
    """The codes of a span of seconds: every turn that it touches."""
    span, books = _seconds(mask), len(codec.form.sizes)
    assert span is not None
    turn = codec.step_samples / rate_hz
    starts = torch.arange(places, dtype=torch.float64) // books * turn
    found = (starts < span[1] - TINY) & (starts + turn > span[0] + TINY)
    told = f"mask={mask!r} lies outside a sound of {places // books * turn:.2f} s; give seconds within"
    require(bool(found.any()), told)
    return found


def with_marks(text: str, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Ids of a text in which every _ is one token to be found, and which those are."""
    ids: list[int] = []
    hidden: list[bool] = []
    for part in re.split(f"({MARK}+)", text):
        masked = part.startswith(MARK)
        found = [0] * len(part) if masked else tokenizer.encode(part)
        ids += found
        hidden += [masked] * len(found)
    require(any(hidden), f"the text {text!r} has nothing to fill in; {HOW['text']}")
    return ids, hidden


def grid_of(pixels: ImagePreprocess, places: int) -> tuple[int, int]:
    """Rows and columns of the codes of a picture, each of which stands for a square."""
    side = math.isqrt(pixels.height_px * pixels.width_px // places)
    grid = pixels.height_px // side, pixels.width_px // side
    require(grid[0] * grid[1] == places, f"{places} codes of a picture are no grid of squares; mask a fraction")
    return grid


def masked(
    run: Run, modality: str, mask: MaskSpec, keep: Bool[Tensor, "n t"], seeds: Int[Tensor, " n"], codec: Codec | None
) -> Bool[Tensor, "n t"]:
    """Which of these items' ids are to be made anew."""
    check_hide(mask, modality)
    if (part := fraction(mask)) is not None:
        return scattered(keep, part, seeds, 1 if codec is None else len(codec.form.sizes))
    contracts = contracts_of(run.model, modality) if modality != "text" else []
    if codec is None or not contracts or mask is None:
        raise UserError(f"nothing says what to mask of the {modality}; give mask: {HOW[modality]}")
    codecs_own = contracts[-1]  # the tower's comes first, where the two differ
    if isinstance(codecs_own, ImagePreprocess):
        found = side_of(str(mask), grid_of(codecs_own, keep.shape[1]))
    else:
        found = within(str(mask), codec, codecs_own.rate_hz, keep.shape[1])
    return found.to(keep.device).expand_as(keep) & keep
