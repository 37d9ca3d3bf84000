"""espeak-ng's speech: the same list gives the same bytes, and a voice that does not exist is an error."""

import io
import re
import subprocess
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from mmfm.config import UserError
from mmfm.datasets import espeak, numbers_plan, speech
from mmfm.datasets.espeak import Speaker, Utterance
from mmfm.datasets.speech import resample, speak, trim

WORDS = [
    Utterance(text=text, voice=voice) for text in ("seven", "ninety") for voice in ("en-us+f1", "en+m3", "en+klatt")
]


def lowest_hz(sound: np.ndarray, rate_hz: int) -> float:
    """The frequency below which one hundredth of the power lies: just under the lowest note of the voice."""
    power = np.cumsum(np.abs(np.fft.rfft(sound.astype(np.float64))) ** 2)
    return float(np.searchsorted(power, power[-1] / 100)) * rate_hz / len(sound)


def test_the_same_list_gives_the_same_bytes_whatever_was_said_before():
    """A list of utterances is spoken alike, byte for byte, by a process that has said nothing and by one that has."""
    before = list(speak(WORDS))
    with Speaker() as speaker:
        speaker.say(WORDS[0])
    assert list(speak(WORDS)) == before


def test_clips_come_in_the_order_asked_for():
    """Two processes share the work, yet clip i is utterance i: it lasts as long as when this process says it."""
    wanted = [Utterance(text=text, voice="en-us+m3") for text in ("two", "seventy-seven", "ten", "thirty-eight", "six")]
    with Speaker() as speaker:
        here = [len(trim(speaker.say(one), speaker.rate_hz)) / speaker.rate_hz for one in wanted]
    there = [soundfile.info(io.BytesIO(clip)).duration for clip in speak(wanted)]
    assert np.allclose(here, there, atol=0.02) and np.ptp(here) > 0.3


def test_every_voice_of_every_split_speaks_and_no_two_alike():
    """All variants by their first accent give sound, and different sounds: none falls back to another voice."""
    voices = {f"{split.accents[0]}+{variant}" for split in numbers_plan.splits() for variant in split.variants}
    with Speaker() as speaker:
        sounds = {speaker.say(Utterance(text="seven", voice=voice)).tobytes() for voice in voices}
    assert len(sounds) == len(voices) == 100


def test_rate_shortens_and_pitch_raises():
    """Twice the words a minute take less than two thirds of the time; a higher pitch leaves the bass empty."""
    with Speaker() as speaker:
        slow, fast = (speaker.say(Utterance(text="ninety", voice="en", rate_wpm=rate)) for rate in (120, 240))
        low, high = (speaker.say(Utterance(text="nine", voice="en+f1", pitch=pitch)) for pitch in (10, 90))
        assert len(fast) < len(slow) * 2 / 3
        assert lowest_hz(low, speaker.rate_hz) * 1.5 < lowest_hz(high, speaker.rate_hz)


@pytest.mark.parametrize("voice", ["en-gb", "en-us+nobody", "elvish"])
def test_an_unknown_voice_is_named(voice: str):
    """The library says "en-us+nobody" as "en-us"; here it is an error that names the voice and shows a good one."""
    with Speaker() as speaker, pytest.raises(UserError, match=rf"no voice '{re.escape(voice)}'.*en-us\+f3"):
        speaker.say(Utterance(text="one", voice=voice))


def test_silence_is_an_error():
    """Text without a word to say gives no clip, and says so."""
    with Speaker() as speaker, pytest.raises(UserError, match="gives no sound for ' ' by en"):
        speaker.say(Utterance(text=" ", voice="en"))


def test_an_error_in_the_other_process_arrives_in_one_line():
    """The clips before the mistake arrive, then its own words."""
    clips = speak([WORDS[0], WORDS[1], Utterance(text="one", voice="en+nobody")])
    assert len([next(clips), next(clips)]) == 2
    with pytest.raises(
        UserError, match=r"^espeak-ng stopped before its last clip: espeak-ng has no voice 'en\+nobody'.*$"
    ):
        next(clips)


def test_processes_end_with_the_stream(monkeypatch: pytest.MonkeyPatch):
    """Closing the stream early, as an interrupt does, ends both processes."""
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)  # type: ignore[misc]
            started.append(self)

    monkeypatch.setattr(speech.subprocess, "Popen", Recorded)
    clips = speak(WORDS * 50)
    next(clips)
    clips.close()
    assert len(started) == speech.SEQUENCES and all(process.returncode is not None for process in started)


def test_data_at_a_long_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The library cuts paths at 160 bytes; a deep environment works all the same, and leaves no link behind."""
    deep = tmp_path / ("x" * 90) / ("y" * 90) / "espeak-ng-data"
    deep.parent.mkdir(parents=True)
    deep.symlink_to(espeakng_loader.get_data_path(), target_is_directory=True)
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(deep))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(espeak.tempfile, "tempdir", None)
    with Speaker() as speaker:
        assert list(tmp_path.glob("espeak-*"))
        assert speaker.say(WORDS[0]).any()
    assert not list(tmp_path.glob("espeak-*"))


def test_missing_data_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The library reports success when its data is missing; here it is one line with the remedy."""
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(UserError, match=rf"finds no voices in {re.escape(str(tmp_path))}; reinstall espeakng-loader"):
        Speaker()
    with pytest.raises(UserError, match="reinstall espeakng-loader"):
        espeak.variants()


def test_a_missing_library_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A wheel of another platform ends in one line with the remedy."""
    (tmp_path / "libespeak-ng.so").write_bytes(b"not a library")
    monkeypatch.setattr(espeakng_loader, "get_library_path", lambda: str(tmp_path / "libespeak-ng.so"))
    with pytest.raises(UserError, match=r"cannot load espeak-ng from .*; reinstall espeakng-loader"):
        Speaker()


def test_trim_keeps_the_word_and_thirty_milliseconds():
    """Planted: silence with hiss, a word with a pause in it, silence. Cut at both ends, whole in the middle."""
    hiss = np.full(5_000, 50, np.int16)
    word = np.concatenate([np.full(700, 20_000), np.zeros(9_000), np.full(300, -20_000)]).astype(np.int16)
    edge = round(0.03 * 22_050)
    kept = trim(np.concatenate([hiss, word, hiss]), 22_050)
    assert np.array_equal(kept, np.concatenate([hiss[:edge], word, hiss[:edge]]))
    assert np.array_equal(trim(word, 22_050), word)


def test_resampling_keeps_tones_and_folds_none():
    """A 440 Hz tone is the same tone at 16 kHz; one of 9.5 kHz, above half of it, is gone; scipy's default agrees."""
    time, time_16 = np.arange(22_050) / 22_050, np.arange(16_000) / 16_000
    tone = np.rint(10_000 * np.sin(2 * np.pi * 440 * time)).astype(np.int16)
    inner = slice(1_000, -1_000)
    expected = 10_000 * np.sin(2 * np.pi * 440 * time_16)
    assert np.abs(resample(tone, 22_050) - expected)[inner].max() < 40
    assert (
        np.abs(resample(np.rint(10_000 * np.sin(2 * np.pi * 9_500 * time)).astype(np.int16), 22_050))[inner].max() < 40
    )
    assert np.array_equal(resample(tone, 22_050), np.rint(resample_poly(tone.astype(np.float64), 320, 441)))


def test_loud_sound_is_clipped_not_wrapped():
    """The filter overshoots a step of full scale; what is beyond it stays at full scale."""
    step = np.where(np.arange(2_000) // 200 % 2, 32_767, -32_768).astype(np.int16)
    smooth = resample_poly(step.astype(np.float64), 320, 441)
    assert np.abs(smooth).max() > 33_000
    assert np.array_equal(resample(step, 22_050), np.rint(smooth).clip(-32_768, 32_767))
