"""Sources of encoders: what tells each, what cannot be had and the words for it; tokenizers; layers by name."""

import json
import re
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import open_clip
import pytest
import tokenizers
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers import models, pre_tokenizers
from torch import nn
from toy_encoders import BLOCKS, CONVS, PICTURE, WORDS, hf_folder, open_clip_folder, timm_folder, wordpieces

from mmfm.config import Tower, UserError
from mmfm.preprocessing.tokenizer import Reader, parse_reader
from mmfm.pretrained import build, resolve
from mmfm.pretrained.clip_tokenizer import clip_bpe
from mmfm.pretrained.encoder import fit_keep
from mmfm.pretrained.source import parse
from mmfm.pretrained.tokenizer_spec import words_of_hf

SENTENCES = (
    "",
    "A photo of a cat.",
    "  The QUICK brown fox -- it's 42 km away!  ",
    "naïve café, Zürich; ÅNGSTRÖM, straße",
    "日本語 и русский текст, العربية",
    "emoji 🙂🙃, tab\tand\nline",
    "“curly” ‘quotes’ &amp; entities &lt;b&gt;",
    "a.b.c!!! ... ???  $5,000.00 (50%)",
    "[MASK] <|endoftext|> </s> are text",
    "we'll they've I'm don't HE'S",
    "word " * 60,
)


def read(text: str, words: object) -> Reader:
    return parse_reader(text, words, "tokenizer.json")


def test_wordpieces_are_the_librarys() -> None:
    """begin + ids + end, cut to the context, are the ids of BERT's tokenizer; a mark written in a text stays text."""
    theirs = wordpieces(24)
    words, text = words_of_hf(theirs, context=512)
    assert (words.begin, words.end, words.context, words.pad, words.mask) == ((2,), (3,), 24, 0, 4)
    assert words.lower and not words.fill
    reader = read(text, words)
    for sentence in SENTENCES:
        if "[MASK]" not in sentence:
            assert reader.encode(sentence) == theirs(sentence, truncation=True)["input_ids"], sentence
    assert words.mask not in reader.encode("[MASK]")


def llama() -> hf.PreTrainedTokenizerFast:
    """As Llama 3's: byte-level merges, a begin mark put by the post-processor, no padding."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<bos>", "<eos>"], show_progress=False
    )
    inner.train_from_iterator(SENTENCES, trainer)
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return hf.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>")


def test_byte_level_is_the_librarys() -> None:
    """A begin mark alone, capitals kept, no limit of its own: the model's context; padding with the end mark."""
    theirs = llama()
    words, text = words_of_hf(theirs, context=32)
    assert (words.begin, words.end, words.context, words.pad, words.mask) == ((0,), (), 32, 1, -1)
    assert not words.lower
    reader = read(text, words)
    for sentence in SENTENCES:
        assert reader.encode(sentence) == theirs(sentence, truncation=True, max_length=32)["input_ids"], sentence


def test_a_tokenizer_without_a_mask_fills() -> None:
    """Where a tokenizer gives no attention mask (SigLIP), texts are filled to the context, and all of it is seen."""
    theirs = wordpieces(16)
    theirs.model_input_names = ["input_ids"]
    words, text = words_of_hf(theirs, context=64)
    assert words.fill
    row = read(text, words).encode("the cat")
    assert row == theirs("the cat", padding="max_length")["input_ids"] and len(row) == 16


@pytest.mark.parametrize(("kind", "fill"), [(hf.SiglipConfig, True), (hf.CLIPConfig, False)])
def test_a_pool_of_the_last_place_fills(kind: type, fill: bool, tmp_path: Path) -> None:
    """SigLIP reads a text's last place, even where that is padding: it wants texts filled; CLIP reads the end mark."""
    hf_folder(tmp_path, kind(text_config=BLOCKS | WORDS, vision_config=PICTURE), wordpieces())
    assert resolve(Tower(source=str(tmp_path)), "text").blueprint.words.fill == fill


def test_an_encoder_that_draws_is_refused(tmp_path: Path) -> None:
    """A masked autoencoder's encoder sees a quarter of the picture, another each time."""
    hf_folder(tmp_path, hf.ViTMAEConfig(**PICTURE))
    with pytest.raises(UserError, match="the same input gives other tokens each time"):
        resolve(Tower(source=str(tmp_path)), "image")


def test_clip_bpe_is_open_clips(tmp_path: Path) -> None:
    """All 80 templates by 10 class names, and odd texts: ids, marks, cut and pad are open_clip's own."""
    open_clip_folder(tmp_path, {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT})
    found = resolve(Tower(source=str(tmp_path)), "text")
    reader, theirs = read(found.tokenizer, found.blueprint.words), open_clip.SimpleTokenizer(context_length=16)
    names = open_clip.IMAGENET_CLASSNAMES[::100]
    prompts = [template(name) for template in open_clip.OPENAI_IMAGENET_TEMPLATES for name in names]
    prompts += [sentence for sentence in SENTENCES if "<|" not in sentence]
    rows = [reader.encode(prompt) for prompt in prompts]
    wanted = theirs(prompts)
    for row, row_wanted, prompt in zip(rows, wanted.tolist(), prompts, strict=True):
        assert row + [found.blueprint.words.pad] * (16 - len(row)) == row_wanted, prompt
    assert reader.encode("!") == [49406, 256, 49407], "id 0 is padding's and a byte's; a mark alone has its own"


@pytest.mark.parametrize("clean", ["whitespace", "canonicalize"])
def test_other_ways_to_clean(clean: str) -> None:
    theirs, ours = open_clip.SimpleTokenizer(clean=clean), clip_bpe(clean)
    for sentence in (sentence for sentence in SENTENCES if "<" not in sentence):
        assert ours.encode(sentence).ids == theirs.encode(sentence), sentence


VISION = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}


def siglip(folder: Path) -> nn.Module:
    """open_clip's form of SigLIP: the text tower sees all places, and reads the last."""
    text = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "vocab_size": 64}
    text |= {"hf_tokenizer_name": "toy", "tokenizer_kwargs": {"clean": "canonicalize"}}
    tokenizer = wordpieces(1_000)
    tokenizer.save_pretrained(folder)
    return open_clip_folder(
        folder, {"embed_dim": 8, "custom_text": True, "vision_cfg": VISION, "text_cfg": TEXT | text}
    )


@torch.no_grad()
def test_open_clip_with_a_tokenizer_of_transformers(tmp_path: Path) -> None:
    """Filled to the context, with open_clip's cleaning before the tokenizer's own: its ids, and its embeddings."""
    model = siglip(tmp_path)
    found = resolve(Tower(source=str(tmp_path)), "text")
    encoder = build(found.blueprint).eval()
    encoder.load_state_dict(found.weights)
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    reader = read(found.tokenizer, found.blueprint.words)
    prompts = ["The cat.", "a_b, (c) D!"]
    rows = torch.tensor([reader.encode(prompt) for prompt in prompts])
    assert torch.equal(rows, theirs(prompts)) and found.blueprint.words.fill
    tokens = encoder(rows, torch.ones_like(rows, dtype=torch.bool))
    torch.testing.assert_close(model.text.text_projection(tokens.x[:, -1]), model.encode_text(rows), atol=1e-6, rtol=0)


def test_kinds_of_folders(tmp_path: Path) -> None:
    """Each is told by the file that its library writes; a folder of none is refused, and told what is looked for."""
    hf_folder(tmp_path / "hf", hf.ViTConfig(**PICTURE))
    timm_folder(tmp_path / "timm", "test_vit")
    open_clip_folder(tmp_path / "open_clip", {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT})
    for kind in ("hf", "timm", "open_clip"):
        assert parse(str(tmp_path / kind)).kind == kind
        assert resolve(Tower(source=str(tmp_path / kind)), "image").blueprint.library == kind
    with pytest.raises(UserError, match=r"has no config\.json or open_clip_config\.json"):
        parse(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="neither model_type"):
        parse(str(tmp_path))
    with pytest.raises(UserError, match="is no folder, and no library's name; give timm:NAME"):
        parse("resnet50")


def test_a_modality_that_is_not_there(tmp_path: Path) -> None:
    hf_folder(tmp_path, hf.ViTConfig(**PICTURE))
    for source, modality, told in (
        ("timm:test_vit", "text", "timm has no text encoders"),
        ("open_clip:ViT-B-32/openai", "audio", "open_clip has no audio encoders"),
        ("torchaudio:HUBERT_BASE", "image", "torchaudio has no image encoders"),
        (str(tmp_path), "audio", "its ViTModel reads pixel_values, and audio comes as input_features or input_values"),
    ):
        with pytest.raises(UserError, match=re.escape(told)):
            resolve(Tower(source=source), modality)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Offline, with empty caches; and no socket opens."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    return tmp_path


WANTED = {
    "hf:nobody/nothing": ("nobody/nothing (config.json)", "hub"),
    "timm:resnet18": ("timm/resnet18.a1_in1k (model.safetensors)", "hub"),
    "open_clip:ViT-B-32/laion2b_s34b_b79k": ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K (its safetensors)", "hub"),
    "torchaudio:HUBERT_BASE": ("hubert_fairseq_base_ls960.pth", "torch/checkpoints"),
}


@pytest.mark.parametrize("source", WANTED)
def test_offline(source: str, no_network: Path) -> None:
    """One line: which repository and file was to be downloaded, where it belongs, what else to give; no address."""
    what, where = WANTED[source]
    modality = "audio" if source.startswith("torchaudio") else "image"
    with pytest.raises(UserError) as caught:
        resolve(Tower(source=source), modality)
    told = str(caught.value)
    assert told.startswith(f"{source}: ") and "\n" not in told
    for part in (what, "neither in the cache nor could it be downloaded", str(no_network / where), "a local folder as"):
        assert part in told, part
    assert "://" not in told
    assert ("weights='random'" in told) == (not source.startswith("hf:")), "transformers' architecture is a download"


def test_random_weights_need_no_network(no_network: Path) -> None:
    for source, modality in (("timm:test_vit", "image"), ("open_clip:RN50/openai", "image")):
        found = resolve(Tower(source=source, weights="random"), modality)
        assert found.weights is None and build(found.blueprint).width == found.blueprint.width


def test_names_that_do_not_exist() -> None:
    for source, modality, told in (
        ("timm:nothing", "image", "timm has no model 'nothing'"),
        ("open_clip:nothing/x", "text", "open_clip has no model 'nothing'"),
        ("open_clip:ViT-B-32", "text", "write open_clip:ViT-B-32/TAG with a TAG of openai, laion400m_e31"),
        ("open_clip:ViT-B-32/openai", "text", "trained with QuickGELU; write open_clip:ViT-B-32-quickgelu/openai"),
        (
            "open_clip:ViT-B-32-quickgelu/laion2b_e16",
            "text",
            "no weights 'laion2b_e16' of ViT-B-32-quickgelu; write open",
        ),
        ("torchaudio:nothing", "audio", "there are HUBERT_ASR_LARGE"),
        ("hf:", "text", "names nothing"),
    ):
        with pytest.raises(UserError, match=re.escape(told)):
            resolve(Tower(source=source), modality)


@pytest.mark.parametrize("kind", ["hf", "timm", "open_clip"])
def test_pickles_are_not_opened(kind: str, tmp_path: Path) -> None:
    """A folder with a pickle alone is refused before its library sees it; one with nothing says that."""
    if kind == "hf":
        hf_folder(tmp_path, hf.ViTConfig(**PICTURE))
    elif kind == "timm":
        timm_folder(tmp_path, "test_vit")
    else:
        open_clip_folder(tmp_path, {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT})
    file = next(tmp_path.glob("*.safetensors"))
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"is a pickle, which is not opened here; .*safetensors"):
        resolve(Tower(source=str(tmp_path)), "image")
    file.with_suffix(".bin").unlink()
    with pytest.raises(UserError, match=r"no \*\.safetensors: no weights are in it"):
        resolve(Tower(source=str(tmp_path)), "image")
    assert resolve(Tower(source=str(tmp_path), weights="random"), "image").weights is None


def test_weights_that_lack_something(tmp_path: Path) -> None:
    """transformers would draw what is missing at random; a pooler may be missing, a layer may not."""
    hf_folder(tmp_path, hf.ViTConfig(**PICTURE))
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    save_file({name: value for name, value in whole.items() if "pooler" not in name}, file, metadata={"format": "pt"})
    resolve(Tower(source=str(tmp_path)), "image")
    save_file({name: value for name, value in whole.items() if "layer.1" not in name}, file, metadata={"format": "pt"})
    told = (
        r"its weights lack .* \(16 in all\), which its config\.json asks for; .* set the tower's weights to 'random'$"
    )
    with pytest.raises(UserError, match=told):
        resolve(Tower(source=str(tmp_path)), "image")
    assert resolve(Tower(source=str(tmp_path), weights="random"), "image").weights is None  # the remedy


def test_what_has_no_window_cannot_be_cut(tmp_path: Path) -> None:
    hf_folder(tmp_path, hf.Wav2Vec2Config(**CONVS))
    with pytest.raises(UserError, match=r"window_seconds=3\.0: wav2vec2 has no fixed window of positions to cut"):
        resolve(Tower(source=str(tmp_path), window_seconds=3.0), "audio")


def test_extractors_are_transformers_own(tmp_path: Path) -> None:
    """A configuration cannot name a class from elsewhere."""
    hf_folder(tmp_path, hf.Wav2Vec2Config(**CONVS))
    made = resolve(Tower(source=str(tmp_path)), "audio").blueprint
    said = json.loads(made.sound.extractor) | {"feature_extractor_type": "PreTrainedModel"}
    with pytest.raises(UserError, match="'PreTrainedModel' is not one of transformers' own"):
        build(replace(made, sound=replace(made.sound, extractor=json.dumps(said))))


def test_nothing_is_random_in_training_but_dropout(tmp_path: Path) -> None:
    """Layers are not dropped, spans of the input not masked: each parameter gets its gradient at every step."""
    dull = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0}
    hf_folder(tmp_path, hf.Wav2Vec2Config(**CONVS, **dull, layerdrop=0.9, mask_time_prob=0.5, mask_time_length=2))
    encoder = build(resolve(Tower(source=str(tmp_path)), "audio").blueprint).train()
    features = encoder.features(torch.randn(1, 16_000), torch.ones(1, 16_000, dtype=torch.bool))
    first, second = encoder(*features).x, encoder(*features).x
    assert torch.equal(first, second)
    first.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_fit_keep() -> None:
    """Lengths as the model says; where it does not say, all tokens are real; at least one token of each item."""
    keep = torch.arange(10) < torch.tensor([[10], [4], [0]])
    halves = fit_keep(keep, 5, lambda n: n // 2)
    assert halves.sum(1).tolist() == [5, 2, 1] and torch.equal(fit_keep(keep, 10, None), keep)
    assert fit_keep(keep, 7, None).all()
    single = fit_keep(keep, 5, lambda n: int(n / 2))
    assert torch.equal(single, halves), "of a function that takes one length at a time"
    assert torch.equal(fit_keep(keep, 5, lambda n: (n, n // 2)), halves), "and of one that gives every stage's"
