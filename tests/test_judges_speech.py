"""The recogniser of number words learns what it is shown, reads each sound alone, and is made the same again."""

import json
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor

from mmfm.config import UserError
from mmfm.data.sample import Sample
from mmfm.datasets.numbers_plan import ACCENTS_TRAIN, TENS, UNITS, VARIANTS_TEST, VARIANTS_VAL, splits
from mmfm.evals.judges import make, speech_train
from mmfm.evals.judges.choose import judge
from mmfm.evals.judges.contract import Trained
from mmfm.evals.judges.speech import CLASSES, OTHER, Recogniser, Speech, padded, read_off
from mmfm.evals.judges.speech_sounds import Lesson, Said, draw, in_band, in_noise, say, sentences, through_mel

ROWS = [("forty",), ("seven",), ("forty", "seven"), ("nine",), ("eighty", "three"), (OTHER,)]


@pytest.fixture(scope="module")
def said() -> Said:
    """Six sentences of espeak-ng, "hello" among them."""
    clean = say([*ROWS[:5], ("hello",)], Random(0))
    return Said(clean, through_mel(clean, torch.Generator().manual_seed(0)), ROWS)


def test_a_few_words_are_learned(said: Said) -> None:
    """Six sounds by heart in eighty steps: the loss falls below a twentieth of a nat, each is read at any loudness,
    "hello" is something else, and noise and silence say nothing."""
    torch.manual_seed(0)
    network, generator = Recogniser().train(), torch.Generator().manual_seed(0)
    noise = 0.01 * torch.randn(8_000, generator=generator)
    waves, lengths = padded([*said.clean, noise, 0 * noise])
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(80):
        loss = speech_train.cost(network, waves, lengths, [*ROWS, (), ()])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    assert loss.item() < 0.05
    judge, wanted = Speech(network), ["forty", "seven", "forty-seven", "nine", "eighty-three", "?"]
    assert judge.read([*said.clean, noise, 0 * noise], 16_000) == [*wanted, "", ""]
    assert judge.read([clip / 100 for clip in said.clean], 16_000) == wanted
    assert judge.read([], 16_000) == []


def test_training_is_the_same_again(said: Said) -> None:
    """Equal seeds, equal weights, whatever was drawn before; another seed, others. Nothing of the process changes."""
    threads = torch.get_num_threads()
    first = speech_train.trained(said, 3, 2, batch=4).state_dict()
    torch.rand(5)
    before = torch.get_rng_state()
    again = speech_train.trained(said, 3, 2, batch=4).state_dict()
    other = speech_train.trained(said, 4, 2, batch=4).state_dict()
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_a_sound_is_read_alike_in_any_company() -> None:
    """Longer neighbours and their padding change no step's probabilities; steps are 40 ms."""
    torch.manual_seed(0)
    network = Recogniser().eval()
    sounds = [torch.randn(size) for size in (4_000, 16_000, 9_001, 400)]
    with torch.no_grad():
        together, steps = network(*padded(sounds))
        for row, (sound, count) in enumerate(zip(sounds, steps.tolist(), strict=True)):
            alone, (own,) = network(*padded([sound]))
            assert own == count == -(-(1 + len(sound) // 160) // 4)
            torch.testing.assert_close(together[row, :count], alone[0], rtol=1e-4, atol=1e-5)


def test_blanks_and_repetitions_are_taken_out() -> None:
    """Planted: a word held over steps is one, with a blank between it is two, and what lies after the end is none."""
    forty, two = CLASSES.index("forty"), CLASSES.index("two")
    best = torch.tensor([[0, forty, forty, 0, two, two], [forty, 0, forty, two, 0, 0], [0, 0, 0, two, two, two]])
    scores = torch.nn.functional.one_hot(best, len(CLASSES)).float()
    assert read_off(scores, torch.tensor([6, 3, 3])) == ["forty-two", "forty forty", ""]


def test_voices_are_none_that_a_model_is_trained_on() -> None:
    """No variant of training or validation is among those that the recogniser learns from; the words are open: tens
    come after tens, units before tens, and other words are there."""
    used = {variant for split in splits() if split.name in ("train", "val") for variant in split.variants}
    assert not used & set(VARIANTS_TEST) and set(ACCENTS_TRAIN) <= set(splits()[0].accents)
    rows = sentences(Lesson(names=1, rows=400, others=50), Random(0))
    assert len(rows) == 550 and len(set(rows)) > 300
    after = {pair for row in rows for pair in pairwise(row)}
    assert any(a in TENS and b in TENS for a, b in after) and any(a in UNITS and b in TENS for a, b in after)
    assert sum(any(word not in CLASSES for word in row) for row in rows) == 50


def energy(wave: Tensor, low_hz: float, high_hz: float) -> float:
    power = torch.fft.rfft(wave).abs().square()
    hertz = torch.fft.rfftfreq(len(wave), 1 / 16_000)
    return float(power[(hertz >= low_hz) & (hertz < high_hz)].sum())


def test_disturbances_do_what_they_say() -> None:
    """Of white noise, about half of the rows lose their top octave; noise is added at 5 to 45 dB below; a tone that
    went through mel bands keeps its pitch within a warp of a fifth."""
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(40, 16_000, generator=generator)
    cut = [energy(row, 7_500, 8_000) / energy(row, 1_000, 2_000) for row in in_band(white, generator)]
    kept = [energy(row, 7_500, 8_000) / energy(row, 1_000, 2_000) for row in white]
    assert 0.25 < np.mean(np.array(cut) < 0.05 * np.mean(kept)) < 0.75
    tone = torch.sin(2 * torch.pi * 1_000 * torch.arange(16_000) / 16_000).repeat(40, 1)
    levels = []
    for row in in_noise(tone, generator):
        inside = energy(row, 990, 1_010)
        levels.append(10 * np.log10(inside / (energy(row, 0, 8_001) - inside)))
    assert 3 < min(levels) < 15 and 35 < max(levels) < 60
    (back,) = through_mel([tone[0]], generator)
    loudest = float(torch.fft.rfft(back).abs().argmax()) * 16_000 / len(back)
    assert 820 < loudest < 1_230 and len(back) == 16_000


def test_batches_are_of_what_was_said(said: Said) -> None:
    """Every row is finite, as long as it says, and has the words of a sentence or none; the same seed, the same."""
    waves, lengths, words = draw(said, 64, torch.Generator().manual_seed(0))
    assert waves.isfinite().all() and waves.shape[1] == int(lengths.max())
    assert set(words) <= {*ROWS, ()} and () in words
    assert all(not row[size:].any() for row, size in zip(waves, lengths.tolist(), strict=True))
    again, _, others = draw(said, 64, torch.Generator().manual_seed(0))
    assert torch.equal(waves, again) and words == others


@pytest.fixture
def quick(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in a second: six sentences, two steps."""
    monkeypatch.setattr(speech_train, "lesson_of", lambda lesson, seed: said)
    monkeypatch.setattr(speech_train, "STEPS", 2)


def test_the_folder_of_judges(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Made once and left alone; made again where it is asked for, and then the same bytes; opened as it was saved."""
    folder = tmp_path / "judges"
    make.make(folder, progress=False)
    assert sorted(path.name for path in folder.iterdir()) == ["judges.json", "speech.json", "speech.safetensors"]
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    made = (folder / "speech.safetensors").stat().st_mtime_ns
    make.make(folder, progress=False)
    assert "complete already; nothing to do (--force trains again)" in capsys.readouterr().out
    assert (folder / "speech.safetensors").stat().st_mtime_ns == made
    with pytest.raises(UserError, match="was built with seed=0, not 1; choose another folder, or delete this one"):
        make.make(folder, seed=1, progress=False)
    make.make(folder, force=True, progress=False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert isinstance(judge("speech", folder), Speech) and [*tmp_path.iterdir()] == [folder]


def test_a_judge_says_whom_it_knows(quick: None, tmp_path: Path) -> None:
    """By the variant of the voice; how well it hears others was measured when it was made, and an older folder does not
    say it."""
    make.make(tmp_path / "judges", progress=False)
    own = judge("speech", tmp_path / "judges")
    assert isinstance(own, Trained) and not set(VARIANTS_TEST) & set(VARIANTS_VAL)
    for variant, met in ((VARIANTS_TEST[0], True), (VARIANTS_VAL[0], False)):
        about = json.dumps({"voice": f"en-029+{variant}"}).encode()
        assert own.met(Sample("k", {"json": about}, "w")) is met
    assert not own.met(Sample("k", {}, "w"))
    tried = own.held_out()
    assert tried is not None and tried.of == 100 and 0 <= tried.right <= 100
    about = tmp_path / "judges" / "speech.json"
    told = json.loads(about.read_text())
    del told["held_out"]
    about.write_text(json.dumps(told))
    older = judge("speech", tmp_path / "judges")
    assert isinstance(older, Trained) and older.held_out() is None


def test_force_replaces_only_judges(quick: None, tmp_path: Path) -> None:
    """A folder of something else is refused with and without it, and stays."""
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(UserError, match="is no folder of judges; --force replaces nothing else"):
        make.make(tmp_path, force=True, progress=False)
    with pytest.raises(UserError, match="exists and is no `judges` data set; choose another folder"):
        make.make(tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_judge(quick: None, tmp_path: Path) -> None:
    """Weights that are cut, and a list of other words, are one line with the command that makes them again."""
    folder = tmp_path / "judges"
    make.make(folder, progress=False)
    weights, about = folder / "speech.safetensors", folder / "speech.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(
        UserError, match=r"the recogniser in .* is damaged \(SafetensorError\); .* mmfm data judges .* --force"
    ):
        judge("speech", folder)
    weights.write_bytes(whole)
    about.write_text(json.dumps({"classes": ["", "one"]}))
    with pytest.raises(
        UserError, match=r"is another than the one that is read here; make it with: mmfm data judges .* --force"
    ):
        judge("speech", folder)
    about.unlink()
    with pytest.raises(UserError, match="judges holds no recogniser of speech; make it with: mmfm data judges"):
        judge("speech", folder)
