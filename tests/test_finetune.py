"""Fine-tuning of what was trained before: rates that fall layer by layer, and runs as the start of parts of others."""

from dataclasses import replace

import pytest
import timm
import torch
from peers import TINY
from timm.optim import param_groups_layer_decay
from torch import nn
from toy_encoders import PICTURE, hf_folder, timm_folder
from toys import toy_config, toy_model, toy_run
from transformers import CLIPVisionConfig

from mmfm.config import Optim, ParamGroup, Tower, UserError, Vit
from mmfm.models.mappings import Foreign, convert
from mmfm.models.model import build
from mmfm.training.initialize import prepare
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
