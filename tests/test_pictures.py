"""Pictures are prepared as the library of their encoder prepares them, or the encoder is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers as hf
from PIL import Image
from toy_encoders import BLOCKS, PICTURE, WORDS, hf_folder, open_clip_folder, timm_folder

from mmfm.config import ImagePreprocess, Tower, UserError
from mmfm.pretrained import resolve
from mmfm.pretrained.preprocessing_parity import MOST, apart, ours, stored

SIZES = ((301, 200), (64, 333), (45, 91), (224, 224))  # height and width; none but the last is square


def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(7)
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]


def gap(pixels: ImagePreprocess, theirs: Any) -> float:
    return apart(pixels, [(stored(picture), theirs(picture)) for picture in pictures()])


def of(processor: Any) -> Any:
    return lambda picture: torch.as_tensor(processor(images=picture, return_tensors="pt")["pixel_values"])[0]


SQUARE = {"height": 32, "width": 32}
LARGER = {"height": 37, "width": 37}
BITS = {"size": {"shortest_edge": 37}, "crop_size": SQUARE}
DINO = {name: value for name, value in PICTURE.items() if name != "intermediate_size"}
CONVNEXT = hf.ConvNextConfig(hidden_sizes=[8, 16, 16, 32], depths=[1] * 4, image_size=64)
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
PROCESSORS = {
    "vit": (hf.ViTConfig(**PICTURE), lambda: hf.ViTImageProcessor(size=SQUARE)),
    "deit": (hf.DeiTConfig(**PICTURE), lambda: hf.DeiTImageProcessor(size=LARGER, crop_size=SQUARE)),
    "beit": (hf.ViTConfig(**PICTURE), lambda: hf.BeitImageProcessor(size=LARGER, crop_size=SQUARE)),
    "convnext": (CONVNEXT, lambda: hf.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875)),
    "convnext, large": (CONVNEXT, lambda: hf.ConvNextImageProcessor(size={"shortest_edge": 384})),
    "clip": (hf.ViTConfig(**PICTURE), lambda: hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)),
    "dinov2": (hf.Dinov2Config(**DINO), lambda: hf.BitImageProcessor(**BITS)),
    "siglip": (hf.ViTConfig(**PICTURE), lambda: hf.SiglipImageProcessor(size=SQUARE)),
    "levit": (hf.ViTConfig(**PICTURE), lambda: hf.LevitImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)),
    "grey levels": (hf.ViTConfig(**PICTURE), lambda: hf.ViTImageProcessor(size=SQUARE, do_normalize=False)),
    "swin, bilinear": (hf.SwinConfig(**SWIN), lambda: hf.ViTImageProcessor(size=SQUARE, resample=2)),
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_transformers_own_processor(name: str, tmp_path: Path) -> None:
    """What stands beside the weights is what pictures go through: size, cut, filter and normalisation."""
    config, make = PROCESSORS[name]
    hf_folder(tmp_path, config, make())
    found = resolve(Tower(source=str(tmp_path)), "image").blueprint.pixels
    assert gap(found, of(hf.AutoImageProcessor.from_pretrained(tmp_path))) <= MOST


REFUSED = {
    "nearest": lambda: hf.ViTImageProcessor(size=SQUARE, resample=0),
    "reversed colours": lambda: hf.MobileViTImageProcessor(size={"shortest_edge": 37}, crop_size=SQUARE),
    "padded": lambda: hf.ViltImageProcessor(size={"shortest_edge": 32}),
    "a picture in pieces": lambda: hf.Siglip2ImageProcessor(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_preparation_is_refused(name: str, tmp_path: Path) -> None:
    """In one line: nothing is guessed."""
    hf_folder(tmp_path, hf.ViTConfig(**PICTURE), REFUSED[name]())
    with pytest.raises(UserError) as caught:
        resolve(Tower(source=str(tmp_path)), "image")
    told = str(caught.value)
    assert "\n" not in told and (
        "cannot be done here" in told or "not channels, rows and columns" in told or "cannot prepare a picture" in told
    ), told


OWN = '{"auto_map": {"AutoImageProcessor": "x.X"},'
DAMAGED = {
    "cut": (lambda text: text[: len(text) // 2], "cannot be read as JSON"),
    "a list": (lambda text: "[]", "should hold a JSON object"),
    "an unknown class": (lambda text: text.replace("ViTImage", "OurImage"), "is none of transformers'"),
    "code of its own": (
        lambda text: text.replace("ViTImageProcessor", "X").replace("{", OWN, 1),
        "is none of transformers'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_preprocessor_is_an_error(name: str, tmp_path: Path) -> None:
    """A file that is there and cannot be read is never replaced by a class's defaults."""
    damage, words = DAMAGED[name]
    hf_folder(tmp_path, hf.ViTConfig(**PICTURE), hf.ViTImageProcessor(size=SQUARE))
    path = tmp_path / "preprocessor_config.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=words):
        resolve(Tower(source=str(tmp_path)), "image")


@pytest.mark.parametrize("damage", ["cut", "an unknown class"])
def test_a_damaged_extractor_is_an_error(damage: str, tmp_path: Path) -> None:
    hf_folder(
        tmp_path, hf.Wav2Vec2BertConfig(feature_projection_input_dim=160, **BLOCKS), hf.SeamlessM4TFeatureExtractor()
    )
    path = tmp_path / "preprocessor_config.json"
    text = path.read_text()
    path.write_text(text[:40] if damage == "cut" else text.replace("SeamlessM4TFeature", "OurFeature"))
    with pytest.raises(
        UserError, match="cannot be read as JSON" if damage == "cut" else "is none of transformers' own"
    ):
        resolve(Tower(source=str(tmp_path)), "audio")


def test_defaults_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there truly is no file, the class's defaults at the model's size, and a line that says so."""
    hf_folder(tmp_path, hf.ViTConfig(**PICTURE))
    found = resolve(Tower(source=str(tmp_path)), "image").blueprint.pixels
    assert (found.height_px, found.resize_mode) == (32, "stretch")
    told = capsys.readouterr().err
    assert "has no preprocessor_config.json: pictures are prepared as ViTImageProcessor" in told and "32 x 32" in told


def test_a_processor_within_processor_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers 5 also keeps all parts in one file: that is no missing file."""
    hf_folder(tmp_path, hf.ViTConfig(**PICTURE), hf.ViTImageProcessor(size=SQUARE, image_mean=[0.1, 0.2, 0.3]))
    path = tmp_path / "preprocessor_config.json"
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(path.read_text())}))
    path.unlink()
    assert resolve(Tower(source=str(tmp_path)), "image").blueprint.pixels.mean == (0.1, 0.2, 0.3)
    assert "by default" not in capsys.readouterr().err


TIMM = {"center": 0.875, "squash": 0.9, "center, all": 1.0}


@pytest.mark.parametrize("name", TIMM)
def test_timms_own_transform(name: str, tmp_path: Path) -> None:
    timm_folder(tmp_path, "test_vit")
    path = tmp_path / "config.json"
    said = json.loads(path.read_text())
    said["pretrained_cfg"] |= {"crop_mode": name.partition(",")[0], "crop_pct": TIMM[name], "interpolation": "bicubic"}
    path.write_text(json.dumps(said))
    found = resolve(Tower(source=str(tmp_path)), "image").blueprint.pixels
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    assert gap(found, theirs) <= MOST


def test_timm_with_borders_is_refused(tmp_path: Path) -> None:
    timm_folder(tmp_path, "test_vit")
    path = tmp_path / "config.json"
    said = json.loads(path.read_text())
    said["pretrained_cfg"]["crop_mode"] = "border"
    path.write_text(json.dumps(said))
    with pytest.raises(UserError, match="timm prepares pictures as cannot be done here"):
        resolve(Tower(source=str(tmp_path)), "image")


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("size", [32, [32, 48]])
def test_open_clips_own_transform(mode: str, size: Any, tmp_path: Path) -> None:
    vision = {"image_size": size, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    open_clip_folder(tmp_path, {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text})
    path = tmp_path / "open_clip_config.json"
    said = json.loads(path.read_text())
    said["preprocess_cfg"] |= {"resize_mode": mode, "interpolation": "bilinear"}
    path.write_text(json.dumps(said))
    found = resolve(Tower(source=str(tmp_path)), "image").blueprint.pixels
    _, _, theirs = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert gap(found, theirs) <= MOST


def test_a_very_long_picture_is_cut_first() -> None:
    """The shorter side of 4 by 40,000 is not resized to 32 by 320,000."""
    row = np.tile(np.arange(40_000) % 251, (4, 1)).astype(np.uint8)
    found = ours(
        ImagePreprocess(height_px=32, width_px=32, resize_mode="shortest"), Image.fromarray(row).convert("RGB")
    )
    assert found.shape == (3, 32, 32)


def test_the_old_cut_is_as_it_was() -> None:
    """resize_mode="crop" of runs that are saved cuts before it resizes, as ever."""
    (picture, *_) = pictures()
    whole = torch.from_numpy(np.array(picture))[50:251].permute(2, 0, 1)
    middle = torch.from_numpy(np.array(picture))[50:250].permute(2, 0, 1)
    found = ours(ImagePreprocess(height_px=32, width_px=32, resize_mode="crop"), picture)
    assert whole.shape[1] == 201 and middle.shape == (3, 200, 200)
    small = torch.nn.functional.interpolate(middle[None], (32, 32), mode="bicubic", antialias=True)[0]
    assert torch.equal(found, (small.float() / 255 - 0.5) / 0.5)


def test_two_halves_of_one_model(tmp_path: Path) -> None:
    """The class is named by the whole model."""
    config = hf.CLIPConfig(text_config=BLOCKS | WORDS, vision_config=PICTURE)
    hf_folder(tmp_path, config, hf.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE))
    found = resolve(Tower(source=str(tmp_path), height_px=48, width_px=48), "image").blueprint.pixels
    assert (found.height_px, found.resize_mode, found.crop_pct) == (48, "shortest", 0.8), (
        "another size of the same preparation"
    )
