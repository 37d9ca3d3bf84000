"""The command line: a mistake is one line that names it, and torch is imported only for what needs it."""

import errno
import io
import json
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
from mmfm.__main__ import main
from mmfm.config import Contrastive, Data, Eval, Generative, Model, Run, Source, Text, UserError
from mmfm.config.load import read_run
from mmfm.config.serialization import to_json
from mmfm.training.preflight import check

CONFIG = """
from mmfm.config import Contrastive, Data, Generative, Model, Run, Source

def config():
    sources = (
        Source(shards={folder!r} + "/image.tar", modalities=("image", "text")),
        Source(shards={folder!r} + "/audio.tar", modalities=("audio", "text"), weight=3),
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


MISTAKES = {  # words, and what the line names
    "trian {config}": "'trian'",
    "train": "CONFIG",
    "train --optim.lr 1 {config}": "CONFIG",
    "train {folder}/none.py": "/none.py",
    "train {folder}/image.tar": ".py or .json",
    "train {config} --optim.lr -1": "Optim.lr=-1.0",
    "train {config} --threads 0": "Run.threads=0",
    "train {config} --model.image.patch-px 5": "patch_px=5",
    "train {config} --data.train.0.shards {folder}/nowhere": "nowhere",
    "train {config} --model.tokenizer {folder}/none.json": "model.tokenizer",
    "train {config} --check --model.tokenizer {config}": "no tokenizer.json",
    "train {config} --generative.0.task video>text": "'video'",
    "train {config} --generative.0.task image,audio>text": "audio and image and text",
    "train {config} --eval.every-steps 5 --data.val=": "every_steps=5",
    "train {config} --best val_loss --data.val=": "best=val_loss",
    "train {config} --out {folder}/image.tar --check": "image.tar is a file",
    "train {config} --out {folder}/done/checkpoints --name step-00000001": "is a checkpoint",
    "train {config} --check --start {folder}/gone": "Run.start='{folder}/gone'",
    "train {config} --check --start {config}": "small.py",
    "train {config} --start {folder}": "no checkpoint",
    "train {config} --check --eval.splits test={folder}/gone": "eval.splits",
    "data": "numbers, stamps",
    "data nunbers {folder}/x": "nearest are numbers",
    "runs {folder}/none": "/none holds no runs",
    "report {folder}/none": "none",
    "generate {folder} image --image a.png": "no target",
    "generate {folder} image>text": "add --image",
    "generate {folder} >text --image a.png": "leave out --image",
    "generate {folder} image>text --image {folder}/no.png": "no.png",
    "generate {folder} >text --num-samples 2": "--temperature",
    "generate {folder} >text --temperature -1": "--temperature -1.0",
    "generate {folder} >image": "--out picture.png",
    "generate {folder} >image --out {folder}": "is a folder",
    "generate {folder} >image --out {folder}/x/a.png": "there is no folder",
    "generate {folder} >image --out {folder}/a.gif": ".png",
    "generate {folder} text>audio --text a --out a.png": ".wav",
    "generate {folder} >audio --num-samples 2 --out a.wav": "a-{{}}.wav",
    "generate {folder} >image --out {{}}{{}}.png": "one {{}}",
    "generate {folder} >text --out a.txt": "a text is printed",
    "generate {folder} >image --num-beams 2 --num-samples 2 --out a.png": "--num-beams",
    "generate {folder} image>>text --image {folder}/image.tar": "empty link",
    "eval RUN --limit -4": "--limit -4",
    "eval RUN --bootstrap -1": "--bootstrap -1",
    "eval RUN --step -1": "--step -1",
}


@pytest.mark.parametrize(("line", "words"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_is_one_line(line: str, words: str, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, nothing on stdout, and one line on stderr: the value, the rule, the remedy."""
    (checkpoint := config.parent / "done" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    assert main([word.format(config=config, folder=config.parent) for word in line.split(" ")]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("mmfm: ") and error.count("\n") == 1 and error.endswith("\n")
    assert words.format(config=config, folder=config.parent) in error


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train {config} --optim.lrr 1", "--optim.lrr"),
        ("train {config} extra", "extra"),
        ("train {config} --optim.lr big", "--optim.lr"),
        ("train {config} --optim.steps 1.5", "--optim.steps"),
        ("train {config} --optim.steps", "--optim.steps"),
        ("train {config} --optim.precision fp8", "--optim.precision"),
        ("eval", "RUN"),
        ("data numbers", "FOLDER"),
        ("generate RUN >text --temperature warm", "--temperature"),
    ],
)
def test_an_option_that_cannot_be_read(line: str, words: str, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2 and what tyro says of it, which names the option."""
    assert main(line.format(config=config).split(" ")) == 2
    out, error = capsys.readouterr()
    assert out == "" and words in error and "Traceback" not in error


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
    line = "--optim.lr 0.5 --model.image.patch-px 8 --contrastive.0.loss sigmoid --data.train.1.weight 1 --resume"
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


def test_generate_passes_on_what_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Texts, a line each; what is not said is not passed on, and a source named twice is a list in order."""
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for file in (first, second):
        file.write_bytes(b"")

    def generate_many(task: str, *, n: int, **how: Any) -> list[str]:
        return [f"{task} {how} {i}" for i in range(n)]

    made = SimpleNamespace(generate_many=generate_many, generate_each=iter, stream=iter)
    monkeypatch.setattr(mmfm, "load", lambda run, **_: made)
    line = f"generate {tmp_path} image>text --image {first} --temperature 0.5 --seed 4 --num-samples 2"
    assert main(line.split()) == 0
    how = {"image": [str(first)], "seed": 4, "temperature": 0.5}
    assert capsys.readouterr().out.splitlines() == [f"image>text {how} {i}" for i in range(2)]
    line = f"generate {tmp_path} image,text,image>text --image {first} --text x --image {second} --stop . --stop ,"
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
REFUSED = {
    "no objective": replace(RUN, generative=()),
    "no training data": replace(RUN, data=Data()),
    "model.audio is None": replace(RUN, model=Model(audio=None)),
    "hold image and text": replace(RUN, contrastive=(Contrastive(pair=("image", "text")),)),
    "000 has no image": replace(RUN, data=Data(train=(replace(SOUND, modalities=("audio", "image")),))),
    "names 'caption', which 2": replace(RUN, data=Data(train=(replace(SOUND, texts=(Text(field="caption"),)),))),
    "names 'a.b', which 2": replace(RUN, data=Data(train=(replace(SOUND, targets=(Text(field="a.b"),)),))),
    "'nowhere'": replace(RUN, data=replace(RUN.data, val="nowhere")),
    "data.val, or": replace(RUN, eval=Eval(every_steps=1)),
    "no 'gone'": replace(RUN, eval=Eval(splits=("audio.tar+gone",))),
    "no tokenizer.json": replace(RUN, model=Model(tokenizer="audio.tar")),
}


@pytest.mark.parametrize(("words", "run"), REFUSED.items(), ids=REFUSED)
def test_check_refuses(run: Run, words: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not train is refused before anything is built; what can passes."""
    monkeypatch.chdir(config.parent)
    assert [found.samples for found in check(RUN)] == [2]
    with pytest.raises(UserError) as caught:
        check(run)
    assert words in str(caught.value)


def test_runs_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its step, best score, data and size; one that cannot be opened says why, and the others stay."""
    for name, text in (("a", to_json(replace(RUN, name="a"))), ("old", '{"name": "old", "write": []}')):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "run.json").write_text(text)
    lines = [{"step": 10, "loss": 1.0}, {"step": 20, "score/val/image->text/acc@1": 0.25}]
    (tmp_path / "a" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3')
    assert main(["runs", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "20/1,000" in shown and "acc@1" in shown and "0.250" in shown and "audio.tar" in shown
    assert "was written by an older mmfm" in shown
