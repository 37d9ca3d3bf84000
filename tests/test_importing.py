"""`mmfm import`: whatever the source, the bundle gives the source's numbers, and nothing is written that does not."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import processors
from torch import Tensor, nn
from toy_encoders import BLOCKS, LAYERED, PICTURE, WORDS, hf_folder, moved, open_clip_folder, timm_folder, wordpieces
from toys import toy_batch, toy_config

import mmfm
from mmfm.__main__ import main
from mmfm.config import (
    Conformer,
    Contrastive,
    Generative,
    Model,
    Optim,
    ParamGroup,
    Run,
    TextTower,
    Tower,
    Trunk,
    UserError,
    Vit,
)
from mmfm.export import importer
from mmfm.inference import bundle
from mmfm.inference.bundle.encoder import BundledEncoder
from mmfm.inference.interface import Interface
from mmfm.models.checkpoint import save
from mmfm.models.model import build
from mmfm.models.transformer import Segment
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.training import optimizer as optimising
from mmfm.training.initialize import begin, parameters_of, prepare
from mmfm.training.module import JointModule

pytestmark = pytest.mark.filterwarnings("ignore:.*SwigPy.*:DeprecationWarning")
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
SENTENCES = ["the cat", "a dog and the bee", "x"]
Found = tuple[str, type, Callable[[BundledEncoder], tuple[Tensor, Tensor]]]


def noise(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seen(encoder: BundledEncoder) -> tuple[Tensor, Tensor]:
    """Two pictures, as the bundle takes them and as its source was trained to: by its own mean and deviation."""
    pixels = encoder.preprocess
    shape = (2, pixels.channels, pixels.height_px, pixels.width_px)
    x = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (pixels.mean, pixels.std))
    return x, (x / 255 - mean) / std


def of_pictures(native: Callable[[Tensor], Tensor]) -> Callable[[BundledEncoder], tuple[Tensor, Tensor]]:
    def both(encoder: BundledEncoder) -> tuple[Tensor, Tensor]:
        x, theirs = seen(encoder)
        return encoder(x).x, native(theirs)

    return both


def vit(folder: Path) -> Found:
    native = hf_folder(folder, hf.ViTConfig(**PICTURE))
    return "image", Vit, of_pictures(lambda x: native(x).last_hidden_state)


def dino(folder: Path) -> Found:
    native = hf_folder(folder, hf.Dinov2WithRegistersConfig(**PICTURE, mlp_ratio=2))
    return "image", Vit, of_pictures(lambda x: native(x).last_hidden_state)


def timm_vit(folder: Path) -> Found:
    native = timm_folder(folder, "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    return "image", Vit, of_pictures(native.forward_features)


def resnet(folder: Path) -> Found:
    native = timm_folder(folder, "test_resnet")
    return "image", Tower, of_pictures(lambda x: native.forward_features(x).flatten(2).transpose(1, 2))


def clip_image(folder: Path) -> Found:
    native = open_clip_folder(folder, CLIP)

    def tokens(x: Tensor) -> Tensor:
        how = {"normalize_intermediates": True, "intermediates_only": True, "output_extra_tokens": True}
        out = native.visual.forward_intermediates(x, 1, output_fmt="NLC", **how)
        return torch.cat([out["image_intermediates_prefix"][-1], out["image_intermediates"][-1]], 1)

    return "image", Vit, of_pictures(tokens)


def clip_text(folder: Path) -> Found:
    native = open_clip_folder(folder, CLIP)

    def both(encoder: BundledEncoder) -> tuple[Tensor, Tensor]:
        import open_clip

        ids = open_clip.SimpleTokenizer(context_length=24)(SENTENCES)
        how = {"text_indices": 1, "normalize_intermediates": True, "intermediates_only": True}
        theirs = native.forward_intermediates(text=ids, **how)["text_intermediates"][-1]
        x, keep = encoder(SENTENCES)
        return x[keep], theirs[:, : keep.shape[1]][keep]

    return "text", TextTower, both


def of_words(native: nn.Module) -> Callable[[BundledEncoder], tuple[Tensor, Tensor]]:
    def both(encoder: BundledEncoder) -> tuple[Tensor, Tensor]:
        given = wordpieces()(SENTENCES, padding=True, return_tensors="pt")
        theirs = native(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
        x, keep = encoder(SENTENCES)
        assert torch.equal(keep, given["attention_mask"].bool())
        return x[keep], theirs[keep]

    return both


def hf_clip_text(folder: Path) -> Found:
    native = hf_folder(folder, hf.CLIPTextConfig(**BLOCKS, **WORDS, max_position_embeddings=24), wordpieces())
    return "text", TextTower, of_words(native)


def bert(folder: Path) -> Found:
    native = hf_folder(folder, hf.BertConfig(**BLOCKS, **WORDS, max_position_embeddings=24), wordpieces())
    return "text", Tower, of_words(native)


def wav2vec(folder: Path) -> Found:
    extractor = hf.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    native = hf_folder(folder, hf.Wav2Vec2Config(**LAYERED), extractor)

    def both(encoder: BundledEncoder) -> tuple[Tensor, Tensor]:
        waves = [noise(8_000), noise(3_000, seed=4)]
        given = extractor([wave.numpy() for wave in waves], padding=True, sampling_rate=16_000, return_tensors="pt")
        theirs = native(**given).last_hidden_state
        x, keep = encoder(waves)
        return x[keep], theirs[keep]

    return "audio", Tower, both


def w2v_bert(folder: Path) -> Found:
    extractor = hf.SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80)
    cfg = hf.Wav2Vec2BertConfig(**BLOCKS, conv_depthwise_kernel_size=5, apply_spec_augment=False)
    native = hf_folder(folder, cfg, extractor)

    def both(encoder: BundledEncoder) -> tuple[Tensor, Tensor]:
        waves = [noise(8_000), noise(4_320, seed=4)]
        given = extractor([wave.numpy() for wave in waves], padding=True, sampling_rate=16_000, return_tensors="pt")
        theirs = native(**given).last_hidden_state
        x, keep = encoder(waves)
        return x[keep], theirs[:, : keep.shape[1]][keep]

    return "audio", Conformer, both


SOURCES = [vit, dino, timm_vit, resnet, clip_image, clip_text, hf_clip_text, bert, wav2vec, w2v_bert]


@pytest.mark.parametrize("make", SOURCES)
@torch.no_grad()
def test_the_bundle_gives_the_sources_numbers(make, tmp_path):
    """Loaded from its folder, against the library's own forward on inputs that the proof has not seen."""
    modality, part, both = make(tmp_path / "source")
    proof = importer.import_source(str(tmp_path / "source"), tmp_path / "out", modality=modality)
    assert proof.part == part.__name__ and proof.holds and proof.difference <= 1e-4 * proof.scale
    encoder = mmfm.load_encoder(modality, tmp_path / "out")
    ours, theirs = both(encoder)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))
    assert encoder.width == theirs.shape[-1] and encoder.embed_dim == 0
    told = json.loads((tmp_path / "out/proof.json").read_text())
    assert told["difference"] == proof.difference and told["source"] == "source" and told["part"] == proof.part
    assert re.search(r"Imported from source with torch [\d.+a-z]+, ", (tmp_path / "out/README.md").read_text())
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "out").glob("*.json"))
    with pytest.raises(UserError, match="this bundle holds a tower alone, which gives tokens and no embedding"):
        encoder.embed(encoder.prepare(["x"]) if modality == "text" else "x")


@torch.no_grad()
def test_torchaudio(tmp_path, monkeypatch):
    """A bundle of torchaudio's pipelines, its weights in place of a download; group norms see the padding, and the
    proof says so."""
    convs = [(16, 10, 5), (16, 3, 2), (16, 3, 2)]
    params = {"extractor_mode": "group_norm", "extractor_conv_layer_config": convs, "extractor_conv_bias": False}
    params |= {"encoder_embed_dim": 16, "encoder_projection_dropout": 0.0, "encoder_pos_conv_kernel": 16}
    params |= {"encoder_pos_conv_groups": 2, "encoder_num_layers": 2, "encoder_num_heads": 2}
    params |= {"encoder_attention_dropout": 0.0, "encoder_ff_interm_features": 32, "encoder_ff_interm_dropout": 0.0}
    params |= {
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": False,
        "encoder_layer_drop": 0.0,
        "aux_num_out": None,
    }
    native = moved(torchaudio.models.wav2vec2_model(**params))

    class Toy(torchaudio.pipelines.Wav2Vec2Bundle):
        def _get_state_dict(self, dl_kwargs: object) -> dict[str, Tensor]:
            return native.state_dict()

    monkeypatch.setattr(torchaudio.pipelines, "TOY", Toy("toy.pth", params, 16_000, False, "Wav2Vec2"), raising=False)
    proof = importer.import_source("torchaudio:TOY", tmp_path / "out")
    assert proof.holds and not proof.padding_invariant and proof.padding > 0.01
    assert "padded inputs are" in (tmp_path / "out/README.md").read_text()
    wave = noise(1, 6_000)
    torch.testing.assert_close(mmfm.load_encoder("audio", tmp_path / "out")(wave).x, native(wave)[0], rtol=0, atol=1e-5)


def language(folder: Path, tied: bool = True) -> nn.Module:
    """A small Llama whose tokenizer works on bytes and adds a mark of its own."""
    tokenizer = load_tokenizer("bytes").inner
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    wrapped = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", model_max_length=99)
    marks = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
    cfg = hf.LlamaConfig(**BLOCKS, **marks, vocab_size=260, num_key_value_heads=1, tie_word_embeddings=tied)
    torch.manual_seed(0)
    model = moved(hf.LlamaForCausalLM(cfg))
    for part in (model, wrapped):
        part.save_pretrained(folder)
    return model


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_language_model_becomes_the_trunk(tied, tmp_path):
    """Begun from the bundle, our model's logits over the text's rows are the language model's; where its output has a
    table of its own, ours has too."""
    native = language(tmp_path / "lm", tied)
    proof = importer.import_source(str(tmp_path / "lm"), tmp_path / "out")
    assert (proof.modality, proof.part) == ("trunk", "Trunk") and proof.holds and proof.padding_invariant
    trunk = mmfm.native(str(tmp_path / "out"))
    assert 'trunk = mmfm.native("' in (tmp_path / "out/README.md").read_text()
    assert isinstance(trunk, Trunk) and trunk.kv_heads == 1 and trunk.tie_embeddings == tied
    cfg = toy_config(trunk=trunk, tokenizer=str(tmp_path / "out/mmfm_tokenizer.json"))
    tokenizer = load_tokenizer(cfg.tokenizer)
    core = build(cfg, tokenizer.size, (Contrastive(pair=("image", "text")),))
    bundle.start(core, cfg)
    ids = torch.tensor([tokenizer.encode("forty-two")])
    target = core.target(core.vocabulary.shared("text", ids), torch.ones_like(ids, dtype=torch.bool))
    span = core.vocabulary.span("text")
    (states,) = core.trunk([Segment(target.tokens, causal=True)])
    ours, theirs = core.logits(states)[..., span.start : span.stop], native(ids).logits[..., : len(span)]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="out holds no image encoder; it holds trunk and vocabulary alone"):
        mmfm.load_encoder("image", tmp_path / "out")
    whole = mmfm.from_pretrained(tmp_path / "out").core  # of text alone
    words = whole.embedding.weight[whole.vocabulary.span("text").start :][: len(span)]
    assert torch.equal(words, native.get_input_embeddings().weight[: len(span)])
    with pytest.raises(
        UserError, match=r"Run\.start='\S+' holds trunk and vocabulary alone, and no model; leave start"
    ):
        bundle.check_start(Run(name="x", start=str(tmp_path / "out")))
    with pytest.raises(UserError, match=r"Model.tokenizer='bytes' is not the one that .*; set it to .*tokenizer.json"):
        bundle.start(core, toy_config(trunk=trunk))


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_that_is_locked_stays_what_it_was(tied, tmp_path):
    """`trunk.*` at rate 0 names its tables too: after steps with decay its text rows are the language model's, and the
    new rows of marks, the connectors and heads have moved. What is locked is told, with its count."""
    language(tmp_path / "lm", tied)
    importer.import_source(str(tmp_path / "lm"), tmp_path / "out")
    model = toy_config(trunk=mmfm.native(str(tmp_path / "out")), tokenizer=str(tmp_path / "out/mmfm_tokenizer.json"))
    rates = (ParamGroup(pattern="trunk.*", lr_scale=0.0), ParamGroup(pattern="towers.*", lr_scale=0.5))
    optim = Optim(steps=9, lr=1e-2, warmup_steps=1, weight_decay=0.5, param_groups=rates)
    run = Run(name="x", model=model, contrastive=(Contrastive(pair=("image", "text")),), optim=optim)
    run = replace(run, generative=(Generative(task="image>text"),))
    tokenizer = load_tokenizer(model.tokenizer)
    core = build(model, tokenizer.size, run.contrastive)
    bundle.start(core, model)
    before = {name: value.clone() for name, value in core.named_parameters()}
    module = JointModule(run, core).train()
    optimizer = module.configure_optimizers()["optimizer"]
    for _ in range(3):
        sum(module.objectives(toy_batch()).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    span, tables = core.vocabulary.span("text"), ["embedding.weight"] + ["output.weight"] * (not tied)
    moved = {name for name, value in core.named_parameters() if not torch.equal(value, before[name])}
    assert not any(name.startswith("trunk.") for name in moved) and "connectors.image.weight" in moved
    for name in tables:
        now = core.get_parameter(name)
        assert torch.equal(now[span.start : span.stop], before[name][span.start : span.stop]), name
        assert not torch.equal(now[: span.start], before[name][: span.start]), name
    lines = parameters_of(run)
    count = sum(value.numel() for name, value in before.items() if name in tables or name.startswith("trunk."))
    assert lines[0].startswith(f"trunk.*: {count:,} parameters locked (embedding, ")
    assert lines[1].startswith("towers.*: ") and "at 0.5 x the rate (towers)" in lines[1]
    assert lines[2].startswith("all else: ") and "at 1 x the rate (biases, connectors, heads" in lines[2]
    assert lines[3].startswith("of embedding.weight the rows of text are locked")
    whole = replace(run, optim=replace(optim, param_groups=(*rates, ParamGroup(pattern="embedding.*", lr_scale=1.0))))
    assert JointModule(whole, build(model, tokenizer.size, run.contrastive)).learning.factor["embedding.weight"] == 1


def test_an_optimiser_with_other_groups_is_refused_in_one_line(tmp_path, monkeypatch):
    """A run of a version in which `trunk.*` did not take in a language model's tables: its state fits no group now, and
    a new run begins with its weights."""
    language(tmp_path / "lm")
    importer.import_source(str(tmp_path / "lm"), tmp_path / "out")
    model = toy_config(trunk=mmfm.native(str(tmp_path / "out")), tokenizer=str(tmp_path / "out/mmfm_tokenizer.json"))
    optim = Optim(steps=9, param_groups=(ParamGroup(pattern="trunk.*", lr_scale=0.1),), warmup_steps=1)
    run = Run(name="x", out=str(tmp_path), model=model, contrastive=(Contrastive(pair=("image", "text")),), optim=optim)
    run = replace(run, generative=(Generative(task="image>text"),))
    tokenizer = load_tokenizer(model.tokenizer)

    def module() -> JointModule:
        return JointModule(run, build(model, tokenizer.size, run.contrastive))

    with monkeypatch.context() as before:
        before.setattr(optimising, "ALSO", {})
        old = module()
        state = {"optimizer_states": [old.configure_optimizers()["optimizer"].state_dict()]}
        old.on_load_checkpoint(state)  # fits that version
    with pytest.raises(
        UserError, match=r"optim\.param_groups once made groups of .* begin a new run .*: --start \S+/x --name NEW"
    ):
        module().on_load_checkpoint(state)
    weights = dict(old.objectives.model.state_dict())
    save(run.folder, 4, run, tokenizer, weights, {})
    fresh = build(model, tokenizer.size, run.contrastive)
    (line,) = bundle.start_whole(fresh, replace(run, name="y", start=str(run.folder)), tokenizer)
    assert "starts from" in line and all(torch.equal(value, weights[key]) for key, value in fresh.state_dict().items())


def test_a_language_model_without_all_its_weights_is_refused(tmp_path):
    """A layer that its config.json has and its weights do not would be random, however whole the file is."""
    language(tmp_path / "lm")
    file = tmp_path / "lm/model.safetensors"
    some = {name: value for name, value in load_file(file).items() if "layers.0.mlp" not in name}
    save_file(some, file, metadata={"format": "pt"})
    told = (
        r"lm: its weights lack model\.layers\.0\.mlp\.\S+, .* its config\.json asks for; .*; give a source that holds"
    )
    with pytest.raises(UserError, match=told):
        importer.import_source(str(tmp_path / "lm"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [vit, bert])
@torch.no_grad()
def test_a_configuration_begins_from_it(make, tmp_path):
    """What `native` gives goes into a Run as any tower does; prepared and begun, it says what the bundle says."""
    modality, _, _ = make(tmp_path / "source")
    importer.import_source(str(tmp_path / "source"), tmp_path / "out", modality=modality)
    towers = {"image": None, "audio": None, "text": None} | {modality: mmfm.native(str(tmp_path / "out"))}
    prepared = prepare(Run(name="x", model=Model(**towers, trunk=toy_config().trunk)))
    torch.manual_seed(5)
    core = build(prepared.run.model, prepared.tokenizer.size)
    begin(core, prepared)
    encoder = mmfm.load_encoder(modality, tmp_path / "out")
    given = seen(encoder)[0] if modality == "image" else SENTENCES
    ours = BundledEncoder(core.eval(), modality, prepared.run, prepared.tokenizer)(given)
    torch.testing.assert_close(ours, encoder(given), rtol=0, atol=0)


@torch.no_grad()
def test_a_model_with_imported_towers_travels(tmp_path):
    """A wrapped text tower with its own tokenizer and a native picture tower, in a model with a byte tokenizer: its
    bundle gives what it gives, to the bit, and asks for no source."""
    towers = {"audio": None}
    for make in (vit, bert):
        modality, *_ = make(tmp_path / make.__name__)
        importer.import_source(str(tmp_path / make.__name__), tmp_path / f"{modality}s", modality=modality)
        towers[modality] = mmfm.native(str(tmp_path / f"{modality}s"))
    run = Run(
        name="x",
        model=Model(**towers, trunk=toy_config().trunk, embed_dim=8),
        contrastive=(Contrastive(pair=("image", "text")),),
        generative=(Generative(task="image>text"),),
    )
    prepared = prepare(run)
    torch.manual_seed(5)
    core = build(prepared.run.model, prepared.tokenizer.size, run.contrastive)
    begin(core, prepared)
    model = Interface(core.eval(), prepared.run, prepared.tokenizer).eval()
    mmfm.save_bundle(model, tmp_path / "whole")
    for name in ("vit", "bert", "images", "texts"):
        shutil.rmtree(tmp_path / name)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    back = mmfm.from_pretrained(tmp_path / "whole")
    for modality, given in {"image": [picture], "text": SENTENCES}.items():
        expected = getattr(model, f"encode_{modality}")(given)
        encoder = mmfm.load_encoder(modality, tmp_path / "whole")
        torch.testing.assert_close(encoder.embed(given), expected, rtol=0, atol=0)
        torch.testing.assert_close(getattr(back, f"encode_{modality}")(given), expected, rtol=0, atol=0)
    assert back.generate("image>text", image=picture) == model.generate("image>text", image=picture)
    assert mmfm.load_encoder("text", tmp_path / "whole").preprocess.mask == 4
    assert str(tmp_path) not in (tmp_path / "whole/config.json").read_text()


@torch.no_grad()
def test_wrapped_and_native_are_one(tmp_path):
    """The same source either way: the same tokens of the same picture file; and it is asked for by name."""
    vit(tmp_path / "source")
    for layout in ("native", "wrapped"):
        importer.import_source(str(tmp_path / "source"), tmp_path / layout, layout=layout)
    ours, theirs = (mmfm.load_encoder("image", tmp_path / layout) for layout in ("native", "wrapped"))
    assert isinstance(ours.run.model.image, Vit) and isinstance(theirs.run.model.image, Tower)
    assert ours.preprocess == theirs.preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    torch.testing.assert_close(ours(picture).x, theirs(picture).x, rtol=0, atol=1e-5)


def test_what_has_no_place_is_wrapped_or_refused(tmp_path):
    bert(tmp_path / "source")
    with pytest.raises(UserError, match=r"no layout for hf's bert; .*or say --layout wrapped"):
        importer.import_source(str(tmp_path / "source"), tmp_path / "out", layout="native")
    assert not (tmp_path / "out").exists()


def test_a_difference_is_not_written(tmp_path, monkeypatch):
    """One number of the converted weights is wrong: nothing is left, and the bundle that was there is as it was."""
    vit(tmp_path / "source")
    importer.import_source(str(tmp_path / "source"), tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    whole = importer.convert

    def wrong(*given):
        made = whole(*given)
        made.weights["norm.bias"][0] += 0.01
        return made

    monkeypatch.setattr(importer, "convert", wrong)
    for name in ("new", "old"):
        words = r"source as a Vit differs from its source by 0.01\d*, of numbers as large as [\d.]+, and is not written"
        with pytest.raises(UserError, match=words):
            importer.import_source(str(tmp_path / "source"), tmp_path / name, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "source"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before


def test_a_second_time_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    """Not to lose what is there, and not to wait for it; --force does it again."""
    vit(tmp_path / "source")
    source, out = str(tmp_path / "source"), str(tmp_path / "out")
    assert main(["import", source, out]) == 0
    assert main(["import", source, out, "--force"]) == 0
    monkeypatch.setattr(importer, "resolve", lambda *_: pytest.fail("loaded"))
    assert main(["import", source, out]) == 2


def test_the_command_tells_what_it_did(tmp_path, capsys):
    vit(tmp_path / "source")
    assert main(["import", str(tmp_path / "source"), str(tmp_path / "out"), "--layout", "wrapped"]) == 0
    line, where = capsys.readouterr().out.strip().splitlines()
    assert "as a Tower, its numbers are at most 0.0e+00 from the source's" in line and where == str(tmp_path / "out")
    assert "padded" not in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["timm:no_such_vit", "out"], r"timm has no model 'no_such_vit'"),
        (["nowhere", "out"], r"source 'nowhere' is no folder, and no library's name; give timm:NAME"),
        (["wheel:none", "out"], r"wheel:none holds no weights that are known here"),
        (["source", "out", "--modality", "audio"], r"cannot be the audio tower"),
        (
            ["source", "out", "--modality", "trunk"],
            r"source is a vit, which our trunk cannot be; it can be a llama, mistral, qwen2, qwen3",
        ),
        (["clip", "out", "--modality", "trunk"], r"a trunk comes from a language model of transformers, and clip is"),
        (["source", "source"], r"source is no folder that mmfm exported or imported, and is not replaced; name"),
        (["source", "source", "--force"], r"source is no folder that mmfm exported or imported, and is not"),
        (["open_clip:ViT-B-32", "out", "--modality", "image"], r"write open_clip:ViT-B-32/TAG with a TAG of"),
    ],
)
def test_a_wrong_source_is_one_line(words, told, tmp_path, monkeypatch, capsys):
    """Exit status 2, a line that says what to do, and nothing written."""
    vit(tmp_path / "source")
    open_clip_folder(tmp_path / "clip", CLIP)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["import", *words]) == 2
    said = capsys.readouterr().err
    assert re.search(told, said) and said.count("\n") == 1 and said.startswith("mmfm: ")
    assert not (tmp_path / "out").exists()


def test_an_imported_bundle_is_no_source_again(tmp_path):
    vit(tmp_path / "source")
    importer.import_source(str(tmp_path / "source"), tmp_path / "out")
    with pytest.raises(UserError, match="is a bundle already; load it, or start from it"):
        importer.import_source(str(tmp_path / "out"), tmp_path / "again")
    with pytest.raises(UserError, match=r"holds a Vit, a part of our own; give image=mmfm.native\("):
        bundle.resolve(Tower(source=str(tmp_path / "out")), "image")


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch, capsys):
    """Interrupted while the two are compared: exit status 130 and no folder, finished or not."""
    vit(tmp_path / "source")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importer, "compare", interrupted)
    assert main(["import", str(tmp_path / "source"), str(tmp_path / "out")]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
