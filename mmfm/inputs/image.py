"""Images: bytes of PNG, JPEG or WebP -> uint8 [channels, height, width]. Pillow decodes, torch resizes.

A picture that is cut or damaged is an error. It never comes back with grey where its pixels should be.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from mmfm.config import UserError, require
from mmfm.inputs import BadSample

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000  # checked in the header: a PNG of 17 KB can unfold to 432 MB
MODES = {1: "L", 3: "RGB"}
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def decode_image(data: bytes, *, channels: int = 3) -> UInt8[Tensor, "channels height width"]:
    """Upright (EXIF orientation is applied), 8 bits per channel, grey or RGB; transparency lies on white.

    Raises BadSample when `data` is no whole PNG, JPEG or WebP, or has more than MAX_PIXELS.
    """
    require(channels in MODES, f"an image has 1 or 3 channels, not {channels}; set Vit.channels to one of these")
    if not data:
        raise BadSample("image_empty", "the image is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that is damaged beside sound pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = _upright(data).convert(MODES[channels])
    except BadSample:
        raise
    except BOMB:
        raise BadSample(
            "image_too_big", f"the image has more than {MAX_PIXELS // 1_000_000} megapixels; shrink it first"
        ) from None
    except DAMAGE as why:
        raise BadSample(
            "image_damaged", f"no readable PNG, JPEG or WebP image ({_line(why)}); it may be cut or damaged"
        ) from None
    pixels = torch.from_numpy(np.array(image)).reshape(image.height, image.width, channels)
    return pixels.permute(2, 0, 1)  # a view: torch resizes it as it lies, three times faster than channel by channel


def resize(
    image: UInt8[Tensor, "channels height_in width_in"], height: int, width: int
) -> UInt8[Tensor, "channels height width"]:
    """Bicubic, averaging when it shrinks (antialias), in 8-bit arithmetic; the sides are stretched independently."""
    if image.shape[1:] == (height, width):
        return image
    small = torch.nn.functional.interpolate(image[None], size=(height, width), mode="bicubic", antialias=True)
    return small[0].contiguous()


def load_image(path: str | Path, *, channels: int = 3) -> UInt8[Tensor, "channels height width"]:
    """`decode_image` of a file of the user; every error names the file."""
    try:
        return decode_image(Path(path).read_bytes(), channels=channels)
    except BadSample as why:
        raise BadSample(why.code, f"{path}: {why}") from None
    except OSError as why:
        raise UserError(f"{path}: {why.strerror}; give the path of a PNG, JPEG or WebP file") from None


def _upright(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_size(image)
    image.load()
    return _opaque(_eight_bits(ImageOps.exif_transpose(image)))


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        size, most = f"{image.width}x{image.height}", MAX_PIXELS // 1_000_000
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
