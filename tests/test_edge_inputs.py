"""Inputs at the edge, for every face that takes input: the numbers of `mmfm.load`, or a refusal in the same words.

Each cell of the tables is an input, a face, and what is to come of it. A face that cannot be given such a thing (a
path into a graph of tensors) has no cell.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import soundfile
import tokenizers
import torch
from exported import IMAGE, full_run
from PIL import Image
from shared_exports import words
from torch import Tensor
from toys import toy_config

import mmfm
from mmfm.cli import Generate
from mmfm.config import AudioCodec, Generative, KnownCodec, UserError
from mmfm.config.serialization import to_json
from mmfm.export import hf, onnx, program
from mmfm.export.bundle import save_bundle
from mmfm.export.command import export
from mmfm.export.open_clip import register
from mmfm.inference.bundle.without_paths import unpinned, unplaced
from mmfm.inference.interface import Sound
from mmfm.models.checkpoint import save
from mmfm.models.model import build

DIM = 8
ELSEWHERE = "/elsewhere/private"
RATE = 16_000
Face = Callable[[Any], Tensor]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """One run, and a folder of each kind made of it."""
    root = tmp_path_factory.mktemp("edges")
    run, tokenizer = full_run(), words()
    began = {name: replace(getattr(run.model, name), weights=f"{ELSEWHERE}/{name}") for name in ("image", "trunk")}
    run = replace(run, model=replace(run.model, **began), generative=(*run.generative, Generative(task="text>text")))
    torch.manual_seed(0)
    core = build(run.model, tokenizer.size, run.contrastive)
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            parameter += 0.0 if "scales" in name else 0.3 * torch.randn_like(parameter)
    (root / "run").mkdir()
    (root / "run" / "run.json").write_text(to_json(run))
    save(root / "run", 7, run, tokenizer, core.state_dict(), {})
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (8, 16, 3), dtype=np.uint8)).save(root / "a.png")
    soundfile.write(root / "a.wav", 0.1 * draw.standard_normal(4_000), RATE, subtype="FLOAT")
    return root


@pytest.fixture(scope="module")
def model(place):
    return mmfm.load(place / "run", device="cpu")


def prepared(ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, ids), default=0)
    x = torch.tensor([row + [-1] * (longest - len(row)) for row in ids], dtype=torch.int64).view(len(ids), longest)
    return x.clamp(min=0), x >= 0


class Faces:
    """A face by modality and name, and its folder, each made when it is first asked for."""

    def __init__(self, place: Path) -> None:
        self.place, self.made = place, {}
        hf.register()
        register()

    def folder(self, to: str) -> Path:
        out = self.place / to
        if not out.exists():
            run = self.place / "run"
            save_bundle(run, out) if to == "bundle" else export(run, to, out)
        return out

    def of(self, modality: str, name: str) -> Face:
        if (modality, name) not in self.made:
            self.made[modality, name] = getattr(self, f"_{name}")(modality)
        return self.made[modality, name]

    def _python(self, modality: str) -> Face:
        return getattr(mmfm.load(self.place / "run", device="cpu"), f"encode_{modality}")

    def _batches(self, modality: str) -> Face:
        encode = self._python(modality)
        return lambda x: encode(x, batch_size=2)

    def _bundle(self, modality: str) -> Face:
        return mmfm.load_encoder(modality, self.folder("bundle")).embed

    def _hf(self, modality: str) -> Face:
        model = hf.MMFMModel.from_pretrained(self.folder("hf")).eval()
        processor = hf.MMFMProcessor.from_pretrained(self.folder("hf"))

        def image(x: Any) -> Tensor:
            x = x if isinstance(x, Tensor) else processor(images=x, return_tensors="pt")["pixel_values"]
            return model.get_image_features(x).pooler_output

        def audio(x: Any) -> Tensor:
            heard = processor.feature_extractor
            given = {"input_features": x} if isinstance(x, Tensor) else heard(x, sampling_rate=RATE)
            return model.get_audio_features(**given).pooler_output

        def text(x: Any) -> Tensor:
            return model.get_text_features(**processor.tokenizer(x, padding=True, return_tensors="pt")).pooler_output

        return {"image": image, "audio": audio, "text": text}[modality]

    def _open_clip(self, modality: str) -> Face:
        where = f"local-dir:{self.folder('open_clip')}"
        model, _, transform = open_clip.create_model_and_transforms(where)
        tokenize = open_clip.get_tokenizer(where)
        model.eval()
        if modality == "text":
            return lambda x: model.encode_text(tokenize(x))
        return lambda x: model.encode_image(
            x if isinstance(x, Tensor) else torch.stack([transform(Image.open(one)) for one in x])
        )

    def _onnx(self, modality: str) -> Face:
        return self._graph(modality, onnx.Session(self.folder("onnx") / f"{modality}.onnx"), "onnx")

    def _pt2(self, modality: str) -> Face:
        return self._graph(modality, program.Program(self.folder("torch_export") / f"{modality}.pt2"), "torch_export")

    def _graph(self, modality: str, run: Callable, to: str) -> Face:
        if modality == "image":
            return lambda x: run(x)[0]
        if modality == "audio":
            return lambda x: run(x, torch.ones_like(x, dtype=torch.bool))[0]
        inner = tokenizers.Tokenizer.from_file(str(self.folder(to) / "tokenizer.json"))
        return lambda x: run(*prepared([inner.encode(text, add_special_tokens=False).ids for text in x]))[0]


@pytest.fixture(scope="module")
def faces(place) -> Faces:
    return Faces(place)


OURS = ("python", "batches", "bundle")
TENSORS = (*OURS, "hf", "onnx", "pt2")
GRAPHS = ("onnx", "pt2")
PIXELS = "pixels are whole numbers of 0..255"
NONE = torch.zeros(0, DIM)


def pixels(*, n: int = 1, height: int = IMAGE.height_px) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, height, IMAGE.width_px), generator=draw, dtype=torch.uint8)


def array(place: Path) -> np.ndarray:
    return np.asarray(Image.open(place / "a.png"))


# An input, made of the folder that holds the files; the faces that take it; and the same thing as the main face knows
# it best, or no rows, or the words of the refusal, or "" where a graph of tensors refuses in words of its own.
IMAGES: list[tuple[str, Callable[[Path], Any], tuple[str, ...], Any]] = [
    ("empty list", lambda _: [], (*OURS, "hf"), NONE),
    ("no rows", lambda _: pixels(n=0), TENSORS, NONE),
    ("one", lambda _: pixels(), TENSORS, lambda _: pixels()),
    ("three", lambda _: pixels(n=3), TENSORS, lambda _: pixels(n=3)),
    ("whole floats", lambda _: pixels().float(), (*OURS, "hf"), lambda _: pixels()),
    ("floats of 0..1", lambda _: pixels() / 255, (*OURS, "hf"), PIXELS),
    ("floats of 0..1 in a graph", lambda _: pixels() / 255, GRAPHS, ""),
    ("black and white as floats", lambda _: torch.ones(1, 3, 8, 16), (*OURS, "hf"), PIXELS),
    ("not a number", lambda _: torch.full((1, 3, 8, 16), torch.nan), (*OURS, "hf"), PIXELS),
    ("bytes for what scales", lambda _: pixels(), ("open_clip",), "pixels are floats in -1..1 here, not torch.uint8"),
    ("bytes as floats for it", lambda _: pixels().float(), ("open_clip",), "pixels are floats in -1..1 here"),
    (
        "not a number for it",
        lambda _: torch.full((1, 3, 8, 16), torch.nan),
        ("open_clip",),
        "pixels are floats in -1..1",
    ),
    ("wrong size", lambda _: pixels(height=12), (*OURS, "hf"), r"pictures are pixels \[n, 3, 8, 16\] for this model"),
    ("wrong size for it", lambda _: pixels(height=12) / 255, ("open_clip",), r"pictures are pixels \[n, 3, 8, 16\]"),
    ("wrong size in a graph", lambda _: pixels(height=12), GRAPHS, ""),
    ("without a batch", lambda _: pixels()[0], (*OURS, "hf"), r"pictures are pixels \[n, 3, 8, 16\] for this model"),
    ("array", lambda place: [array(place)], (*OURS, "hf"), lambda place: [place / "a.png"]),
    ("array of floats", lambda place: [array(place) / 255], (*OURS, "hf"), PIXELS),
    ("array of nothing", lambda _: [np.zeros((0, 4, 3), np.uint8)], OURS, "a picture is an array"),
    ("picture", lambda place: Image.open(place / "a.png"), (*OURS, "hf"), lambda place: [place / "a.png"]),
    ("path", lambda place: [place / "a.png"], (*OURS, "open_clip"), lambda place: [place / "a.png"]),
    ("no such path", lambda place: [place / "b.png"], OURS, "No such file"),
    ("a number", lambda _: [7], OURS, "int is no picture; give a path"),
]


def wave(samples: int = 4_000) -> Tensor:
    return 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(2))


SOUNDS: list[tuple[str, Callable[[Path], Any], tuple[str, ...], Any]] = [
    ("empty list", lambda _: [], (*OURS, "hf"), NONE),
    ("one", lambda _: wave(), TENSORS, lambda _: wave()),
    ("one sample", lambda _: wave(1), TENSORS, lambda _: wave(1)),
    ("no samples", lambda _: wave(0), (*OURS, "hf"), "a sound holds no samples"),
    ("no samples in an array", lambda _: [np.zeros(0, np.float32)], (*OURS, "hf"), "a sound holds no samples"),
    ("16 bits", lambda _: torch.ones(1, 4_000, dtype=torch.int16), (*OURS, "hf"), "floats in -1..1, not int16; divide"),
    ("array of 16 bits", lambda _: [np.ones(4_000, np.int16)], (*OURS, "hf"), "floats in -1..1, not int16; divide"),
    ("not a number", lambda _: wave() * torch.nan, (*OURS, "hf"), "values that are not finite"),
    ("array of no numbers", lambda _: [np.full(99, np.inf, np.float32)], (*OURS, "hf"), "values that are not finite"),
    ("without a batch", lambda _: wave()[0], (*OURS, "hf"), r"sounds are samples \[n, time\], not \[4000\]"),
    ("two channels", lambda _: [np.zeros((2, 99), np.float32)], (*OURS, "hf"), "a waveform has one dimension"),
    ("array", lambda _: [wave()[0].numpy()], (*OURS, "hf"), lambda _: wave()),
    ("very long", lambda _: [np.zeros(RATE * 31, np.float32)], (*OURS, "hf"), "over max_seconds=30"),
    ("sound", lambda _: [Sound(wave()[0], RATE)], OURS, lambda _: wave()),
    ("long sound", lambda _: [Sound(torch.zeros(8_000 * 31), 8_000)], OURS, "over max_seconds=30"),
    ("path", lambda place: place / "a.wav", OURS, lambda place: [place / "a.wav"]),
    ("no such path", lambda place: [place / "b.wav"], OURS, "No such file"),
]
TEXTS: list[tuple[str, Callable[[Path], Any], tuple[str, ...], Any]] = [
    ("empty list", lambda _: [], (*OURS, *GRAPHS), NONE),
    ("empty", lambda _: [""], (*TENSORS, "open_clip"), lambda _: ["", "a red picture"]),
    ("empty twice", lambda _: ["", ""], (*TENSORS, "open_clip"), lambda _: ["", "", "a"]),
    ("one token", lambda _: ["a"], (*TENSORS, "open_clip"), lambda _: ["a", "a red picture"]),
    ("three", lambda _: ["a", "", "something red"], (*TENSORS, "open_clip"), lambda _: ["a", "", "something red"]),
    ("one string", lambda _: "something red", (*OURS, "hf", "open_clip"), lambda _: ["something red"]),
    ("half a character", lambda _: ["a\ud800"], OURS, lambda _: ["a?"]),
    ("no text", lambda _: ["a", None], OURS, "a text is a string, not NoneType"),
    ("ids that are no numbers of a list", lambda _: torch.zeros(1, 3), OURS, "ids are whole numbers"),
    ("ids of another tokenizer", lambda _: torch.full((1, 3), 9_999), OURS, "9999 is none of them"),
    ("padding alone", lambda _: torch.full((1, 3), -1), OURS, lambda _: [""]),
]
CELLS = [
    pytest.param(modality, name, *row[1::2], id=f"{modality}: {row[0]}: {name}")
    for modality, table in (("image", IMAGES), ("audio", SOUNDS), ("text", TEXTS))
    for row in table
    for name in row[2]
]


@torch.no_grad()
@pytest.mark.parametrize(("modality", "name", "given", "wanted"), CELLS)
def test_every_face_gives_the_same_numbers_or_the_same_words(
    faces, model, place, modality, name, given, wanted
) -> None:
    face = faces.of(modality, name)
    if isinstance(wanted, str):
        with pytest.raises(UserError if wanted else Exception, match=wanted or None):
            face(given(place))
        return
    found = face(given(place)).detach()
    if isinstance(wanted, Tensor):
        assert found.shape == wanted.shape
        return
    expected = getattr(model, f"encode_{modality}")(wanted(place))[: len(found)]
    assert found.isfinite().all() and len(found) > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["hf", "open_clip", "onnx", "torch_export", "bundle"])
def test_no_folder_tells_where_anything_lay(faces, place, name):
    """Neither where parts of the model began nor where the run lies; files of weights are searched too."""
    files = [path for path in faces.folder(name).rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        data = path.read_bytes()
        assert ELSEWHERE.encode() not in data and str(place.parent).encode() not in data, path
        if path.suffix == ".json" and "tokenizer" not in path.name:
            assert not re.search(r'"(/|[A-Z]:)[^"]*"', data.decode()), path


@pytest.mark.parametrize(
    ("given", "left"),
    [("hf:owner/name", "hf:owner/name"), ("open_clip:A/b", "open_clip:A/b"), ("/a/b/dino", "dino"), ("x/dino", "dino")],
)
def test_a_source_keeps_its_last_name(given, left):
    """A name of a library's says where to get it; a folder says who had it. Codecs began somewhere, too."""
    assert unpinned(given) == left
    audio = AudioCodec(weights=ELSEWHERE)
    assert ELSEWHERE not in str(unplaced(toy_config(audio_codec=audio)))
    known = KnownCodec(source=given)
    assert unplaced(toy_config(image_codec=known)).image_codec == replace(known, source=left)


def test_generate_takes_what_is_at_the_edge(model, place):
    """An empty text is read and continued; a picture as an array is one; what is no picture is told."""
    assert isinstance(model.generate("text>text", text="", max_tokens=3), str)
    by_path = model.generate("image>text", image=place / "a.png", max_tokens=3)
    assert model.generate("image>text", image=array(place), max_tokens=3) == by_path
    with pytest.raises(UserError, match=PIXELS):
        model.generate("image>text", image=array(place) / 255, max_tokens=3)
    with pytest.raises(UserError, match="over max_seconds=30"):
        model.generate("audio>text", audio=Sound(torch.zeros(RATE * 31), RATE))


def test_the_command_reads_an_empty_text(place, capsys):
    """And says in one line what it cannot do."""
    how = {"run": str(place / "run"), "task": "text>text", "max_tokens": 3, "device": "cpu"}
    Generate(text=("",), **how)()
    assert capsys.readouterr().out
    with pytest.raises(UserError, match="reads text, and none is given; add --text"):
        Generate(**how)()
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="device 'cuda' is not there: torch finds 0 GPUs; give auto or cpu"):
            Generate(text=("a",), **{**how, "device": "cuda"})()


def test_batches_change_nothing(model, place):
    """Draws of seven seeds, three at a time, are those of all at once; so are embeddings."""
    how = {"image": place / "a.png", "temperature": 1.0, "max_tokens": 4, "n": 7, "seed": 3}
    assert model.generate_many("image>text", **how, batch_size=3) == model.generate_many("image>text", **how)
    assert len(set(model.generate_many("image>text", **how))) > 1
    with pytest.raises(UserError, match="batch_size=-1 must not be negative"):
        model.encode_text(["a"], batch_size=-1)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float64])
def test_a_model_is_loaded_in_the_type_that_one_says(place, model, dtype):
    """It computes in it, and says the same to within its digits."""
    other = mmfm.load(place / "run", device="cpu", dtype=dtype)
    found = other.encode_image([place / "a.png"])
    assert str(found.dtype).endswith(str(dtype).removeprefix("torch."))
    assert float((found.double() * model.encode_image([place / "a.png"]).double()).sum()) > 0.99
    with pytest.raises(UserError, match="dtype 'int3' is not known; give float32"):
        mmfm.load(place / "run", dtype="int3")
    for device, words_ in (("tpu", "device 'tpu' is not"), ("cuda:99", "device 'cuda:99' is not there")):
        with pytest.raises(UserError, match=words_):
            mmfm.load(place / "run", device=device)
