"""Judges with real weights: the whole recogniser is trained, wheels agree with their own code, and all read real clips.

Bounds lie below what tools/judges.json holds.
"""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from mmfm.data.shards import Shards
from mmfm.datasets import numbers
from mmfm.evals.judges import make
from mmfm.evals.judges.choose import judge
from mmfm.evals.judges.speech_sounds import through_mel
from mmfm.preprocessing.audio import decode_audio
from mmfm.preprocessing.image import picture

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import speaker

Samples = tuple[list[Tensor], list[str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "numbers"
    numbers.build(folder, images_per_number=1, clips_per_number=1, eval_per_number=4, progress=False)
    return folder


def clips(data: Path, split: str, most: int) -> Samples:
    shards = Shards(sorted((data / split).glob("audio-*.tar")))
    parts = [shards[number].parts for number in range(min(most, len(shards)))]
    sounds = [decode_audio(one["flac"], rate_hz=16_000, max_seconds=60.0) for one in parts]
    return sounds, [json.loads(one["json"])["label"] for one in parts]


def right(read: list[str], wanted: list[str]) -> float:
    return float(np.mean([a == b for a, b in zip(read, wanted, strict=True)]))


def test_the_recogniser_hears_strange_voices(data: Path, tmp_path: Path) -> None:
    """Trained whole, it reads most clips of voices that it never heard, and nearly as many after a vocoder."""
    make.make(tmp_path / "judges", progress=False)
    own = judge("speech", tmp_path / "judges")
    sounds, wanted = clips(data, "val", 320)
    assert right(own.read(sounds, 16_000), wanted) >= 0.85
    assert right(own.read(through_mel(sounds, torch.Generator().manual_seed(0)), 16_000), wanted) >= 0.75
    assert own.read([torch.zeros(16_000)], 16_000) == [""]


def test_digits_reads_the_data_sets_pictures(data: Path) -> None:
    """Both digits of real validation pictures, as a tower sees them."""
    shards = Shards(sorted((data / "val").glob("image-*.tar")))
    parts = [shards[number].parts for number in range(len(shards))]
    shown = [picture(one["png"], channels=1, height_px=16, width_px=32) for one in parts]
    assert right(judge("digits").read(shown), [json.loads(one["json"])["label"] for one in parts]) >= 0.95


def test_whisper_hears_some_of_it(data: Path) -> None:
    """Far above the hundredth that guessing gives, far below what people hear."""
    sounds, wanted = clips(data, "val", 48)
    assert right(judge("whisper").read(sounds, 16_000), wanted) >= 0.2


def test_voices_are_the_wheels_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel's encoder, run by its own code on the mel powers of another library, gives the same vectors."""
    banks = mel_filter_bank(201, 40, 0.0, 8_000.0, 16_000, norm="slaney", mel_scale="slaney")

    def powers(wave: np.ndarray) -> np.ndarray:
        window = window_function(400, "hann")
        made = spectrogram(wave, window, 400, 160, power=2.0, pad_mode="constant", mel_filters=banks)
        return made.astype(np.float32).T

    foreign = types.ModuleType("resemblyzer.audio")
    unused = dict.fromkeys(("preprocess_wav", "trim_long_silences", "normalize_volume"))
    foreign.__dict__.update(unused, wav_to_mel_spectrogram=powers)
    monkeypatch.setitem(sys.modules, "resemblyzer.audio", foreign)  # it needs packages that compile
    from resemblyzer import VoiceEncoder

    theirs = VoiceEncoder(device="cpu", verbose=False)
    generator = torch.Generator().manual_seed(0)
    for seconds in (0.5, 1.6, 2.2, 4.0):
        wave = 0.1 * torch.randn(round(16_000 * seconds), generator=generator)
        wanted = torch.from_numpy(theirs.embed_utterance(wave.numpy()))
        torch.testing.assert_close(speaker.speaker([wave], 16_000)[0], wanted, rtol=1e-3, atol=1e-4)


def test_a_voice_is_nearer_to_itself(data: Path) -> None:
    """Halves of a clip, against the clips of all other variants: nearer than to nine tenths of them, mostly."""
    shards = Shards(sorted((data / "val").glob("audio-*.tar")))
    parts = [shards[number].parts for number in range(160)]
    sounds = [decode_audio(one["flac"], rate_hz=16_000, max_seconds=60.0) for one in parts]
    variants = [json.loads(one["json"])["voice"].split("+")[1] for one in parts]
    first, second = (speaker.speaker([sound.chunk(2)[k] for sound in sounds], 16_000) for k in (0, 1))
    apart = torch.tensor([[a != b for b in variants] for a in variants])
    assert speaker.nearer(first, second, first, apart).median() >= 0.9
