"""One folder for mmfm, the hub and transformers: what each reads of it, and that both must agree before it appears."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import Exported, export, full_run
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save
from test_bundle import rewrite
from test_importing import vit
from test_making import codec_run, toy_interface
from transformers import AutoModel, AutoProcessor, AutoTokenizer

import mmfm
from mmfm.__main__ import main
from mmfm.config import UserError
from mmfm.export import hf, importer
from mmfm.export.hf.processing import MMFMImageProcessor
from mmfm.inference.bundle import contents
from mmfm.inference.interface import Interface


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Exported:
    return export(tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="module")
def maker() -> Interface:
    """A model that makes pictures and sounds."""
    return toy_interface(codec_run())


@pytest.fixture(scope="module")
def codecs(maker, tmp_path_factory) -> Path:
    hf.register()
    return mmfm.save_bundle(maker, tmp_path_factory.mktemp("codecs") / "toy")


def named(path: Path) -> set[str]:
    with safe_open(path, "pt") as file:
        return set(file.keys())


def test_the_index_lists_each_tensor_of_transformers_once(made, codecs):
    """One file for each component, and all that the model of transformers has; the codecs are in none of its files."""
    for folder in (made.folder, codecs):
        places = json.loads((folder / contents.INDEX).read_text())["weight_map"]
        assert places.keys() == AutoModel.from_pretrained(folder).state_dict().keys()
        for file in set(places.values()):
            assert named(folder / file) == {name for name, place in places.items() if place == file}
    assert set(places.values()) == {f"{part}.safetensors" for part in contents.PARTS if part != "codecs"}
    assert named(codecs / "codecs.safetensors") and not any("codecs" in name for name in places)


def test_a_model_that_makes_pictures_and_sounds_comes_back(maker, codecs):
    """By mmfm with its codecs; by transformers with all else."""
    back = mmfm.load(codecs, device="cpu")
    torch.testing.assert_close(dict(back.core.state_dict()), dict(maker.core.state_dict()), rtol=0, atol=0)
    picture, other = (model.generate("text>image", text="forty-two", seed=3) for model in (maker, back))
    assert picture.tobytes() == other.tobytes()
    ids = AutoTokenizer.from_pretrained(codecs)(["forty-two"], return_tensors="pt")
    face = AutoModel.from_pretrained(codecs).get_text_features(**ids).pooler_output
    torch.testing.assert_close(face.detach(), maker.encode_text(["forty-two"]), rtol=0, atol=1e-6)
    assert "only mmfm reads" in (codecs / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("image.decoder", r"codec.image.shown differs by \d+, more than 1"),
        ("audio.decoder", r"codec.audio.shown differs by"),
        ("image.encoder", r"\d+% of the codes of its image are others"),
        ("audio.encoder", r"\d+% of the codes of its audio are others"),
    ],
)
def test_a_codec_that_gives_other_things_is_told(codecs, tmp_path, name, words):
    """Weights that were changed, checksums and all: what the codes show, or what codes a picture gets, is another."""
    copy = shutil.copytree(codecs, tmp_path / "copy")
    weights = load_file(copy / "codecs.safetensors")
    changed = [key for key, value in weights.items() if f"codecs.{name}" in key and value.ndim > 1]
    assert changed, sorted(weights)
    for key in changed:
        weights[key] = -3 * weights[key] + 0.1
    rewrite(copy, "codecs.safetensors", save(weights, metadata={"format": "pt"}))
    with pytest.raises(UserError, match=words):
        mmfm.load(copy, device="cpu")


def test_some_modalities_alone_are_a_folder_of_transformers_too(made, tmp_path):
    """By the command line: what is there embeds as before, and its processor takes no sounds."""
    main(["export", str(made.run), str(tmp_path / "part"), "--modality", "image", "text"])
    face, processor = (auto.from_pretrained(tmp_path / "part") for auto in (AutoModel, AutoProcessor))
    assert not hasattr(processor, "feature_extractor") and not (tmp_path / "part/audio.safetensors").exists()
    ids = AutoTokenizer.from_pretrained(tmp_path / "part")(["forty-two"], return_tensors="pt")
    found = face.get_text_features(**ids).pooler_output.detach()
    torch.testing.assert_close(found, made.model.encode_text(["forty-two"]), rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="this model has no audio tower"):
        face.get_audio_features(torch.zeros(1, 500))


def test_export_and_save_bundle_write_the_same(made, tmp_path):
    """File for file."""
    main(["export", str(made.run), str(tmp_path / "out")])
    for path in made.folder.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert len([*made.folder.iterdir()]) == len([*(tmp_path / "out").iterdir()])


def test_a_folder_that_transformers_reads_otherwise_is_not_written(made, tmp_path, monkeypatch):
    """Its processor shows the model other pixels than mmfm does: the embeddings tell, and nothing is left."""
    read = MMFMImageProcessor.preprocess

    def brighter(self, images, return_tensors=None, **more):
        found = read(self, images, return_tensors, **more)
        return type(found)({"pixel_values": found["pixel_values"] // 2})

    monkeypatch.setattr(MMFMImageProcessor, "preprocess", brighter)
    with pytest.raises(UserError, match=r"transformers \S+ gives other embeddings of image, by 0\.\d+"):
        mmfm.save_bundle(made.model, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_part_alone_is_told_by_transformers(tmp_path):
    """It has no embedding: the line says what opens it."""
    hf.register()
    vit(tmp_path / "source")
    importer.import_source(str(tmp_path / "source"), tmp_path / "out")
    with pytest.raises(UserError, match="holds image alone, which transformers does not open; mmfm does: load_encoder"):
        AutoModel.from_pretrained(tmp_path / "out")


def test_what_is_read_no_more_says_so(made, tmp_path):
    """A bundle of the format before, and what transformers saved of a model of ours: a line, with the remedy."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "bundle.json").write_text("{}")
    AutoModel.from_pretrained(made.folder).save_pretrained(tmp_path / "saved")
    for name, words in {
        "old": "has a bundle.json, of an earlier .*; write it anew, with `mmfm export RUN FOLDER`",
        "saved": r"transformers saved it, .*; `mmfm import \S+saved OUT` makes a bundle of it",
    }.items():
        for opened in (mmfm.load, mmfm.native, mmfm.from_pretrained):
            with pytest.raises(UserError, match=words):
                opened(tmp_path / name)


def test_a_run_without_a_tower_of_text_is_a_folder(tmp_path):
    """It writes; the tokenizer for that is there, and its golden sentences are not asked for."""
    made = export(tmp_path, full_run(text=None))
    assert mmfm.load(made.folder, device="cpu").tasks == made.model.tasks
    assert AutoTokenizer.from_pretrained(made.folder)("a").input_ids[0] == made.model.core.vocabulary.begin("text")


@pytest.mark.parametrize("without", ["", "audio", "image audio"])
def test_the_lines_of_its_readme_run(tmp_path, without):
    """Both blocks, as they stand but for the folder's name."""
    made = export(tmp_path, full_run(**dict.fromkeys(without.split())))
    blocks = re.findall(r"^```python\n(.*?)^```$", (made.folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    picture, wave = Image.fromarray(np.zeros((9, 9, 3), np.uint8)), np.zeros(4_000, np.float32)
    for block in blocks:
        exec(block.replace("FOLDER", str(made.folder)), {"picture": picture, "wave": wave})
    assert len(blocks) == 2 and blocks[1].count("_features(") == len(made.model.modalities)
    assert blocks[1].count("writer.generate(") == len({">text", "image>text"} & set(made.model.tasks))
