"""The shortest of everything: a text of no token or of one, a sound of one sample, in every task, learned and made."""

from dataclasses import replace

import pytest
import torch
from toys import PAIRS, toy_config

from mmfm.config import AudioCodec, Generative, ImageCodec, Mel, Run, UserError
from mmfm.config.task import parse
from mmfm.data.augment import DRAWS
from mmfm.data.batch import Batch, Ids
from mmfm.data.decode import Example, collate
from mmfm.generation import GenerationConfig, fill
from mmfm.inference.interface import Interface, Sound
from mmfm.models.model import UnifiedModel, build
from mmfm.objectives.joint import Objectives
from mmfm.preprocessing.tokenizer import load_tokenizer

BYTES = load_tokenizer("bytes")
IMAGE = ImageCodec(height_px=8, width_px=16, channels=1, patch_px=4, levels=(3, 3), width=8, depth=1)
AUDIO = AudioCodec(mel=Mel(bins=16), frame_stack=4, levels=(3, 3), width=16, depth=1)
TASKS = (
    ">text", "text>text", "image>text", "audio>text", "text~", "image>text~", "text>text~", "audio~", "text>audio",
    "audio>audio", "image~", "text>image", "audio>image~",
)  # fmt: skip
RUN = Run(
    name="shortest",
    model=toy_config(image_codec=IMAGE, audio_codec=AUDIO),
    contrastive=PAIRS,
    generative=tuple(Generative(task=task, target_dropout=0.3, mask_ratio=(0.1, 0.5)) for task in TASKS),
)
SHORT = {
    "nothing": "", "one": "a", "NUL": "\0", "white space": " \n", "half a character": "\ud800", "two": "ab",
}  # fmt: skip


def model_of() -> UnifiedModel:
    torch.manual_seed(0)
    return build(
        RUN.model, 256, RUN.contrastive, replace(RUN.data.augment, source_token_dropout=0.5, tower_token_dropout=0.5)
    )


def batch_of(texts: list[str], samples: int) -> Batch:
    """Of each text a sample with a picture and a sound of so many samples; with draws, as in training."""
    draw = torch.Generator().manual_seed(0)
    examples = [
        Example(
            key=str(at),
            image=torch.randint(0, 256, (1, 8, 16), generator=draw, dtype=torch.uint8),
            audio=torch.randn(samples, generator=draw),
            text=text,
        )
        for at, text in enumerate(texts)
    ]
    return collate(examples, BYTES, torch.rand(len(texts), 3, DRAWS, generator=draw))


@pytest.mark.parametrize("samples", [1, 2, 399, 2_000])
@pytest.mark.parametrize("text", SHORT)
def test_the_shortest_can_be_learned(text: str, samples: int) -> None:
    """Alone, where nothing in the batch is longer, and among others: every loss and every gradient is finite."""
    model = model_of()
    goal = Objectives(model, RUN)
    for texts in ([SHORT[text]], [SHORT[text], "a longer text"]):
        batch = batch_of(texts, samples)
        total = goal.total(goal(batch))
        model.zero_grad()
        total.backward()
        assert total.isfinite()
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_the_shortest_are_the_same_alone_and_padded() -> None:
    """Embeddings of texts of no token and of one, and of a sound of one sample, beside longer ones."""
    model = Interface(model_of().eval(), RUN, BYTES)
    texts = [*SHORT.values(), "a much longer text than those"]
    together = model.encode_text(texts)
    for at, text in enumerate(texts):
        torch.testing.assert_close(model.encode_text([text])[0], together[at], atol=1e-5, rtol=0)
    waves = torch.zeros(2, 3_000)
    waves[:, 0] = 0.5
    keep = torch.tensor([1, 3_000])[:, None] > torch.arange(3_000)
    alone = model.encode_audio(waves[:1, :1])
    torch.testing.assert_close(model.encode_audio(waves, keep=keep)[:1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("text", ["_", "a_", "_\0", "\ud800_"])
def test_the_shortest_can_be_filled_in(text: str) -> None:
    """A text that is one hidden token, and one beside what is no character."""
    model = Interface(model_of().eval(), RUN, BYTES)
    assert isinstance(model.generate("text~", text=text), str)
    assert isinstance(model.generate("image>text~", image=picture(), text=text), str)


def picture():
    from PIL import Image

    return Image.new("L", (16, 8), 100)


def test_what_is_too_short_to_fill_in_or_to_continue_is_refused_in_a_line() -> None:
    model = Interface(model_of().eval(), RUN, BYTES)
    with pytest.raises(UserError, match="an empty text has nothing to fill in"):
        model.generate("text~", text="", mask=0.5)
    with pytest.raises(UserError, match="too short to continue"):
        model.generate("audio>audio", audio=Sound(torch.full((1,), 0.5), 16_000))
    made = model.generate("audio~", audio=Sound(torch.full((1,), 0.5), 16_000), mask=1.0)
    assert isinstance(made, Sound) and made.wave.isfinite().all()


def test_rows_of_no_place_are_filled_with_nothing() -> None:
    """A target without a token, alone and beside one with some, comes back as it was."""
    model, batch = model_of().eval(), batch_of(["", "abc"], 400)
    for given in (torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)):
        keep = torch.tensor([[0], [3]]) > torch.arange(given.shape[1])
        rows, ids = fill(model, parse("image>text~"), batch, Ids(given, keep), keep, GenerationConfig(num_steps=2))
        assert rows == [0, 1] and ids.shape == given.shape
