"""What every judge is: it reads pictures or sounds, and says in words what it reads, spelled as the plain captions.

A judge takes no part in training a model, and its own voices or scans are none that a model is trained on. It reads
openly: what it hears may be the name of no number, and where it reads nothing it says "".
"""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmfm.config import require
from mmfm.data.sample import Sample
from mmfm.datasets.numbers_plan import TENS, UNITS, name
from mmfm.evals.metrics import letters
from mmfm.evals.records import HeldOut
from mmfm.preprocessing.audio import resample

RATE_HZ = 16_000  # at which every judge hears
NAMES = tuple(name(number) for number in range(100))  # the captions of the data set `numbers`
WORDS = (*UNITS, *TENS)  # what they are made of
OTHER = "?"  # a stretch of something else


@runtime_checkable
class Judge(Protocol):
    """name: what reports call it. of: what it reads."""

    @property
    def name(self) -> str: ...

    @property
    def of(self) -> Literal["image", "audio"]: ...

    def read(self, things: Sequence[Tensor], rate_hz: int = 0) -> list[str]:
        """A text for each thing. Pictures: uint8 [channels, height, width]; sounds: float [samples] at `rate_hz`.

        Errors:
            UserError: a thing of another kind, an empty sound, one that is not finite, or no rate.
        """
        ...


@runtime_checkable
class Trained(Protocol):
    """A judge that was trained here, and so knows what it has learned from."""

    @property
    def learned_from(self) -> str: ...

    def met(self, sample: Sample) -> bool:
        """Whether it has learned from the scans or the voice of this sample: how it reads these says nothing of it."""
        ...

    def held_out(self) -> HeldOut | None:
        """None where that was not measured."""
        ...


def spelled(text: str) -> str:
    """A transcript as the captions spell it: "42.", "Forty two" and "40-2" are "forty-two"; other words stay.

    Letters are folded and punctuation goes, as `metrics.letters` does. Digits are read one number at a time, up to 99.
    """
    found: list[str] = []
    for word in letters(text).split():
        small = word.isascii() and word.isdigit() and len(word) <= 2
        found += letters(name(int(word))).split() if small else [word]
    return joined(found)


def compared(text: str) -> str:
    """What was wanted and what was read, as they are compared: both spelled alike. A judge's "?", for a stretch of
    something else, stays a word."""
    kept, now = list[str](), list[str]()
    for word in text.split():
        if word == OTHER:
            kept, now = [*kept, spelled(" ".join(now)), OTHER], []
        else:
            now.append(word)
    return " ".join(filter(None, [*kept, spelled(" ".join(now))]))


def joined(words: Sequence[str]) -> str:
    """Words with a space between, or the hyphen of "forty-two" between tens and one to nine."""
    text = " ".join(words)
    for tens in TENS:
        for unit in UNITS[1:10]:
            text = f" {text} ".replace(f" {tens} {unit} ", f" {tens}-{unit} ").strip()
    return text


def heard(things: Sequence[Tensor], rate_hz: int) -> list[Float[np.ndarray, " _"]]:
    """The sounds at RATE_HZ, checked."""
    require(rate_hz > 0, f"rate_hz={rate_hz} of the sounds must be greater than 0; say at which rate they were made")
    sounds = []
    for number, wave in enumerate(things):
        where = f"sound {number} of {len(things)}"
        kind = f"{str(wave.dtype).removeprefix('torch.')} {list(wave.shape)}"
        require(wave.ndim == 1 and wave.is_floating_point(), f"{where} is {kind}; a judge hears float [samples]")
        require(len(wave) > 0, f"{where} is empty (0 samples); give sounds of at least one sample")
        require(bool(wave.isfinite().all()), f"{where} holds values that are not finite; repair or leave it out")
        sounds.append(resample(wave.detach().float().cpu().numpy(), rate_hz, RATE_HZ))
    return sounds


def seen(things: Sequence[Tensor]) -> list[Float[Tensor, "height width"]]:
    """The pictures in grey, 0 to 1, checked."""
    pictures = []
    for number, picture in enumerate(things):
        kind = f"{str(picture.dtype).removeprefix('torch.')} {list(picture.shape)}"
        whole = picture.ndim == 3 and picture.dtype == torch.uint8 and picture.numel() > 0
        require(whole, f"picture {number} of {len(things)} is {kind}; a judge sees uint8 [channels, height, width]")
        pictures.append(picture.detach().cpu().float().mean(0) / 255)
    return pictures
