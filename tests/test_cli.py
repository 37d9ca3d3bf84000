"""The command line: a mistake is one line that names it, and torch is imported only for what needs it."""

import errno
import io
import json
import re
import signal
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mmfm
from mmfm.__main__ import main, names, sentence
from mmfm.cli import Train
from mmfm.config import Contrastive, Data, Eval, Generative, Model, Run, Source, Text, UserError
from mmfm.config.load import read_run
from mmfm.config.serialization import to_json
from mmfm.training.preflight import check

CONFIG = """
from mmfm.config import Contrast, Data, Model, Run, Source, Write

def config():
    sources = (
        Source(shards={folder!r} + "/image.tar", modalities=("image", "text")),
        Source(shards={folder!r} + "/audio.tar", modalities=("audio", "text"), share=3),
    )
    goals = dict(contrastive=(Contrastive(pair=("image", "text")),), generative=(Generative(task="audio>text"),))
    return Run(name="small", out={folder!r} + "/runs", data=Data(train=sources, val={folder!r}, batch_size=8), **goals)
"""


def shard(path: Path, *samples: str) -> None:
    """A tar of samples with the given extensions, such as "png txt"; no part holds anything worth decoding."""
    with tarfile.open(path, "w") as tar:
        for i, extensions in enumerate(samples):
            for extension in extensions.split():
                member = tarfile.TarInfo(f"{i:03d}.{extension}")
                member.size = 5
                tar.addfile(member, io.BytesIO(b"words"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The configuration of a small run, beside its shards."""
    shard(tmp_path / "image.tar", "png txt", "jpg txt json", "webp txt")
    shard(tmp_path / "audio.tar", "flac txt", "wav txt")
    path = tmp_path / "small.py"
    path.write_text(CONFIG.format(folder=str(tmp_path)))
    return path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `mmfm train` hands to the trainer, which is a stand-in here."""
    calls: list[Any] = []

    def train(run: Run, *, resume: bool, force: bool, look: Any = None) -> Path:
        calls.append((run, resume, force))
        return run.folder

    monkeypatch.setitem(sys.modules, "mmfm.training.fit", SimpleNamespace(train=train))
    return calls


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_help_and_check_need_no_torch(config: Path) -> None:
    """--help, --version, --check and a mistyped option import nothing that is slow to import."""
    lines = [["--help"], ["--version"], ["train", str(config), "--check"], ["train", str(config), "--nope"]]
    code = f"import sys; from mmfm.__main__ import main; [main(line) for line in {lines}]; print(*sys.modules)"
    loaded = set(python(code).stdout.splitlines()[-1].split())
    assert "mmfm.config" in loaded
    assert not loaded & {"torch", "lightning", "webdataset", "sklearn", "scipy", "numpy", "transformers", "timm"}


def test_check_shows_what_would_be_trained(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Samples are counted per source and per objective, from the headers alone, and nothing is written."""
    assert main(["train", str(config), "--check"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["image-text", "1", "3"] in rows
    assert ["audio>text", "1", "2"] in rows
    assert any(row[1:3] == ["1", "3"] and row[-3:] == ["2", "of", "8"] for row in rows if row)
    assert not (config.parent / "runs").exists()


MISTAKES: dict[str, tuple[str, str]] = {
    "no such command": ("trian {config}", "there is no command 'trian'; there are train, eval"),
    "no configuration": ("train", "mmfm train needs a configuration first"),
    "options first": ("train --optim.lr 1 {config}", "mmfm train needs a configuration first"),
    "no file": ("train {folder}/none.py", "/none.py; give a Python file with config() -> Run, or a saved run.json"),
    "no such ending": ("train {folder}/image.tar", "image.tar is no configuration: it should end in .py or .json"),
    "unknown option": ("train {config} --optim.lrr 1", "no option '--optim.lrr'; the nearest are --optim.lr"),
    "unknown inside": ("train {config} --model.image.patch 4", "the nearest are --model.image.patch-px"),
    "word too many": ("train {config} extra", "'extra' is a word too many"),
    "text for a float": ("train {config} --optim.lr big", "--optim.lr: 'big' is no number; see mmfm train"),
    "fraction for an int": ("train {config} --optim.steps 1.5", "--optim.steps: '1.5' is no whole number"),
    "no value": ("train {config} --optim.steps", "missing value for argument '--optim.steps'"),
    "none of the choices": ("train {config} --optim.precision fp8", "'fp8' for argument '--optim.precision'"),
    "breaks a rule": ("train {config} --optim.lr -1", "Optim.lr=-1.0 must be greater than 0"),
    "breaks a rule of the run": ("train {config} --threads 0", "Run.threads=0 must be greater than 0"),
    "breaks a rule of two": ("train {config} --model.image.patch-px 5", "224 px is no multiple of patch_px=5"),
    "no folder": ("train {config} --data.train.0.shards {folder}/nowhere", "nowhere"),
    "no tokenizer": ("train {config} --model.tokenizer {folder}/none.json", "model.tokenizer: there is no file"),
    "no such modality": ("train {config} --write.0.task video>text", "no modality called 'video'; there are image"),
    "no sample": ("train {config} --write.0.task image,audio>text", "hold audio and image and text, and none of 5"),
    "no samples to score": ("train {config} --eval.every-steps 5 --data.val=", "every_steps=5 needs samples to score"),
    "eval needs a run": ("eval", "mmfm eval needs RUN; see mmfm eval --help"),
    "data needs a name": (
        "data",
        "mmfm data needs one of numbers, stamps, corpus, build, index, encode, judges; see mmfm data --help",
    ),
    "data needs a folder": ("data numbers", "mmfm data numbers needs FOLDER; see mmfm data numbers --help"),
    "no such data": ("data nunbers {folder}/x", "not 'nunbers'; the nearest are numbers"),
    "report of nothing": ("report {folder}/none", "none"),
    "unquoted task": (
        "generate RUN image --image a.png",
        "task 'image' has no '>' and so no target; write sources>target",
    ),
    "source missing": ("generate RUN image>text", "task 'image>text' reads image, and none is given; add --image"),
    "source unread": ("generate RUN >text --image a.png", "does not read image; leave out --image"),
    "source not there": ("generate RUN image>text --image {folder}/no.png", "--image: there is no file"),
    "greedy twice": (
        "generate RUN >text --num-samples 2",
        "--num-samples 2 would write one text 2 times; set --temperature",
    ),
    "not heat": ("generate RUN >text --temperature warm", "--temperature: 'warm' is no number; see mmfm generate"),
    "nowhere to draw": (
        "generate RUN >image",
        "task '>image' makes a picture; say where to write it: --out picture.png",
    ),
    "a folder": ("generate RUN >image --out {folder}", "is a folder; give a file in it, such as"),
    "no such folder": ("generate RUN >image --out {folder}/x/a.png", "--out {folder}/x/a.png: there is no folder"),
    "not a png": ("generate RUN >image --out {folder}/a.gif", "a.gif: a picture is written as .png; end the name so"),
    "not a wav": ("generate RUN text>audio --text a --out a.png", "--out a.png: a sound is written as .wav"),
    "one name for two sounds": (
        "generate RUN >audio --num-samples 2 --out a.wav",
        "--num-samples 2 sounds need a name each; say --out 'a-{{}}.wav'",
    ),
    "two numbers": ("generate RUN >image --out {{}}{{}}.png", "one {{}} is where the number goes"),
    "text to a file": ("generate RUN >text --out a.txt", "a text is printed; leave --out away, or add > a.txt behind"),
    "likeliest twice": (
        "generate RUN >image --num-beams 2 --num-samples 2 --out a.png",
        "--num-samples 2 would write one picture 2 times; set --temperature, and leave out --num-beams",
    ),
    "broken chain": ("generate RUN image>>text --image {folder}/image.tar", "has an empty link"),
    "on a file": ("train {config} --out {folder}/image.tar --check", "/image.tar is a file; choose another --out or"),
    "into a checkpoint": (
        "train {config} --out {folder}/done/checkpoints --name step-00000001",
        "is a checkpoint, and training into it would spoil it; give its run {folder}/done, or its ",
    ),
    "no start": (
        "train {config} --check --start {folder}/gone",
        "Run.start='{folder}/gone' is no folder; give that of",
    ),
    "a file to start from": (
        "train {config} --check --start {config}",
        "small.py' is no folder; give that of a run or",
    ),
    "no start in it": ("train {config} --start {folder}", "holds no bundle and no checkpoint of a run; train it, or"),
    "no split": ("train {config} --check --eval.splits test={folder}/gone", "eval.splits: there is no '{folder}/gone'"),
    "no tokenizer in it": (
        "train {config} --check --model.tokenizer {config}",
        "small.py' is no tokenizer.json, which",
    ),
    "less than all": ("eval RUN --limit -4", "--limit -4 must not be negative; 0: all"),
    "less than the run says": ("eval RUN --bootstrap -1", "--bootstrap -1 must not be negative; 0: as the run says"),
    "less than the last": ("eval RUN --step -1", "--step -1 must not be negative; 0: the last checkpoint"),
    "cold": ("generate RUN >text --temperature -1", "--temperature -1.0 must not be negative"),
}


@pytest.mark.parametrize(("line", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(line: str, words: str, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, nothing on stdout, and one line on stderr: the value, the rule, the remedy."""
    (checkpoint := config.parent / "done" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    assert main([word.format(config=config, folder=config.parent) for word in line.split(" ")]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("mmfm: ") and error.count("\n") == 1 and error.endswith("\n")
    assert words.format(config=config, folder=config.parent) in error


def test_what_goes_on_asks_nothing_of_where_it_began(config: Path, trained: list[Any]) -> None:
    """Its weights are those of its checkpoint, and the run that it started from may be gone; not so with --force."""
    line = ["train", str(config), "--start", str(config.parent / "gone")]
    assert main(line) == 2 and not trained
    (config.parent / "runs" / "small" / "checkpoints" / "step-00000001").mkdir(parents=True)
    assert main([*line, "--resume"]) == 0 and len(trained) == 1
    assert main([*line, "--force"]) == 2 and len(trained) == 1


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def config(:\n", "fails with SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(3)\n", "broken.py exits (3) before it gives a Run; config() should return it"),
        ("x = 1\n", "has no function config(); it should define config() -> Run"),
        ("def config():\n    return 7\n", "config() returned int, but should return mmfm.config.Run"),
        ("def config():\n    return Run()\n", "fails with NameError: name 'Run' is not defined"),
        ("from mmfm.config import Optim\ndef config():\n    return Optim(stepz=1)\n", "argument 'stepz'"),
        ("from mmfm.config import Optim\ndef config():\n    return Optim(lr=0.0)\n", "mmfm: Optim.lr=0.0 must be"),
    ],
)
def test_a_broken_config_file(code: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the user's file raises is one line; --debug adds the traceback."""
    (path := tmp_path / "broken.py").write_text(code)
    assert main(["train", str(path)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert main(["train", str(path), "--debug"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["train RUN", "train RUN/run.json", "eval RUN", "report RUN", "doctor RUN"])
def test_a_damaged_run_json_is_named(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reads it: what is no text is no fault of the program."""
    (tmp_path / "run.json").write_bytes(b"\xff\xfe")
    assert main(words.replace("RUN", str(tmp_path)).split(" ")) == 2
    error = capsys.readouterr().err
    assert "run.json is not UTF-8 at byte 0; restore it from the run's checkpoint folder" in error
    assert error.count("\n") == 1


def test_options_change_values_and_nothing_else(config: Path, trained: list[Any]) -> None:
    """Nested, optional and listed values can be set; all others stay as the file says."""
    line = "--optim.lr 0.5 --model.image.patch-px 8 --contrast.0.loss sigmoid --data.train.1.share 1 --resume"
    assert main(["train", str(config), *line.split()]) == 0
    run = read_run(config)
    expected = replace(
        run,
        optim=replace(run.optim, lr=0.5),
        model=replace(run.model, image=replace(run.model.image, patch_px=8)),
        contrastive=(replace(run.contrastive[0], loss="sigmoid"),),
        data=replace(run.data, train=(run.data.train[0], replace(run.data.train[1], weight=1))),
    )
    assert trained == [(expected, True, False)]


def test_a_tower_of_none_stays_none(config: Path, trained: list[Any]) -> None:
    """A saved run is a configuration too, and what it has switched off the command line leaves off."""
    run = replace(read_run(config), model=Model(audio=None), generative=())
    (saved := config.with_name("run.json")).write_text(to_json(run))
    assert main(["train", str(saved), "--seed", "3"]) == 0
    assert trained == [(replace(run, seed=3), False, False)]


def test_a_finished_run_is_kept(config: Path, trained: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Only the same run with its last checkpoint, whole, counts as finished; --force trains it all the same."""
    run = read_run(config)
    checkpoint = run.folder / "checkpoints" / f"step-{run.optim.steps:08d}"
    checkpoint.mkdir(parents=True)
    (weights := checkpoint / "model.safetensors").write_bytes(b"weights")
    told = {"bytes": 7, "crc32": zlib.crc32(b"weights")}
    (checkpoint / "manifest.json").write_text(json.dumps({"step": run.optim.steps, "files": {weights.name: told}}))
    (run.folder / "run.json").write_text(to_json(run))
    assert main(["train", str(config)]) == 0
    assert trained == [] and "is trained already and kept; --force" in capsys.readouterr().out
    assert main(["train", str(config), "--seed", "1"]) == 0 and main(["train", str(config), "--force"]) == 0
    weights.write_bytes(b"weightz")
    assert main(["train", str(config)]) == 0
    weights.write_bytes(b"weights")
    checkpoint.rename(checkpoint.with_name("step-00000500"))
    assert main(["train", str(config)]) == 0
    assert [force for _, _, force in trained] == [False, True, False, False]


def test_known_options_are_tyros(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The options that "the nearest are" may name are exactly those that the help shows."""
    assert main(["train", str(config), "--help"]) == 0
    shown = re.findall(r"^\W*?(--[a-z0-9.-]*[a-z0-9])", capsys.readouterr().out, re.MULTILINE)
    assert set(shown) == set(names(Train(run=read_run(config))))


def test_generate_passes_on_what_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Texts, a line each; what is not said is not passed on, and a source named twice is a list in order."""
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for file in (first, second):
        file.write_bytes(b"")

    def generate_many(task: str, *, n: int, **how: Any) -> list[str]:
        return [f"{task} {how} {i}" for i in range(n)]

    monkeypatch.setattr(mmfm, "load", lambda run, **_: SimpleNamespace(generate_many=generate_many, stream=iter))
    line = f"generate RUN image>text --image {first} --temperature 0.5 --seed 4 --num-samples 2"
    assert main(line.split()) == 0
    how = {"image": [str(first)], "seed": 4, "temperature": 0.5}
    assert capsys.readouterr().out.splitlines() == [f"image>text {how} {i}" for i in range(2)]
    line = f"generate RUN image,text,image>text --image {first} --text x --image {second} --stop . --stop ,"
    assert main(line.split()) == 0
    how = {"image": [str(first), str(second)], "text": ["x"], "stop": (".", ",")}
    assert capsys.readouterr().out == f"image,text,image>text {how} 0\n"


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Callable[..., None]:
    def train(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "mmfm.training.fit", SimpleNamespace(train=train))
    return train


def exit_by_interrupt() -> SystemExit:
    """As Lightning leaves after Ctrl-C: it exits while it handles the interrupt."""
    leaving = SystemExit(1)
    leaving.__context__ = KeyboardInterrupt()
    return leaving


WORKER = (
    "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    '  File "stream.py", line 1, in read\nmmfm.preprocessing.BadSample: a.tar: 7 is cut; write it again'
)
FAULTS: dict[str, tuple[BaseException, int, str]] = {
    "Ctrl-C": (KeyboardInterrupt(), 130, "mmfm: interrupted; --resume continues"),
    "Ctrl-C in Lightning": (exit_by_interrupt(), 130, "mmfm: interrupted"),
    "exit": (SystemExit("stopped"), 1, "mmfm: stopped"),
    "full disk": (
        OSError(errno.ENOSPC, "No space left on device", "runs/x"),
        1,
        "mmfm: the disk is full (runs/x); free",
    ),
    "no right": (
        PermissionError(errno.EACCES, "Permission denied", "runs"),
        1,
        "mmfm: Permission denied (runs); grant",
    ),
    "several lines": (UserError("one\n   two"), 2, "mmfm: one two"),
    "in a worker": (UserError(WORKER), 2, "mmfm: a.tar: 7 is cut; write it again"),
    "our fault": (RuntimeError("shapes\ndiffer"), 1, "mmfm: RuntimeError: shapes differ; this is a fault of mmfm"),
}


@pytest.mark.parametrize(("error", "status", "words"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_line(
    error: BaseException,
    status: int,
    words: str,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever stops a command has an exit status of its kind and one line; only --debug shows the traceback."""
    raising(monkeypatch, error)
    assert main(["train", str(config)]) == status
    said = capsys.readouterr().err
    assert said.startswith(words) and said.count("\n") == 1
    assert main(["train", str(config), "--debug"]) == status
    assert "Traceback" in capsys.readouterr().err


def test_nobody_reads(config: Path) -> None:
    """`mmfm ... | head` ends without a word when the reader has gone."""
    code = "import sys; from mmfm.__main__ import main; sys.stdin.read(); sys.exit(main(['--help']))"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout and child.stdin and child.stderr
    child.stdout.close()
    child.stdin.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait() == 128 + signal.SIGPIPE


SOUND = Source(shards="audio.tar", modalities=("audio", "text"))
RUN = Run(name="r", data=Data(train=(SOUND,)), generative=(Generative(task="audio>text"),))


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (replace(RUN, generative=()), "run 'r' has no objective; list some"),
        (replace(RUN, data=Data()), "run 'r' has no training data; list sources"),
        (
            replace(RUN, model=Model(audio=None)),
            "audio>text reads audio, but model.audio is None; give the model a tower",
        ),
        (
            replace(RUN, contrastive=(Contrastive(pair=("image", "text")),)),
            "image-text needs samples that hold image and text",
        ),
        (
            replace(RUN, data=Data(train=(replace(SOUND, modalities=("audio", "image")),))),
            "audio.tar: 000 has no image, which its source provides",
        ),
        (
            replace(RUN, data=Data(train=(replace(SOUND, texts=(Text(field="caption"),)),))),
            "Source.texts of 'audio.tar' names 'caption', which 2 of its first 2 samples lack, such as",
        ),
        (
            replace(RUN, data=Data(train=(replace(SOUND, targets=(Text(field="a.b"),)),))),
            "Source.targets of 'audio.tar' names 'a.b', which 2",
        ),
        (replace(RUN, data=replace(RUN.data, val="nowhere")), "'nowhere'"),
        (replace(RUN, eval=Eval(every_steps=1)), "set data.val, or every_steps to 0"),
        (replace(RUN, eval=Eval(splits=("audio.tar", "x=gone"))), "eval.splits: there is no 'gone'"),
        (replace(RUN, eval=Eval(splits=("audio.tar+gone",))), "eval.splits: there is no 'gone'"),
        (replace(RUN, model=Model(tokenizer="small.py")), "model.tokenizer: 'small.py' is no tokenizer.json"),
        (replace(RUN, model=Model(tokenizer="audio.tar")), "model.tokenizer: 'audio.tar' is no tokenizer.json"),
    ],
)
def test_check_refuses(run: Run, words: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not train is refused before anything is built; what can passes."""
    monkeypatch.chdir(config.parent)
    assert [found.samples for found in check(RUN)] == [2]
    with pytest.raises(UserError) as caught:
        check(run)
    assert words in str(caught.value)


def test_a_box_becomes_a_sentence() -> None:
    """The title, the help under the second rule and the deeper indented help go; what was said stays, on one line."""
    rule = " " + "-" * 20
    box = [
        " Invalid choice",
        rule,
        "  invalid choice 'a'. Expected",
        "  one of b.",
        " " * 10 + "(help)",
        rule,
        "  see help",
    ]
    assert sentence("\n".join(box)) == "invalid choice 'a'. Expected one of b"
    assert sentence("no box") == "no box"
