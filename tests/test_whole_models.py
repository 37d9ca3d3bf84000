"""Whole models of other libraries (CLIP, SigLIP, CLAP) as bundles: what their own library gives, to the logits."""

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from safetensors.torch import save_file
from torch import nn
from toy_encoders import BLOCKS, PICTURE, WORDS, hf_folder, open_clip_folder, wordpieces
from toy_wholes import (
    CLOSE,
    SENTENCES,
    Made,
    clap,
    clip,
    clip_with_its_tokenizer,
    dual,
    groupvit,
    inputs,
    pictures,
    siglip,
    sounds,
)
from toys import toy_config

import mmfm
from mmfm.__main__ import main
from mmfm.config import Augment, Contrastive, Data, Generative, Model, Run, Tower, Trunk, UserError, require
from mmfm.config.task import Task
from mmfm.data.batch import Batch, Items
from mmfm.export.importer import import_source
from mmfm.models.model import build
from mmfm.objectives.task_pass import forward_task
from mmfm.pretrained import from_hf, resolve

VISION = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8}
TEXT = {"context_length": 16, "width": 16, "heads": 2, "layers": 2}
PROMPTS = ["a photo of a cat", "the quick brown fox, 42 times and then some more of it, and more, and more", "bird"]
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "clip": {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT},
    "quick": {"embed_dim": 8, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
    "siglip": {
        "embed_dim": 8,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4},
        "text_cfg": TEXT | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
    "class token": {"embed_dim": 8, "custom_text": True, "vision_cfg": VISION, "text_cfg": TEXT | {"embed_cls": True}},
    "timm": {
        "embed_dim": 8,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear", "image_size": 160},
        "text_cfg": TEXT,
    },
}


@pytest.mark.parametrize("make", [clip, clip_with_its_tokenizer, siglip, dual, groupvit, clap])
@torch.no_grad()
def test_scores_of_transformers_are_ours(make: Callable[[Path], Made], tmp_path: Path) -> None:
    """Embeddings, logits and probabilities, from pictures, sounds and strings: with its preprocessing and tokenizer."""
    made = make(tmp_path / "source")
    report = import_source(str(tmp_path / "source"), tmp_path / "bundle")
    out = made[0](**inputs(made, SENTENCES))
    model = mmfm.load(tmp_path / "bundle", device="cpu")
    heard = "audio" in model.modalities
    kind = "audio" if heard else "image"
    theirs, logits = out[f"{kind}_embeds"], out[f"logits_per_{kind}"]
    ours = model.encode_audio(sounds()) if heard else model.encode_image(pictures())
    texts = model.encode_text(SENTENCES)
    torch.testing.assert_close(ours, F.normalize(theirs, dim=-1), rtol=0, atol=CLOSE)
    torch.testing.assert_close(texts, F.normalize(out.text_embeds, dim=-1), rtol=0, atol=CLOSE)
    scores = model.logit_scale.exp() * ours @ texts.T + (0 if model.logit_bias is None else model.logit_bias)
    torch.testing.assert_close(scores, logits, rtol=0, atol=2e-4)
    chances = torch.sigmoid if model.logit_bias is not None else lambda x: x.softmax(-1)
    torch.testing.assert_close(chances(scores), chances(logits), rtol=0, atol=CLOSE)
    assert (model.logit_bias is None) == (make is not siglip)
    assert report.holds and report.padding_invariant and report.part == "Model"
    assert min(float(F.pdist(x).min()) for x in (ours, texts)) > 50 * CLOSE, "alike, so that nothing is shown"


@pytest.mark.parametrize("kind", OPEN_CLIP)
@torch.no_grad()
def test_scores_of_open_clip_are_ours(kind: str, tmp_path: Path) -> None:
    """Opened by open_clip itself, with its transform and tokenizer, a text that is cut included."""
    open_clip_folder(tmp_path / "source", OPEN_CLIP[kind])
    there = f"local-dir:{tmp_path / 'source'}"
    theirs, _, transform = open_clip.create_model_and_transforms(there)
    import_source(str(tmp_path / "source"), tmp_path / "bundle")
    model = mmfm.load(tmp_path / "bundle", device="cpu")
    x, ids = torch.stack([transform(one) for one in pictures()]), open_clip.get_tokenizer(there)(PROMPTS)
    image, text, scale, *bias = theirs.eval()(x, ids)
    with pytest.warns(UserWarning, match="only the beginning of a long text"):
        texts = model.encode_text(PROMPTS)
    ours = model.encode_image(pictures())
    torch.testing.assert_close(ours, image, rtol=0, atol=CLOSE)
    torch.testing.assert_close(texts, text, rtol=0, atol=CLOSE)
    assert float(model.logit_scale.exp()) == pytest.approx(float(scale), rel=1e-6)
    added = [] if model.logit_bias is None else [pytest.approx(float(model.logit_bias))]
    assert [float(one) for one in bias] == added
    assert min(float(F.pdist(one).min()) for one in (ours, texts)) > 50 * CLOSE, "alike, so that nothing is shown"


# Dual encoders


def dual_encoder(folder: Path) -> Model:
    """Of the mean tokens of both halves."""
    towers = {name: Tower(source=str(folder), pool="mean") for name in ("image", "text")}
    made = {name: replace(part, blueprint=resolve(part, name).blueprint) for name, part in towers.items()}
    trunk = Trunk(width=12, depth=0, heads=1, kv_heads=1, head_dim=2)
    return Model(image=made["image"], text=made["text"], audio=None, trunk=trunk, embed_dim=6)


@torch.no_grad()
def test_a_dual_encoder_is_a_projection_of_each_tower(tmp_path: Path) -> None:
    """Without layers in the trunk an embedding is the one token through its projections, and nothing else."""
    clip(tmp_path)
    core = build(dual_encoder(tmp_path), 300, (Contrastive(pair=("image", "text")),)).eval()
    x, rows = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), torch.arange(3)
    items = Items(x=x, keep=torch.ones(3, 1, dtype=torch.bool), rows=rows)
    found = forward_task(core, Task(("image",), None), Batch(size=3, items={"image": items}, positive_ids=rows))
    assert found is not None and not core.pools and isinstance(core.heads["image"], nn.Linear)
    token = core.tokens("image", items).x.squeeze(1)
    expected = core.heads["image"](core.trunk.norm(core.connectors["image"](token)))
    torch.testing.assert_close(found.embedding, F.normalize(expected, dim=-1))


def test_what_a_dual_encoder_cannot_do_is_said(tmp_path: Path) -> None:
    clip(tmp_path)
    model = dual_encoder(tmp_path)
    with pytest.raises(UserError, match=r"whose towers each give one token.*that of text does not"):
        replace(model, text=toy_config().text)
    with pytest.raises(UserError, match=r"a dual encoder \(Trunk.depth=0\) has no use for generative tasks"):
        Run(name="x", model=model, generative=(Generative(task="image>text"),))
    with pytest.raises(UserError, match=r"a dual encoder \(Trunk.depth=0\) has no use for .*tower_token_dropout"):
        Run(name="x", model=model, data=Data(augment=Augment(tower_token_dropout=0.1)))


# What cannot be had


def alone(folder: Path) -> None:
    hf_folder(folder, hf.ViTConfig(**PICTURE), hf.ViTImageProcessor(size={"height": 32, "width": 32}))


def unworded(folder: Path) -> None:
    clip(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def sequences(folder: Path) -> None:
    """FLAVA's own embeddings are one for each token."""
    half = BLOCKS | {"vocab_size": WORDS["vocab_size"]}
    config = hf.FlavaConfig(image_config=PICTURE, text_config=half, multimodal_config=BLOCKS, projection_dim=12)
    hf_folder(folder, config, wordpieces(), hf.ViTImageProcessor(size={"height": 32, "width": 32}))


def half_lost(folder: Path) -> None:
    model, *_ = clip(folder)
    state = {name: x for name, x in model.state_dict().items() if not name.startswith("text_projection")}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("make", "words", "told"),
    [
        (alone, ["--modality", "whole"], "source can be image, and embeds no two of them in one space; say --modality"),
        (clip, ["--layout", "native"], "a whole model keeps its modules; leave out --layout, or say --modality"),
        (unworded, [], "source has no file of a tokenizer; put its tokenizer.json beside its config.json"),
        (sequences, [], r"gives \[\d+, 12\] numbers of an input, and no single vector; .* \(--modality\)"),
        (half_lost, [], r"its weights lack text_projection.weight \(1 in all\)"),
    ],
)
def test_what_is_no_whole_model_is_one_line(
    make: Callable[[Path], object],
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["import", "source", "out", *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(told, said) and said.startswith("mmfm: ")
    assert not (tmp_path / "out").exists()


def test_a_model_of_which_one_half_can_be_had_is_not_taken_for_that_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip(tmp_path / "source")
    whole = from_hf.sub_config

    def no_pictures(config: Any, modality: str) -> Any:
        require(modality != "image", "its pictures come as patches")
        return whole(config, modality)

    monkeypatch.setattr(from_hf, "sub_config", no_pictures)
    told = r"embeds image and text in one space, and its encoder of image cannot be had here; say --modality text"
    with pytest.raises(UserError, match=told):
        import_source(str(tmp_path / "source"), tmp_path / "out")


@pytest.fixture
def other_forward(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], None]:
    """Planted: a class whose forward gives this output of its own times so much."""
    whole = hf.CLIPModel.forward

    def plant(output: str, factor: float) -> None:
        def forward(self: Any, **given: Any) -> Any:
            out = whole(self, **given)
            setattr(out, output, factor * getattr(out, output))
            return out

        forward.__signature__ = inspect.signature(whole)  # pyright: ignore[reportFunctionMemberAccess]
        monkeypatch.setattr(hf.CLIPModel, "forward", forward)

    return plant


def test_what_a_model_does_not_score_by_is_no_embedding_of_it(
    tmp_path: Path, other_forward: Callable[[str, float], None]
) -> None:
    clip(tmp_path / "source")
    other_forward("image_embeds", -1.0)
    with pytest.raises(UserError, match=r"embedding of image that it scores by is another than its get_image_features"):
        import_source(str(tmp_path / "source"), tmp_path / "out")


def test_a_scale_that_does_not_explain_the_scores_is_left_out(
    tmp_path: Path, other_forward: Callable[[str, float], None]
) -> None:
    """Its embeddings are compared all the same."""
    clip(tmp_path / "source")
    other_forward("logits_per_image", 0.5)
    import_source(str(tmp_path / "source"), tmp_path / "out")
    model = mmfm.load(tmp_path / "out", device="cpu")
    assert not model.run.contrastive and model.encode_text(SENTENCES).shape == (3, 12)
    with pytest.raises(UserError, match="has no logit_scale"):
        _ = model.logit_scale


def test_a_gated_source_says_how_to_be_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it at the hub")

    monkeypatch.setattr(hf.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(UserError, match=r"hf:a/b: .*config.json\) is gated; ask for access .*`hf auth login`"):
        import_source("hf:a/b", "nowhere")


def test_a_part_alone_is_no_model_to_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone(tmp_path / "source")
    import_source(str(tmp_path / "source"), tmp_path / "part")
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "part"), "--data", "x"]) == 2
    assert "part holds image alone, and no model; give a run, or a whole model's bundle" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"holds image alone, and no model; give native\("):
        mmfm.native_model(tmp_path / "part")
