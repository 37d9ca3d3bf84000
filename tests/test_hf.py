"""What transformers loads is what `mmfm.load` gives: features, pixels, samples, ids; to the bit where that can be."""

import json

import numpy as np
import pytest
import soundfile
import torch
from exported import Exported, export, full_run
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Inner
from tokenizers import models, pre_tokenizers
from toys import PAIRS
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer

import mmfm
from mmfm.config import UserError
from mmfm.data.batch import Batch, Items
from mmfm.export import hf
from mmfm.objectives.joint import Objectives
from mmfm.preprocessing.audio import load_audio
from mmfm.preprocessing.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

TEXTS = ["seven", "", "forty-two  and\nmore", "naïve ☃ 漢字", "<|end|> <|begin-text|>", " <|pad|>"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Exported:
    hf.register()
    return export(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def face(made):
    return AutoModel.from_pretrained(made.folder)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    whole = Image.fromarray(draw.integers(0, 256, (20, 40, 3), dtype=np.uint8))
    sheer = Image.fromarray(draw.integers(0, 256, (9, 33, 4), dtype=np.uint8), mode=None)
    return [whole, whole.convert("L"), whole.convert("P"), sheer, whole.crop((3, 1, 19, 9))]


@pytest.fixture(scope="module")
def waves() -> list[np.ndarray]:
    draw = np.random.default_rng(1)
    return [0.1 * draw.standard_normal(n).astype(np.float32) for n in (8_000, 3_001, 12_345)]


def test_all_weights_and_buffers_come_back_to_the_bit(made, face):
    """transformers builds on the meta device: what it forgets to fill would hold whatever lay in memory."""
    mine = dict(made.model.core.named_parameters()) | dict(made.model.core.named_buffers())
    theirs = dict(face.core.named_parameters()) | dict(face.core.named_buffers())
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not face.training


def test_features_are_those_of_the_run(made, face, pictures, waves):
    """Texts, pictures and sounds, through the processors of the folder, against mmfm.load(run).encode_*."""
    processor, tokenizer = (auto.from_pretrained(made.folder) for auto in (AutoProcessor, AutoTokenizer))
    with torch.no_grad():
        text = face.get_text_features(**tokenizer(TEXTS, padding=True, return_tensors="pt")).pooler_output
        image = face.get_image_features(**processor(images=pictures, return_tensors="pt")).pooler_output
        sound = face.get_audio_features(**processor(audio=waves, sampling_rate=16_000, return_tensors="pt"))
    torch.testing.assert_close(text, made.model.encode_text(TEXTS), rtol=0, atol=1e-6)
    torch.testing.assert_close(image, made.model.encode_image(pictures), rtol=0, atol=1e-6)
    alone = torch.cat([made.model.encode_audio(torch.from_numpy(wave)[None]) for wave in waves])
    torch.testing.assert_close(sound.pooler_output, alone, rtol=0, atol=1e-6)
    assert (alone[0] - alone[1]).abs().max() > 1e-2 < (image[0] - image[1]).abs().max()


def test_pixels_are_those_of_transform_to_the_bit(made, pictures):
    processor = AutoImageProcessor.from_pretrained(made.folder)
    mine = torch.stack([made.model.transform(picture) for picture in pictures])
    assert torch.equal(processor(pictures, return_tensors="pt")["pixel_values"], mine)
    array = np.array(pictures[0])
    for same in (array, torch.from_numpy(array).permute(2, 0, 1)):
        assert torch.equal(processor(same, return_tensors="pt")["pixel_values"], mine[:1])
    with pytest.raises(UserError, match=r"whole numbers of 0..255, in uint8, not float32"):
        processor(array.astype(np.float32) / 255)


def test_sounds_are_those_of_our_reader(made, tmp_path, waves):
    """At another rate, from a file, and as dictionaries: the samples that `mmfm.load` reads, to the bit."""
    extract = AutoFeatureExtractor.from_pretrained(made.folder)
    soundfile.write(tmp_path / "x.wav", waves[0], 8_000, subtype="FLOAT")
    ours = load_audio(tmp_path / "x.wav", rate_hz=16_000, max_seconds=30.0, crop_seconds=0.0)
    theirs = extract([{"array": waves[0], "sampling_rate": 8_000}, {"array": waves[1], "sampling_rate": 16_000}])
    assert torch.equal(theirs["input_features"][0], ours)
    assert theirs["input_features_mask"].sum(1).tolist() == [16_000, 3_001]
    assert set(theirs) == {"input_features", "input_features_mask"}  # an attention_mask would clash with the text's
    assert torch.equal(extract(waves[0], sampling_rate=8_000)["input_features"][0], ours)
    with pytest.raises(UserError, match=r"lasts 31\.00 s, over max_seconds=30"):
        extract(np.zeros(31 * 16_000, np.float32))


def test_a_long_sound_is_cut_as_the_run_cuts_it(tmp_path, waves):
    run = full_run()
    data = type(run.data)(crop_seconds=0.2)
    made = export(tmp_path, run=type(run)(**(vars(run) | {"data": data})))
    soundfile.write(tmp_path / "x.wav", waves[0], 16_000, subtype="FLOAT")
    cut = AutoFeatureExtractor.from_pretrained(made.folder)(waves[0])["input_features"][0]
    assert torch.equal(
        cut,
        load_audio(tmp_path / "x.wav", rate_hz=16_000, max_seconds=30.0, crop_seconds=0.2),
    )


def foreign(kind: str) -> Tokenizer:
    """A tokenizer of another family, with a special token of its own."""
    words = ["[UNK]", "[MASK]", "seven", "forty", "-", "two", "and", "more"]
    vocab = {word: i for i, word in enumerate(words)}
    inner = Inner(
        {
            "wordlevel": models.WordLevel(vocab, unk_token="[UNK]"),
            "wordpiece": models.WordPiece(vocab, unk_token="[UNK]"),
            "unigram": models.Unigram([(word, -float(i)) for i, word in enumerate(words)], 0),
        }[kind]
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(["[MASK]", "[NEW]"])
    return Tokenizer(inner)


@pytest.mark.parametrize("kind", ["bytes", "bpe", "wordlevel", "wordpiece", "unigram"])
def test_ids_are_the_vocabularys_after_the_begin_mark(tmp_path, kind):
    """Also of texts that look like marks, and after saving and loading; no end mark, which would be scored."""
    if kind == "bytes":
        tokenizer = load_tokenizer("bytes")
    else:
        tokenizer = train_tokenizer([*TEXTS, "seven seven"], 300) if kind == "bpe" else foreign(kind)
    made = export(tmp_path, full_run(image=None, audio=None), tokenizer)
    theirs = AutoTokenizer.from_pretrained(made.folder)
    vocabulary, mine = made.model.core.vocabulary, made.model.tokenizer
    for text in TEXTS:
        ids = [i + vocabulary.span("text").start for i in mine.encode(text)]
        assert theirs(text).input_ids == [vocabulary.begin("text"), *ids]
        assert theirs(text, add_special_tokens=False).input_ids == ids
        assert theirs.decode([*ids, vocabulary.end], skip_special_tokens=True) == mine.decode(mine.encode(text))
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (3, vocabulary.end, vocabulary.pad)
    assert len(theirs) <= vocabulary.size


def test_logits_and_loss_are_those_of_training(made, face, pictures, waves):
    """Scaled similarities with each pair's own scale and bias, and the sum of the trained pairs' losses."""
    texts, core = ["one", "two", "three"], made.model.core
    processor, tokenizer = (auto.from_pretrained(made.folder) for auto in (AutoProcessor, AutoTokenizer))
    inputs = processor(images=pictures[2:], audio=waves, text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = face(**inputs, return_loss=True)
        image, text = made.model.encode_image(pictures[2:]), made.model.encode_text(texts)
        sound = face.get_audio_features(**processor(audio=waves, return_tensors="pt")).pooler_output
        items = {
            "image": made_items(inputs["pixel_values"], torch.ones(3, 1)),
            "audio": made_items(inputs["input_features"], inputs["input_features_mask"]),
            "text": made_items(ids := made.model.tokenize(texts), ids >= 0),
        }
        losses = Objectives(core, made.model.run)(Batch(size=3, items=items, positive_ids=torch.arange(3)))
    want = core.scale("image-text") * image @ text.T + core.bias("image-text")
    torch.testing.assert_close(found.logits_per_image, want, rtol=0, atol=1e-4)
    assert torch.equal(found.logits_per_text, found.logits_per_image.T)
    scale, bias = core.scale("audio-text"), core.bias("audio-text")
    torch.testing.assert_close(found.logits_per_audio, scale * sound @ text.T + bias, rtol=0, atol=1e-4)
    whole = sum(item.weight * losses[item.name] for item in PAIRS)
    torch.testing.assert_close(found.loss, whole, rtol=1e-5, atol=0)
    assert list(tokenizer(texts).keys()) == ["input_ids", "attention_mask"]


def made_items(x: torch.Tensor, keep: torch.Tensor) -> Items:
    return Items(x=x.clamp(min=0) if x.dtype == torch.int64 else x, keep=keep.bool(), rows=torch.arange(len(x)))


def test_pixels_in_another_type_are_whole_numbers_or_refused(made, face, pictures):
    """Clients cast to their model's type: 0..255 survives that exactly, and a picture scaled to 0..1 is an error."""
    pixels = AutoImageProcessor.from_pretrained(made.folder)(pictures, return_tensors="pt")["pixel_values"]
    want = face.get_image_features(pixels).pooler_output
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.equal(face.get_image_features(pixels.to(kind)).pooler_output, want)
    with pytest.raises(UserError, match=r"whole numbers of 0\.\.255"):
        face.get_image_features(pixels / 255)


def test_what_a_client_saves_again_is_the_same(made, face, tmp_path, pictures):
    """save_pretrained of model and processor, then the Auto classes: every weight, pixel and id as before."""
    for part in (face, AutoProcessor.from_pretrained(made.folder)):
        part.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(face.parameters(), again.parameters(), strict=True))
    one, two = (AutoProcessor.from_pretrained(folder) for folder in (made.folder, tmp_path / "again"))
    assert torch.equal(one(images=pictures)["pixel_values"], two(images=pictures)["pixel_values"])
    assert one(text=TEXTS)["input_ids"] == two(text=TEXTS)["input_ids"]


@pytest.mark.parametrize("without", ["audio", "image", "audio image", "text"])
def test_a_model_without_a_tower_has_a_processor_without_it(tmp_path, without, pictures, waves):
    """And says what it cannot read."""
    made = export(tmp_path, full_run(**dict.fromkeys(without.split())))
    face, processor = (auto.from_pretrained(made.folder) for auto in (AutoModel, AutoProcessor))
    for name, part in (("image", "image_processor"), ("audio", "feature_extractor")):
        assert hasattr(processor, part) == (name not in without)
    features = {
        "image": lambda: face.get_image_features(torch.zeros(1, 3, 8, 16, dtype=torch.uint8)),
        "audio": lambda: face.get_audio_features(torch.zeros(1, 500)),
        "text": lambda: face.get_text_features(torch.tensor([[3, 40]])),
    }
    for name, encode in features.items():
        if name in without:
            with pytest.raises(UserError, match=f"this model has no {name} tower"):
                encode()
        else:
            assert encode().pooler_output.norm().item() == pytest.approx(1, abs=1e-5)


def test_what_no_one_knows_is_refused(made, face, pictures, waves):
    """By the model, its features, and each processor: one line with the name and what is known instead."""
    ids, pixels = torch.tensor([[3, 40]]), torch.zeros(1, 3, 8, 16, dtype=torch.uint8)
    processor, images, sounds = (
        auto.from_pretrained(made.folder) for auto in (AutoProcessor, AutoImageProcessor, AutoFeatureExtractor)
    )
    model = "this model, which takes"
    for call, given, words in (
        (face, {"pixels": pixels}, f"pixels=Tensor is unknown to {model} input_ids, pixel_values, input_features, at"),
        (face, {"input_ids": ids, "labels": ids}, f"labels=Tensor is unknown to {model}"),
        (face, {"input_ids": ids, "output_hidden_states": True}, "output_hidden_states=True is not possible"),
        (face, {"input_ids": ids, "return_dict": False}, "return_dict=False is not possible"),
        (face, {}, "nothing was given; give input_ids, pixel_values or input_features"),
        (face.get_text_features, {"input_ids": ids, "mask": ids}, f"mask=Tensor is unknown to {model} input_ids, a"),
        (face.get_image_features, {"pixel_values": pixels, "size": 3}, f"size=int is unknown to {model} pixel_values;"),
        (face.get_audio_features, {"input_features": torch.zeros(1, 500), "attention_mask": ids}, "attention_mask="),
        (images, {"images": pictures, "size": 8}, "size=int is unknown to this image processor, which takes images"),
        (images, {"images": pictures, "do_normalize": True}, "do_normalize=True is not possible with this image"),
        (images, {"images": pictures, "return_tensors": "tf"}, "return_tensors=tf is unknown; give pt"),
        (sounds, {"raw_speech": waves, "rate": 8_000}, "rate=int is unknown to this feature extractor, which takes"),
        (
            sounds,
            {"raw_speech": waves, "padding": "max_length"},
            "padding=max_length is not possible .*True or longest",
        ),
        (processor, {"images": pictures, "paddding": True}, "paddding=bool is unknown to this processor, which takes"),
        (processor, {"images": pictures, "images_kwargs": {"size": 8}}, "size=int is unknown to this image processor"),
        (processor, {"text": "a", "videos": [1]}, "this model's processor takes audio, images, text; leave videos out"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            call(**given)
        assert "\n" not in str(caught.value)


def test_what_clients_say_that_is_so_anyway_is_taken(made, face, pictures, waves):
    processor = AutoProcessor.from_pretrained(made.folder)
    how = {"do_resize": True, "do_rescale": False, "sampling_rate": 16_000, "padding": True, "return_tensors": "pt"}
    inputs = processor(images=pictures[:3], audio=waves, text=["a", "b", "cd"], **how)
    found = face(**inputs, token_type_ids=inputs["input_ids"] * 0, return_dict=True, output_attentions=False)
    torch.testing.assert_close(found.image_embeds, made.model.encode_image(pictures[:3]), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.text_embeds, made.model.encode_text(["a", "b", "cd"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", ["lacks", "renamed", "shape"])
def test_weights_of_another_model_are_an_error_not_a_warning(made, tmp_path, change):
    """transformers itself would go on with fresh weights."""
    folder = tmp_path / "hf"
    folder.mkdir()
    for path in made.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "text.safetensors")
    weight = tensors.pop("core.heads.text.weight")
    if change != "lacks":
        tensors |= {"core.heads.test.weight": weight} if change == "renamed" else {"core.heads.text.weight": weight[1:]}
    save_file(tensors, folder / "text.safetensors", metadata={"format": "pt"})
    with pytest.raises((UserError, RuntimeError), match=r"core.heads.text.weight|ignore_mismatched_sizes"):
        AutoModel.from_pretrained(folder)


def test_a_folder_is_written_whole_or_not_at_all(made, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="exists; name another folder, or --force"):
        mmfm.save_bundle(made.model, made.folder)
    monkeypatch.setattr("mmfm.export.hf.folder.generation", lambda config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mmfm.save_bundle(made.model, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_names_no_place_of_this_machine(made):
    """What was local to training - data, bundles, tokenizer files - is not told to those who get the folder."""
    for path in made.folder.iterdir():
        assert str(made.run.parent).encode() not in path.read_bytes()
    run = json.loads((made.folder / "config.json").read_text())["mmfm"]["run"]
    assert run["data"]["train"] == [] and run["model"]["tokenizer"] == "bytes"
