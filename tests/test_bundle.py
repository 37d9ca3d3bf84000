"""Bundles of trained models: what is written is what is read, in part or whole, or one line says why not."""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn
from toys import PAIRS, toy_config, toy_run

import mmfm
from mmfm import pretrained
from mmfm.config import (
    MODALITIES,
    AudioPreprocess,
    Embedded,
    EncoderSpec,
    ImageCodec,
    ImagePreprocess,
    Tower,
    UserError,
    serialization,
)
from mmfm.export import bundle as saving
from mmfm.inference.bundle import contents, golden
from mmfm.inference.bundle.without_paths import TOKENIZER as TOKENIZER_FILE
from mmfm.inference.interface import Interface
from mmfm.models import checkpoint
from mmfm.models.model import build
from mmfm.preprocessing.tokenizer import load_tokenizer, train_tokenizer

TOKENIZER = load_tokenizer("bytes")


def trained(letters=TOKENIZER, **changes) -> Interface:
    """A model whose one-dimensional parameters are away from zeros and ones, which could hide a swap."""
    torch.manual_seed(0)
    core = build(toy_config(**changes), letters.size, PAIRS)
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if "scales" not in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return Interface(core, toy_run(model=toy_config(**changes)), letters).eval()


@pytest.fixture(scope="module")
def model() -> Interface:
    return trained()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    return mmfm.save_bundle(model, tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, list]:
    """What people have: files, pictures, waveforms, strings."""
    folder, draw = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    pixels = draw.integers(0, 256, (2, 20, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels[0]).save(folder / "a.png")
    for name, seconds in (("a", 0.5), ("b", 0.2)):
        soundfile.write(folder / f"{name}.wav", 0.1 * draw.standard_normal(round(16_000 * seconds)), 16_000)
    return {
        "image": [folder / "a.png", Image.fromarray(pixels[1])],
        "audio": [folder / "a.wav", str(folder / "b.wav")],
        "text": ["forty-two", "a", ""],
    }


def encode(model: Interface, modality: str, given: list) -> torch.Tensor:
    return getattr(model, f"encode_{modality}")(given)


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Another content, and a list of files that agrees: what a person who changes a bundle would do."""
    (folder / name).write_bytes(data)
    listed = json.loads((folder / contents.FILES).read_text())
    listed["files"][name] = {"bytes": len(data), "crc32": zlib.crc32(data)}
    (folder / contents.FILES).write_text(json.dumps(listed))


def said(folder: Path) -> dict:
    """What its config.json says to mmfm."""
    return json.loads((folder / contents.CONFIG).read_text())[contents.KEY]


def changed(folder: Path, **changes: object) -> None:
    """Of what it says; `model` is that of its run. None: not said at all."""
    tree = json.loads((folder / contents.CONFIG).read_text())
    if "model" in changes:
        tree[contents.KEY]["run"]["model"] = changes.pop("model")
    tree[contents.KEY] = {name: x for name, x in (tree[contents.KEY] | changes).items() if x is not None}
    rewrite(folder, contents.CONFIG, json.dumps(tree).encode())


@pytest.mark.parametrize("modality", MODALITIES)
def test_an_encoder_is_what_it_was_to_the_bit(model, folder, inputs, modality):
    """Tokens and embeddings of files, pictures, waveforms and strings equal those of the model that was saved."""
    encoder = mmfm.load_encoder(modality, folder)
    given = inputs[modality]
    torch.testing.assert_close(encoder.embed(given).detach(), encode(model, modality, given), rtol=0, atol=0)
    ours, theirs = encoder.tokens(given), model.core.tokens(modality, encoder.prepare(given))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert encoder.width == 16 and encoder.embed_dim == 8 and not encoder.training and ours.x.requires_grad


@pytest.mark.parametrize("modality", MODALITIES)
def test_an_encoder_of_a_run_is_that_of_its_bundle(model, folder, inputs, tmp_path, modality):
    """A run's folder stands for its newest checkpoint, without a bundle in between."""
    checkpoint.save(tmp_path, 5, model.run, TOKENIZER, model.core.state_dict(), {"global_step": 5})
    ours, theirs = (mmfm.load_encoder(modality, where) for where in (tmp_path, folder))
    torch.testing.assert_close(ours.embed(inputs[modality]), theirs.embed(inputs[modality]), rtol=0, atol=0)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)


def test_one_is_a_batch_of_one(folder, inputs):
    """A string is one text and no sequence of letters; a path, a picture, an array and its pixels are one picture."""
    text, image, audio = (mmfm.load_encoder(name, folder) for name in ("text", "image", "audio"))
    torch.testing.assert_close(text.embed("forty-two"), text.embed(["forty-two"]), rtol=0, atol=0)
    path = inputs["image"][0]
    array = np.asarray(Image.open(path))
    ways = [str(path), path, Image.open(path), [array], torch.stack([image.transform(path)])]
    first, *others = [image.embed(way) for way in ways]
    assert len(first) == 1 and all(torch.equal(first, other) for other in others)
    wave = torch.from_numpy(soundfile.read(inputs["audio"][0], dtype="float32")[0])
    ways = [inputs["audio"][0], [wave], [wave.numpy()], wave[None]]
    first, *others = [audio.embed(way) for way in ways]
    assert len(first) == 1 and all(torch.equal(first, other) for other in others)


def test_the_contract_is_that_of_the_configuration(model, folder):
    """What an encoder says of its input is what its tower was configured for."""
    cfg = model.config
    assert (
        mmfm.load_encoder("image", folder).preprocess
        == cfg.image.pixels
        == ImagePreprocess(height_px=8, width_px=16, channels=1, interpolation=cfg.image.interpolation)
    )
    assert mmfm.load_encoder("audio", folder).preprocess == AudioPreprocess(rate_hz=16_000)
    assert mmfm.load_encoder("text", folder).preprocess is None


def test_what_is_no_input_is_refused(folder, tmp_path):
    image, audio, text = (mmfm.load_encoder(name, folder) for name in MODALITIES)
    with pytest.raises(UserError, match="no text was given"):
        text.tokens([])
    with pytest.raises(UserError, match="a text is a string, not int"):
        text.embed([1])
    with pytest.raises(UserError, match="a waveform has one dimension, its samples, not \\[2, 5\\]"):
        audio.embed([np.zeros((2, 5), np.float32)])
    with pytest.raises(UserError, match=r"pixels are whole numbers of 0\.\.255, .*, not float32 of 0\.5 to 0\.5"):
        image.embed(torch.full((1, 1, 8, 16), 0.5))
    with pytest.raises(UserError, match=r"pictures are pixels \[n, 1, 8, 16\] for this model, not \[8, 16\]"):
        image.embed(torch.zeros(8, 16, dtype=torch.uint8))
    with pytest.raises(UserError, match="keep is given with a tensor only"):
        audio.embed([np.zeros(5, np.float32)], torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(UserError, match=r"none.png: No such file"):
        image.embed(tmp_path / "none.png")


def test_it_trains_inside_another_module(folder):
    """Its parameters are the outer module's, gradients reach its first layer, and its state goes into a fresh one."""
    outer = nn.ModuleDict({"ears": mmfm.load_encoder("audio", folder), "out": nn.Linear(16, 2)})
    wave = torch.randn(2, 3_200, generator=torch.Generator().manual_seed(0))
    outer["out"](outer["ears"](wave).x.mean(1)).sum().backward()
    assert outer["ears"].core.towers["audio"].subsample.conv1.weight.grad.abs().sum() > 0
    other = mmfm.load_encoder("audio", folder)
    with torch.no_grad():
        for parameter in outer.parameters():
            parameter += 0.1
    other.load_state_dict(outer["ears"].state_dict(), strict=True)
    torch.testing.assert_close(other.embed(wave), outer["ears"].embed(wave), rtol=0, atol=0)
    assert outer.train().training and outer["ears"].core.training and not outer.eval()["ears"].core.training


@pytest.mark.parametrize("modality", MODALITIES)
def test_half_precision_is_near(folder, inputs, modality):
    """In bf16 the embedding points the same way, to within its 8 bits."""
    whole, half = (mmfm.load_encoder(modality, folder) for _ in range(2))
    half = half.to(torch.bfloat16)
    made = half.embed(inputs[modality])
    assert made.dtype == torch.bfloat16
    assert (made.float() * whole.embed(inputs[modality])).sum(1).min() > 0.99


@pytest.mark.parametrize("modality", MODALITIES)
def test_files_of_other_modalities_are_not_needed(copy, inputs, modality, folder):
    """With the other towers, the vocabulary and (but for text) the tokenizer gone, the encoder is the same."""
    whole = mmfm.load_encoder(modality, folder).embed(inputs[modality])
    others = [name for name in (*MODALITIES, "vocabulary") if name != modality]
    for name in others:
        (copy / f"{name}.safetensors").unlink()
    if modality != "text":
        (copy / TOKENIZER_FILE).write_bytes(b"damaged")
    torch.testing.assert_close(mmfm.load_encoder(modality, copy).embed(inputs[modality]), whole, rtol=0, atol=0)
    with pytest.raises(UserError, match="is no whole folder of a model"):
        mmfm.load_encoder(others[0], copy)


def test_an_encoder_holds_nothing_of_the_others(folder):
    names = mmfm.load_encoder("audio", folder).state_dict()
    assert not [name for name in names if "image" in name or "text" in name or "scales" in name]


def test_the_whole_model_comes_back(model, folder, inputs):
    """It encodes, scores and writes as before; its configuration is the run's, without its data."""
    for back in (mmfm.load(folder), mmfm.from_pretrained(folder)):
        torch.testing.assert_close(dict(back.core.state_dict()), dict(model.core.state_dict()), rtol=0, atol=0)
    assert back.generate("image>text", image=inputs["image"][0]) == model.generate(
        "image>text", image=inputs["image"][0]
    )
    assert back.config == model.config and back.tasks == model.tasks and not back.run.data.train


def test_a_choice_of_modalities_leaves_the_rest_out(model, tmp_path, inputs):
    """Only their files, pairs and tasks; the pictures embed as before, and what is not there is named."""
    model.core.trunk.train()
    before = [module.training for module in model.modules()]
    part = mmfm.save_bundle(model, tmp_path / "part", ("text", "image"))
    assert [module.training for module in model.modules()] == before and len(set(before)) == 2
    model.eval()
    assert not (part / "audio.safetensors").exists()
    back = mmfm.from_pretrained(part)
    assert back.modalities == ("image", "text") and back.tasks == ("image>text", ">text")
    assert list(back.core.log_scales) == ["image-text"] == [item.name for item in back.run.contrastive]
    torch.testing.assert_close(back.encode_image(inputs["image"]), model.encode_image(inputs["image"]), rtol=0, atol=0)
    with pytest.raises(UserError, match="holds no audio encoder; it holds image, text"):
        mmfm.load_encoder("audio", part)
    with pytest.raises(UserError, match="the model has no audio encoder; it has image, text"):
        mmfm.save_bundle(back, tmp_path / "none", ("audio",))


def test_a_trained_tokenizer_travels(tmp_path):
    """A tokenizer of merges, that its run knew by a path of another machine, is beside the weights."""
    tokenizer = train_tokenizer(["forty-two", "forty-one"] * 9, 280)
    model = trained(tokenizer, tokenizer="elsewhere/tokenizer.json")
    folder = mmfm.save_bundle(model, tmp_path / "a")
    assert mmfm.from_pretrained(folder).tokenizer.encode("forty-two") == tokenizer.encode("forty-two")
    torch.testing.assert_close(
        mmfm.load_encoder("text", folder).embed("forty-two").detach(), model.encode_text(["forty-two"]), rtol=0, atol=0
    )
    assert "elsewhere" not in (folder / contents.CONFIG).read_text()


@pytest.mark.parametrize("name", ["config.json", "text.safetensors", "trunk.safetensors", "mmfm_tokenizer.json"])
def test_a_flipped_bit_is_found(copy, name):
    """In any file that is read, wherever it is."""
    path = copy / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{name} is damaged: .*copy the whole folder again"):
        mmfm.load_encoder("text", copy)


def test_a_wrong_tokenizer_is_found(copy):
    """Another tokenizer, whose size and checksum the list of files confirms, is still not that of the weights."""
    rewrite(copy, TOKENIZER_FILE, train_tokenizer(["ab"] * 9, 260).to_json().encode())
    with pytest.raises(
        UserError, match=r"mmfm_tokenizer.json is not the tokenizer of this bundle \(SHA-256 \w{12}, not \w{12}"
    ):
        mmfm.load_encoder("text", copy)
    mmfm.load_encoder("image", copy)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_fixture_that_does_not_hold_is_told(copy, modality):
    """One number of the weights, changed with the checksums: the outputs differ. check=False goes on."""
    weights = load_file(copy / f"{modality}.safetensors")
    weights[f"core.pools.{modality}"][3] += 1.0
    rewrite(copy, f"{modality}.safetensors", save(weights))
    words = (
        rf"does not give what it gave when it was written: {modality}.embedding differs by .*, more than .*check=False"
    )
    with pytest.raises(UserError, match=words):
        mmfm.load_encoder(modality, copy)
    with pytest.raises(UserError, match=words):
        mmfm.from_pretrained(copy)
    assert mmfm.load_encoder(modality, copy, check=False).width == 16


def test_another_way_of_reading_is_told(copy):
    """The same weights under another picture size, or other sentences, are found by what is read."""
    model = said(copy)["run"]["model"]
    model["image"]["resize_mode"] = "crop"
    changed(copy, model=model, sentences=["other", "words", "here"])
    for modality in ("image", "text"):
        with pytest.raises(UserError, match=rf"when it was written: {modality}.x (differs by|has shape)"):
            mmfm.load_encoder(modality, copy)


def test_a_fixture_with_nan_holds_for_nothing(copy):
    """Not a number is no small difference."""
    stored = load_file(copy / contents.GOLDEN)
    stored["audio.tokens"][0, 0] = torch.nan
    rewrite(copy, contents.GOLDEN, save(stored))
    with pytest.raises(UserError, match=r"audio.tokens differs by nan"):
        mmfm.load_encoder("audio", copy)
    rewrite(copy, contents.GOLDEN, save({"other": torch.zeros(1)}))
    with pytest.raises(UserError, match=r"its golden.safetensors has no audio"):
        mmfm.load_encoder("audio", copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 3}, "a folder of format 3; this mmfm reads 2: update it"),
        ({"run": None}, "missing key of Bundle; add run"),
        ({"components": ["image", "../../secret"]}, "components=.* must be of"),
        ({"tolerance": float("1e999")}, "is not strict JSON"),
        ({"command": "rm"}, "unknown key command"),
    ],
)
def test_a_bundle_of_another_kind_is_refused(copy, change, words):
    changed(copy, **change)
    with pytest.raises(UserError, match=words):
        mmfm.load_encoder("image", copy)


def test_a_bundle_of_an_older_version_is_read(copy, folder, inputs):
    """A choice that it does not know is as by default, which its fixture confirms, or refutes; and one without a
    default is asked for."""
    model = said(copy)["run"]["model"]
    del model["image"]["norm_post"], model["trunk"]["tie_embeddings"], model["audio"]["mel"]["bins"]
    changed(copy, model=model)
    ours, theirs = (mmfm.load_encoder("image", where) for where in (copy, folder))
    torch.testing.assert_close(ours.embed(inputs["image"]), theirs.embed(inputs["image"]), rtol=0, atol=0)
    with pytest.raises(UserError, match=r"towers.audio.mel.banks has shape \(257, 16\) there and \(257, 80\) in this"):
        mmfm.load_encoder("audio", copy)
    changed(copy, sentences=None)
    with pytest.raises(UserError, match="missing key of Bundle; add sentences"):
        mmfm.load_encoder("image", copy)


def test_a_bundle_names_no_other_folder(copy):
    """Where one does, it would read or write there when it is opened."""
    model = said(copy)["run"]["model"]
    changed(copy, model=model | {"image": model["image"] | {"weights": "elsewhere"}})
    with pytest.raises(
        UserError, match=r"names no other folder .*, and this one has run.model.image.weights='elsewhere'"
    ):
        mmfm.load_encoder("image", copy)
    tower = serialization.write(Tower(source="timm:x", feature_cache_dir="/elsewhere"))
    changed(copy, model=model | {"image": json.loads(tower)})
    with pytest.raises(UserError, match=r"this one has run.model.image.feature_cache_dir='/elsewhere'; do not trust"):
        mmfm.load_encoder("audio", copy)


@pytest.mark.parametrize("shape", [{"name": "local-dir:x"}, {"name": "a", "kwargs": {"checkpoint_path": "x.pth"}}])
def test_a_blueprint_names_no_file(shape):
    """A bundle of a stranger cannot make timm open a checkpoint."""
    pixels = ImagePreprocess(channels=3)
    blueprint = EncoderSpec(library="timm", modality="image", architecture=json.dumps(shape), width=8, pixels=pixels)
    with pytest.raises(UserError, match=r"names, and no file or address|which timm does not have"):
        pretrained.build(blueprint)


def test_weights_of_another_configuration_are_refused(copy):
    """A tensor of another shape is named; a width that would take all memory is refused before it is built."""
    tree = said(copy)["run"]["model"]
    changed(copy, model=tree | {"embed_dim": 4})
    with pytest.raises(UserError, match=r"heads.image.weight has shape \(8, 16\) there and \(4, 16\)"):
        mmfm.load_encoder("image", copy)
    changed(copy, model=tree | {"embed_dim": 10**12})
    with pytest.raises(UserError, match=r"a matrix of 1.6e"):
        mmfm.load_encoder("image", copy)


def test_a_list_names_the_known_files_only(copy):
    """A hostile list cannot make a bundle read outside of its folder."""
    rewrite(copy, "../secret", b"")
    with pytest.raises(UserError, match=r"files.json should not lack or list '../secret'"):
        mmfm.load_encoder("image", copy)
    (copy / contents.FILES).write_text("[" * 100_000)
    with pytest.raises(UserError, match="is no whole folder of a model"):
        mmfm.load_encoder("image", copy)


def test_foreign_formats_are_refused_unopened(tmp_path):
    """A pickle, an address, a folder of something else, none at all: each in words."""
    (tmp_path / "model.pt").write_bytes(b"\x80")
    (tmp_path / "other").mkdir()
    for where, words in {
        tmp_path / "model.pt": "is a file, and files such as .ckpt can execute",
        "https://example.com/a": "is an address; give a local folder",
        tmp_path / "other": "has no checkpoint",
        tmp_path / "none": "is no folder of a run",
    }.items():
        with pytest.raises(UserError, match=words):
            mmfm.load_encoder("image", where)
    with pytest.raises(UserError, match="there is no modality 'smell'; there are image, audio, text"):
        mmfm.load_encoder("smell", tmp_path)


def test_nothing_is_unpickled(copy, tmp_path):
    """A pickle under the name of safetensors, checksums and all, is refused unread."""
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (marker.touch, ())

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    rewrite(copy, "image.safetensors", (tmp_path / "evil.pt").read_bytes())
    with pytest.raises(UserError, match=r"image.safetensors cannot be read"):
        mmfm.load_encoder("image", copy)
    assert not marker.exists()


def test_a_second_writing_is_refused_unless_forced(model, copy):
    """What is there stays to the byte; force replaces a bundle, and never another folder."""
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(UserError, match=r"copy exists; name another folder, or --force"):
        mmfm.save_bundle(model, copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    mmfm.save_bundle(model, copy, ("text",), force=True)
    assert not (copy / "image.safetensors").exists() and [path.name for path in copy.parent.iterdir()] == ["copy"]
    (other := copy.parent / "thesis").mkdir()
    (other / "chapter").touch()
    with pytest.raises(UserError, match="thesis is no folder that mmfm exported or imported, and is not replaced"):
        mmfm.save_bundle(model, other, force=True)


@pytest.mark.parametrize("failing", [0, 5, 7, 10])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_writing_leaves_nothing(model, copy, monkeypatch, failing, error):
    """Ctrl-C or a full disk at any file: nothing half is left, and the bundle that was to be replaced is whole."""
    calls, whole, tensors = iter(range(100)), saving.write_file, saving.save_file

    def interrupted(path: Path, data: bytes) -> None:
        if next(calls) == failing:
            path.write_bytes(data[: len(data) // 2])
            raise error
        whole(path, data)

    def interrupted_tensors(data: dict[str, Tensor], path: Path, **how: object) -> None:
        if next(calls) == failing:
            path.write_bytes(b"half")
            raise error
        tensors(data, path, **how)

    monkeypatch.setattr(saving, "write_file", interrupted)
    monkeypatch.setattr(saving, "save_file", interrupted_tensors)
    for target in (copy, copy.with_name("new")):
        with pytest.raises((KeyboardInterrupt, UserError), match=r"^$|^cannot write .*: No space left"):
            mmfm.save_bundle(model, target, force=True)
        calls = iter(range(100))
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
    mmfm.load_encoder("image", copy)


def test_a_bundle_that_differs_is_not_written(model, tmp_path, monkeypatch):
    """It is opened before it gets its name: one that gives other numbers than its source never appears."""
    make = golden.make
    monkeypatch.setattr(golden, "make", lambda encoder: {k: v + (k == "text.tokens") for k, v in make(encoder).items()})
    with pytest.raises(UserError, match=r"text.tokens differs by"):
        mmfm.save_bundle(model, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_model_in_half_precision_is_not_saved(tmp_path):
    with pytest.raises(UserError, match=r"a model in torch.bfloat16 has lost what a bundle should keep"):
        mmfm.save_bundle(Interface(trained().core.bfloat16(), toy_run(), TOKENIZER), tmp_path / "a")


def test_no_pair_of_what_is_absent(model):
    """The weights of a choice of modalities name no pair and no tower outside of it."""
    parts = saving.split(model.core, ("image",), [])
    assert set(parts) == {"image", "trunk", "vocabulary"} and list(parts["vocabulary"]) == ["embedding.weight"]


def test_a_text_without_a_tower_is_a_bundle_too(tmp_path: Path) -> None:
    """Its encoder has of the table the rows of texts, in a bundle of it alone, of all, and of a model with codecs."""
    codec = ImageCodec(height_px=8, width_px=16, patch_px=4, channels=1, width=8, levels=(3, 3))
    model, texts = trained(text=Embedded(), image_codec=codec), ["forty-two", "a"]
    expected = model.encode_text(texts)
    for place, chosen in (("all", None), ("text", ("text",))):
        folder = mmfm.save_bundle(model, tmp_path / place, chosen)
        torch.testing.assert_close(mmfm.from_pretrained(folder).encode_text(texts), expected)
        encoder = mmfm.load_encoder("text", folder)
        torch.testing.assert_close(encoder.embed(texts), expected)
        assert len(encoder.core.embedding.weight) < len(model.core.embedding.weight)
    assert not len(mmfm.load_encoder("image", tmp_path / "all").core.embedding.weight)
