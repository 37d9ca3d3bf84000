"""Messages as other programs write them: the same pictures and sounds as our own parts hold, and nothing is fetched."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from test_chatting import model_of, picture

import mmfm
from mmfm.config import UserError
from mmfm.inference.chat_command import read_messages
from mmfm.inference.interface import Interface
from mmfm.inference.message_parts import own_parts
from mmfm.inference.processing import Sound
from mmfm.preprocessing.validation import clip_given

WAVE = (0.5 * np.sin(np.arange(2_400) / 9)).astype(np.float32)


def files(folder: Path) -> tuple[bytes, bytes]:
    """A picture and a sound, also in this folder."""
    shown, heard = io.BytesIO(), io.BytesIO()
    picture(40).save(shown, "PNG")
    soundfile.write(heard, WAVE, 16_000, format="WAV", subtype="FLOAT")
    (folder / "a.png").write_bytes(shown.getvalue())
    (folder / "a.wav").write_bytes(heard.getvalue())
    return shown.getvalue(), heard.getvalue()


def theirs(url: str, sound: bytes) -> list[dict]:
    heard = {"type": "input_audio", "input_audio": {"data": base64.b64encode(sound).decode(), "format": "wav"}}
    seen = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    return [{"role": "user", "content": [seen, {"type": "text", "text": "what?"}, heard]}]


def ours(image: object, audio: object) -> list[dict]:
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "what?"}, {"type": "audio", "audio": audio}]
    return [{"role": "user", "content": parts}]


def read(model: Interface, messages: list[dict]) -> list[torch.Tensor]:
    """The pixels, samples and ids that the model is given."""
    asked = model.chatting.asked(messages)
    batch = model.chatting.batch([asked])
    return [batch.items["image"].x, batch.items["audio"].x, torch.tensor(asked.ids.ids)]


def test_every_way_to_give_a_picture_and_a_sound_is_one(tmp_path: Path) -> None:
    """As paths, bytes, arrays and OpenAI's parts, of a list and of a file of messages: the same numbers."""
    shown, heard = files(tmp_path)
    url = f"data:image/png;base64,{base64.b64encode(shown).decode()}"
    model = model_of()
    expected = read(model, ours(tmp_path / "a.png", tmp_path / "a.wav"))
    pixels = np.full((8, 16), 40, np.uint8)
    ways = [ours(shown, heard), ours(pixels, mmfm.Sound(WAVE, 16_000)), theirs(url, heard)]
    ways += [theirs(str(tmp_path / "a.png"), heard)]
    for messages in (theirs(url, heard), theirs("a.png", heard)):
        (tmp_path / "said.json").write_text(json.dumps({"messages": messages}))
        ways.append(read_messages(tmp_path / "said.json"))
    for way in ways:
        for found, right in zip(read(model, way), expected, strict=True):
            assert torch.equal(found, right)
    assert len(expected[1][0]) == len(WAVE) and float(expected[1].abs().max()) > 0.4
    assert mmfm.Sound is Sound


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (("image_url", {"url": "https://a.org/b.png"}), "nothing is fetched for a conversation; save the picture"),
        (("image_url", {"url": "file:///a.png"}), "nothing is fetched"),
        (("image_url", {"url": "s3://a/b.png"}), "nothing is fetched"),
        (("image_url", {}), "holds no url"),
        (("image_url", {"url": "data:text/html;base64,PGI+"}), "begins no picture in base64"),
        (("image_url", {"url": "data:image/png,%89PNG"}), "begins no picture in base64"),
        (("image_url", {"url": "data:image/png;base64,a?b="}), "the picture of a data: URL is no base64"),
        (("image_url", {"url": "data:image/png;base64,"}), "the picture of a data: URL is empty"),
        (("input_audio", {"format": "wav"}), "holds no data"),
        (("input_audio", {"data": "https://a.org/b.wav"}), "the data of an input_audio is no base64"),
    ],
)
def test_what_would_be_fetched_or_is_no_file_is_refused(part: tuple[str, dict], words: str) -> None:
    kind, holds = part
    messages = [{"role": "user", "content": "hi"}, {"role": "user", "content": [{"type": kind, kind: holds}]}]
    with pytest.raises(UserError, match=f"messages: message 1.*{words}") as caught:
        own_parts(messages)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_bytes_that_are_no_sound_and_an_array_without_a_rate_say_so() -> None:
    with pytest.raises(UserError, match=r"audio: ndarray is no sound; give .*mmfm\.Sound\(wave, rate_hz\)"):
        model_of().chat(ours(picture(1), WAVE))
    with pytest.raises(UserError, match="the sound: "):
        model_of().chat(ours(picture(1), b"no sound at all"))


@pytest.mark.parametrize("rate_hz", [0, -16_000, 10**9])
def test_a_sound_of_no_rate_is_refused(rate_hz: int) -> None:
    with pytest.raises(UserError, match=f"a sound of {rate_hz} Hz is none of 1000 to 384000 Hz; give its samples"):
        clip_given(WAVE, from_hz=rate_hz, rate_hz=16_000, max_seconds=9.0, crop_seconds=0.0)
    assert len(clip_given(WAVE, from_hz=8_000, rate_hz=16_000, max_seconds=9.0, crop_seconds=0.0)) == 2 * len(WAVE)
