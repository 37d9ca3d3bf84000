"""`mmfm generate` from the words to the files: what is written, under which name, and that it is whole or not there."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from test_making import STEP, TOKENIZER, codec_run, pixels, toy_interface
from toys import toy_run

import mmfm
from mmfm.__main__ import main
from mmfm.config.serialization import to_json
from mmfm.inference import media_files
from mmfm.inference.interface import Interface, Sound
from mmfm.inference.media_files import sheet
from mmfm.inference.processing import Text
from mmfm.models.checkpoint import save
from mmfm.runtime import files


@pytest.fixture(scope="module")
def model() -> Interface:
    return toy_interface(codec_run())


@pytest.fixture(autouse=True)
def loaded(model: Interface, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command finds this model, and works in a folder of its own."""
    monkeypatch.setattr(mmfm, "load", lambda run, device, dtype: model)
    monkeypatch.chdir(tmp_path)


def generate(*words: str) -> int:
    return main(["generate", ".", *words])


def test_a_run_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What the command draws is what the model of the folder draws, codecs and all."""
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    made = toy_interface(codec_run(name="r", out=str(tmp_path)))
    made.run.folder.mkdir()
    (made.run.folder / "run.json").write_text(to_json(made.run))
    save(made.run.folder, 1, made.run, TOKENIZER, made.core.state_dict(), {})
    assert main(["generate", "r", "text>image", "--text", "seven", "--out", "a.png", "--seed", "2"]) == 0
    assert capsys.readouterr().out == "a.png\n"
    assert (pixels(Image.open("a.png")) == pixels(made.generate("text>image", text="seven", seed=2))).all()


def test_several_pictures_are_one_sheet_or_a_file_each(model: Interface):
    """Picture i of the sheet is that of seed i; so is the file with its number, which counts from 1."""
    assert generate("text>image", "--text", "seven", "--num-samples", "10", "--out", "all.png") == 0
    assert generate("text>image", "--text", "seven", "--num-samples", "10", "--out", "one-{}.png") == 0
    assert sorted(path.name for path in Path().iterdir()) == ["all.png", *(f"one-{i:02}.png" for i in range(1, 11))]
    whole = pixels(Image.open("all.png"))
    assert whole.shape == (5 * 8 + 4 * 2, 2 * 16 + 2)
    for i in range(10):
        alone = pixels(model.generate("text>image", text="seven", seed=i))
        top, left = i // 2 * 10, i % 2 * 18
        assert (whole[top : top + 8, left : left + 16] == alone).all()
        assert (pixels(Image.open(f"one-{i + 1:02}.png")) == alone).all()


def test_a_sheet_is_about_square_and_its_gaps_are_grey():
    """Of colour pictures too; places without a picture are ground."""
    red = Image.new("RGB", (10, 10), (255, 0, 0))
    whole = np.array(sheet([red] * 5))
    assert whole.shape == (34, 22, 3) and (whole[10:12] == 128).all() and (whole[24:, 12:] == 128).all()
    assert np.array(sheet([red])).shape == (10, 10, 3)


def test_a_sound_is_what_the_model_says(model: Interface, capsys: pytest.CaptureFixture[str]):
    """To 16 bits; a continuation is told to begin where it does."""
    assert generate("text>audio", "--text", "seven", "--max-tokens", "4", "--out", "a.wav") == 0
    heard, rate_hz = soundfile.read("a.wav", dtype="float32")
    said = model.generate("text>audio", text="seven", max_tokens=4)
    assert isinstance(said, Sound) and rate_hz == said.rate_hz and len(heard) == len(said.wave)
    np.testing.assert_allclose(heard, said.wave.numpy(), atol=2**-15)
    soundfile.write("prompt.wav", 0.1 * np.random.default_rng(0).standard_normal(5 * STEP), 16_000)
    capsys.readouterr()
    assert generate("audio>audio", "--audio", "prompt.wav", "--max-tokens", "3", "--out", "b.wav") == 0
    assert capsys.readouterr().out.startswith("b.wav (0.") and len(soundfile.read("b.wav")[0]) > 5 * STEP


def test_texts_are_lines_and_leave_no_file(model: Interface, capsys: pytest.CaptureFixture[str]):
    Image.fromarray(np.zeros((8, 16), np.uint8)).save("a.png")
    line = [
        "image>text",
        "--image",
        "a.png",
        "--max-tokens",
        "5",
        "--temperature",
        "1",
        "--num-samples",
        "2",
        "--seed",
        "3",
    ]
    assert generate(*line) == 0
    said = [model.generate("image>text", image="a.png", max_tokens=5, temperature=1.0, seed=seed) for seed in (3, 4)]
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in said)
    assert [path.name for path in Path().iterdir()] == ["a.png"]


def test_on_a_terminal_a_text_comes_piece_by_piece(model: Interface, monkeypatch: pytest.MonkeyPatch, capsys):
    """The pieces together are the line that is printed elsewhere."""
    assert generate(">text", "--max-tokens", "6") == 2  # not trained on it
    assert "not trained on '>text'" in capsys.readouterr().err
    assert generate("text>text", "--text", "ab", "--max-tokens", "6") == 0
    whole = capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    streamed = []
    monkeypatch.setattr(Interface, "stream", lambda self, task, **how: streamed.append(task) or iter(whole[:-1]))
    assert generate("text>text", "--text", "ab", "--max-tokens", "6") == 0
    assert streamed == ["text>text"] and capsys.readouterr().out == whole


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left"), 2)])
def test_what_is_interrupted_leaves_nothing(error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch):
    """Of three files the second cannot be written: none is there, nor a part; what was there before stays."""
    Path("p-1.png").write_bytes(b"before")
    written = []

    def write(path: Path, data: bytes) -> None:
        written.append(path)
        if len(written) == 2:
            raise error
        write_file(path, data)

    write_file = files.write_file
    monkeypatch.setattr(files, "write_file", write)
    assert generate("text>image", "--text", "a", "--num-samples", "3", "--out", "p-{}.png", "--force") == status
    assert [(path.name, path.read_bytes()) for path in Path().iterdir()] == [("p-1.png", b"before")]


def test_what_is_there_is_kept_unless_one_says_so(capsys: pytest.CaptureFixture[str]):
    """Told before anything is made; and in batches the things are those of all at once."""
    Path("p-2.png").write_bytes(b"before")
    words = ["text>image", "--text", "a", "--num-samples", "3", "--out", "p-{}.png"]
    assert generate(*words) == 2
    assert capsys.readouterr().err.endswith(
        "--out: p-2.png is there already; give another name, or --force replaces it\n"
    )
    assert [path.name for path in Path().iterdir()] == ["p-2.png"]
    assert generate(*words, "--force", "--batch-size", "2") == 0
    batched = {path.name: path.read_bytes() for path in Path().iterdir()}
    assert generate(*words, "--force") == 0
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == batched and len(batched) == 3


def test_a_failing_encoder_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    def fail(thing: object) -> bytes:
        raise RuntimeError("no such mode")

    monkeypatch.setattr(media_files, "encoded", fail)
    assert generate("text>image", "--text", "a", "--out", "p.png") == 1
    assert list(Path().iterdir()) == []


def test_a_mistake_of_the_model_is_one_line(capsys: pytest.CaptureFixture[str]):
    """What only the model knows: exit status 2, nothing written."""
    assert generate("text>audio", "--text", "a", "--guidance", "2", "--out", "a.wav") == 2
    assert generate("image>audio>text", "--image", str(Path(__file__)), "--max-tokens", "4") == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 2 and list(Path().iterdir()) == []
    assert "guidance of text>audio needs" in said.err and "not trained on 'image>audio'" in said.err


@pytest.mark.parametrize("kind", ["run", "checkpoint", "bundle"])
def test_what_a_run_cannot_make_is_said_before_where_to_write_it(kind, tmp_path, capsys, monkeypatch):
    """Of a model that only writes text, from its folder alone: nothing is loaded."""
    made = toy_interface(toy_run(name="r", out=str(tmp_path)))
    folder = Path("r")
    folder.mkdir()
    (folder / "run.json").write_text(to_json(made.run))
    if kind == "checkpoint":
        folder = save(folder, 1, made.run, TOKENIZER, made.core.state_dict(), {})
    elif kind == "bundle":
        folder = mmfm.save_bundle(made, "b")
    monkeypatch.setattr(mmfm, "load", None)
    for more in ([], ["--text", "seven"], ["--out", "no.wav"]):
        assert main(["generate", str(folder), "text>image", *more]) == 2
        told = "this model was not trained on 'text>image'; it writes image>text, audio>text, >text\n"
        assert capsys.readouterr().err.endswith(told)


@pytest.mark.parametrize("more", [[], ["--image", "none.png"], ["--out", "a.wav"]])
def test_a_run_that_is_not_there_is_said_first(more, capsys):
    """Before what else is wrong with the command."""
    assert main(["generate", "runs/nothing", "image>text", *more]) == 2
    assert "runs/nothing is no folder of a run; give one that mmfm train has written" in capsys.readouterr().err


def test_a_chain_on_the_command_line(model: Interface):
    Image.fromarray(np.zeros((8, 16), np.uint8)).save("a.png")
    assert generate("image>text>audio", "--image", "a.png", "--max-tokens", "4", "--out", "b.wav") == 0
    said = model.generate("image>text>audio", image="a.png", max_tokens=4)
    assert isinstance(said, Sound)
    torch.testing.assert_close(
        torch.from_numpy(soundfile.read("b.wav", dtype="float32")[0]), said.wave, atol=2**-15, rtol=0
    )


def shades(folder: str, count: int = 5) -> list[str]:
    """Pictures that are told apart, a.png and so on."""
    Path(folder).mkdir()
    files = [f"{folder}/{'abcde'[at]}.png" for at in range(count)]
    for at, file in enumerate(files):
        Image.fromarray(np.random.default_rng(at).integers(0, 256, (8, 16), np.uint8)).save(file)
    return files


@pytest.mark.parametrize("how", [(), ("--temperature", "1", "--seed", "3"), ("--repetition-penalty", "3")])
def test_a_folder_is_a_line_for_each_file_and_each_is_as_if_alone(model: Interface, how: tuple[str, ...], capsys):
    """In parts of two or all at once, by name; the files' own lines are those of the command for one file."""
    alone = []
    for file in shades("f"):
        assert generate("image>text", "--image", file, "--max-tokens", "5", *how) == 0
        alone.append(f"{file}\t{' '.join(capsys.readouterr().out.split())}\n")
    assert len({line.split("\t")[1] for line in alone}) > 1
    Path("f/notes.txt").write_text("not a picture")
    for more in ((), ("--batch-size", "2")):
        assert generate("image>text", "--image", "f", "--max-tokens", "5", *how, *more) == 0
        assert capsys.readouterr().out == "".join(alone)


def test_pictures_of_texts_are_numbered_and_those_of_a_folder_have_its_names(model: Interface, capsys):
    """Texts of several lengths, given behind another or alone, through a chain too."""
    Path("texts").write_text("seven\na\nfour hundred\n")
    assert generate("text>image", "--texts", "texts", "--out", "t{}.png", "--batch-size", "2") == 0
    assert capsys.readouterr().out == "t1.png\nt2.png\nt3.png\n"
    for number, text in enumerate(("seven", "a", "four hundred"), 1):
        assert (pixels(Image.open(f"t{number}.png")) == pixels(model.generate("text>image", text=text))).all()
    files = shades("f", 3)
    Path("made").mkdir()
    assert generate("image>text>image", "--image", "f", "--out", "made/{}.png") == 0
    for file in files:
        said = model.generate("image>text>image", image=file)
        assert (pixels(Image.open(f"made/{Path(file).name}")) == pixels(said)).all()
    assert generate("image>text>image", "--image", "f", "--out", "made/{}.png") == 2
    assert "made/a.png, made/b.png and others are there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "key", "how"),
    [
        ("audio>audio", "audio", {"max_tokens": 3}),
        ("audio>text", "audio", {"temperature": 1.0, "seed": 2}),
        ("text>text", "text", {"num_beams": 2}),
        ("text~", "text", {"seed": 1}),
        ("image~", "image", {"mask": "left", "seed": 1}),
        ("audio~", "audio", {"mask": 0.5}),
    ],
)
def test_each_of_several_is_what_it_is_alone(model: Interface, task: str, key: str, how: dict):
    """Things of several lengths, whatever the task."""
    for at, count in enumerate((5, 9, 3)):
        wave = 0.3 * np.random.default_rng(at).standard_normal(count * STEP)
        soundfile.write(f"{at}.wav", wave, 16_000)
    given = {"audio": ["0.wav", "1.wav", "2.wav"], "text": ["a_", "longer_ _", "_b_"], "image": shades("f", 3)}[key]
    made = model.generate_each(task, [{key: one} for one in given], **how)
    for one, thing in zip(given, made, strict=True):
        alone = model.generate(task, **{key: one}, **how)
        if isinstance(alone, Sound):
            assert isinstance(thing, Sound) and (thing.start, thing.finish) == (alone.start, alone.finish)
            torch.testing.assert_close(thing.wave, alone.wave)
        elif isinstance(alone, str):
            assert thing == alone
        else:
            assert (pixels(thing) == pixels(alone)).all()
    assert model.generate_each(task, [], **how) == []


def test_lines_of_json_hold_the_chances(model: Interface, capsys):
    """Of one text and of several; their sum is what the same text is given."""
    files = shades("f", 2)
    assert generate("image>text", "--image", "f", "--max-tokens", "4", "--json", "--logprobs") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for file, line in zip(files, lines, strict=True):
        said = model.generate("image>text", image=file, max_tokens=4, logprobs=True)
        assert isinstance(said, Text) and line.pop("logprobs") == pytest.approx(said.logprobs, abs=1e-5)
        assert line == {"image": file, "text": said, "finish": said.finish}
    assert generate("image>text", "--image", files[0], "--max-tokens", "4", "--min-tokens", "4", "--json") == 0
    assert list(json.loads(capsys.readouterr().out)) == ["text", "finish"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("image>text --image f --num-samples 2 --temperature 1", "of several each is made once"),
        ("text>image --texts texts --out a.png", "name each, such as --out '{}.png'"),
        ("text>image --texts empty --out {}.png", "line 2 of empty is empty"),
        ("text>image --texts nothing --out {}.png", "there is no file 'nothing'"),
        ("image,text,image>text --image f --image f --text a", "only one of --image, --audio and --texts"),
        ("image>text --image none", "holds no .png"),
        ("image>text>image --image twice --out made-{}.png", "would both be made-a.png"),
        ("image>text --image f --logprobs", "are printed by --json; add it"),
        ("image>text --image f --texts texts", "does not read text; leave out --texts"),
        ("text>image --text a --out a.png --json", "--json prints texts"),
    ],
)
def test_what_does_not_go_with_several_says_so(words: str, told: str, capsys):
    shades("f", 1)
    for folder in ("none", "twice"):
        Path(folder).mkdir()
    for name in ("a.png", "a.jpg"):
        Image.new("L", (16, 8)).save(f"twice/{name}")
    Path("texts").write_text("a\nb\n")
    Path("empty").write_text("a\n\nb\n")
    assert generate(*words.split()) == 2
    assert told in capsys.readouterr().err
