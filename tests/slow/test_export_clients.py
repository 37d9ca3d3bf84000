"""Other people's programs on what `mmfm export` writes, as their users start them: each in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch

from mmfm.inference.load import load_model

sys.path.insert(0, str(Path(__file__).parent.parent))
from shared_exports import classification, pictures, retrieval, saved, square

from mmfm.inference.bundle.load import load_encoder

TASKS = {"classification": "zeroshot_classification", "retrieval": "zeroshot_retrieval"}
MAKERS = {"classification": classification, "retrieval": retrieval}


def started(*words: str | Path, blind: bool = False) -> str:
    """The standard output of a Python process; `blind`: one that cannot import mmfm."""
    code = "import runpy, sys; sys.modules['mmfm'] = None; runpy.run_module(sys.argv.pop(1), run_name='__main__')"
    start = [sys.executable, "-W", "ignore", *(["-c", code] if blind else ["-m"])]
    done = subprocess.run([*start, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "toy"
    saved(folder, square())
    return folder


def scores(run: Path, root: Path, out: Path) -> dict[tuple[str, str], float]:
    lists = [
        f"--{flag}={root / file}" for flag, file in (("classes", "classnames.txt"), ("templates", "templates.txt"))
    ]
    lists = lists if (root / "classnames.txt").exists() else []
    started("mmfm", "eval", run, "--data", f"toy={root}/test/0.tar", "--out", out, "--bootstrap", "2", *lists)
    return {(row["task"], row["metric"]): row["value"] for row in json.loads(out.read_text())}


def benchmark(module: str, kind: str, root: Path, out: Path, *model: str, blind: bool = False) -> dict[str, float]:
    words = ["eval", "--dataset", "wds/toy", "--dataset_root", root, "--task", TASKS[kind], "--num_workers", "0"]
    started(module, *words, "--no_amp", "--recall_k", "1", "5", "10", "--output", out, *model, blind=blind)
    return json.loads(out.read_text())["metrics"]


@pytest.mark.parametrize("kind", TASKS)
def test_clip_benchmark_scores_a_run(kind, run, tmp_path, write_shard):
    """python -m mmfm.export.clip_benchmark, on the run and on its folder: the scores of `mmfm eval`."""
    root = MAKERS[kind](tmp_path / "data", write_shard)
    started("mmfm", "export", run, tmp_path / "out", "--to", "open_clip")
    wanted = scores(run, root, tmp_path / "ours.json")
    pairs = {"classification": {"acc1": ("image->text", "acc@1"), "acc5": ("image->text", "acc@5")}}
    pairs["retrieval"] = {f"image_retrieval_recall@{k}": ("text->image", f"R@{k}") for k in (1, 5, 10)}
    for model in (["--model_type", "mmfm", "--model", str(run)], ["--model", f"local-dir:{tmp_path / 'out'}"]):
        way = [*model, "--pretrained", "none"]
        found = benchmark("mmfm.export.clip_benchmark", kind, root, tmp_path / "theirs.json", *way)
        for name, key in pairs[kind].items():
            assert found[name] == pytest.approx(wanted[key], abs=1e-4)


def test_waveforms_go_into_onnx_runtime(run, tmp_path):
    """The spectrogram is in the file: waveforms of three lengths give what the interface gives, padded or not."""
    started("mmfm", "export", run, tmp_path / "out", "--to", "onnx", "--modality", "audio")
    model, session = load_model(run), onnxruntime.InferenceSession(tmp_path / "out" / "audio.onnx")
    assert [slot.shape for slot in session.get_inputs()] == [["batch", "samples"]] * 2
    assert [slot.name for slot in session.get_outputs()] == ["embedding", "tokens", "tokens_keep"]
    draw = torch.Generator().manual_seed(1)
    for batch, samples in ((1, 1_601), (4, 3_200), (2, 20_000)):
        waves = torch.randn(batch, samples, generator=draw)
        keep = torch.arange(samples) < torch.linspace(samples, 900, batch).long()[:, None]
        found = session.run(["embedding"], {"waves": waves.numpy(), "keep": keep.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), model.encode_audio(waves, keep=keep), rtol=0, atol=1e-5)
    checked = json.loads((tmp_path / "out" / "export.json").read_text())["files"]["audio.onnx"]["checked"]
    assert {entry["batch"] for entry in checked} == {1, 2, 5}
    assert max(entry["difference"] for entry in checked) <= 1e-5


def test_an_imported_tower_goes_on(tmp_path):
    """open_clip's folder -> mmfm import -> mmfm export --to onnx: the tokens of the bundle, and no embedding."""
    import toy_encoders as toys

    vision = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8}
    text = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    toys.open_clip_folder(tmp_path / "theirs", {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text})
    started("mmfm", "import", tmp_path / "theirs", tmp_path / "bundle", "--modality", "image")
    started("mmfm", "export", tmp_path / "bundle", tmp_path / "out", "--to", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "image.onnx")
    assert [slot.name for slot in session.get_outputs()] == ["tokens"]
    encoder = load_encoder("image", tmp_path / "bundle")
    pixels = torch.stack([encoder.transform(picture) for picture in pictures(3, side=32)])
    with torch.no_grad():
        wanted = encoder.tokens(pixels).x
    found = torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_what_transformers_loads_is_the_run(run, tmp_path):
    """mmfm export --to hf: AutoModel's text features are the run's embeddings."""
    import transformers

    started("mmfm", "export", run, tmp_path / "out", "--to", "hf")
    model = transformers.AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    texts = ["a red picture", "something blue and rather long"]
    with torch.no_grad():
        found = model.get_text_features(**tokenizer(texts, return_tensors="pt", padding=True))
    found = found if isinstance(found, torch.Tensor) else found.pooler_output
    wanted = load_model(run).encode_text(texts)
    torch.testing.assert_close(torch.nn.functional.normalize(found, dim=-1), wanted, rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "mmfm"
