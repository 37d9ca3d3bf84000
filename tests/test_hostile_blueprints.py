"""A blueprint or a folder from anywhere builds a model or is refused: it fetches, runs and asks nothing.

Every way out is watched: sockets, the hub's client, requests, httpx, urllib; a file of code that would leave a mark;
and standard input, which is at its end.
"""

import importlib.util
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from safetensors.torch import load_file, save_file
from toy_encoders import BLOCKS, PICTURE, WORDS, hf_folder, open_clip_folder, timm_folder, wordpieces

from mmfm.config import AudioPreprocess, EncoderSpec, ImagePreprocess, KnownCodec, TokenizerSpec, Tower, UserError
from mmfm.export import importer
from mmfm.models.codecs import known
from mmfm.pretrained import build, resolve

VISION = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
IMAGE = ImagePreprocess(height_px=32, width_px=32)
LINE = TokenizerSpec(sha256="0" * 64, context=8)
VIT = {"model_type": "vit", **PICTURE}


CLIENTS = (("requests", "Session.request"), ("httpx", "Client.send"), ("httpx2", "Client.send"))
CLIENTS += (("huggingface_hub.file_download", "_hf_hub_download_to_cache_dir"),)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """What was tried, of what may not be: it must stay empty."""
    tried: list[str] = []

    def refuse(name: str) -> Any:
        def call(*args: object, **_: object) -> None:
            tried.append(f"{name} {args[:2]}")
            raise OSError(101, "Network is unreachable")

        return call

    for name in ("socket.getaddrinfo", "socket.create_connection", "socket.socket.connect", "urllib.request.urlopen"):
        monkeypatch.setattr(name, refuse(name))
    for module, name in CLIENTS:
        if importlib.util.find_spec(module):
            monkeypatch.setattr(f"{module}.{name}", refuse(name))
    for name in ("transformers.dynamic_module_utils.get_cached_module_file", "torch.hub.load_state_dict_from_url"):
        monkeypatch.setattr(name, refuse(name))
    monkeypatch.setattr("builtins.input", refuse("input"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.chdir(tmp_path)
    yield tried
    assert not tried
    assert not (tmp_path / "marker").exists()


def told(caught: pytest.ExceptionInfo[UserError]) -> None:
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def of_timm(**more: Any) -> EncoderSpec:
    shape = {"name": "test_vit", "kwargs": {"num_classes": 0}, "pretrained_cfg": {}} | more
    return EncoderSpec(library="timm", modality="image", architecture=json.dumps(shape), width=64, pixels=IMAGE)


def of_open_clip(modality: Any = "image", **more: Any) -> EncoderSpec:
    tower = (VISION if modality == "image" else TEXT) | more
    shape = {"embed_dim": 8, "quick_gelu": False, "tower": tower}
    contract: dict[str, Any] = {"pixels": IMAGE} if modality == "image" else {"words": LINE}
    made = json.dumps(shape)
    return EncoderSpec(library="open_clip", modality=modality, architecture=made, width=16, **contract)


def of_hf(modality: Any = "image", **config: Any) -> EncoderSpec:
    contract: dict[str, Any] = {
        "image": {"pixels": IMAGE},
        "text": {"words": LINE},
        "audio": {"sound": AudioPreprocess()},
    }[modality]
    made = json.dumps({"config": config})
    return EncoderSpec(library="hf", modality=modality, architecture=made, width=16, **contract)


REFUSED: dict[str, EncoderSpec] = {
    "timm: a repository": of_timm(name="hf-hub:nobody/evil"),
    "timm: a folder": of_timm(name="local-dir:/nowhere/evil"),
    "timm: an unknown name": of_timm(name="no_such_model"),
    "timm: no name": of_timm(name=None),
    "timm: weights": of_timm(kwargs={"checkpoint_path": "evil.pth"}),
    "timm: pretrained": of_timm(kwargs={"pretrained": True}),
    "timm: another configuration": of_timm(kwargs={"pretrained_cfg_overlay": {"url": "http://evil"}}),
    "timm: an address": of_timm(pretrained_cfg={"url": "http://evil/x.pth"}),
    "timm: a repository of weights": of_timm(pretrained_cfg={"hf_hub_id": "nobody/evil", "source": "hf-hub"}),
    "timm: a file": of_timm(pretrained_cfg={"file": "/etc/passwd"}),
    "timm: a word of its own": of_timm(custom_load=True),
    "timm: a path as an argument": of_timm(kwargs={"act_layer": "/nowhere/x"}),
    "timm: an argument that is none": of_timm(kwargs={"nonsense": 3}),
    "timm: a list": EncoderSpec(library="timm", modality="image", architecture="[]", width=1, pixels=IMAGE),
    "timm: no JSON": EncoderSpec(library="timm", modality="image", architecture="{", width=1, pixels=IMAGE),
    "open_clip: timm's repository": of_open_clip(timm_model_name="hf-hub:nobody/evil"),
    "open_clip: timm's folder": of_open_clip(timm_model_name="local-dir:/nowhere/evil"),
    "open_clip: transformers' repository": of_open_clip("text", hf_model_name="nobody/evil"),
    "open_clip: transformers' folder": of_open_clip("text", hf_model_name="/nowhere/evil", hf_model_pretrained=False),
    "open_clip: a word of its own": of_open_clip(pretrained_image_path="/nowhere/evil"),
    "open_clip: deep": of_open_clip(act_kwargs={"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": 1}}}}}}}}}),
    "hf: a kind of its own": of_hf(model_type="evil", auto_map={"AutoModel": "nobody/evil--x.X"}),
    "hf: no kind": of_hf(auto_map={"AutoConfig": "x.X"}),
    "hf: timm's repository": of_hf(model_type="timm_wrapper", architecture="hf-hub:nobody/evil"),
    "hf: quantised": of_hf(**VIT, quantization_config={"quant_method": "bitsandbytes"}),
    "hf: a path as an activation": of_hf(**VIT | {"hidden_act": "/nowhere/x"}),
    "hf: a wrong type": of_hf(**VIT | {"hidden_size": "many"}),
    "torchaudio: another factory": EncoderSpec(
        library="torchaudio", modality="audio", architecture='{"model": "os", "params": {}}', width=1,
        sound=AudioPreprocess(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_blueprints(name: str, watched: list[str]) -> None:
    """One line; nothing fetched, opened, asked or run."""
    with pytest.raises(UserError) as caught:
        build(REFUSED[name])
    told(caught)


HARMLESS = {
    "hf: code beside a known kind": of_hf(**VIT, auto_map={"AutoModel": "nobody/evil--x.X", "AutoConfig": "x.X"}),
    "hf: a kernel": of_hf(**VIT, attn_implementation="nobody/evil-kernel"),
    "hf: a kernel, inside": of_hf(**VIT, _attn_implementation="nobody/evil", _attn_implementation_internal="a/evil"),
    "hf: kernels": of_hf(**VIT, use_kernels=True, experts_implementation="nobody/evil"),
    "hf: a kernel in a part": of_hf(
        model_type="clip",
        text_config=BLOCKS | WORDS | {"attn_implementation": "nobody/evil"},
        vision_config=PICTURE | {"auto_map": {"AutoModel": "x.X"}, "attn_implementation": "nobody/evil"},
    ),
    "hf: weights of its own": of_hf(**VIT, transformers_weights="../evil.safetensors"),
    "hf: labels": of_hf(**VIT, id2label={"0": "../../etc/passwd"}, label2id={"http://evil": 0}),
    "open_clip: a tokenizer": of_open_clip("text", hf_tokenizer_name="nobody/evil"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_what_no_class_reads_is_left_out(name: str, watched: list[str]) -> None:
    """What is no part of a model's architecture never reaches its library."""
    trunk = build(HARMLESS[name]).trunk
    said = json.dumps(getattr(getattr(trunk, "config", None), "to_dict", dict)(), default=str)
    assert "evil" not in said and getattr(getattr(trunk, "config", None), "_attn_implementation", "") != "nobody/evil"


CODE = 'from pathlib import Path\nPath("marker").write_text("ran")\nclass X: pass\n'


def changed(folder: Path, file: str, **more: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def hostile_hf(folder: Path, **more: Any) -> None:
    hf_folder(folder, hf.BertConfig(max_position_embeddings=40, **BLOCKS, **WORDS), wordpieces())
    (folder / "x.py").write_text(CODE)
    changed(folder, "config.json", **more)


FOLDERS = {
    "code of its own": {"model_type": "evil", "auto_map": {"AutoConfig": "x.X", "AutoModel": "x.X"}},
    "code of a repository": {"model_type": "evil", "auto_map": {"AutoConfig": "nobody/evil--x.X"}},
    "quantised": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
}


@pytest.mark.parametrize("name", FOLDERS)
def test_hostile_folders_of_transformers(name: str, tmp_path: Path, watched: list[str]) -> None:
    hostile_hf(tmp_path / "f", **FOLDERS[name])
    for way in (
        lambda: resolve(Tower(source=str(tmp_path / "f")), "text"),
        lambda: importer.modality_of(str(tmp_path / "f")),
        lambda: importer.import_source(str(tmp_path / "f"), tmp_path / "out", modality="trunk"),
    ):
        with pytest.raises(UserError) as caught:
            way()
        told(caught)


def test_code_beside_a_known_model_is_not_run(tmp_path: Path, watched: list[str]) -> None:
    """auto_map for all that is opened: configuration, model, tokenizer and processor; transformers' own are taken."""
    ways = {f"Auto{kind}": "x.X" for kind in ("Config", "Model", "Tokenizer", "ImageProcessor", "FeatureExtractor")}
    hostile_hf(
        tmp_path / "f", auto_map=ways, attn_implementation="nobody/evil", transformers_weights="../x.safetensors"
    )
    changed(tmp_path / "f", "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.X", "x.X"]})
    assert resolve(Tower(source=str(tmp_path / "f")), "text").blueprint.words is not None
    hf_folder(tmp_path / "v", hf.ViTConfig(**PICTURE), hf.ViTImageProcessor(size={"height": 32, "width": 32}))
    (tmp_path / "v/x.py").write_text(CODE)
    changed(tmp_path / "v", "preprocessor_config.json", auto_map=ways)
    assert resolve(Tower(source=str(tmp_path / "v")), "image").blueprint.pixels is not None


def test_an_adapter_leads_nowhere(tmp_path: Path, watched: list[str]) -> None:
    """PEFT's file names another model, of the hub or of this machine."""
    hostile_hf(tmp_path / "f")
    (tmp_path / "f/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "nobody/evil"}))
    with pytest.raises(UserError, match="leads to another model; merge the adapter") as caught:
        resolve(Tower(source=str(tmp_path / "f")), "text")
    told(caught)


@pytest.mark.parametrize(
    "name", ["../out.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", "gone.safetensors"]
)
def test_an_index_names_files_beside_it(name: str, tmp_path: Path, watched: list[str]) -> None:
    hostile_hf(tmp_path / "f")
    weights = load_file(tmp_path / "f/model.safetensors")
    save_file(weights, tmp_path / "out.safetensors", metadata={"format": "pt"})
    (tmp_path / "f/model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (tmp_path / "f/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"no file beside it|which its index names") as caught:
        resolve(Tower(source=str(tmp_path / "f")), "text")
    told(caught)


def test_hostile_folders_of_timm(tmp_path: Path, watched: list[str]) -> None:
    """Its own file of weights is read, whatever address stands beside it; arguments that read others are refused."""
    timm_folder(tmp_path / "f", "test_vit")
    path = tmp_path / "f/config.json"
    said = json.loads(path.read_text())
    cfg = said["pretrained_cfg"] | {"url": "http://evil/x.pth", "hf_hub_id": "nobody/evil", "source": "hf-hub"}
    path.write_text(json.dumps(said | {"pretrained_cfg": cfg | {"custom_load": True, "file": "/etc/passwd"}}))
    assert resolve(Tower(source=str(tmp_path / "f")), "image").weights
    for more in ({"architecture": "hf-hub:nobody/evil"}, {"model_args": {"checkpoint_path": "x.pth"}}):
        path.write_text(json.dumps(said | more))
        with pytest.raises(UserError) as caught:
            resolve(Tower(source=str(tmp_path / "f")), "image")
        told(caught)


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_hostile_folders_of_open_clip(weights: Any, tmp_path: Path, watched: list[str]) -> None:
    """A folder's own tensors, and no other model: neither tower leads to the hub or to another folder."""
    text = TEXT | {"vocab_size": 49408}
    open_clip_folder(tmp_path / "f", {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": text})
    path = tmp_path / "f/open_clip_config.json"
    said = json.loads(path.read_text())
    for name in ("nobody/evil", "/etc"):
        model = said["model_cfg"] | {"text_cfg": text | {"hf_model_name": name, "hf_tokenizer_name": name}}
        path.write_text(json.dumps(said | {"model_cfg": model}))
        tower = Tower(source=str(tmp_path / "f"), weights=weights)
        assert resolve(tower, "image").blueprint.pixels is not None, "the image tower alone is the folder's own"
        with pytest.raises(UserError, match="to which no folder may lead") as caught:
            resolve(tower, "text")
        told(caught)
    for name in ("hf-hub:nobody/evil", "local-dir:/nowhere/evil"):
        model = said["model_cfg"] | {"vision_cfg": {"timm_model_name": name, "timm_model_pretrained": True}}
        path.write_text(json.dumps(said | {"model_cfg": model}))
        with pytest.raises(UserError) as caught:
            resolve(tower, "image")
        told(caught)


CODECS = {
    "a kind of its own": {"model_type": "evil", "auto_map": {"AutoModel": "nobody/evil--x.X"}},
    "no codec": VIT,
    "an address": {"model_type": "mimi", "hidden_act": "http://evil"},
    "nothing": {},
}


@pytest.mark.parametrize("name", CODECS)
def test_hostile_codecs(name: str, watched: list[str]) -> None:
    codec = KnownCodec(source="hf:x")
    for made in (json.dumps({"config": CODECS[name]}), "{", "[]"):
        with pytest.raises(UserError) as caught:
            known.build(replace(codec, architecture=made, sound=AudioPreprocess()))
        told(caught)
