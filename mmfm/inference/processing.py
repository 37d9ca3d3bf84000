"""Texts, pictures and sounds as people hold them, and how local ids become such."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmfm import config
from mmfm.config import MODALITIES, UserError, require
from mmfm.data.batch import Items
from mmfm.generation import Finish
from mmfm.models.model import UnifiedModel
from mmfm.preprocessing.tokenizer import Tokenizer

SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".webp"),
    "audio": (".wav", ".flac", ".ogg", ".opus", ".mp3"),
}
WORDS = {"image": "picture", "audio": "sound", "text": "text"}


class Text(str):
    """A text that was made: a string, which also says how it `finish`ed: "length" where it was cut at `max_tokens`.

    logprobs: of each of its tokens and its end, where they were asked for.
    """

    finish: Finish = "stop"
    logprobs: Sequence[float] | None = None

    def __new__(cls, text: str, finish: Finish = "stop", logprobs: Sequence[float] | None = None) -> "Text":
        made = super().__new__(cls, text)
        made.finish, made.logprobs = finish, logprobs
        return made


class Sound(NamedTuple):
    """A mono sound in -1..1, publicly `mmfm.Sound(wave, rate_hz)`, whose wave may be an array where it is given. start:
    the sample from which on it was made; before that it repeats what was given.

    finish: "length" where it was cut at `max_tokens`.
    """

    wave: Float[Tensor, " samples"]
    rate_hz: int
    start: int = 0
    finish: Finish = "stop"

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.rate_hz


Picture = str | Path | bytes | Image.Image | np.ndarray
Clip = str | Path | bytes | Sound
Made = str | Image.Image | Sound
Things = Mapping[str, Sequence[Any]]  # for each modality what one sample holds, in order of mention


def kind_of(name: str, thing: Any) -> None:
    """UserError where a thing cannot be of this modality at all."""
    kinds = {"image": (str, Path, bytes, Image.Image, np.ndarray), "audio": (str, Path, bytes, Sound), "text": (str,)}[
        name
    ]
    told = {
        "image": "a path, a file's bytes, a picture of Pillow or an array",
        "audio": "a path, a file's bytes, or mmfm.Sound(wave, rate_hz) of an array",
        "text": "a string",
    }[name]
    require(isinstance(thing, kinds), f"{name}: {type(thing).__name__} is no {WORDS[name]}; give {told}")
    if name == "text" or not isinstance(thing, str | Path):
        return
    suffix = Path(thing).suffix.lower()
    other = next((other for other in SUFFIXES if other != name and suffix in SUFFIXES[other]), None)
    if other is not None:
        raise UserError(
            f"{name}: {thing} is a {WORDS[other]} by its name; give {_either(SUFFIXES[name])}, or give it as {other}"
        )


def _either(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def whole_turns(model: UnifiedModel, items: Items) -> Items:
    """A prompt of sound without its last part of a turn of codes, which would be filled up with silence."""
    unit = model.codec("audio").step_samples
    if items.raw is not None or not unit:
        return items
    lengths = items.keep.sum(1)
    shortest = int(lengths.min())
    require(shortest >= unit, f"a sound of {shortest} samples is too short to continue; give at least {unit}")
    keep = items.keep & (torch.arange(items.keep.shape[1], device=lengths.device) < (lengths // unit * unit)[:, None])
    longest = int(keep.sum(1).max())
    return replace(items, x=(items.x * keep)[:, :longest], keep=keep[:, :longest], tokens=None)


def able_to_write(model: UnifiedModel, modality: str) -> None:
    """UserError unless the model has codes for this modality."""
    require(modality in MODALITIES, f"no modality called {modality!r}; there are {', '.join(MODALITIES)}")
    able = [name for name in MODALITIES if name in model.forms]
    require(modality in able, f"this model has no codec of {modality}; it writes {', '.join(able)}")


def check_codes(model: UnifiedModel, modality: str, ids: Sequence[int]) -> None:
    """UserError unless these local ids make a thing of this modality."""
    able_to_write(model, modality)
    form, books = model.forms[modality], len(model.forms[modality].sizes)
    for step, code in enumerate(ids):
        span = form.candidates(step)
        if span and code not in span:
            raise UserError(f"{modality} code {code} at place {step} is not in {span.start} to {span.stop - 1}")
    wrong = form.length and len(ids) != form.length
    told = f"{len(ids)} codes make no {WORDS[modality]}; give "
    require(not wrong, told + f"{form.length}")
    require(modality == "text" or (len(ids) > 0 and len(ids) % books == 0), told + f"a multiple of {books} above 0")


@torch.no_grad()
def thing_of(
    model: UnifiedModel, run: config.Run, tokenizer: Tokenizer, modality: str, ids: Sequence[int], start: int = 0
) -> Made:
    """What these local ids say, show or sound like; start: how many of them repeat what was given."""
    check_codes(model, modality, ids)
    if modality == "text":
        return tokenizer.decode(ids)
    codes = torch.tensor([list(ids)], device=model.device)
    x, keep = model.codec(modality).decode(codes, torch.ones_like(codes, dtype=torch.bool))
    if modality == "image":
        return picture_of(x[0].cpu())
    codec, turns = model.codec("audio"), start // len(model.forms["audio"].sizes)
    require(bool(x.isfinite().all()), "the codec made a sound that is not finite; the weights are broken, train again")
    return Sound(x[0][keep[0]].float().cpu(), rate_of(run), turns * codec.step_samples)


def rate_of(run: config.Run) -> int:
    """Hz of the sounds that are made."""
    codec = run.model.audio_codec
    assert codec is not None and codec.sound is not None
    return codec.sound.rate_hz


def picture_of(x: Tensor) -> Image.Image:
    """uint8 [channels, height, width] as Pillow's: grey, RGB or RGBA."""
    pixels = x.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
