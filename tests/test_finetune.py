"""Fine-tuning of what was trained before: rates that fall layer by layer, and runs as the start of parts of others."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from peers import TINY
from test_bundle import TOKENIZER, trained
from test_cli import shard
from timm.optim import param_groups_layer_decay
from torch import nn
from toy_encoders import BLOCKS, PICTURE, WORDS, hf_folder, timm_folder, wordpieces
from toys import toy_config, toy_model, toy_run
from transformers import BertConfig, CLIPTextConfig, CLIPVisionConfig

import mmfm
from mmfm.__main__ import main
from mmfm.config import (
    MODALITIES,
    Contrastive,
    Data,
    Eval,
    Model,
    Optim,
    ParamGroup,
    Run,
    Source,
    Tower,
    UserError,
    Vit,
)
from mmfm.config.serialization import to_json
from mmfm.export import importer
from mmfm.inference import bundle
from mmfm.inference.interface import Interface
from mmfm.models import checkpoint
from mmfm.models.mappings import Foreign, convert
from mmfm.models.model import UnifiedModel, build
from mmfm.preprocessing.tokenizer import train_tokenizer
from mmfm.training.initialize import begin, prepare
from mmfm.training.layer_decay import distances
from mmfm.training.optimizer import factors, learning, parameter_groups

DECAY = 0.5


def timms(model: nn.Module) -> dict[int, float]:
    """What timm scales the rate of each of its parameters with."""
    groups = param_groups_layer_decay(model, layer_decay=DECAY)
    return {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}


def decayed(pattern: str, lr_scale: float = 1.0) -> ParamGroup:
    return ParamGroup(pattern=pattern, lr_scale=lr_scale, layer_decay=DECAY)


def test_a_vit_has_the_scales_of_timm() -> None:
    """Each of timm's tensors is filled with its scale, so that what it becomes here says what ours must be."""
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY | {"depth": 3})
    scales = timms(theirs)
    filled = {name: torch.full_like(p, scales[id(p)]) for name, p in theirs.named_parameters()}
    said = {"name": "vit_tiny_patch16_224", "kwargs": {"num_classes": 0, **TINY, "depth": 3}}
    source = Foreign(
        library="timm", architecture=said, modality="image", contract=Vit(height_px=32, width_px=32).pixels
    )
    converted = convert(source, filled)
    model = build(toy_config(image=converted.part), 20)
    found = factors(model, [decayed("towers.image.*", 0.25)])
    for name, _ in model.towers["image"].named_parameters():
        expected = converted.weights[name].unique() * 0.25 / (2 if name == "prefix" else 1)  # a class token + its place
        assert expected.tolist() == [pytest.approx(found[f"towers.image.{name}"])], name
    assert {found[name] for name in found if not name.startswith("towers.image.")} == {1.0}
    assert len({found[name] for name in found if name.startswith("towers.image.blocks.")}) == 3


@pytest.mark.parametrize(
    ("name", "args"),
    [("vit_tiny_patch16_224", TINY | {"depth": 4}), ("resnet18", {}), ("tf_efficientnet_lite0", {"img_size": 32})],
)
def test_an_imported_tower_of_timm_has_its_own_scales(name: str, args: dict[str, int], tmp_path) -> None:
    args = {key: value for key, value in args.items() if key != "img_size"}
    timm_folder(tmp_path / "timm", name, **args)
    run = toy_run(model=toy_config(image=Tower(source=str(tmp_path / "timm"))))
    prepared = prepare(run)
    model = build(prepared.run.model, prepared.tokenizer.size, run.contrastive)
    trunk = model.towers["image"].encoder.trunk
    scales, found = timms(trunk), factors(model, [decayed("towers.image.*")])
    mine = {f"towers.image.encoder.trunk.{key}": scales[id(p)] for key, p in trunk.named_parameters()}
    assert len(set(mine.values())) > 3
    assert {key: found[key] for key in mine} == pytest.approx(mine)


def test_a_tower_of_transformers_by_its_blocks(tmp_path) -> None:
    """Embeddings and the norm before the blocks are the deepest; the norm behind them is read by no token."""
    hf_folder(tmp_path / "clip", CLIPVisionConfig(**PICTURE))
    run = toy_run(model=toy_config(image=Tower(source=str(tmp_path / "clip"))))
    prepared = prepare(run)
    model = build(prepared.run.model, prepared.tokenizer.size, run.contrastive)
    names = [name for name, _ in model.named_parameters() if name.startswith("towers.image.")]
    found = {name.removeprefix("towers.image.encoder.trunk."): far for name, far in distances(model, names).items()}
    by = {
        piece: {far for name, far in found.items() if piece in name} for piece in ("embeddings", "layers.0", "layers.1")
    }
    assert by == {"embeddings": {2}, "layers.0": {1}, "layers.1": {0}}, found
    assert {far for name, far in found.items() if "pre_layrnorm" in name} == {2}


def test_a_trunk_decays_with_its_tables(tmp_path) -> None:
    """A tied table is the input's: as far as what lies before the blocks; an output of its own is the last."""
    model = toy_model(trunk=replace(toy_config().trunk, tie_embeddings=False))
    found = factors(model, [decayed("*")])
    assert found["embedding.weight"] == DECAY**2 and found["output.weight"] == 1 == found["trunk.norm.weight"]
    assert found["trunk.blocks.0.attn.qkv.weight"] == DECAY and found["trunk.blocks.1.attn.qkv.weight"] == 1
    assert found["connectors.image.weight"] == 1 and found["towers.text.embedding.weight"] == DECAY
    groups = parameter_groups(model, Optim(lr=0.1, steps=9, warmup_steps=1), found)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert all(rates[id(p)] == pytest.approx(0.1 * found[name]) for name, p in model.named_parameters())


def test_what_layer_decay_says_and_refuses() -> None:
    run, model = toy_run(), toy_model()
    optim = Optim(steps=9, warmup_steps=1, param_groups=(decayed("towers.image.*", 0.5),))
    line = learning(model, replace(run, optim=optim)).lines[0]
    assert "at 0.25 to 0.5 x the rate, 0.5 times for each layer towards the input (towers)" in line
    with pytest.raises(UserError, match=r"'connectors.\*' has a layer_decay, and names no tower or trunk"):
        factors(model, [decayed("connectors.*")])
    model.towers["image"] = nn.Linear(3, 4)
    with pytest.raises(UserError, match=r"the layers of towers.image cannot be told apart"):
        factors(model, [decayed("towers.image.*")])
    assert factors(model, [decayed("towers.text.*")])["towers.text.norm.weight"] == 1
    for wrong in (0.0, 1.5, -1.0):
        with pytest.raises(UserError, match=r"ParamGroup.layer_decay=.* must be above 0 and at most 1"):
            ParamGroup(pattern="*", lr_scale=1.0, layer_decay=wrong)


@pytest.mark.parametrize("tie", [True, False])
def test_a_table_that_learns_above_a_locked_trunk_is_said(tie: bool) -> None:
    """The remedy that is named locks it."""
    model = toy_model(trunk=replace(toy_config().trunk, tie_embeddings=tie))
    run = toy_run(optim=Optim(steps=9, warmup_steps=1, param_groups=(ParamGroup(pattern="trunk.*", lr_scale=0.0),)))
    told = learning(model, run).lines[-1]
    assert (
        "the trunk is locked, and embedding.weight" in told and "ParamGroup(pattern='embedding.*', lr_scale=0)" in told
    )
    rates = [
        ParamGroup(pattern=pattern, lr_scale=0.0) for pattern in ("trunk.*", "embedding.*", *["output.*"] * (not tie))
    ]
    found = learning(model, replace(run, optim=replace(run.optim, param_groups=tuple(rates))))
    assert not any("the trunk is locked" in line for line in found.lines)
    assert {found.factor[name] for name in found.factor if name.startswith(("trunk.", "embedding.", "output."))} == {
        0.0
    }


@pytest.fixture(scope="module")
def trained_model() -> Interface:
    return trained()


@pytest.fixture(scope="module")
def run_folder(trained_model: Interface, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(trained_model, tmp_path_factory.mktemp("runs") / "run")


def saved(model: Interface, folder: Path) -> Path:
    """The folder that a training of this model leaves."""
    checkpoint.save(folder, 7, model.run, model.tokenizer, model.core.state_dict(), {})
    (folder / "run.json").write_text(to_json(model.run))
    return folder


def started(cfg: Model, ids: int = TOKENIZER.size) -> UnifiedModel:
    torch.manual_seed(7)
    core = build(cfg, ids, toy_run().contrastive)
    bundle.start(core, cfg)
    return core


@pytest.mark.parametrize("name", [*MODALITIES, "trunk"])
def test_a_part_begins_where_a_run_stands(trained_model: Interface, run_folder: Path, name: str) -> None:
    """By the run's folder and by its checkpoint's: what was trained, to the bit, and all else as without it."""
    before, fresh = trained_model.core.state_dict(), started(toy_config()).state_dict()
    starts = (f"towers.{name}.",) if name != "trunk" else ("trunk.", "embedding.")
    for folder in (run_folder, checkpoint.folder_of(run_folder, 7)):
        found = started(toy_config(**{name: mmfm.native(folder, name)})).state_dict()
        for key, value in found.items():
            assert torch.equal(value, (before if key.startswith(starts) else fresh)[key]), key
    assert any(key.startswith(starts) and not torch.equal(value, fresh[key]) for key, value in before.items())


def test_parts_of_a_run_are_those_of_its_bundle(trained_model: Interface, run_folder: Path, tmp_path: Path) -> None:
    """Joined as they were, with a larger picture, from either."""
    there = mmfm.save_bundle(trained_model, tmp_path / "bundle")
    both = []
    for folder in (run_folder, there):
        image = replace(mmfm.native(folder, "image"), height_px=16)
        cfg = toy_config(image=image, trunk=mmfm.native(folder, "trunk"), audio=mmfm.native(folder, "audio"))
        both.append(started(cfg).state_dict())
    assert all(torch.equal(value, both[1][name]) for name, value in both[0].items())
    for name in ("connectors.image.weight", "pools.audio", "heads.image.weight"):
        assert torch.equal(both[0][name], trained_model.core.state_dict()[name]), name


def test_a_tower_of_another_library_begins_where_a_run_stands(tmp_path: Path) -> None:
    """With its own tokenizer and no source, as a run that learned it has left it; the same by a bundle of the run."""
    hf_folder(tmp_path / "bert", BertConfig(**BLOCKS, vocab_size=WORDS["vocab_size"]), wordpieces())
    prepared = prepare(toy_run(model=toy_config(text=Tower(source=str(tmp_path / "bert")))))
    core = build(prepared.run.model, prepared.tokenizer.size, prepared.run.contrastive)
    begin(core, prepared)
    with torch.no_grad():
        for parameter in core.towers["text"].parameters():
            parameter.mul_(1.5)  # learned
    model = Interface(core, prepared.run, prepared.tokenizer).eval()
    run = saved(model, tmp_path / "run")
    shutil.rmtree(tmp_path / "bert")
    for folder in (run, mmfm.save_bundle(model, tmp_path / "bundle")):
        again = prepare(toy_run(model=toy_config(text=mmfm.native(folder, "text"))))
        fresh = build(again.run.model, again.tokenizer.size, again.run.contrastive)
        begin(fresh, again)
        expected = core.towers["text"].state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in fresh.towers["text"].state_dict().items())
        assert again.tokenizer.read("the bee") == model.tokenizer.read("the bee") != again.tokenizer.encode("the bee")
    with pytest.raises(UserError, match=r"run holds a Vit, a part of our own; give image=mmfm.native\("):
        prepare(toy_run(model=toy_config(image=Tower(source=str(run)))))


def test_a_text_tower_with_its_own_tokenizer_comes_out_of_a_run(tmp_path: Path) -> None:
    """A part of ours that was imported: its tokenizer lies in the run's checkpoint."""
    config = CLIPTextConfig(**BLOCKS, **WORDS, max_position_embeddings=16)
    hf_folder(tmp_path / "clip", config, wordpieces(16))
    importer.import_source(str(tmp_path / "clip"), tmp_path / "imported", modality="text")
    prepared = prepare(toy_run(model=toy_config(text=mmfm.native(tmp_path / "imported"))))
    core = build(prepared.run.model, prepared.tokenizer.size, prepared.run.contrastive)
    begin(core, prepared)
    run = saved(Interface(core, prepared.run, prepared.tokenizer).eval(), tmp_path / "run")
    shutil.rmtree(tmp_path / "imported")
    again = prepare(toy_run(model=toy_config(text=mmfm.native(run, "text"))))
    assert again.tokenizer.read("the bee") == prepared.tokenizer.read("the bee")
    fresh = build(again.run.model, again.tokenizer.size, again.run.contrastive)
    begin(fresh, again)
    assert torch.equal(fresh.towers["text"].embedding.weight, core.towers["text"].embedding.weight)


def test_what_a_run_cannot_start_is_said(run_folder: Path, trained_model: Interface, tmp_path: Path) -> None:
    """Other numbers, a part that is not there, another tokenizer, no checkpoint: before training and, where it can be
    told without torch, by --check."""
    with pytest.raises(UserError, match=r"Vit.heads=4 is 2 in \S+run; take it from there: mmfm.native\('\S+', 'image'"):
        started(toy_config(image=replace(mmfm.native(run_folder, "image"), heads=4)))
    with pytest.raises(UserError, match=r"holds image, audio, text, trunk; name one"):
        mmfm.native(run_folder)
    letters = tmp_path / "letters.json"
    letters.write_text(train_tokenizer(["abc"] * 9, 257).to_json())
    for name in ("text", "trunk"):
        cfg = toy_config(tokenizer=str(letters), **{name: mmfm.native(run_folder, name)})
        with pytest.raises(UserError, match=r"letters.json' is not the one that \S+run was trained with; set it to 'b"):
            started(cfg, 257)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "run.json").write_text(to_json(trained_model.run))
    with pytest.raises(UserError, match="bare has no checkpoint; train it first"):
        started(toy_config(image=mmfm.native(tmp_path / "bare", "image")))
    silent = replace(trained_model.run, model=toy_config(audio=None))
    (tmp_path / "bare" / "run.json").write_text(to_json(silent))
    with pytest.raises(UserError, match="bare holds no audio to start from; it holds image, text, trunk"):
        started(toy_config(audio=replace(toy_config().audio, weights=str(tmp_path / "bare"))))


def test_wrong_weights_are_refused_by_check(run_folder: Path, tmp_path: Path, capsys) -> None:
    """In the second before torch is there, but not where the run has begun, which needs them no more."""
    shard(tmp_path / "data.tar", "png txt", "png txt")
    vit = replace(mmfm.native(run_folder, "image"), weights=str(tmp_path / "gone"))
    data = Data(train=(Source(shards=str(tmp_path / "data.tar"), modalities=("image", "text")),), batch_size=2)
    model, pair = toy_config(image=vit), (Contrastive(pair=("image", "text")),)
    run = Run(name="x", out=str(tmp_path), model=model, data=data, contrastive=pair, eval=Eval(every_steps=0))
    (tmp_path / "config.json").write_text(to_json(run))
    assert main(["train", str(tmp_path / "config.json"), "--check"]) == 2
    assert "gone is no model's folder" in capsys.readouterr().err
    run.folder.joinpath("checkpoints", "step-00000001").mkdir(parents=True)
    assert main(["train", str(tmp_path / "config.json"), "--check"]) == 0
