"""Exported graphs are the model, without the model's code: at other sizes, in other processes, or refused in words."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jaxtyping
import numpy as np
import onnxruntime
import pytest
import torch
from toys import PAIRS, toy_config, toy_run

from mmfm.config import Embedded, Generative, UserError
from mmfm.export import program, tensors
from mmfm.export.command import export
from mmfm.export.graphs import Graph, Size, free_sizes, graphs
from mmfm.inference.load import load_model
from mmfm.models import checkpoint
from mmfm.models.model import build
from mmfm.preprocessing.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("bytes")


@pytest.fixture(scope="module", autouse=True)
def unwatched():
    """While a model is traced its sizes are symbols, which jaxtyping's checks would turn into numbers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose parameters are all away from zero and one."""
    torch.manual_seed(0)
    core = build(toy_config(), TOKENIZER.size, PAIRS)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("runs") / "toy"
    checkpoint.save(folder, 3, toy_run(), TOKENIZER, core.state_dict(), {"step": 3})
    return folder


ALONE = """
import json, sys
sys.modules["mmfm"] = None  # importing it fails
import torch
torch.set_num_threads(1)
module = torch.export.load(sys.argv[1]).module()
for ids, keep in (([[3, 7, 1]], [[1, 1, 0]]), ([[1] * 40, [2] * 40], [[1] * 40, [1] * 9 + [0] * 31])):
    print(json.dumps(module(torch.tensor(ids), torch.tensor(keep).bool())[0].tolist()))
"""


def test_a_program_runs_where_mmfm_cannot_be_imported(run, tmp_path):
    """torch.export.load in a process without mmfm: the embeddings of the interface, at two sizes never traced."""
    out = export(run, "torch_export", tmp_path / "out", modalities=("text",))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ALONE, out / "text.pt2"], capture_output=True, text=True, check=True
    )
    model = load_model(run)
    short, long = (torch.tensor(json.loads(line)) for line in done.stdout.splitlines())
    torch.testing.assert_close(short, model.encode_text(torch.tensor([[3, 7, -1]])), rtol=0, atol=1e-6)
    rows = torch.tensor([[1] * 40, [2] * 9 + [-1] * 31])
    torch.testing.assert_close(long, model.encode_text(rows), rtol=0, atol=1e-6)


def test_pixels_go_into_onnx_runtime(run, tmp_path):
    """Bytes of pictures in batches that were never traced: the interface's embeddings; sizes and outputs have names."""
    out = export(run, "onnx", tmp_path / "out", modalities=("image",))
    model, session = load_model(run), onnxruntime.InferenceSession(out / "image.onnx")
    assert session.get_inputs()[0].shape == ["batch", 1, 8, 16]
    assert [slot.name for slot in session.get_outputs()] == ["embedding", "tokens"]
    draw = torch.Generator().manual_seed(1)
    for batch in (1, 4, 9):
        pixels = torch.randint(0, 256, (batch, 1, 8, 16), dtype=torch.uint8, generator=draw)
        found = session.run(["embedding"], {"pixels": pixels.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), model.encode_image(pixels), rtol=0, atol=1e-5)
    checked = json.loads((out / "export.json").read_text())["files"]["image.onnx"]["checked"]
    assert {entry["batch"] for entry in checked} == {1, 2, 5}
    assert max(entry["difference"] for entry in checked) <= 1e-5
    names_no_place(out, run)


def names_no_place(out: Path, run: Path) -> None:
    """No path of the machine that wrote the files is in them."""
    for path in out.rglob("*"):
        data = path.read_bytes()
        assert str(Path.cwd()).encode() not in data and str(run.parent).encode() not in data, path


class Decides(torch.nn.Module):
    def forward(self, x):
        return (x[: int(x.sum())],)


class HoldsFast(torch.nn.Module):
    def forward(self, x):
        return (x + torch.zeros(3, 1),)


class Loses(torch.nn.Module):
    """Right while it is traced, and wrong ever after."""

    def forward(self, x):
        return (x * (2 if torch.compiler.is_exporting() else 3),)


def graph_of(module: torch.nn.Module) -> Graph:
    def example(size: Size) -> tuple[torch.Tensor, ...]:
        return (torch.ones(size, dtype=torch.float32),)

    sizes = {"traced": Size(3, 4), "checked": (Size(1, 7),)}
    return Graph(
        name="image", module=module, inputs=("x",), outputs=("y",), example=example, reads="x: anything", **sizes
    )


@pytest.mark.parametrize("module", [Decides(), HoldsFast()])
def test_what_is_no_graph_is_refused_in_words(module):
    """A module that decides by values, and one whose batch is fixed by its code."""
    with pytest.raises(
        UserError, match=r"image path is no graph of free batch and length .*leave it out by --modality"
    ):
        program.trace(graph_of(module))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"text": Embedded()},
            "table reads this model's text, .*; give --modality image audio, or take --to hf --part",
        ),
        (dict.fromkeys(("image", "audio", "text")), "writes what towers read, and this model has none; take --to hf"),
    ],
)
def test_a_language_model_is_no_graph_of_a_tower(changes, told, tmp_path):
    cfg = toy_config(**changes)
    core = build(cfg, TOKENIZER.size)
    run = replace(toy_run(model=cfg), contrastive=(), generative=(Generative(task=">text"),))
    checkpoint.save(tmp_path / "toy", 1, run, TOKENIZER, core.state_dict(), {"step": 1})
    with pytest.raises(UserError, match=f"--to onnx.* {told}"):
        export(tmp_path / "toy", "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
@pytest.mark.parametrize("to", ["onnx", "torch_export"])
def test_what_is_not_installed_is_named(package, to, run, tmp_path, monkeypatch):
    """Each package of the extra, where it is gone, with the way to get it; and nothing is left behind."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"--to {to} needs {package}, .*; pip install 'mmfm\[export\]'"):
        export(run, to, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_file_that_differs_is_refused():
    """Planted: a module that computes something else once it is traced."""
    graph = graph_of(Loses())
    traced = program.trace(graph)
    with pytest.raises(UserError, match=r"image file differs by 1 from the model at batch 1, length 7, above 0.0001"):
        tensors.compare(graph, lambda *inputs: tuple(traced.module()(*inputs)))


def test_free_sizes_are_those_that_differ(run):
    """Batch and length of sounds and texts are free; of pictures only the batch."""
    model = load_model(run)
    free = [free_sizes(graph) for graph in graphs(model.core, model.config, model.modalities, 256)]
    assert free == [[[True, False, False, False]], [[True, True], [True, True]], [[True, True], [True, True]]]


def test_what_stands_there_is_not_lost(run, tmp_path):
    """A folder that no export wrote is never replaced, an export only by force, and a failure leaves all as it was."""
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("years")
    for force in (False, True):  # a remedy that would be refused is not offered
        with pytest.raises(UserError, match=r"thesis is no folder that mmfm exported or imported, and is not replaced"):
            export(run, "torch_export", foreign, force=force)
    with pytest.raises(UserError, match=r"--modality video: this model has no such tower; it has image, audio, text"):
        export(run, "onnx", tmp_path / "new", modalities=("video",))
    (foreign / "export.json").write_text("{}")
    with pytest.raises(UserError, match=r"thesis exists; name another folder, or --force replaces it"):
        export(run, "torch_export", foreign)
    with pytest.raises(UserError, match="--to vhs is not known"):
        export(run, "vhs", foreign, force=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["chapter.txt", "export.json", "thesis"]


def test_the_contract_says_what_the_interface_does(run, tmp_path):
    """preprocess.json and pixels by hand give the interface's embedding of the same picture."""
    out = export(run, "torch_export", tmp_path / "out", modalities=("image",))
    how = json.loads((out / "preprocess.json").read_text())["image"]
    model, draw = load_model(run), np.random.default_rng(0)
    pixels = draw.integers(0, 256, (2, how["channels"], how["height_px"], how["width_px"]), dtype=np.uint8)
    found = program.Program(out / "image.pt2")(torch.from_numpy(pixels))[0]
    torch.testing.assert_close(found, model.encode_image(torch.from_numpy(pixels)), rtol=0, atol=1e-6)
