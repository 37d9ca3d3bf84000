"""Pictures and sounds as files: a sheet of several, names with a number, and whole files or none."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import soundfile
from PIL import Image

from mmfm.config import UserError
from mmfm.inference.generate_args import names_of
from mmfm.inference.processing import Made, Sound
from mmfm.runtime.files import replace_files

GAP_PX = 2
GROUND = 128  # grey: a drawing's own ground is black or white more often


def sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Row by row, about as wide as high, with thin gaps between."""
    first, *others = pictures
    if not others:
        return first
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    columns = min(len(pictures), max(1, round(math.sqrt(len(pictures) * height / width))))
    rows = math.ceil(len(pictures) / columns)
    size = columns * (width + GAP_PX) - GAP_PX, rows * (height + GAP_PX) - GAP_PX
    ground = GROUND if first.mode == "L" else (GROUND,) * len(first.getbands())
    whole = Image.new(first.mode, size, ground)
    for place, picture in enumerate(pictures):
        whole.paste(picture, (place % columns * (width + GAP_PX), place // columns * (height + GAP_PX)))
    return whole


def encoded(thing: Image.Image | Sound) -> bytes:
    """A PNG, or a 16-bit WAV."""
    out = io.BytesIO()
    if isinstance(thing, Sound):
        soundfile.write(out, thing.wave.numpy(), thing.rate_hz, format="WAV", subtype="PCM_16")
    else:
        thing.save(out, "PNG")
    return out.getvalue()


def files_of(things: Sequence[Made], out: str) -> dict[Path, bytes]:
    """One file, a sheet of pictures where there are several; or with {} in its name one for each, from 1 on."""
    shown = [thing for thing in things if not isinstance(thing, str)]
    assert len(shown) == len(things)
    if "{}" in out:
        return {Path(name): encoded(thing) for name, thing in zip(names_of(out, len(shown)), shown, strict=True)}
    pictures = [thing for thing in shown if isinstance(thing, Image.Image)]
    if pictures:
        return {Path(out): encoded(sheet(pictures))}
    (sound,) = shown
    return {Path(out): encoded(sound)}


def write_files(files: Mapping[Path, bytes]) -> None:
    """All of them or none. UserError where one cannot be written."""
    try:
        replace_files(files)
    except OSError as why:
        raise UserError(f"cannot write {why.filename}: {why.strerror}; make room or choose another --out") from None
