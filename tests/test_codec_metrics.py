"""Scores of codecs: planted answers, what they leave out, and that ranks, batches and copies change nothing."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import Planted, read
from toys import toy_run

from mmfm.__main__ import main
from mmfm.config import AudioCodec, ImageCodec, Mel, Model, Reconstruction, TextTower, Trunk, serialization
from mmfm.data.batch import Ids
from mmfm.data.vocabulary import CodeFormat
from mmfm.data.writer import Item, write_shard
from mmfm.datasets.encode import Coder, coders_of
from mmfm.evals.codec import (
    BEST_DB,
    codec_scores,
    picture_values,
    scored_coders,
    sound_values,
)
from mmfm.evals.config import EvalConfig
from mmfm.evals.left_out import lines_of_split
from mmfm.evals.metrics import Bootstrap, Score
from mmfm.evals.run import scores_during_training
from mmfm.inference.load import load_model
from mmfm.models import checkpoint
from mmfm.models.codecs import make_codec
from mmfm.models.model import build
from mmfm.preprocessing.tokenizer import load_tokenizer

RATE = 16_000
PICTURES = ImageCodec(height_px=16, width_px=16, channels=1, patch_px=8, levels=(4, 4), width=8, depth=1)
SPEECH = AudioCodec(mel=Mel(bins=16), frame_stack=4, num_codebooks=2, levels=(4, 3), width=8, depth=1)


class Cells(torch.nn.Module):
    """A codec of pictures with a known answer: each quarter's mean, to one of 4 levels, as a book of its own."""

    form = CodeFormat((4, 4, 4, 4), 4)
    step_samples = 0

    def encode(self, x: torch.Tensor, keep: torch.Tensor) -> Ids:
        quarters = torch.nn.functional.avg_pool2d(x.float(), 8).flatten(1)
        ids = (quarters // 64).long() + 4 * torch.arange(4)
        return Ids(ids, keep.expand_as(ids))

    def decode(self, ids: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        levels = (ids - 4 * torch.arange(4)) * 64 + 10
        x = levels.view(-1, 1, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3)
        return x.to(torch.uint8), keep[:, :1]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quarters(encode_image: Callable[..., bytes], levels: tuple[int, ...]) -> bytes:
    """A picture whose quarters are 64 times the level."""
    x = np.kron(np.array(levels, np.uint8).reshape(2, 2) * 64, np.ones((8, 8), np.uint8))
    return encode_image(x)


@pytest.fixture
def planted(tmp_path: Path, encode_image: Callable[..., bytes]) -> Path:
    """Four pictures; the first quarter has all 4 levels evenly, the second two of them, the third one, the last one."""
    rows = [(0, 1, 2, 0), (1, 1, 2, 0), (2, 3, 2, 0), (3, 3, 2, 0)]
    items = [Item(f"p{row}", {"png": quarters(encode_image, levels)}) for row, levels in enumerate(rows)]
    write_shard(tmp_path / "planted.tar", items)
    return tmp_path / "planted.tar"


class Codes(Planted):
    """Nothing but codecs."""

    def __init__(self, coders: Mapping[str, Coder]) -> None:
        parts = {f"{name}_codec": coder.cfg for name, coder in coders.items()}
        trunk = Trunk(width=8, heads=2, kv_heads=2, depth=0)
        super().__init__({}, cfg=Model(image=None, audio=None, text=None, trunk=trunk, embed_dim=8, **parts))


def score(coders: Mapping[str, Coder], shards: Path, batch_size: int) -> tuple[list[Score], list[str]]:
    """Scores of codecs over shards, and what they leave out."""
    split = read(Codes(coders), str(shards), EvalConfig(batch_size=batch_size), coders=coders)
    found = [codec_scores(name, coder, split.coded.get(name)) for name, coder in coders.items()]
    lines = [*lines_of_split(split), *(line for _, told in found for line in told)]
    return [one for scores, _ in found for one in scores], lines


def test_planted_pictures(planted: Path) -> None:
    """Every value is 10 away, so PSNR is known; so are bits per pixel, codes in use and their entropy, book by book."""
    coder = Coder(codec=Cells(), contract=PICTURES.pixels, cfg=PICTURES)
    scores, left_out = score({"image": coder}, planted, 3)
    values = {one.metric: one.value for one in scores}
    assert values["psnr"] == pytest.approx(20 * math.log10(255 / 10), abs=1e-4)
    assert values["bits_per_pixel"] == 4 * 2 / 256
    assert [values[f"codebook_usage/{book}"] for book in range(4)] == [1.0, 0.5, 0.25, 0.25]
    assert [values[f"code_entropy_bits/{book}"] for book in range(4)] == [2.0, 1.0, 0.0, 0.0]
    assert {one.task for one in scores} == {"image codec"}
    chances = {one.metric: one.chance for one in scores}
    assert chances["bits_per_pixel"] == 8.0
    assert chances["codebook_usage/0"] == 0.25
    grey = [((128 - 64 * level) ** 2).__float__() for level in range(4)]
    means = [np.mean([grey[a], grey[b], grey[2], grey[0]]) for a, b in ((0, 1), (1, 1), (2, 3), (3, 3))]
    assert chances["psnr"] == pytest.approx(np.mean([10 * math.log10(255**2 / mean) for mean in means]), abs=1e-4)
    assert scores[0].items == ("p0", "p1", "p2", "p3")
    assert left_out == []
    low, high = next(one for one in scores if one.metric == "codebook_usage/0").interval(Bootstrap(resamples=200))
    assert 0.25 <= low < high <= 1.0


def test_a_picture_like_itself() -> None:
    """Equal to the bit is BEST_DB and 1; SSIM falls with noise; below the size of its window there is none."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, 3, 32, 32), generator=draw, dtype=torch.uint8)
    same = picture_values(x, x)
    assert same["psnr"].tolist() == [BEST_DB] * 2
    np.testing.assert_allclose(same["ssim"], 1.0, atol=1e-6)
    changed = picture_values(x // 2 + 40, x)["ssim"]
    assert (changed < 0.99).all()
    assert picture_values(x[..., :10], x[..., :10]).keys() == {"psnr"}


def ssim_by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, eq. 13, a Gaussian window of 11 and deviation 1.5, mirrored at the borders."""
    at = np.arange(11) - 5
    line = np.exp(-(at**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    cut = [np.lib.stride_tricks.sliding_window_view(np.pad(x, 5, "reflect"), (11, 11)) for x in (a, b)]
    mean_a, mean_b = ((part * window).sum((2, 3)) for part in cut)
    var_a, var_b = (((part**2) * window).sum((2, 3)) - m**2 for part, m in zip(cut, (mean_a, mean_b), strict=True))
    both = (cut[0] * cut[1] * window).sum((2, 3)) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(found.mean())


def test_ssim_by_its_definition() -> None:
    draw = torch.Generator().manual_seed(0)
    a = torch.randint(0, 256, (1, 1, 24, 30), generator=draw, dtype=torch.uint8)
    b = (a.float() + 30 * torch.randn(a.shape, generator=draw)).clamp(0, 255).to(torch.uint8)
    wanted = ssim_by_definition(a[0, 0].numpy() / 255, b[0, 0].numpy() / 255)
    assert picture_values(b, a)["ssim"][0] == pytest.approx(wanted, abs=1e-4)


def test_planted_sounds() -> None:
    """A copy scores best; noise of known power at known SI-SDR; loudness changes neither STOI nor SI-SDR; padding
    nothing; a clip too short for STOI has none."""
    clean = noise(3, RATE) * torch.linspace(0, 8, RATE).sin().abs()
    keep = torch.arange(RATE) < torch.tensor([RATE, 12_000, 3_000])[:, None]
    same = sound_values(clean, clean.clone(), keep, RATE)
    np.testing.assert_allclose(same["stoi"][:2], 1.0, atol=1e-3)
    assert np.isnan(same["stoi"][2])
    np.testing.assert_allclose(same["spectral_distance"], 0.0, atol=1e-5)
    other = noise(3, RATE, seed=1)
    other = other - (other * clean * keep).sum(1, keepdim=True) / (clean * clean * keep).sum(1, keepdim=True) * clean
    power = [((part * keep) ** 2).sum(1, keepdim=True) for part in (clean, other)]
    dirty = clean + other * (power[0] / power[1] / 100).sqrt()
    found = sound_values(dirty.masked_fill(~keep, 3.0), clean, keep, RATE)
    np.testing.assert_allclose(found["si_sdr"], 20.0, atol=0.01)
    louder = sound_values(3 * dirty, clean, keep, RATE)
    np.testing.assert_allclose(louder["si_sdr"], found["si_sdr"], atol=1e-4)
    np.testing.assert_allclose(louder["stoi"][:2], found["stoi"][:2], atol=1e-6)
    assert (found["stoi"][:2] < same["stoi"][:2]).all()
    for row, length in enumerate((RATE, 12_000, 3_000)):
        alone = sound_values(dirty[row : row + 1, :length], clean[row : row + 1, :length], keep[:1, :length], RATE)
        for metric, values in alone.items():
            np.testing.assert_allclose(values[0], found[metric][row], rtol=1e-4, atol=1e-5)


@pytest.fixture
def spoken(tmp_path: Path, encode_audio: Callable[..., bytes]) -> Path:
    """Five sounds: two alike in key, one too short for STOI, one silent, one damaged; and a text."""
    waves = [noise(length, seed=length).numpy() for length in (RATE, 14_000, 2_000)]
    parts = [{"wav": encode_audio(wave, RATE)} for wave in waves]
    parts += [{"wav": b"RIFF"}, {"txt": b"text"}]
    (tmp_path / "a").mkdir()
    write_shard(tmp_path / "a" / "a.tar", [Item(f"s{row}", part) for row, part in enumerate(parts)])
    write_shard(tmp_path / "a" / "b.tar", [Item("s0", {"wav": encode_audio(waves[1][:13_000], RATE)})])
    return tmp_path / "a"


def speech_coder() -> dict[str, Coder]:
    torch.manual_seed(0)
    return coders_of({"audio": make_codec(SPEECH).eval()}, {"audio": SPEECH})


def test_what_sounds_leave_out(spoken: Path) -> None:
    """A short sound is left out of STOI alone, a damaged one of all; the cost is of true seconds."""
    scores, left_out = score(speech_coder(), spoken, 4)
    by_name = {one.metric: one for one in scores}
    assert by_name["stoi"].n == 3
    assert by_name["spectral_distance"].n == by_name["bits_per_second"].n == 4
    assert by_name["spectral_distance"].items == ("s0", "s1", "s2", "s0 #2")
    assert left_out == [
        "1 of 6 samples cannot be used: audio_damaged (1); they are s3",
        "audio codec: 1 of 4 items are too short or silent for stoi",
    ]
    samples = [RATE, 14_000, 2_000, 13_000]
    steps = sum(math.ceil(math.ceil(count / 160) / 4) for count in samples)
    assert by_name["bits_per_second"].value == pytest.approx(steps * 2 * math.log2(12) * RATE / sum(samples))
    assert by_name["bits_per_second"].chance == 16 * RATE
    assert 0 < by_name["stoi"].chance < 0.6


def test_batches_change_nothing(spoken: Path) -> None:
    """One at a time and all at once give the same figures."""
    (one, told), (every, lines) = (score(speech_coder(), spoken, size) for size in (1, 64))
    for a, b in zip(one, every, strict=True):
        assert (a.metric, a.n, a.items) == (b.metric, b.n, b.items)
        assert a.value == pytest.approx(b.value, rel=1e-3)
    assert told == lines


def test_eval_of_a_run_of_codecs_alone(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`mmfm eval` writes their rows with intervals, and training asks for the chosen ones of the same code."""
    run = toy_run(
        out=str(tmp_path),
        name="codec",
        model=Model(image=None, audio=None, text=None, trunk=Trunk(width=8, heads=2, kv_heads=2, depth=0),
                    image_codec=PICTURES, embed_dim=8),
        contrastive=(),
        generative=(),
        reconstruction=(Reconstruction(modality="image"),),
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = load_tokenizer("bytes")
    core = build(run.model, tokenizer.size, ())
    checkpoint.save(Path(run.folder), 1, run, tokenizer, core.state_dict(), {})
    (Path(run.folder) / "run.json").write_text(serialization.to_json(run))
    out = tmp_path / "results.json"
    assert main(["eval", str(run.folder), "--data", str(tmp_path / "planted.tar"), "--out", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert [row["metric"] for row in rows] == ["psnr", "ssim", "bits_per_pixel", "codebook_usage", "code_entropy_bits"]
    assert {(row["task"], row["n"]) for row in rows} == {("image codec", 4)}
    assert all(row["low"] <= row["high"] for row in rows)
    told = capsys.readouterr().out
    assert "psnr" in told
    assert "nothing that the model reads" not in told
    model = load_model(run.folder)
    data = replace(run.data, val=str(tmp_path / "planted.tar"))
    scores, _ = scores_during_training(model, replace(run, data=data))
    assert scores == {f"{planted.parent.name}/image codec/psnr": pytest.approx(rows[0]["value"])}


def test_a_run_that_reads_keeps_its_scores(planted: Path, tmp_path: Path) -> None:
    """A model that embeds and does not train its codec is not scored for it."""
    run = toy_run(
        model=Model(image=None, audio=None, text=TextTower(width=8, depth=1, heads=2), image_codec=PICTURES,
                    trunk=Trunk(width=8, heads=2, kv_heads=2, depth=1), embed_dim=8),
        contrastive=(), generative=(),
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = load_tokenizer("bytes")
    from mmfm.inference.interface import Interface

    model = Interface(build(run.model, tokenizer.size, ()), run, tokenizer)
    assert scored_coders(model) == {}
    assert scored_coders("no model of ours") == {}
