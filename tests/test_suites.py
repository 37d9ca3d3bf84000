"""A model with planted embeddings is asked suites on tiny data sets of each layout; the figures must be the planted."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from planted import CONFUSION, NAMES, QUICK, Planted, asked, axis, evaluate, picture, saved_run, sound, value

from mmfm import config
from mmfm.__main__ import main
from mmfm.config import UserError
from mmfm.evals import run
from mmfm.evals.classes import read_lines
from mmfm.evals.collection import open_data
from mmfm.evals.suite import (
    KNN,
    Caption,
    ClassFolders,
    Classify,
    Coco,
    LinearProbe,
    Retrieve,
    Suite,
    Table,
    Tars,
    Transcribe,
    Transcripts,
)
from mmfm.evals.tables import read_names, rows

ROOT = Path(__file__).parent.parent


PETS = {
    "cat/1": axis(0, 1),  # right
    "cat/2": axis(0, 2),  # right
    "cat/3": axis(1, 0),  # taken for a dog
    "dog/1": axis(1, 2),  # right
    "owl/1": axis(0, 2),  # taken for a cat
}
SPOKEN = {f"a {name}": axis(place) for place, name in enumerate(NAMES)}


def pets(root: Path, ending: str = ".jpg", rename: Mapping[str, str] | None = None) -> Planted:
    """The five pictures above, in a folder for each class."""
    for seed, key in enumerate(PETS):
        folder, name = key.split("/")
        picture(root / (rename or {}).get(folder, folder) / f"{name}{ending}", seed)
    vectors = {key.replace(*pair): at for pair in (rename or {"": ""}).items() for key, at in PETS.items()}
    return Planted({("image", key): at for key, at in (vectors | PETS).items()}, SPOKEN)


def test_folders_of_classes(tmp_path: Path) -> None:
    """Three of five right, and what is no picture is counted and not read."""
    model = pets(tmp_path, ".JPEG")
    (tmp_path / "cat" / "notes.md").write_text("soft")
    scores = asked(model, tmp_path, Classify(data=ClassFolders(), templates=("a {}",)))
    assert value(scores, "image->text", "acc@1") == pytest.approx(3 / 5)
    assert value(scores, "image->text", "mean_per_class") == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert value(scores, "image->text", "acc@1", "chance") == pytest.approx(1 / 3)
    assert scores.details.confusion == {"image->text": CONFUSION}
    assert scores.details.classes == NAMES and scores.details.templates == ("a {}",)
    assert scores.details.left_out == ("files that are not read: md (1)",)


def test_a_broken_file_is_counted_and_named(tmp_path: Path) -> None:
    """A cut picture asks nothing; the others score as if it were not there."""
    model = pets(tmp_path)
    cut = tmp_path / "dog" / "9.jpg"
    cut.write_bytes((tmp_path / "dog" / "1.jpg").read_bytes()[:40])
    scores = asked(model, tmp_path, Classify(data=ClassFolders(), templates=("a {}",)))
    assert value(scores, "image->text", "acc@1") == pytest.approx(3 / 5)
    assert scores.details.left_out == ("1 of 6 samples cannot be used: image_damaged (1); they are dog/9",)
    assert scores.details.unusable == {"dog/9": "image_damaged"}


@pytest.mark.parametrize("how", ["order", "marks", "given", "digits"])
def test_which_folder_is_which_class(tmp_path: Path, how: str) -> None:
    """By the order of the folders, by what a list says of them, by a list in the suite, or by their numbers: the same
    confusion. Numbers are places, although "10" sorts before "2"."""
    folders = {"order": ("n01", "n02", "n03"), "digits": ("0", "2", "10")}.get(how, ("n9", "n5", "n7"))
    names = dict(zip(NAMES, folders, strict=True))
    for seed, key in enumerate(PETS):
        picture(tmp_path / names[key[:3]] / f"{key[4:]}.png", seed)
    model = Planted({("image", f"{names[key[:3]]}/{key[4:]}"): at for key, at in PETS.items()}, SPOKEN)
    classes: Any = ""
    listed: Sequence[str] = NAMES
    if how == "given":
        classes, names = NAMES, {}
        for old, new in zip(folders, ("a1", "a2", "a3"), strict=True):
            (tmp_path / old).rename(tmp_path / new)
        model.vectors = {(kind, key.replace(old, new)): at for (kind, key), at in model.vectors.items()
                         for old, new in zip(folders, ("a1", "a2", "a3"), strict=True) if old in key}  # fmt: skip
    elif how == "digits":
        listed = ["cat", *["x"] * 1, "dog", *[f"y{n}" for n in range(7)], "owl"]
        model.texts = {f"a {name}": SPOKEN.get(f"a {name}", [-1.0, -1.0, -1.0]) for name in listed}
    lines = [f"{names[name]}\t{name}" if how == "marks" else name for name in listed]
    if how != "given":
        (tmp_path / "classnames.txt").write_text("\n".join(lines))
    scores = asked(model, tmp_path, Classify(data=ClassFolders(), classes=classes, templates=("a {}",)))
    known = scores.details.classes
    told = [(known[a], known[b], count) for a, b, count in scores.details.confusion["image->text"]]
    assert told == [("cat", "cat", 2), ("cat", "dog", 1), ("dog", "dog", 1), ("owl", "cat", 1)]


def esc50(root: Path) -> tuple[Table, Planted]:
    """Four sounds of two classes, in two folds."""
    kinds = {"1-a": ("dog", 1), "1-b": ("sea_waves", 1), "2-a": ("dog", 2), "2-b": ("sea_waves", 2)}
    lines = ["filename,fold,target,category"]
    for seed, (key, (kind, fold)) in enumerate(kinds.items()):
        sound(root / "audio" / f"{key}.wav", seed)
        lines.append(f"{key}.wav,{fold},{seed},{kind}")
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("\n".join(lines))
    places = {"1-a": axis(0), "1-b": axis(1), "2-a": axis(0, 1), "2-b": axis(0, 1, 2)}
    texts = {"This is a sound of dog.": axis(0), "This is a sound of sea waves.": axis(1)}
    table = Table(table="meta/esc50.csv", media="audio", file="filename", labels="category", fold="fold")
    return table, Planted({("audio", key): at for key, at in places.items()}, texts)


def test_esc50_and_its_folds(tmp_path: Path) -> None:
    """Zero-shot and neighbours over the folds, each clip encoded once; a fold is asked of the others alone."""
    table, model = esc50(tmp_path)
    sentence = ("This is a sound of {}.",)
    zero, near = Classify(data=table, templates=sentence, modality="audio"), KNN(train=table, modality="audio", k=1)
    scores = asked(model, tmp_path, zero, near)
    assert value(scores, "audio->text", "acc@1") == pytest.approx(3 / 4)
    assert value(scores, "audio:knn", "acc@1") == pytest.approx(2 / 4)  # 1-b lies nearest to 2-a, 2-b to 1-a
    assert value(scores, "audio:knn", "acc@1", "chance") == 0.5
    assert sum(count for name, count in model.asked if name == "audio") == 4
    assert scores.details.classes == ("dog", "sea waves")
    with pytest.raises(UserError, match=r"Table meta/esc50.csv \(\(1,\)\) has no folds to learn and to ask by"):
        one = Table(**{**vars(table), "folds": (1,)})
        asked(model, tmp_path, KNN(train=one, modality="audio", k=1))


def test_audioset_like(tmp_path: Path) -> None:
    """Several labels a clip by their marks, comments and absent clips left out and counted, mAP by hand."""
    for seed, name in enumerate(("aa", "bb", "cc")):
        sound(tmp_path / "audio" / f"{name}.wav", seed)
    lines = ["# Segments csv", "# num_ytids=4", 'aa, 0, 10, "/m/1,/m/2"', 'bb, 0, 10, "/m/2"', 'cc, 0, 10, "/m/1"']
    (tmp_path / "eval_segments.csv").write_text("\n".join([*lines, 'gone, 0, 10, "/m/3"']))
    heads = 'index,mid,display_name\n0,/m/1,"Speech, male"\n1,/m/2,Music\n2,/m/3,Rain\n'
    (tmp_path / "class_labels_indices.csv").write_text(heads)
    module = suite_of("audioset")
    texts = {f"This is a sound of {name}.": axis(place) for place, name in enumerate(("Speech, male", "Music", "Rain"))}
    vectors = {("audio", "aa"): axis(0, 1), ("audio", "bb"): axis(0, 2), ("audio", "cc"): axis(1, 0)}
    scores = run.evaluate(Planted(vectors, texts), module, QUICK, root=tmp_path)["audioset"]
    # Speech: aa (0.89, yes), bb (0.89, no) tie, then cc (0.45, yes). Music: cc (no), aa (yes), bb (yes).
    speech, music = (1 / 2 * 1 / 2 + 2 / 3 * 1 / 2), (1 / 2 * 1 / 2 + 2 / 3 * 1 / 2)
    assert value(scores, "audio->text", "mAP") == pytest.approx((speech + music) / 2)
    assert value(scores, "audio->text", "mAP", "chance") == pytest.approx(2 / 3)
    assert scores.details.choices["classes_that_never_occur"] == 1
    assert scores.details.left_out == ("1 files that are listed are not there, such as gone.wav",)


def suite_of(name: str) -> Suite:
    from mmfm.evals.suite import read_suite

    return read_suite(ROOT / "configs" / "suites" / f"{name}.py")


CAPTIONS = {"p": ["one", "two"], "q": ["three", "four", "five"]}
PLACES = {"one": axis(2), "two": axis(0, 1), "three": axis(1), "four": axis(0, 1), "five": axis(2, 1)}


def coco(root: Path, empty: bool = False) -> None:
    for seed, key in enumerate(CAPTIONS):
        picture(root / "val2017" / f"{key}.jpg", seed)
    images = [{"id": n, "file_name": f"{key}.jpg"} for n, key in enumerate(CAPTIONS)]
    texts = [{"image_id": n, "caption": text} for n, key in enumerate(CAPTIONS) for text in CAPTIONS[key]]
    texts[1]["caption"] = " " if empty else texts[1]["caption"]
    (root / "annotations").mkdir()
    tree = {"images": images, "annotations": texts}
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(tree))


def karpathy(root: Path) -> Coco:
    for seed, key in enumerate(CAPTIONS):
        picture(root / "pictures" / "val" / f"{key}.jpg", seed)
    entries = [
        {"filename": f"{key}.jpg", "filepath": "val", "split": "test", "sentences": [{"raw": text} for text in texts]}
        for key, texts in CAPTIONS.items()
    ]
    other = {"filename": "gone.jpg", "filepath": "val", "split": "train", "sentences": [{"raw": "nine"}]}
    (root / "dataset.json").write_text(json.dumps({"images": [*entries, other]}))
    return Coco(annotations="dataset.json", media="pictures", split="test")


def clotho(root: Path) -> Table:
    """Rows of one file are joined."""
    lines = ["name\tsaid", *(f"{key}.jpg\t{text}" for key, texts in CAPTIONS.items() for text in texts)]
    (root / "captions.tsv").write_text("\n".join(lines))
    for seed, key in enumerate(CAPTIONS):
        picture(root / "seen" / f"{key}.jpg", seed)
    return Table(table="captions.tsv", media="seen", file="name", captions=("said",))


def tars(root: Path, write_shard: Any, form: str) -> Tars:
    samples: dict[str, dict[str, bytes]] = {}
    for seed, (key, texts) in enumerate(CAPTIONS.items()):
        said = "\n".join(texts) if form == "txt" else json.dumps({"captions": texts})
        samples[key] = {"jpg": picture(root / "one.jpg", seed).read_bytes(), form: said.encode()}
    write_shard(root / "shards" / "0.tar", {**samples, "r": {"txt": b"no picture"}})
    return Tars(shards="shards")


@pytest.mark.parametrize("layout", ["coco", "karpathy", "tsv", "txt", "json"])
def test_several_captions_of_a_picture(tmp_path: Path, write_shard: Any, layout: str) -> None:
    """A picture is found where any of its captions is nearest; each caption asks for its own. The same planted figures
    from COCO's JSON, Karpathy's, a table, and shards with lines or a list."""
    if layout == "coco":
        coco(tmp_path)
    data = {
        "coco": lambda: Coco(annotations="annotations/captions_val2017.json", media="val2017"),
        "karpathy": lambda: karpathy(tmp_path),
        "tsv": lambda: clotho(tmp_path),
    }.get(layout, lambda: tars(tmp_path, write_shard, layout))()
    folder = "val/" if layout == "karpathy" else ""
    vectors = {("image", f"{folder}p"): axis(0), ("image", f"{folder}q"): axis(1)}
    scores = asked(Planted(vectors, PLACES), tmp_path, Retrieve(data=data))
    # p: "two" and "four" (of q) tie as the nearest. q: "three" is nearest.
    assert value(scores, "image->text", "R@1") == pytest.approx((0.5 + 1) / 2)
    assert value(scores, "image->text", "R@1", "chance") == pytest.approx((2 / 5 + 3 / 5) / 2)
    # one: both pictures tie. two finds p, three finds q, four finds p (wrong), five finds q.
    assert value(scores, "text->image", "R@1") == pytest.approx((0.5 + 1 + 1 + 0 + 1) / 5)
    assert value(scores, "text->image", "R@1", "n") == 5
    assert value(scores, "text->image", "R@1", "clusters") == value(scores, "image->text", "R@1", "clusters") == 2
    assert scores.details.choices["captions_per_item"] == {"2": 1, "3": 1}


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_no_line_of_a_table_vanishes(tmp_path: Path, ending: str) -> None:
    """Captions that begin with #, blank lines and separators within a quoted cell, and rows that begin with # stay."""
    mark = {"csv": ",", "tsv": "\t"}[ending]
    rows = [["said", "name"], ["#sunset #sea", "p.jpg"], ['"one\n#two\n\nthree"', "p.jpg"], ["a\u2028b\x0cc", "q.jpg"]]
    (tmp_path / f"t.{ending}").write_text("\n".join(mark.join(row) for row in rows) + "\n\n", newline="")
    for seed, key in enumerate("pq"):
        picture(tmp_path / "seen" / f"{key}.jpg", seed)
    data = Table(table=f"t.{ending}", media="seen", file="name", captions=("said",))
    found = open_data(data, tmp_path, ("image",), "", config.RemoteCache())
    assert [item.captions for item in found.items] == [("#sunset #sea", "one\n#two\n\nthree"), ("a\u2028b\x0cc",)]
    (tmp_path / "classnames.txt").write_text("#hashtag\ncat\u2028dog\n", encoding="utf-8-sig")
    assert read_names(tmp_path / "classnames.txt")[1] == ("#hashtag", "cat\u2028dog")
    assert read_lines(tmp_path / "classnames.txt", "class") == ("#hashtag", "cat\u2028dog")


def test_comments_of_a_table_are_before_it(tmp_path: Path) -> None:
    """Those that its suite names, at the top alone; line numbers of faults count them, and cells of several lines."""
    (tmp_path / "t.csv").write_text('# made by hand\nfile,said\na.jpg,"one\ntwo"\n#b.jpg,three\nshort\n')
    found = rows(tmp_path / "t.csv", comment="#")
    assert [next(found) for _ in range(2)] == [
        (f"{tmp_path}/t.csv, line 3", {"file": "a.jpg", "said": "one\ntwo"}),
        (f"{tmp_path}/t.csv, line 5", {"file": "#b.jpg", "said": "three"}),
    ]
    with pytest.raises(UserError, match=r"t.csv, line 6 has 1 cells, but t.csv has 2 columns"):
        next(found)


def test_silence_is_a_reference(tmp_path: Path) -> None:
    """A line without words: what is heard there is wrong, in the rates and by itself; other tasks refuse it."""
    for seed, key in enumerate(("1-2-0", "1-2-1")):
        sound(tmp_path / "s" / "1" / "2" / f"{key}.flac", seed)
    (tmp_path / "s" / "1" / "2" / "1-2.trans.txt").write_text("1-2-0 TWO OWLS\n1-2-1\n")
    keys = ("1/2/1-2-0", "1/2/1-2-1")
    model = Planted(
        {("audio", key): axis(0) for key in keys},
        {},
        dict(zip(keys, ("two owls", "thank you"), strict=True)),
        ("audio>text",),
    )
    data = Transcripts(path="s")
    scores = asked(model, tmp_path, Transcribe(data=data))
    assert value(scores, "audio>text", "wer") == pytest.approx(2 / 2)
    assert value(scores, "audio>text", "hallucinated") == 1 and value(scores, "audio>text", "hallucinated", "n") == 1
    assert {row.normalizer for row in scores.rows if row.metric != "truncated"} == {"letters"}
    with pytest.raises(UserError, match="'1-2-1' has no words; write them or take it away"):
        asked(model, tmp_path, Transcribe(data=data), Retrieve(data=data, pair=("audio", "text"), name="r"))


class Cut(str):
    """A text that was cut at the limit, as what a model writes says it."""

    finish = "length"


def test_what_was_cut_is_a_score_and_a_line(tmp_path: Path) -> None:
    """One of two captions stopped at the limit of tokens; where nothing is chosen the limit is twice the longest
    reference, and not one number for every task."""
    coco(tmp_path)
    data = Coco(annotations="annotations/captions_val2017.json", media="val2017")
    limits = []

    class Writes(Planted):
        def write(self, task: str, batch: Any, max_tokens: int) -> tuple[list[int], list[str]]:
            limits.append(max_tokens)
            return super().write(task, batch, max_tokens)

    written = {"p": "two", "q": Cut("three three three")}
    model = Writes({("image", "p"): axis(0), ("image", "q"): axis(1)}, PLACES, written, ("image>text",))
    scores = asked(model, tmp_path, Caption(data=data))
    assert value(scores, "image>text", "truncated") == 0.5
    assert any("image>text: 1 of 2 texts were cut after 32 tokens" in line for line in scores.details.left_out)
    file = tmp_path / "annotations" / "captions_val2017.json"
    file.write_text(file.read_text().replace("five", "word " * 12))
    asked(model, tmp_path, Caption(data=data))
    assert limits == [32, 2 * len("word " * 12) - 2]  # tokens of this model are bytes


def test_half_of_a_surrogate_pair_is_no_loss(tmp_path: Path) -> None:
    """A caption of JSON that holds one is read as U+FFFD and counted; every figure of the suite is there."""
    coco(tmp_path)
    file = tmp_path / "annotations" / "captions_val2017.json"
    file.write_text(file.read_text().replace('"one"', '"one \\ud83d"'))
    data = Coco(annotations="annotations/captions_val2017.json", media="val2017")
    texts = {**PLACES, "one \ufffd": PLACES["one"]}
    model = Planted(
        {("image", "p"): axis(0), ("image", "q"): axis(1)}, texts, {"p": "\ud83d two", "q": "six"}, ("image>text",)
    )
    scores = asked(model, tmp_path, Retrieve(data=data), Caption(data=data))
    assert value(scores, "text->image", "R@1") == pytest.approx(3.5 / 5)
    assert value(scores, "image>text", "bleu1") > 0
    assert scores.details.left_out == ("1 texts hold half of a surrogate pair, which is read as U+FFFD",)


def test_captions_and_writing_share_one_pass(tmp_path: Path) -> None:
    """What is written is compared with all captions of its picture, and each picture is encoded once."""
    coco(tmp_path)
    data = Coco(annotations="annotations/captions_val2017.json", media="val2017")
    vectors = {("image", "p"): axis(0), ("image", "q"): axis(1)}
    model = Planted(vectors, PLACES, {"p": "Two.", "q": "six"}, ("image>text", "audio>text", ">text"))
    scores = asked(model, tmp_path, Retrieve(data=data), Caption(data=data))
    assert value(scores, "image>text", "bleu1") == pytest.approx(1 / 2)
    assert value(scores, "image>text", "rouge_l") == pytest.approx(1 / 2)
    assert sorted(model.asked) == [("image", 2), ("image>text", 2)]
    assert [entry.written for entry in scores.details.writings] == ["Two.", "six"]


def test_transcripts(tmp_path: Path) -> None:
    """LibriSpeech's layout; case and punctuation cost nothing, a wrong word costs one of three."""
    for seed, key in enumerate(("1-2-0", "1-2-1")):
        sound(tmp_path / "test-clean" / "1" / "2" / f"{key}.flac", seed)
    said = "1-2-0 IT'S A DOG\n1-2-1 TWO OWLS FLY\n"
    (tmp_path / "test-clean" / "1" / "2" / "1-2.trans.txt").write_text(said)
    keys = ("1/2/1-2-0", "1/2/1-2-1")
    written = dict(zip(keys, ("It's a dog.", "two, bowls fly"), strict=True))
    model = Planted({("audio", key): axis(0) for key in keys}, {}, written, ("audio>text",))
    scores = asked(model, tmp_path, Transcribe(data=Transcripts(path="test-clean")))
    assert value(scores, "audio>text", "wer") == pytest.approx(1 / 6)
    assert value(scores, "audio>text", "cer") == pytest.approx(1 / len("it's a dogtwo owls fly"))
    plain = asked(model, tmp_path, Transcribe(data=Transcripts(path="test-clean"), spelling="plain"))
    assert value(plain, "audio>text", "wer") == pytest.approx(2 / 6)  # "two," is another word


def suite_file(path: Path, tasks: str, name: str = "mine") -> Path:
    """A suite as a person writes it."""
    head = "from mmfm.evals.suite import *\n\n\ndef suite():\n"
    path.write_text(f"{head}    return Suite(name={name!r}, layout='a folder', source='a set', tasks=({tasks}))\n")
    return path


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`mmfm eval RUN SUITE --root ROOT` writes results.SUITE.json in the run, with tidy rows, and prints its table; two
    questions of one data set and a retrieval set go into one file."""
    pets(tmp_path / "data")
    coco(tmp_path / "data")
    run = saved_run(tmp_path / "runs").folder
    both = suite_file(
        tmp_path / "mine.py",
        "Classify(data=ClassFolders(), templates=('a {}', 'the {}'), name='pets'),"
        "KNN(train=ClassFolders(), test=ClassFolders(), k=1, name='pets'),"
        "Retrieve(data=Coco(annotations='annotations/captions_val2017.json', media='val2017'), name='found')",
    )
    (tmp_path / "data" / "val2017").rename(tmp_path / "val2017")
    (tmp_path / "data" / "annotations").rename(tmp_path / "annotations")
    (tmp_path / "data").rename(tmp_path / "pets")
    both.write_text(both.read_text().replace("ClassFolders()", "ClassFolders(path='pets')"))
    assert main(["eval", str(run), str(both), "--root", str(tmp_path), "--bootstrap", "20"]) == 0
    rows = json.loads((run / "results.mine.json").read_text())
    assert list(rows[0])[:9] == ["split", "task", "metric", "value", "low", "high", "chance", "n", "clusters"]
    assert {"step", "weights", "data", "suite", "version"} <= rows[0].keys()
    assert {(row["split"], row["task"]) for row in rows} == {
        ("pets", "image->text"),
        ("pets", "image:knn"),
        ("found", "image->text"),
        ("found", "text->image"),
    }
    assert [row["value"] for row in rows if row["task"] == "image:knn" and row["metric"] == "acc@1"] == [1.0]
    details = json.loads((run / "results.mine.details.json").read_text())["splits"]
    assert details["pets"]["classes"] == list(NAMES) and details["found"]["choices"]["captions_per_item"] == {
        "2": 1,
        "3": 1,
    }
    said = capsys.readouterr().out
    assert "image:knn" in said and "text->image" in said and "results.mine.json" in said and "…" not in said


def test_numbered_classes_need_no_names(tmp_path: Path, write_shard: Any) -> None:
    """Neighbours by .cls alone: classes 2, 10 and 11 are three, whatever their numbers, and each is found."""
    kinds = {"a": (2, axis(0)), "b": (10, axis(1)), "c": (11, axis(2))}
    samples = {
        f"{key}{n}": {"jpg": picture(tmp_path / "one.jpg", n).read_bytes(), "cls": str(kind).encode()}
        for key, (kind, _) in kinds.items()
        for n in range(2)
    }
    write_shard(tmp_path / "train" / "0.tar", samples)
    vectors = {("image", f"{key}{n}"): at for key, (_, at) in kinds.items() for n in range(2)}
    data = Tars(shards="train")
    scores = asked(Planted(vectors), tmp_path, KNN(train=data, test=data, k=2))
    assert value(scores, "image:knn", "acc@1") == 1 and value(scores, "image:knn", "acc@1", "chance") == pytest.approx(
        1 / 3
    )
    with pytest.raises(
        UserError, match=r"Tars test: 1 of 1 labels, such as '1', are none of the 3 classes of the labels"
    ):
        write_shard(tmp_path / "test" / "0.tar", {"a0": {**samples["a0"], "cls": b"1"}})
        asked(Planted(vectors), tmp_path, KNN(train=data, test=Tars(shards="test"), k=2))


def test_a_linear_probe_over_folders(tmp_path: Path) -> None:
    """Learnt on train and asked on test; its C and what was tried are told; test has no part in that choice."""
    vectors = {}
    for part, name, n in ((part, name, n) for part in ("train", "test") for name in NAMES for n in range(6)):
        picture(tmp_path / part / name / f"{n}.png", n)
        near = [value + 0.1 * ((n + place) % 3) for place, value in enumerate(axis(NAMES.index(name)))]
        vectors["image", f"{name}/{n}"] = near
    train, test = ClassFolders(path="train"), ClassFolders(path="test")
    scores = asked(Planted(vectors), tmp_path, LinearProbe(train=train, test=test, costs=(1e-3, 1.0)))
    assert value(scores, "image:linear", "acc@1") == 1 and value(scores, "image:linear", "acc@1", "n") == 18
    told = scores.details.choices["linear"]
    assert told["C"] in (1e-3, 1.0) and set(told["held_out_accuracy"]) == {"0.001", "1"}


def test_a_suite_over_shards_gives_what_eval_gives(tmp_path: Path, write_shard: Any) -> None:
    """Classes and retrieval of shards with one caption each: every figure and interval of `mmfm eval --data`."""
    said = {"a": "cat", "b": "dog", "c": "owl", "d": "hen", "e": "ant"}
    samples = {
        key: {"jpg": picture(tmp_path / "one.jpg", n).read_bytes(), "txt": text.encode()}
        for n, (key, text) in enumerate(said.items())
    }
    write_shard(tmp_path / "shards" / "0.tar", samples)
    places = (axis(0, 1), axis(1, 0), axis(2, 1), axis(1, 2), axis(0, 2))
    vectors = {("image", key): at for key, at in zip(said, places, strict=True)}
    texts = dict(zip(said.values(), (axis(0), axis(1), axis(2), axis(2, 0), axis(0, 2, 1)), strict=True))
    model, data = Planted(vectors, texts), Tars(shards="shards")
    theirs = evaluate(model, str(tmp_path / "shards"))
    for task in (Classify(data=data, templates=("{}",)), Retrieve(data=data)):
        ours = asked(model, tmp_path, task)
        names = {(row.task, row.metric) for row in ours.rows}
        assert ours.rows == tuple(row for row in theirs.rows if (row.task, row.metric) in names) and ours.rows
