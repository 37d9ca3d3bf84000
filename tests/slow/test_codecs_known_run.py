"""Known codecs at their published sizes and inside whole runs, and how much of real speech the vocoder keeps."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pystoi
import pytest
import torch
import transformers as hf
from toys import toy_config

import mmfm
from mmfm.config import Data, Eval, Generative, KnownCodec, Mel, Optim, Run, Source
from mmfm.datasets.espeak import Utterance
from mmfm.datasets.speech import speak
from mmfm.models.codecs import known
from mmfm.models.codecs.vocoder import GriffinLim
from mmfm.preprocessing.audio import decode_audio
from mmfm.training import fit

BIG = {
    "dac": (hf.DacConfig(downsampling_ratios=(2, 4, 5, 8), n_codebooks=32, sampling_rate=24_000), 320, 32),
    "mimi": (hf.MimiConfig(), 1_920, 32),
    "encodec": (hf.EncodecConfig(), 320, 32),
}


@pytest.mark.parametrize("name", BIG)
def test_published_sizes(name: str, tmp_path: Path) -> None:
    """A second and a bit of sound is as many frames as the architecture says, and decodes to whole frames."""
    config, hop, books = BIG[name]
    config.save_pretrained(tmp_path)
    found, _ = known.resolve(KnownCodec(source=str(tmp_path), weights="random"), "audio")
    codec = known.build(found)
    assert (codec.hop, codec.books) == (hop, books)
    waves = 0.1 * torch.randn(1, config.sampling_rate + 1, generator=torch.Generator().manual_seed(0))
    ids, keep = codec.encode(waves, torch.ones_like(waves, dtype=torch.bool))
    frames = config.sampling_rate // hop + 1
    assert ids.shape == (1, frames * books)
    back, real = codec.decode(ids, keep)
    assert back.shape == (1, frames * hop)
    assert real.all()


@pytest.fixture
def speech(tmp_path, write_shard, encode_audio, sine) -> Path:
    rows = {f"{i}": {"wav": encode_audio(sine(300 + 100 * i, 0.1)), "txt": f"tone {i}".encode()} for i in range(8)}
    return write_shard(tmp_path / "tones.tar", rows)


def dac(folder: Path) -> Path:
    torch.manual_seed(0)
    config = hf.DacConfig(
        encoder_hidden_size=4, decoder_hidden_size=16, downsampling_ratios=(8, 10), n_codebooks=2, codebook_size=16
    )
    hf.DacModel(config).save_pretrained(folder)
    return folder


def test_a_run_with_a_known_codec_needs_its_source_once(speech: Path, tmp_path: Path) -> None:
    """Trained, resumed and loaded after its source is gone, the codec's weights are the library's to the bit."""
    folder = dac(tmp_path / "dac")
    wanted = hf.DacModel.from_pretrained(folder).state_dict()
    model = replace(toy_config(image=None), audio_codec=KnownCodec(source=str(folder)))
    run = Run(
        name="known",
        out=str(tmp_path),
        model=model,
        data=Data(train=(Source(shards=str(speech), modalities=("audio", "text")),), batch_size=4),
        generative=(Generative(task="text>audio"),),
        optim=Optim(steps=4, warmup_steps=1),
        eval=Eval(every_steps=0),
        save_every_steps=2,
        keep_checkpoints=5,
        accelerator="cpu",
    )
    fit.train(run)
    shutil.rmtree(folder)
    shutil.rmtree(run.folder / "checkpoints" / "step-00000004")
    fit.train(run, resume=True)
    loaded = mmfm.load(str(run.folder)).core.codecs["audio"]
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_a_known_codec_alone_is_evaluated(speech: Path, tmp_path: Path) -> None:
    """A model of which nothing but a known codec is there scores it."""
    from test_codec_metrics import score

    from mmfm.datasets.encode import coders_of

    found, weights = known.resolve(KnownCodec(source=str(dac(tmp_path / "dac"))), "audio")
    codec = known.build(found)
    codec.load_state_dict(weights)
    scores, _ = score(coders_of({"audio": codec}, {"audio": found}), speech, 64)
    values = {one.metric: one.value for one in scores}
    assert values["bits_per_second"] == pytest.approx(16_000 / 80 * 2 * 4)
    assert "codebook_usage/1" in values


@pytest.mark.parametrize(("window_ms", "hop_ms", "bins", "least"), [(32.0, 10.0, 80, 0.95), (50.0, 12.5, 80, 0.93)])
def test_the_vocoder_keeps_speech_intelligible(window_ms: float, hop_ms: float, bins: int, least: float) -> None:
    """Spoken by espeak-ng and heard again through mel frames alone, STOI stays above what was measured less .03."""
    vocoder = GriffinLim(Mel(window_ms=window_ms, hop_ms=hop_ms, bins=bins))
    scores = []
    texts = ("ninety-seven is a number that one can say", "forty-two of them were counted this morning")
    for data in speak([Utterance(text=text, voice="en-us") for text in texts]):
        wave = decode_audio(data, rate_hz=16_000, max_seconds=30.0)
        frames, real = vocoder.mel.absolute(wave[None], torch.ones(1, len(wave), dtype=torch.bool))
        found, _ = vocoder(frames, real)
        scores.append(pystoi.stoi(wave.numpy(), found[0, : len(wave)].numpy(), 16_000))
    assert np.mean(scores) > least, scores
