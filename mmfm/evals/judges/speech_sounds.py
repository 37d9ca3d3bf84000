"""What the recogniser learns from: number words by espeak-ng's voices of the test split, disturbed in many ways.

No model of `numbers` is trained or validated on these variants. The sentences are the hundred names, as many random
rows of number words, so that no word is known by its neighbour, and other words. A sound is changed in speed, band,
loudness and noise, and half of the time it has gone through a mel spectrogram and back, as what a vocoder makes has.
"""

import io
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import soundfile
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torchaudio.functional import griffinlim, melscale_fbanks

from mmfm.datasets.espeak import Utterance
from mmfm.datasets.numbers_plan import ACCENTS_TRAIN, VARIANTS_TEST, name
from mmfm.datasets.speech import RATE_HZ, speak
from mmfm.evals.judges.contract import WORDS
from mmfm.evals.judges.speech import OTHER, padded
from mmfm.evals.metrics import letters

RATES_WPM, PITCHES = (120, 240), (15, 85)  # wider than the data set's
OTHERS = (
    *("hello", "water", "yellow", "banana", "window", "people", "never", "again", "mother", "sister", "hundred"),
    *("thousand", "first", "second", "maybe", "paper", "table", "summer", "money", "garden", "often", "listen"),
    *("number", "picture", "somebody", "after", "under", "letter", "father", "question", "yes", "no", "stop", "go"),
)
BINS = (32, 40, 64, 80)  # of the way through mel bands and back
WINDOWS = (400, 512, 800, 1_024)  # samples; a quarter is the hop
ITERATIONS = (0, 3, 6, 12)  # of Griffin and Lim; after none the voice whispers
WARP = (0.85, 1.18)  # of its frequencies, as if the speaker were larger or smaller
SPEEDS, EDGE, SNR_DB = (0.8, 1.25), 4_000, (5.0, 45.0)  # EDGE: samples of quiet before and after, at most
LOW_PASS_HZ, HIGH_PASS_HZ = (2_800.0, 8_000.0), (20.0, 350.0)
WAVES_DB = 3.0  # of each of three waves over the frequencies
VOCODED, BANDED = 0.5, 0.5  # shares of the sounds
WIDER = 4


class Said(NamedTuple):
    """Sounds at RATE_HZ, each clean and through mel bands and back, with the words in them."""

    clean: list[Float[Tensor, " _"]]
    vocoded: list[Float[Tensor, " _"]]
    words: list[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How much is said. names: times that each of the hundred is; rows, others: sentences of the other two kinds."""

    names: int = 30
    rows: int = 2_200
    others: int = 300


def sentences(lesson: Lesson, random: Random) -> list[tuple[str, ...]]:
    """Words of every sentence, OTHERS among them, in a random order."""
    names = [tuple(letters(name(number)).split()) for number in range(100) for _ in range(lesson.names)]
    rows = [tuple(random.choices(WORDS, k=random.choice((1, 2, 2, 3)))) for _ in range(lesson.rows)]
    others = []
    for _ in range(lesson.others):
        row = [random.choice(OTHERS), *random.choices(WORDS, k=random.randint(0, 2))]
        others.append(tuple(random.sample(row, len(row))))
    made = [*names, *rows, *others]
    return random.sample(made, len(made))


def say(
    rows: Sequence[tuple[str, ...]], random: Random, variants: Sequence[str] = VARIANTS_TEST
) -> list[Float[Tensor, " _"]]:
    """Each by a random voice of these variants in an accent of training, at a random rate and pitch."""
    spoken = [
        Utterance(
            text=" ".join(row),
            voice=f"{random.choice(ACCENTS_TRAIN)}+{random.choice(variants)}",
            rate_wpm=random.randint(*RATES_WPM),
            pitch=random.randint(*PITCHES),
        )
        for row in rows
    ]
    with closing(speak(spoken)) as clips:
        return [torch.from_numpy(soundfile.read(io.BytesIO(clip), dtype="float32")[0]) for clip in clips]


def lesson_of(lesson: Lesson, seed: int) -> Said:
    random = Random(f"{seed} speech")
    rows = sentences(lesson, random)
    clean = say(rows, random)
    words = [tuple(word if word in WORDS else OTHER for word in row) for row in rows]
    return Said(clean, through_mel(clean, torch.Generator().manual_seed(seed)), words)


def through_mel(
    sounds: Sequence[Float[Tensor, " _"]], generator: torch.Generator, at_once: int = 48
) -> list[Float[Tensor, " _"]]:
    """Each sound's mel spectrogram, and a sound of it again by Griffin and Lim; another recipe for every batch."""
    order = sorted(range(len(sounds)), key=lambda index: len(sounds[index]))
    made: dict[int, Tensor] = {}
    for start in range(0, len(sounds), at_once):
        part = order[start : start + at_once]
        bins, window, iterations = (
            choices[int(torch.randint(len(choices), (), generator=generator))]
            for choices in (BINS, WINDOWS, ITERATIONS)
        )
        waves, lengths = padded([sounds[index] for index in part])
        back = _round_trip(waves, bins, window, iterations, generator)
        made |= {index: row[:size].clone() for index, row, size in zip(part, back, lengths.tolist(), strict=True)}
    return [made[index] for index in range(len(sounds))]


def _round_trip(
    waves: Float[Tensor, "n samples"], bins: int, window: int, iterations: int, generator: torch.Generator
) -> Float[Tensor, "n samples"]:
    hann, hop, size = torch.hann_window(window), window // 4, window // 2 + 1
    power = torch.stft(waves, window, hop, window=hann, pad_mode="constant", return_complex=True).abs().square()
    factor = WARP[0] + (WARP[1] - WARP[0]) * float(torch.rand((), generator=generator))
    warped = F.interpolate(power.transpose(1, 2), size=round(size * factor), mode="linear").transpose(1, 2)
    power = F.pad(warped, (0, 0, 0, max(0, size - warped.shape[1])))[:, :size]
    banks = melscale_fbanks(size, 0.0, RATE_HZ / 2, bins, RATE_HZ)
    again = (torch.linalg.pinv(banks.T) @ (banks.T @ power)).clamp(min=0)
    blur = 1 + 0.3 * torch.randn(again.shape, generator=generator)  # a made spectrogram is not exact
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(1 << 31, (), generator=generator)))  # of the first phases
        return griffinlim(
            again * blur.clamp(min=0), hann, window, hop, window, power=2.0, n_iter=iterations, momentum=0.9,
            length=waves.shape[1], rand_init=True,
        )  # fmt: skip


def draw(
    said: Said, count: int, generator: torch.Generator, plain: bool = False
) -> tuple[Tensor, Int[Tensor, " n"], list[tuple[str, ...]]]:
    """A batch of disturbed sounds with their lengths and words; one in forty is noise alone, with no words.
    plain: they are clean, and only faster or slower.

    Of WIDER times as many, those that are next to each other in length: less is computed on what is padding.
    """
    many = torch.randint(len(said.words), (WIDER * count,), generator=generator).tolist()
    first = count * int(torch.randint(WIDER, (), generator=generator))
    chosen = sorted(many, key=lambda index: len(said.clean[index]))[first : first + count]
    coarse = (torch.rand(count, generator=generator) < VOCODED).tolist()
    silent = (torch.rand(count, generator=generator) < 1 / 40).tolist()
    sounds = []
    for index, vocoded, nothing in zip(chosen, coarse, silent, strict=True):
        sound = at_speed((said.vocoded if vocoded and not plain else said.clean)[index], generator)
        edges = torch.randint(EDGE, (2,), generator=generator).tolist()
        sounds.append(F.pad(0 * sound if nothing else sound, edges))
    waves, lengths = padded(sounds)
    real = torch.arange(waves.shape[1]) < lengths[:, None]
    waves = waves if plain else in_noise(in_band(waves, generator), generator) * real
    return waves, lengths, [() if nothing else said.words[i] for i, nothing in zip(chosen, silent, strict=True)]


def at_speed(sound: Float[Tensor, " samples"], generator: torch.Generator) -> Float[Tensor, " changed"]:
    """Faster and higher, or slower and lower."""
    low, high = SPEEDS
    speed = low + (high - low) * float(torch.rand((), generator=generator))
    return F.interpolate(sound[None, None], size=round(len(sound) / speed), mode="linear")[0, 0]


def in_band(waves: Float[Tensor, "n samples"], generator: torch.Generator) -> Float[Tensor, "n samples"]:
    """Frequencies raised and lowered at random, by WAVES_DB, as rooms and voices do; half of the sounds lose what is
    above one frequency and below another, by slopes of a sixth of an octave."""
    n, size = len(waves), quick(waves.shape[1])
    spectrum, hertz = torch.fft.rfft(waves, n=size), torch.fft.rfftfreq(size, 1 / RATE_HZ).clamp(min=1.0)
    share = torch.rand(3, n, 1, generator=generator)
    top, floor = (
        low * (high / low) ** part for (low, high), part in zip((LOW_PASS_HZ, HIGH_PASS_HZ), share[:2], strict=True)
    )
    steep = 6 * torch.pi
    gain = torch.sigmoid(steep * (top / hertz).log2()) * torch.sigmoid(steep * (hertz / floor).log2())
    octaves, turns = (hertz / 50).log2(), torch.rand(2, 3, n, 1, generator=generator)
    level = sum(WAVES_DB * torch.sin(2 * torch.pi * (b + octaves / (1 + 3 * a))) for a, b in zip(*turns, strict=True))
    gain = torch.where(share[2] < BANDED, gain, 1.0) * 10 ** (level / 20)
    changed = torch.fft.irfft(spectrum * gain, n=size)
    return changed[:, : waves.shape[1]]


def in_noise(waves: Float[Tensor, "n samples"], generator: torch.Generator) -> Float[Tensor, "n samples"]:
    """White to brown noise below the sound, by SNR_DB; then any loudness. A silent row becomes noise."""
    n, size = len(waves), quick(waves.shape[1])
    low, high = SNR_DB
    below = low + (high - low) * torch.rand(n, 1, generator=generator)
    slope = torch.rand(n, 1, generator=generator)
    tilt = torch.arange(1, size // 2 + 2).float()[None] ** -slope
    white = torch.randn(2, n, size // 2 + 1, generator=generator)
    noise = torch.fft.irfft(torch.complex(white[0], white[1]) * tilt, n=size)[:, : waves.shape[1]]
    noise = noise / noise.square().mean(1, keepdim=True).sqrt()
    loud = waves.square().mean(1, keepdim=True).sqrt()
    mixed = waves + noise * loud.clamp(min=1e-3) * 10 ** (-below / 20)
    return mixed * 10 ** (-1.5 * torch.rand(n, 1, generator=generator))


def quick(samples: int) -> int:
    """The next length that a Fourier transform is quick on: eight times a power of two, or up to fifteen times."""
    step = 1 << max(0, samples.bit_length() - 4)
    return -(-samples // step) * step
