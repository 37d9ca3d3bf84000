"""What people call: encode, write and score, by path, picture, string or tensor, with one line for what cannot be."""

import dataclasses

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from toys import PAIRS, toy_config, toy_run

from mmfm.config import Generative, UserError
from mmfm.data.decode import Example, collate
from mmfm.inference.interface import Interface
from mmfm.inference.known_tasks import known_tasks
from mmfm.models.model import build
from mmfm.preprocessing.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("bytes")


@pytest.fixture(scope="module")
def model() -> Interface:
    torch.manual_seed(0)
    core = build(toy_config(), TOKENIZER.size, PAIRS)
    for connector in core.connectors.values():
        torch.nn.init.normal_(connector.weight, std=1.0)
    return Interface(core, toy_run(), TOKENIZER).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (20, 40, 3), dtype=np.uint8)).save(folder / "x.png")
    soundfile.write(folder / "long.wav", 0.1 * draw.standard_normal(8_000), 16_000)
    soundfile.write(folder / "short.flac", 0.1 * draw.standard_normal((3_000, 2)), 8_000)
    return folder


def test_a_path_a_picture_and_a_tensor_are_one(model, files):
    """Three ways to give a picture, one embedding, of length one."""
    path = files / "x.png"
    picture = Image.open(path)
    a, b = model.encode_image([path]), model.encode_image([picture])
    c = model.encode_image(torch.stack([model.transform(str(path))]))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.testing.assert_close(a, c, rtol=0, atol=0)
    assert a.norm().item() == pytest.approx(1, abs=1e-5)


def test_clips_of_different_lengths_and_rates_are_as_alone(model, files):
    """A batch of two files equals each by itself."""
    paths = [files / "long.wav", files / "short.flac"]
    together = model.encode_audio(paths)
    alone = torch.cat([model.encode_audio([path]) for path in paths])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_strings_and_ids_are_one(model):
    texts = ["a", "forty-two", ""]
    torch.testing.assert_close(model.encode_text(texts), model.encode_text(model.tokenize(texts)), rtol=0, atol=0)
    torch.testing.assert_close(model.encode_text(texts)[1:2], model.encode_text(texts[1:2]), rtol=0, atol=1e-5)


def test_open_clips_zero_shot_head_takes_the_model(model):
    """open_clip's own builder of a zero-shot head, driven by our model, gives the mean of normalised prompts."""
    from open_clip.zero_shot_classifier import build_zero_shot_classifier

    names, templates = ["one", "two", "three"], [lambda c: f"a {c}.", lambda c: c]
    theirs = build_zero_shot_classifier(model, model.tokenize, names, templates, 2, "cpu")
    for i, name in enumerate(names):
        mean = model.encode_text([template(name) for template in templates], normalize=True).mean(0)
        torch.testing.assert_close(theirs[:, i], mean / mean.norm())


def test_writing_one_file_is_writing_it_in_a_batch(model, files):
    """generate() and the evaluation's write() agree; a seed repeats, temperature 0 needs none."""
    example = Example(key="x", image=model.transform(files / "x.png"))
    rows, texts = model.write("image>text", collate([example, example], TOKENIZER), 8)
    assert rows == [0, 1] and texts[0] == texts[1] == model.generate("image>text", image=files / "x.png", max_tokens=8)
    draws = {model.generate(">text", temperature=1.0, seed=seed, max_tokens=8) for seed in (0, 0, 1)}
    assert len(draws) == 2


def test_nats_are_those_of_the_chain_rule(model):
    """The likelihood of a text is that of its tokens one after the other, each given by a pass of its own."""
    texts = ["ab", None, "xyz"]
    batch = collate([Example(key="k", text=text) for text in texts], TOKENIZER)
    nats = model.nats(">text", batch)
    assert nats.isnan().tolist() == [False, True, False]
    vocabulary = model.core.vocabulary
    ids = [
        vocabulary.begin("text"),
        *(vocabulary.span("text").start + i for i in TOKENIZER.encode("xyz")),
        vocabulary.end,
    ]
    total = 0.0
    for stop in range(1, len(ids)):
        target = model.core.target(torch.tensor([ids[:stop]]), torch.ones(1, stop, dtype=torch.bool))
        total -= model.core.logits(model.core.trunk([target])[0][0, -1]).log_softmax(-1)[ids[stop]].item()
    assert nats[2].item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("task", "given", "words"),
    [
        ("image>text", {}, "task image>text reads image, which was not given; add --image"),
        (">text", {"text": "x"}, "task >text does not read text; leave it out"),
        ("image>sound", {}, "cannot write 'sound'; targets are image, audio, text"),
        ("video>text", {}, "no modality called 'video'; there are image, audio, text"),
        ("image,audio>text", {}, "this model was not trained on 'image,audio>text'; it writes image>text"),
        ("image", {}, "task 'image' has no '>' and so no target"),
        ("image>text", {"image": "nowhere.png"}, "nowhere.png: No such file"),
    ],
)
def test_what_cannot_be_written_says_why(model, task, given, words):
    with pytest.raises(UserError, match=words):
        model.generate(task, **given)


def test_a_model_without_a_tower_says_what_it_reads():
    core = build(toy_config(audio=None), TOKENIZER.size, PAIRS[:1])
    model = Interface(core, toy_run(model=toy_config(audio=None), contrastive=PAIRS[:1]), TOKENIZER)
    with pytest.raises(UserError, match="no audio tower; it reads image, text"):
        model.encode_audio(torch.zeros(1, 100))


def test_pictures_and_sounds_are_cut_as_the_run_says(model, files):
    """resize_mode="crop" shows the middle of a picture, crop_seconds that of a long clip; a short one is whole."""
    tower = dataclasses.replace(toy_config().image, resize_mode="crop")
    data = dataclasses.replace(toy_run().data, crop_seconds=0.2)
    run = dataclasses.replace(toy_run(), data=data, model=dataclasses.replace(toy_config(), image=tower))
    cut = Interface(model.core, run, TOKENIZER).eval()
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 60, 3), dtype=np.uint8))
    middle = picture.crop((10, 0, 50, 20))  # the tower's pictures are twice as wide as high
    assert torch.equal(cut.transform(picture), model.transform(middle))
    assert not torch.equal(cut.transform(picture), model.transform(picture))
    wave = torch.tensor(soundfile.read(files / "long.wav", dtype="float32")[0])
    theirs = model.encode_audio(wave[None, 2_400:5_600])
    torch.testing.assert_close(cut.encode_audio([files / "long.wav"]), theirs, rtol=0, atol=1e-6)


def test_what_was_dropped_is_a_task_too() -> None:
    """A target that at times saw none of its sources can be made without any; one that always saw them can not."""
    run = toy_run(
        generative=(
            Generative(task="text>image", condition_dropout=0.1),
            Generative(task="text>audio"),
            Generative(task="text>image~", condition_dropout=0.5),
        )
    )
    found = {str(task) for task in known_tasks(run.generative)}
    assert found == {"text>image", ">image", "text>audio", "text>image~", "image~"}
