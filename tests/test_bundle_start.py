"""Bundles as the start of other models: the same weights where nothing else was chosen, or words that say why."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from test_bundle import TOKENIZER, rewrite, trained
from toys import toy_config

import mmfm
from mmfm.config import MODALITIES, Contrastive, Model, UserError
from mmfm.inference import bundle
from mmfm.models import checkpoint
from mmfm.models.model import UnifiedModel, build
from mmfm.models.vit import resize_positions
from mmfm.preprocessing.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    return mmfm.save_bundle(model, tmp_path_factory.mktemp("start") / "toy")


def fresh(cfg: Model, ids: int = TOKENIZER.size) -> UnifiedModel:
    torch.manual_seed(7)
    core = build(cfg, ids, (Contrastive(pair=("image", "text")),))
    bundle.start(core, cfg)
    return core


@pytest.mark.parametrize("name", [*MODALITIES, "trunk"])
def test_a_part_begins_where_the_bundle_stands(model, folder, name):
    """Its weights are those that were trained, to the bit, and those of the other parts are as without it."""
    cfg = toy_config(**{name: mmfm.native(str(folder), name)})
    core, without = fresh(cfg), fresh(toy_config())
    starts = (f"towers.{name}.",) if name != "trunk" else ("trunk.", "embedding.")
    for key, value in core.state_dict().items():
        source = model.core if key.startswith(starts) else without
        torch.testing.assert_close(value, source.state_dict()[key], rtol=0, atol=0)
    moved = [key for key, value in without.state_dict().items() if not torch.equal(value, core.state_dict()[key])]
    assert moved and all(key.startswith(starts) for key in moved)


def test_a_tower_and_a_trunk_of_one_model_stay_joined(model, folder):
    """The connector, pool and head between them are those that were trained; of a part alone they begin anew."""
    cfg = toy_config(image=mmfm.native(str(folder), "image"), trunk=mmfm.native(str(folder), "trunk"))
    core, joint = fresh(cfg).state_dict(), ("connectors.image.weight", "pools.image", "heads.image.weight")
    assert all(torch.equal(core[name], model.core.state_dict()[name]) for name in joint)
    assert not torch.equal(core["connectors.audio.weight"], model.core.state_dict()["connectors.audio.weight"])


def test_nothing_named_nothing_changed(folder):
    """A configuration without `weights` reads no bundle."""
    torch.manual_seed(7)
    plain = build(toy_config(), TOKENIZER.size, (Contrastive(pair=("image", "text")),))
    torch.testing.assert_close(dict(fresh(toy_config()).state_dict()), dict(plain.state_dict()), rtol=0, atol=0)


def test_a_larger_picture_takes_resized_positions(model, folder):
    """Every other weight is that of the bundle."""
    vit = replace(mmfm.native(str(folder), "image"), height_px=16)
    found = fresh(toy_config(image=vit)).towers["image"].state_dict()
    before = model.core.towers["image"].state_dict()
    expected = resize_positions(before["position"], (2, 4), (4, 4))
    torch.testing.assert_close(found.pop("position"), expected, rtol=0, atol=0)
    torch.testing.assert_close(dict(found), {k: v for k, v in before.items() if k != "position"}, rtol=0, atol=0)


def test_the_configuration_comes_without_torch(folder):
    """`native` is for configuration files, which are read before torch is."""
    program = (
        f"import mmfm, sys; part = mmfm.native({str(folder)!r}, 'audio'); "
        "assert part.weights and not {'torch', 'numpy', 'safetensors', 'huggingface_hub'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert mmfm.native(str(folder), "audio") == replace(toy_config().audio, weights=str(folder))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 4}, r"Vit.heads=4 is 2 in .*toy; take it from there: mmfm.native\("),
        ({"patch_px": 8}, r"Vit.patch_px=8 is 4 in"),
    ],
)
def test_what_shapes_the_numbers_must_be_equal(folder, changes, words):
    """Other heads would load without an error and give other numbers."""
    with pytest.raises(UserError, match=words):
        fresh(toy_config(image=replace(mmfm.native(str(folder), "image"), **changes)))


def test_what_is_not_there_is_named(model, folder, tmp_path):
    eyes = str(mmfm.save_bundle(model, tmp_path / "eyes", ("image",)))
    with pytest.raises(UserError, match=r"eyes holds no audio to start from; it holds image, trunk"):
        fresh(toy_config(audio=replace(toy_config().audio, weights=eyes)))
    with pytest.raises(UserError, match=r"eyes holds no 'text'; it holds image, trunk"):
        mmfm.native(eyes, "text")
    with pytest.raises(UserError, match=r"holds image, audio, text, trunk; name one: native\("):
        mmfm.native(str(folder))
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"a run/run.json: missing key of Run"):
        mmfm.native(tmp_path / "a run")
    (tmp_path / "a run" / "run.json").rename(tmp_path / "a run" / "checkpoints")
    with pytest.raises(UserError, match=r"a run is no model's folder: it has no files.json"):
        mmfm.native(tmp_path / "a run")
    with pytest.raises(UserError, match=r"no model's folder: .*; make one first: mmfm import timm:resnet18 FOLDER"):
        mmfm.native("timm:resnet18")
    with pytest.raises(UserError, match=r"none is no model's folder: it has no files.json"):
        fresh(toy_config(image=replace(toy_config().image, weights=str(tmp_path / "none"))))


@pytest.mark.parametrize("name", ["text", "trunk"])
def test_a_table_of_words_needs_its_tokenizer(folder, tmp_path, name):
    """As many ids of another tokenizer would be other words."""
    letters = train_tokenizer(["abc"] * 9, 256)
    (tmp_path / "tokenizer.json").write_text(letters.to_json().replace("true", "false", 1))
    cfg = toy_config(**{name: mmfm.native(str(folder), name), "tokenizer": str(tmp_path / "tokenizer.json")})
    with pytest.raises(UserError, match=r"is not the one that .*toy was trained with; set it to 'bytes'"):
        fresh(cfg)


def test_what_a_run_starts_from_is_looked_at_before_anything_is_built(model, folder, tmp_path):
    """A run, its checkpoint and a whole bundle pass, one of the hub too; what is none, and one with another tokenizer
    are refused by the field's name, and the remedy is right."""
    checkpoint.save(tmp_path / "run", 1, model.run, model.tokenizer, model.core.state_dict(), {})
    there = checkpoint.folder_of(tmp_path / "run", 1)
    for start in (tmp_path / "run", there, folder, "some-owner/some-model"):
        bundle.check_start(replace(model.run, start=str(start)))
    letters = tmp_path / "letters.json"
    letters.write_text(train_tokenizer(["abc"] * 9, 257).to_json())
    for start in (tmp_path / "run", folder):
        other = replace(model.run, start=str(start), model=replace(model.config, tokenizer=str(letters)))
        with pytest.raises(
            UserError,
            match=r"letters.json' is not the one that .* was trained with; set it to the (mmfm_)?token",
        ):
            bundle.check_start(other)
    own = replace(model.config, tokenizer=str(there / "tokenizer.json"))
    bundle.check_start(replace(model.run, start=str(tmp_path / "run"), model=own))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    told = {"empty": "no bundle and no checkpoint", "file": "no folder"}
    for name, words in {**told, "gone": "is no folder"}.items():
        with pytest.raises(UserError, match=rf"Run\.start='{tmp_path}/{name}' .*{words}"):
            bundle.check_start(replace(model.run, start=str(tmp_path / name)))


def test_a_damaged_start_is_refused(model, tmp_path):
    """A start is checked as an encoder is that is opened."""
    folder = mmfm.save_bundle(model, tmp_path / "a")
    (folder / "trunk.safetensors").write_bytes(b"x" + (folder / "trunk.safetensors").read_bytes()[1:])
    with pytest.raises(UserError, match=r"trunk.safetensors is damaged"):
        fresh(toy_config(trunk=mmfm.native(str(folder), "trunk")))


def test_a_trunk_that_gives_other_numbers_is_refused(model, tmp_path):
    """Its fixture: a weight that was changed, checksums and all, is no start."""
    folder = mmfm.save_bundle(model, tmp_path / "a")
    weights = load_file(folder / "trunk.safetensors")
    weights["core.trunk.norm.weight"][0] += 0.1
    rewrite(folder, "trunk.safetensors", save(weights))
    with pytest.raises(UserError, match=r"when it was written: trunk.states differs by"):
        fresh(toy_config(trunk=mmfm.native(str(folder), "trunk")))


def test_other_codes_are_refused(folder):
    """Rows of a trained vocabulary have places that another number of codes would move."""
    with pytest.raises(UserError, match=r"Model has other codes than .*; set image_codes=0 and audio_codes=0"):
        fresh(toy_config(trunk=mmfm.native(str(folder), "trunk"), image_codes=3))
