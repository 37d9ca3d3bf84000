"""What people hand over as pictures, sounds and texts: checked once, for every face, and refused in the same words.

A face is whatever takes input for a model: Python, the command line, a bundle's encoder, transformers, open_clip, timm.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from mmfm.config import ImagePreprocess, require
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.audio import RATES_HZ, resample

SCALED = "of values in 0..1 give (x * 255).round() as torch.uint8"
NOT_FINITE = "a sound holds values that are not finite; repair it"
EMPTY = "a sound holds no samples; give one of at least one"
SLACK = 1e-3  # by which a picture that is scaled may leave its range: rounding in half precision


def check_pixels(x: Tensor, how: ImagePreprocess) -> UInt8[Tensor, "n channels height width"]:
    """Pictures of the model's own size in 0..255. Whole numbers of another type come back as bytes, exactly.

    UserError: another shape, and fractions, which are of pictures scaled to 0..1 and would be nearly black.
    """
    _check_shape(x, how)
    if x.dtype == torch.uint8 or not x.numel():
        return x.to(torch.uint8)
    whole = x.round().clamp(0, 255)
    told = f"pixels are whole numbers of 0..255, as transform gives them, not {_range(x)}; {SCALED}"
    scaled = x.is_floating_point() and 0 < float(x.max()) <= 1
    require(bool((whole == x).all()) and not scaled, told)
    return whole.to(torch.uint8)


def check_scaled(x: Tensor, how: ImagePreprocess, channels: int) -> Float[Tensor, "n channels height width"]:
    """Pictures as other libraries normalise them, in -1..1. UserError: bytes, and what lies outside."""
    _check_shape(x, how, channels)
    told = "give what this library's own transform gives"
    require(x.is_floating_point(), f"pixels are floats in -1..1 here, not {x.dtype}; {told}")
    fine = not x.numel() or bool(x.abs().max() <= 1 + SLACK)
    require(fine, f"pixels are floats in -1..1 here, not {_range(x) if not fine else ''}; {told}")
    return x


def _check_shape(x: Tensor, how: ImagePreprocess, channels: int = 0) -> None:
    wanted = [channels or how.channels, how.height_px, how.width_px]
    told = f"pictures are pixels [n, {', '.join(map(str, wanted))}] for this model, not {list(x.shape)}"
    require(x.ndim == 4 and list(x.shape[1:]) == wanted, f"{told}; give what transform gives of each, stacked")


def _range(x: Tensor) -> str:
    low, high = (float(value) for value in (x.min(), x.max()))
    return f"{str(x.dtype).removeprefix('torch.')} of {low:g} to {high:g}"


def picture_given(thing: Any) -> str | Path | bytes | Image.Image:
    """A path, a file's bytes or a picture of Pillow as it is; an array uint8 [height, width] or [height, width,
    channels] as one."""
    if isinstance(thing, str | Path | bytes | Image.Image):
        return thing
    require(isinstance(thing, np.ndarray), f"{type(thing).__name__} is no picture; give a path, Pillow's, or an array")
    many = thing.ndim == 3 and thing.shape[2] in (1, 3, 4) and thing.size > 0
    told = f"a picture is an array [height, width] or [height, width, 1, 3 or 4], not {list(thing.shape)}"
    require(many or (thing.ndim == 2 and thing.size > 0), told)
    whole = thing.dtype == np.uint8
    range_ = "" if whole else f"{thing.dtype} of {thing.min():g} to {thing.max():g}"
    require(whole, f"pixels are whole numbers of 0..255, in uint8, not {range_}; {SCALED}")
    return Image.fromarray(thing[:, :, 0] if thing.ndim == 3 and thing.shape[2] == 1 else thing)


def check_waves(x: Tensor, keep: Tensor | None = None) -> tuple[Float[Tensor, "n samples"], Bool[Tensor, "n samples"]]:
    """Sounds at the model's rate, and True where a sample is real: where None, all. UserError: what is no sound."""
    require(x.ndim == 2, f"sounds are samples [n, time], not {list(x.shape)}; one alone is wave[None]")
    _check_floats(x)
    keep = torch.ones_like(x, dtype=torch.bool) if keep is None else keep.bool()
    require(keep.shape == x.shape, f"keep {list(keep.shape)} is not of the shape of the sounds, {list(x.shape)}")
    require(bool(keep.any(1).all()), EMPTY)
    require(bool(x.isfinite().logical_or(~keep).all()), NOT_FINITE)
    return x.masked_fill(~keep, 0), keep


def _check_floats(x: Tensor) -> None:
    told = f"samples are floats in -1..1, not {str(x.dtype).removeprefix('torch.')}"
    require(x.is_floating_point(), f"{told}; divide what has 16 bits by 32768")


def clip_given(
    wave: Any, *, from_hz: int, rate_hz: int, max_seconds: float, crop_seconds: float
) -> Float[Tensor, " samples"]:
    """One mono waveform, an array or a tensor, as a file of it would be read: resampled, its middle, not too long."""
    x = wave.detach().cpu() if isinstance(wave, Tensor) else torch.as_tensor(np.asarray(wave))
    require(x.ndim == 1, f"a waveform has one dimension, its samples, not {list(x.shape)}; give its channels' mean")
    require(len(x) > 0, EMPTY)
    (low, high), told = RATES_HZ, f"a sound of {from_hz} Hz is none of {RATES_HZ[0]} to {RATES_HZ[1]} Hz"
    require(from_hz == rate_hz or low <= from_hz <= high, f"{told}; give its samples a second")
    _check_floats(x)
    require(bool(x.isfinite().all()), NOT_FINITE)
    found = resample(x.float().numpy(), from_hz, rate_hz)
    most = round(crop_seconds * rate_hz)
    if most and len(found) > most:
        start = (len(found) - most) // 2
        return torch.from_numpy(found[start : start + most].copy())
    seconds = len(found) / rate_hz
    if seconds > max_seconds:
        told = f"the sound lasts {seconds:.2f} s, over max_seconds={max_seconds:g}; cut it or raise the limit"
        raise BadSample("audio_too_long", told)
    return torch.from_numpy(found)


def check_ids(ids: Tensor, known: int) -> Int[Tensor, "n time"]:
    """Ids of texts, below 0 where there is none. known: how many there are."""
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    told = "ids are whole numbers [n, time] of tokenize"
    require(whole and ids.ndim == 2, f"{told}, not {str(ids.dtype).removeprefix('torch.')} {list(ids.shape)}")
    most = int(ids.max()) if ids.numel() else -1
    require(most < known, f"{told}, of which this model knows {known}: {most} is none of them")
    return ids.long()


def texts_given(texts: Any) -> list[str]:
    """One text or several. UserError: what is none."""
    given = [texts] if isinstance(texts, str) else list(texts)
    wrong = next((type(text).__name__ for text in given if not isinstance(text, str)), "")
    require(not wrong, f"a text is a string, not {wrong}")
    return given


def one_or_many(given: Any, kinds: tuple[type, ...]) -> list[Any]:
    """One thing of these kinds as a list of one. An array of one dimension more than a thing has is several."""
    return [given] if isinstance(given, kinds) else list(given)


def padded(waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Zeros behind each, to the longest; of none an empty batch."""
    if not waves:
        return torch.zeros(0, 1), torch.zeros(0, 1, dtype=torch.bool)
    lengths = torch.tensor([len(wave) for wave in waves])
    x = torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True)
    return x, torch.arange(x.shape[1]) < lengths[:, None]
