"""Images: bytes of PNG, JPEG or WebP -> uint8 [channels, height, width]. simplejpeg or Pillow decodes, torch resizes.

A picture is decoded, cut and resized in one go: of a JPEG that is to become small, libjpeg-turbo computes only the
frequencies that can be seen (a half, a quarter or an eighth of the size), and what lies outside the cut is not resized.
A picture that is cut or damaged is an error. It never comes back with grey where its pixels should be.
"""

import io
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import simplejpeg
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from mmfm.config import UserError, require
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.crops import (
    MIRROR_DRAW,
    Box,
    Fit,
    Odd,
    middle,
    middle_box,
    random_box,
    resized,
    scaled_box,
    slim_box,
)
from mmfm.preprocessing.file_formats import refusal
from mmfm.preprocessing.media_headers import jpeg_head

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000  # checked in the header: a PNG of 17 KB can unfold to 432 MB
MAX_SCANS = 100  # of a JPEG in layers, each of which costs a pass over all pixels; encoders write about ten
SHRINK = (
    8,
    4,
    2,
)  # the eighths between are slower to decode, by more than their resizing saves (tools/bench_decode.py)
MODES = {1: "L", 3: "RGB"}
TURBO = ("YCbCr", "RGB", "Gray")  # what libjpeg-turbo turns into RGB; Pillow takes the rest (CMYK)
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
Interpolation = Literal["bicubic", "bilinear"]
Resizer = Literal["torch", "pillow"]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
SLIM = 16  # a picture that is longer, for what is wanted of it, loses its ends before it is resized
BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)

Pixels = UInt8[np.ndarray, "height width channels"]


Made = TypeVar("Made")


def picture(
    data: bytes,
    *,
    channels: int,
    height_px: int,
    width_px: int,
    resize_mode: Fit = "stretch",
    crop_pct: float = 1.0,
    interpolation: Interpolation = "bicubic",
    resizer: Resizer = "torch",
    odd: Odd = "even",
    exact: bool = True,
    draws: Float[np.ndarray, " k"] | None = None,
    crop: float = 0.0,
    mirror: bool = False,
) -> UInt8[Tensor, "channels height_px width_px"]:
    """`decode_image`, cut and resized. The cut: all of it (stretch), its middle (crop), or a random part. `crop_pct`:
    only this fraction of the middle's sides. "shortest" is "crop" as torchvision has it, to the pixel: the shorter side
    is resized to size / crop_pct, and the middle taken of that. So does "stretch" with both sides.

    `draws` are the item's uniform numbers. With them, `crop` takes torchvision's RandomResizedCrop of scale
    (1 - crop, 1), and `mirror` exchanges left and right half of the time. `exact` False: a JPEG is decoded at a half,
    a quarter or an eighth where the cut still has the pixels wanted; it is some 40 dB from the exact picture.
    """

    free = draws is not None and crop > 0

    def cut(height: int, width: int) -> Box:
        if draws is not None and crop > 0:
            return random_box(height, width, draws, crop)
        if resize_mode == "shortest":
            return slim_box(height, width, SLIM * max(height_px / width_px, width_px / height_px))
        return (
            middle_box(height, width, width_px / height_px, crop_pct)
            if resize_mode == "crop"
            else Box(0, 0, height, width)
        )

    def becomes(box: Box) -> tuple[int, int]:
        return (
            (height_px, width_px)
            if free or resize_mode == "crop"
            else resized(box, height_px, width_px, resize_mode, crop_pct)
        )

    def least(height: int, width: int) -> tuple[int, int]:
        box = cut(height, width)
        rows, columns = becomes(box)
        return math.ceil(rows * height / box.height), math.ceil(columns * width / box.width)

    pixels, size = _decode(data, channels, None if exact else least)
    whole = cut(*size)
    box = scaled_box(whole, size, pixels.shape[:2])
    part = np.ascontiguousarray(pixels[box.top : box.top + box.height, box.left : box.left + box.width])
    image = resize(
        torch.from_numpy(part).permute(2, 0, 1), *becomes(whole), interpolation, resizer if exact else "torch"
    )
    image = middle(image, height_px, width_px, odd)
    turned = mirror and draws is not None and bool(draws[MIRROR_DRAW] < 0.5)
    return image.flip(2) if turned else image.contiguous()


def decode_image(data: bytes, *, channels: int = 3) -> UInt8[Tensor, "channels height width"]:
    """Upright (EXIF orientation is applied), 8 bits per channel, grey or RGB; transparency lies on white.

    By its bytes, whatever its name says. Raises BadSample when `data` is no whole PNG, JPEG or WebP, or has more than
    MAX_PIXELS.
    """
    pixels, _ = _decode(data, channels, None)
    return torch.from_numpy(pixels).permute(2, 0, 1)  # a view: torch resizes it as it lies, three times faster


def resize(
    image: UInt8[Tensor, "channels height_in width_in"],
    height: int,
    width: int,
    mode: Interpolation = "bicubic",
    resizer: Resizer = "torch",
) -> UInt8[Tensor, "channels height width"]:
    """Averaging when it shrinks (antialias), in 8-bit arithmetic; the sides are stretched independently.

    Pillow clips what is lighter than white or darker than black elsewhere than torch does, and takes three times as
    long: at hard edges the two are apart by several levels.
    """
    if image.shape[1:] == (height, width):
        return image
    if resizer == "pillow":
        whole = image.permute(1, 2, 0).contiguous().numpy()
        flat = whole[:, :, 0] if image.shape[0] == 1 else whole
        small = np.array(Image.fromarray(flat).resize((width, height), FILTERS[mode]))
        return torch.from_numpy(small).view(height, width, -1).permute(2, 0, 1).contiguous()
    small = torch.nn.functional.interpolate(image[None], size=(height, width), mode=mode, antialias=True)
    return small[0].contiguous()


def load_picture(
    given: str | Path | bytes | Image.Image,
    *,
    channels: int,
    height_px: int,
    width_px: int,
    resize_mode: Fit = "stretch",
    crop_pct: float = 1.0,
    interpolation: Interpolation = "bicubic",
    resizer: Resizer = "torch",
    odd: Odd = "even",
    exact: bool = True,
) -> UInt8[Tensor, "channels height_px width_px"]:
    """`picture` of a file of the user, which every error names, of its bytes, or of a picture that Pillow holds."""
    how = {
        "resize_mode": resize_mode,
        "crop_pct": crop_pct,
        "interpolation": interpolation,
        "resizer": resizer,
        "odd": odd,
        "exact": exact,
    }
    return of_given(given, lambda data: picture(data, channels=channels, height_px=height_px, width_px=width_px, **how))


def of_given(given: str | Path | bytes | Image.Image, make: Callable[[bytes], Made]) -> Made:
    """What `make` makes of the bytes of a user's picture, whose name is in every error."""
    if isinstance(given, Image.Image):
        given = _png(given)
    name = "the picture" if isinstance(given, bytes) else given
    try:
        return make(given if isinstance(given, bytes) else Path(given).read_bytes())
    except BadSample as why:
        raise BadSample(why.code, f"{name}: {why}") from None
    except OSError as why:
        raise UserError(f"{name}: {why.strerror}; give the path of a PNG, JPEG or WebP file") from None


def _png(given: Image.Image) -> bytes:
    """Lossless, and so every picture takes the one way in."""
    stored = io.BytesIO()
    given.save(stored, "PNG")
    return stored.getvalue()


Least = Callable[[int, int], tuple[int, int]]  # of (height, width): the size that the whole picture needs at least


def _decode(data: bytes, channels: int, least: Least | None) -> tuple[Pixels, tuple[int, int]]:
    """Upright pixels, of a JPEG perhaps at less than full size; and the full size (height, width)."""
    require(channels in MODES, f"an image has 1 or 3 channels, not {channels}; set Vit.channels to one of these")
    if not data:
        raise BadSample("image_empty", "the image is empty (0 bytes)")
    try:
        if data[:2] == b"\xff\xd8":
            found = _jpeg(data, channels, least)
            if found is not None:
                return found
        pixels = _pillow(data, channels)
        return pixels, pixels.shape[:2]
    except BadSample:
        raise
    except BOMB:
        raise BadSample(
            "image_too_big", f"the image has more than {MAX_PIXELS // 1_000_000} megapixels; shrink it first"
        ) from None
    except DAMAGE as why:
        if told := refusal(data, "picture"):
            raise BadSample("image_format", told) from None
        raise BadSample(
            "image_damaged", f"no readable PNG, JPEG or WebP image ({_line(why)}); it may be cut or damaged"
        ) from None


def _jpeg(data: bytes, channels: int, least: Least | None) -> tuple[Pixels, tuple[int, int]] | None:
    """None where libjpeg-turbo does not make it RGB. `strict`: what ends early or does not add up is an error."""
    head = jpeg_head(data)
    if head.layered and data.count(b"\xff\xda") > MAX_SCANS:
        raise BadSample("image_damaged", f"the JPEG has over {MAX_SCANS} scans, which no encoder writes; save it anew")
    try:
        *shape, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None  # colours at unusual distances, perhaps: Pillow knows, or says what is wrong
    height, width = map(int, shape)
    _check_size(height, width)
    if space not in TURBO:
        return None
    size = (width, height) if head.turned else (height, width)
    low, wide = size if least is None else _shrunk(size, least(*size))
    low, wide = (wide, low) if head.turned else (low, wide)
    grey = channels == 1 and (space == "Gray" or least is not None)
    pixels = simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB", min_height=low, min_width=wide, strict=True)
    if channels == 1 and not grey:
        pixels = np.array(Image.fromarray(pixels).convert("L"))[:, :, None]
    return _turn(pixels, head.orientation), size


def _shrunk(size: tuple[int, int], least: tuple[int, int]) -> tuple[int, int]:
    """The smallest size that is quick to decode and no smaller than `least`; else the full one."""
    sizes = ((-(-size[0] // by), -(-size[1] // by)) for by in SHRINK)
    return next((small for small in sizes if small[0] >= least[0] and small[1] >= least[1]), size)


def _turn(pixels: UInt8[np.ndarray, "rows columns channels"], orientation: int) -> Pixels:
    """Upright, from what EXIF says of the stored rows and columns."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    down, across = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels[:: -1 if down else 1, :: -1 if across else 1])


def _pillow(data: bytes, channels: int) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that is damaged beside sound pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image.height, image.width)
        image.load()
        image = _opaque(_eight_bits(ImageOps.exif_transpose(image))).convert(MODES[channels])
    return np.array(image).reshape(image.height, image.width, channels)


def _check_size(height: int, width: int) -> None:
    if width * height > MAX_PIXELS:
        size, most = f"{width}x{height}", MAX_PIXELS // 1_000_000
        raise BadSample("image_too_big", f"the image is {size}, more than {most} megapixels; shrink it first")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits to 8 by its upper byte; Pillow's own conversion clips at 255 instead."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65_535) >> 8).astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA"))


def _line(why: Exception) -> str:
    """The reason in one line, without the address of the buffer that Pillow puts in it."""
    return " ".join(str(why).partition("<_io")[0].split()) or type(why).__name__
