"""What is wrong with a suite, its data or its place is said in one line, before the model works."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from planted import SMALL, picture, saved_run, sound
from test_suites import coco, suite_file

from mmfm import config
from mmfm.__main__ import main
from mmfm.data.index import MAX_PART
from mmfm.evals import collection

FOLDERS = "Classify(data=ClassFolders()),"
COCO = "Retrieve(data=Coco(annotations='annotations/captions_val2017.json', media='val2017')),"
TABLE = "Retrieve(data=Table(table='t.csv', media='seen', file='file', captions=('said',))),"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("runs"), tasks=("image>text",)).folder


def said(run: Path, suite: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error that is the user's."""
    capsys.readouterr()
    assert main(["eval", str(run), str(suite), "--root", str(root), "--bootstrap", "5", "--limit", "4"]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith("mmfm: ") and out == ""
    assert not (run / "results.mine.json").exists()
    return err


def pair(root: Path) -> None:
    picture(root / "cat" / "1.jpg")
    picture(root / "dog" / "1.jpg")


def listed(*lines: str) -> Callable[[Path], object]:
    def write(root: Path) -> None:
        pair(root)
        (root / "classnames.txt").write_text("\n".join(lines))

    return write


def table(*lines: str) -> Callable[[Path], object]:
    def write(root: Path) -> None:
        picture(root / "seen" / "a.jpg")
        (root / "t.csv").write_text("\n".join(lines))

    return write


def captions(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def write(root: Path) -> None:
        coco(root)
        file = root / "annotations" / "captions_val2017.json"
        tree = json.loads(file.read_text())
        change(tree)
        file.write_text(json.dumps(tree))

    return write


def twins(root: Path) -> None:
    pair(root)
    shutil.copy(root / "cat" / "1.jpg", root / "cat" / "1.jpeg")


@pytest.mark.parametrize(
    "tasks, make, words",
    [
        (FOLDERS, listed("cat", "dog", "cat"), "classnames.txt lists 'cat' twice; name each class once"),
        (FOLDERS, listed(""), "classnames.txt is empty; give a text file with one class a line"),
        (FOLDERS, listed("hen"), "2 of 2 labels, such as 'cat', are none of the 1 classes of"),
        (FOLDERS, lambda root: (root / "cat").mkdir(), "its 1 folders of classes hold no image (png, jpg, jpeg, webp)"),
        (FOLDERS, lambda root: picture(root / "a.jpg"), "holds no folder of a class; put the files of each class into"),
        (FOLDERS, twins, "1.jpeg: another file has the same name with another ending; rename or remove one"),
        ("Classify(data=ClassFolders(path='val')),", pair, "val; suite mine expects a folder; the data set is a set"),
        ("Classify(data=ClassFolders(), classes='x.txt'),", pair, "there is no list of classes"),
        ("Classify(data=ClassFolders(), classes=()),", pair, "a task's classes are an empty list; name some"),
        ("Classify(data=ClassFolders(), templates=('a',)),", pair, "the template 'a' has no {} for the class's name"),
        (COCO, lambda root: (root / "val2017").mkdir(), "there is no file"),
        (COCO, lambda root: coco(root, empty=True), "captions_val2017.json: image 0: a caption is empty; write one"),
        (COCO, captions(lambda tree: tree["images"].pop()), "annotation 2 is of image 1, which is not among"),
        (COCO, captions(lambda tree: tree.pop("images")), 'lists no "images"; give COCO\'s captions_*.json'),
        (COCO, captions(lambda tree: tree.pop("annotations")), "is not as COCO's captions are (KeyError:"),
        (
            COCO,
            captions(lambda tree: tree["images"][0].update(file_name="gone.jpg")),
            "val2017/gone.jpg, nor 0 others of 2; suite mine expects a folder",
        ),
        (TABLE, table("file,said", "a.jpg,one", "b.jpg,two"), "t.csv, line 3: there is no file"),
        (TABLE, table("file,said", "a.jpg,"), "t.csv, line 2: the caption of a.jpg is empty; write one or"),
        (TABLE, table("file,told", "a.jpg,one"), "there is no column 'said'; there are file, told"),
        (TABLE, table("file,said", "a.jpg"), "t.csv, line 2 has 1 cells, but t.csv has 2 columns"),
        (TABLE, table("file,said"), "t.csv has no rows"),
        (TABLE, table("file,said", "../a.jpg,one"), "'../a.jpg' leads out of"),
        (TABLE, table("file,said", f"a.jpg,{'x' * 200_000}"), "line 2: this is no row of a table (field larger than"),
        (TABLE, table("file,said", 'a.jpg,"one'), "t.csv, line 2: this is no row of a table (unexpected end of data)"),
        (TABLE, table("# a comment", "file,said", "a.jpg,one"), "before the heading say comment='#'"),
        ("Retrieve(data=Coco(annotations='t.csv', media='seen')),", table("x"), "t.csv is no JSON (Expecting value"),
        ("Retrieve(data=Tars(shards='.')),", pair, "holds no .tar"),
        ("KNN(train=ClassFolders(), test=ClassFolders(), k=9),", pair, "KNN.k=9 is more than the 2 items to learn"),
        ("KNN(train=ClassFolders()),", pair, "ClassFolders . has no folds to learn and to ask by; give the"),
        ("KNN(train=ClassFolders(), k=0),", pair, "KNN.k=0 must be greater than 0"),
        ("LinearProbe(train=ClassFolders(), held_out=1.0),", pair, "held_out=1.0 must lie between 0 and 1"),
        ("LinearProbe(train=ClassFolders(), test=ClassFolders()),", pair, "has one item of each class, and none"),
        ("Caption(data=ClassFolders()),", pair, "no sample that can be used has a text; Caption needs it"),
        ("Transcribe(data=Transcripts()),", pair, "needs a model that writes audio>text; this one writes image>text"),
        ("Transcribe(data=Transcripts(), spelling='odd'),", pair, "spelling='odd': there are verbatim, plain, letters"),
        ("Retrieve(data=ClassFolders(), pair=('text', 'text')),", pair, "give two different of image, audio, text"),
        ("Retrieve(data=ClassFolders()),", pair, "ClassFolders . has no captions; Retrieve with text needs them"),
        ("Classify(data=ClassFolders(), modality='smell'),", pair, "modality='smell' must be one of image, audio"),
        (FOLDERS + FOLDERS, pair, "Suite 'mine' has two Classify called 'mine'; give each a name="),
        ("", pair, "Suite 'mine' has no tasks; list some"),
    ],
)  # fmt: skip
def test_a_mistake_in_suite_or_data(
    tasks: str,
    make: Callable[[Path], object],
    words: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Names the place, the rule and the remedy; exit status 2; nothing is written."""
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    assert words in said(run, suite_file(tmp_path / "mine.py", tasks), tmp_path / "data", capsys)


@pytest.mark.parametrize(
    "code, words",
    [
        ("def suite(:\n", "fails with SyntaxError"),
        ("x = 1\n", "has no function suite(); it should define suite() -> Suite"),
        ("def suite():\n    return 7\n", "suite() returned int, but should return mmfm.evals.suite.Suite"),
        ("def suite():\n    raise KeyError('data')\n", "fails with KeyError: 'data'; --debug shows where"),
        (
            "from mmfm.evals.suite import *\ndef suite():\n    return Suite(name='a/b', tasks=())\n",
            "Suite.name='a/b' must",
        ),
    ],
)
def test_a_broken_suite(code: str, words: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the file does, it is told in one line."""
    (tmp_path / "mine.py").write_text(code)
    assert words in said(run, tmp_path / "mine.py", tmp_path, capsys)


@pytest.mark.parametrize(
    "tasks, words",
    [
        ("'classify',", "Suite.tasks[0]='classify' should be one of Everything, Classify, MultiLabel, Retrieve"),
        ("Classify(data='folder'),", "Classify.data='folder' should be one of Tars, ClassFolders, Table, Coco"),
    ],
)
def test_what_is_no_task_and_no_data(tasks: str, words: str, tmp_path: Path) -> None:
    """Without the types that tests check, as people run it; and reading a suite imports nothing heavy."""
    file = suite_file(tmp_path / "mine.py", tasks)
    code = f"import sys\nfrom mmfm.evals.suite import read_suite\ntry:\n    read_suite({str(file)!r})\n"
    told = "except Exception as why:\n    print(why, not {'numpy', 'torch', 'open_clip'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code + told], capture_output=True, text=True, check=True)
    assert words in done.stdout and done.stdout.endswith("True\n") and done.stdout.count("\n") == 1


def test_a_model_without_the_modality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of pictures and text is not asked about sounds."""
    deaf = config.Model(image=SMALL.image, audio=None, text=SMALL.text, trunk=SMALL.trunk, embed_dim=8)
    contrast = (config.Contrastive(pair=("image", "text")),)
    run = saved_run(tmp_path / "runs", model=deaf, tasks=(), contrastive=contrast).folder
    sound(tmp_path / "dog" / "a.wav")
    suite = suite_file(tmp_path / "mine.py", "KNN(train=ClassFolders(), modality='audio', name='near'),")
    words = "suite mine: KNN near needs a model that reads audio; this one reads image, text"
    assert words in said(run, suite, tmp_path, capsys)


def test_where_the_data_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--root before the environment; without either, and for a wrong one, what is expected and its name."""
    monkeypatch.delenv("MMFM_ESC50_ROOT", raising=False)
    suite = "configs/suites/esc50.py"
    assert main(["eval", str(run), suite]) == 2
    hint = "suite esc50 expects ROOT/meta/esc50.csv and ROOT/audio/*.wav; the data set is ESC-50: Dataset for"
    assert hint in capsys.readouterr().err
    monkeypatch.setenv("MMFM_ESC50_ROOT", str(tmp_path / "nowhere"))
    assert main(["eval", str(run), suite]) == 2
    err = capsys.readouterr().err
    assert f"there is no folder {tmp_path / 'nowhere'}; {hint}" in err and "by --root or MMFM_ESC50_ROOT" in err
    assert main(["eval", str(run), suite, "--root", str(tmp_path)]) == 2
    assert f"there is no folder {tmp_path / 'audio'}; {hint}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, words",
    [
        (["mine.py", "--root", ".", "--data", "x"], "--data and a suite do not go together: it declares its own"),
        (["--root", "."], "--root . is for suites; name one, or leave it out"),
        (["gone.py", "--root", "."], "there is no suite 'gone.py'; give a Python file with suite()"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], words: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a suite says is not said twice."""
    assert main(["eval", str(run), *options]) == 2
    assert words in capsys.readouterr().err


def test_a_file_too_large(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file beyond the bound is not read."""
    assert collection.MAX_PART == MAX_PART
    pair(tmp_path)
    monkeypatch.setattr(collection, "MAX_PART", 10)
    assert "bytes, over 10; cut it" in said(run, suite_file(tmp_path / "mine.py", FOLDERS), tmp_path, capsys)
