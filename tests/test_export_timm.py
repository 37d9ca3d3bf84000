"""timm builds our image paths: towers as its own ViT, by itself, and whole paths under a name of ours."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from shared_exports import pictures, saved, square

from mmfm.config import UserError, Vit
from mmfm.export import timm as ours
from mmfm.export.command import export
from mmfm.inference.load import load_model
from mmfm.models.vit import VisionTransformer, normalise


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "toy"
    saved(folder, square())
    return folder


SIZES = {"height_px": 32, "width_px": 48, "patch_px": 8, "width": 16, "depth": 2, "heads": 2}
KINDS = {
    "plain": {},
    "DeiT": {"prefix": 1},
    "CLIP": {"prefix": 1, "norm_pre": True, "patch_bias": False, "eps": 1e-5, "activation": "quick_gelu"},
    "DINOv2 with registers": {"prefix": 5, "layer_scale": 0.5, "hidden": 40},
    "SigLIP": {"activation": "gelu_tanh", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)},
    "a bias where timm has none": {"norm_pre": True, "patch_bias": True, "norm_post": False},
    "grey": {"channels": 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_towers_are_timms_own_models(kind, tmp_path):
    """Any of our towers that timm can say: a folder that timm loads strictly, without us, gives the tower's tokens."""
    torch.manual_seed(0)
    vit = Vit(**(SIZES | KINDS[kind]))
    tower = VisionTransformer(vit).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    ours.write(vit, tower, tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pixels = torch.randint(0, 256, (2, vit.channels, 32, 48), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (vit.mean, vit.std))
    with torch.no_grad():
        found, wanted = theirs.forward_features((pixels / 255 - mean) / std), tower(normalise(pixels, torch.float32)).x
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    data = timm.data.resolve_model_data_config(theirs)
    assert tuple(data["mean"]) == vit.mean * (1 if len(vit.mean) > 1 else vit.channels)
    assert tuple(data["input_size"]) == (vit.channels, 32, 48)


@pytest.mark.parametrize(
    ("changes", "words"), [({"stem": "conv"}, "this one's is conv"), ({"eps": 1e-3}, "norms of epsilon")]
)
def test_towers_that_timm_cannot_say(changes, words, tmp_path):
    vit = Vit(**(SIZES | changes))
    with pytest.raises(UserError, match=words):
        ours.write(vit, VisionTransformer(vit), tmp_path)


def test_a_runs_tower_goes_to_timm(run, tmp_path):
    """The command: the folder holds the tower alone, and says by how much it was found to differ."""
    out = export(run, "timm", tmp_path / "out")
    about = json.loads((out / "export.json").read_text())
    assert about["modalities"] == ["image"] and about["difference"] <= 1e-5
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    model = load_model(run)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    x = torch.stack([transform(picture) for picture in pictures(3)])
    with torch.no_grad():
        wanted = model.core.towers["image"](x).x
        torch.testing.assert_close(theirs.forward_features(x), wanted, rtol=0, atol=1e-5)


def test_the_whole_path_under_our_name(run):
    """timm's transform and create_model give the embedding of `mmfm.load`; pools and classifiers can be exchanged."""
    ours.register()
    ours.register()
    made = timm.create_model("mmfm_image", run=str(run)).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(made))
    x = torch.stack([transform(picture) for picture in pictures(3)])
    with torch.no_grad():
        features = made.forward_features(x)
        expected = load_model(run).encode_image(pictures(3))  # whose last block computes the pools' states alone
        torch.testing.assert_close(made(x), expected, rtol=0, atol=1e-6)
        assert torch.equal(made.forward_head(features, pre_logits=True), made(x))
        assert features.shape[2] == made.num_features
        made.reset_classifier(7, global_pool="avg")
        wanted = made.get_classifier()(features[:, :-1].mean(1))
        assert torch.equal(made(x), wanted) and made.head_hidden_size == made.num_features
        made.reset_classifier(0, global_pool="")
        assert torch.equal(made(x), features)


def test_gradients_reach_the_tower_and_checkpoints_come_back(run, tmp_path):
    """A classifier on top trains all of the path; timm loads what was saved of it by checkpoint_path."""
    ours.register()
    made = timm.create_model("mmfm_image", run=str(run), num_classes=5)
    made(torch.rand(2, 3, 16, 16)).sum().backward()
    still = [name for name, value in made.named_parameters() if value.grad is None and "core.embedding" not in name]
    assert still == []
    with torch.no_grad():
        made.fc.bias += 1
    save_file(made.state_dict(), tmp_path / "tuned.safetensors")
    again = timm.create_model("mmfm_image", run=str(run), num_classes=5, checkpoint_path=tmp_path / "tuned.safetensors")
    assert torch.equal(again.fc.bias, load_file(tmp_path / "tuned.safetensors")["fc.bias"])


def test_what_is_asked_wrongly_is_said(run):
    ours.register()
    with pytest.raises(UserError, match=r'say which model: timm.create_model\("mmfm_image", run="runs/NAME"\)'):
        timm.create_model("mmfm_image")
    with pytest.raises(UserError, match="reads pictures of 3 channels, not in_chans=1"):
        timm.create_model("mmfm_image", run=str(run), in_chans=1)
    with pytest.raises(UserError, match="global_pool='max' is none of"):
        timm.create_model("mmfm_image", run=str(run), global_pool="max")
