"""A model with planted embeddings and texts is evaluated on small shards; the scores must be the planted ones."""

import base64
import errno
import io
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image
from planted import (
    CONFUSION,
    NAMED,
    NAMES,
    PETS,
    QUICK,
    SMALL,
    Planted,
    axis,
    evaluate,
    image_bytes,
    numbers,
    pets,
    saved_run,
    shard,
    tasks_of,
    value,
)
from rich.console import Console
from torch import nn

from mmfm import config
from mmfm.config import UserError
from mmfm.data.decode import Decode, read_example
from mmfm.data.shard_specs import expand
from mmfm.data.shards import Shards
from mmfm.data.splits import asked_and_more, named_splits
from mmfm.evals.config import EvalConfig
from mmfm.evals.examples import pick, picture_uri
from mmfm.evals.results import print_split, write_json
from mmfm.evals.run import evaluate_run, scores_during_training
from mmfm.evals.split import at_rest, encode_texts, spread
from mmfm.evals.zero_shot import class_vectors


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_planted_confusion(tmp_path: Path, kind: str) -> None:
    """Three of five right: accuracy counts samples, mean per class counts classes, the confusion names the mistakes.
    Texts are asked once: three captions for five samples, each with all of its samples as answers."""
    spec, model = pets(tmp_path, kind)
    scores = evaluate(model, spec)
    task = f"{kind}->text"
    assert value(scores, task, "acc@1") == pytest.approx(3 / 5) and value(scores, task, "acc@5") == 1.0
    assert value(scores, task, "mean_per_class") == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert value(scores, task, "acc@1", "chance") == value(scores, task, "R@1", "chance") == pytest.approx(1 / 3)
    assert scores.details.confusion == {task: CONFUSION}
    other = "audio" if kind == "image" else "image"
    counts = {"samples": 5, kind: 5, other: 0, "text": 5, "without_class": 0, "cannot_be_used": 0}
    assert scores.details.counts == counts
    back = f"text->{kind}"
    assert value(scores, back, "R@1", "n") == 3 and value(scores, back, "R@5") == 1.0
    assert value(scores, back, "R@1", "chance") == pytest.approx((3 / 5 + 1 / 5 + 1 / 5) / 3)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_sample_that_cannot_be_used_asks_nothing_and_is_told(tmp_path: Path, num_workers: int) -> None:
    """A cut picture, a text that is no UTF-8 and a broken .json leave every score as it is without them, also where
    loader processes meet them."""
    spec, model = pets(tmp_path)
    clean = evaluate(model, spec)
    samples = {key: {"image": n, "txt": name} for n, (key, (name, _)) in enumerate(PETS.items())}
    bad = {"aa": {"png": image_bytes(9)[:60], "txt": "cat"}, "bb": {"image": 8, "txt": b"\xff\xfe"}}
    bad["cc"] = {"image": 7, "json": "{"}
    more = shard(tmp_path / "more" / "0.tar", dict(sorted({**samples, **bad}.items())))
    scores = evaluate(model, more, replace(QUICK, num_workers=num_workers))
    assert scores.rows == clean.rows
    (line,) = [line for line in scores.details.left_out if "cannot be used" in line]
    assert line.endswith("image_damaged (1), json_damaged (1), text_not_utf8 (1); they are aa, bb, cc")


def test_the_head_is_the_mean_of_unit_prompts() -> None:
    """Each prompt counts alike, and the head has length one: open_clip's recipe, by hand."""
    texts = {f"{word} {name}": torch.randn(8).tolist() for name in NAMES for word in ("a", "the")}
    with at_rest(model := Planted({}, texts)):
        head = class_vectors(model, NAMES, ("a {}", "the {}"))
    for place, name in enumerate(NAMES):
        parts = [F.normalize(torch.tensor(texts[f"{word} {name}"]), dim=0) for word in ("a", "the")]
        torch.testing.assert_close(head[place], F.normalize(sum(parts), dim=0))


def test_where_a_class_comes_from(tmp_path: Path) -> None:
    """.cls before "label" before the caption, names in any case; what names no class is counted, not guessed."""
    spec, model = pets(
        tmp_path,
        a={"cls": "0", "txt": "dog"},
        b={"json": '{"label": 0}', "txt": "dog"},
        c={"json": '{"label": "CAT"}', "txt": "dog"},
        d={"txt": "Dog."},
        e={"txt": "a barn owl"},
    )
    (tmp_path / "pets" / "classnames.txt").write_text("cat\ndog\n\nowl\n")
    model.texts = {**NAMED, "Dog.": axis(1), "a barn owl": axis(2)}
    scores = evaluate(model, spec)
    assert scores.details.confusion == {"image->text": CONFUSION[:3]}
    assert scores.details.counts["without_class"] == 1 and value(scores, "image->text", "acc@1", "n") == 4
    assert "1 of 5 samples have none of the 3 classes" in scores.details.left_out


@pytest.mark.parametrize("mark, words", [("7", r"sample a: class 7 is none of the 3 .*\(0 to 2\)"), ("x", "no whole")])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_class_that_is_not_in_the_list(tmp_path: Path, mark: str, words: str, num_workers: int) -> None:
    """A .cls beyond the list means a wrong list, and says so, whoever reads it."""
    spec, model = pets(tmp_path, a={"cls": mark})
    (tmp_path / "pets" / "classnames.txt").write_text("cat\ndog\nowl\n")
    with pytest.raises(UserError, match=words):
        evaluate(model, spec, replace(QUICK, num_workers=num_workers))


def test_which_classes_and_templates_win(tmp_path: Path) -> None:
    """Given ones, then those beside the shards, then captions and the run's templates."""
    spec, model = pets(tmp_path)
    model.texts = {**NAMED, **{f"{word} {name}": axis(n) for word in "xyz" for n, name in enumerate(NAMES)}}
    folder, default = tmp_path / "pets", replace(QUICK, default_templates=("x {}",))

    def used(config: EvalConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
        details = evaluate(model, spec, config).details
        return details.classes, details.templates

    assert used(default) == (("cat", "dog", "owl"), ("x {}",))
    (folder / "classnames.txt").write_text("owl\ncat\ndog\n")
    (folder / "templates.txt").write_text("y {}\n")
    assert used(default) == (("owl", "cat", "dog"), ("y {}",))
    (tmp_path / "mine.txt").write_text("dog\ncat\n")
    assert used(replace(default, classes=tmp_path / "mine.txt", templates=("z {}",))) == (("dog", "cat"), ("z {}",))


def test_retrieval_between_what_never_met(tmp_path: Path) -> None:
    """Images and sounds of different samples are relevant by their text; what has no answer is left out and counted."""
    words = {"i0": "cat", "i1": "dog", "i2": "fox", "s0": "cat", "s1": "dog", "s2": "dog"}  # no sound says fox
    kinds = {key: "image" if key[0] == "i" else "audio" for key in words}
    spec = shard(tmp_path / "0.tar", {key: {kinds[key]: int(key[1]), "txt": word} for key, word in words.items()})
    planted = {"i0": axis(0), "i1": axis(0, 1), "i2": axis(2), "s0": axis(0), "s1": axis(2), "s2": axis(1)}
    vectors = {(kinds[key], key): vector for key, vector in planted.items()}
    scores = evaluate(Planted(vectors, {"cat": axis(0), "dog": axis(1), "fox": axis(2)}), spec)
    assert value(scores, "image->audio", "R@1") == 0.5  # i0 finds s0; i1 is nearer to s0 than to s2
    assert value(scores, "image->audio", "median_rank") == 1.5 and value(scores, "image->audio", "R@1", "n") == 2
    assert value(scores, "image->audio", "R@1", "chance") == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert value(scores, "audio->image", "R@1") == pytest.approx(2 / 3)  # s1 finds i2
    assert value(scores, "text->audio", "R@1", "n") == 2
    assert "image->audio: 1 of 3 queries have no relevant answer to find" in scores.details.left_out
    names = ("image", "audio", "text")
    assert tasks_of(scores) == {f"{a}->{b}" for a in names for b in names if a != b}


def test_a_wider_gallery_is_chosen_from_and_asks_nothing(tmp_path: Path) -> None:
    """B holds a sound nearer to A's picture than A's own: only where B is added does A's picture miss. Everything that
    is counted, classified or written is A's alone, and chance knows of the larger gallery."""
    own = shard(tmp_path / "a" / "x.tar", {"p": {"image": 1, "txt": "cat"}, "s": {"audio": 2, "txt": "cat"}})
    more = shard(tmp_path / "b" / "x.tar", {"q": {"audio": 3, "txt": "dog"}, "r": {"image": 4, "txt": "dog"}})
    vectors = {("image", "p"): axis(0), ("audio", "s"): axis(1, 0), ("audio", "q"): axis(0, 1), ("image", "r"): axis(2)}
    model = Planted(vectors, NAMED, {"p": "cat"}, ("image>text",))
    alone, wider = evaluate(model, own), evaluate(model, f"{own}+{more}")
    for scores, hit, chance in ((alone, 1.0, 1.0), (wider, 0.0, 0.5)):
        told = [value(scores, "image->audio", "R@1", key) for key in ("value", "n", "chance")]
        assert told == [hit, 1, chance] and value(scores, "text->image", "R@1", "n") == 1
        assert [value(scores, "image>text", "exact_match", key) for key in ("value", "n")] == [1, 1]
        assert [scores.details.counts[name] for name in ("samples", "image", "audio")] == [2, 1, 1]
    assert "2 more samples only widen the galleries of retrieval" in wider.details.left_out
    assert [one.query.key for one in wider.details.retrievals if one.task == "image->audio"] == ["p"]


def test_a_sample_without_text_answers_itself(tmp_path: Path) -> None:
    """Image and sound of one sample belong together also where no text says so, and only they."""
    spec = shard(tmp_path / "0.tar", {key: {"image": n, "audio": n} for n, key in enumerate("ab")})
    vectors = {(kind, key): axis(n) for kind in ("image", "audio") for n, key in enumerate("ab")}
    scores = evaluate(Planted(vectors, NAMED), spec)
    assert value(scores, "image->audio", "R@1") == 1.0 and value(scores, "image->audio", "R@1", "chance") == 0.5
    assert tasks_of(scores) == {"image->audio", "audio->image"}


def test_samples_of_one_picture_are_one_item(tmp_path: Path) -> None:
    """Pairs of a picture and a caption, where each picture comes with two captions: every score of pictures, captions
    and what is written counts pictures as what was drawn; samples with pictures of their own are as before."""
    words = ("a", "b", "c", "d")
    samples = {f"k{n}": {"image": n // 2, "txt": word} for n, word in enumerate(words)}
    spec = shard(tmp_path / "pairs" / "0.tar", samples)
    vectors = {("image", f"k{n}"): axis(n // 2) for n in range(4)}
    texts = {word: axis(n // 2) for n, word in enumerate(words)}
    model = Planted(vectors, texts, dict.fromkeys(samples, "a"), ("image>text",))
    scores = evaluate(model, spec)
    assert {(row.n, row.clusters) for row in scores.rows} == {(4, 2)} and len(tasks_of(scores)) == 3
    alone = shard(tmp_path / "own" / "0.tar", {f"k{n}": {"image": n, "txt": word} for n, word in enumerate(words)})
    assert {row.clusters for row in evaluate(model, alone).rows} == {4}


def test_planted_writing(tmp_path: Path) -> None:
    """Exact match and error rates over the samples that have a text; one bit per byte of those."""
    spec = shard(
        tmp_path / "0.tar",
        {
            "a": {"audio": 0, "txt": "forty two"},
            "d": {"audio": 3},
            "b": {"audio": 1, "txt": "Seven."},
            "c": {"audio": 2, "txt": "one two three"},
            "e": {"txt": "only text"},
        },
    )
    written = {"a": "forty two", "b": "seven", "c": "one too", "d": "never compared"}
    vectors = {("audio", key): axis(n % 3) for n, key in enumerate("abcd")}
    texts = {text: axis(0) for text in ("forty two", "Seven.", "one two three", "only text")}
    scores = evaluate(Planted(vectors, texts, written, ("audio>text", ">text", "image>text")), spec)
    assert value(scores, "audio>text", "exact_match") == pytest.approx(2 / 3)
    assert value(scores, "audio>text", "wer") == pytest.approx(2 / 6)
    assert value(scores, "audio>text", "cer") == pytest.approx(7 / 27)  # "w" -> "o", " three" left out
    assert value(scores, "audio>text", "bits_per_byte") == pytest.approx(1.0)
    assert [value(scores, task, "bits_per_byte", "n") for task in ("audio>text", ">text")] == [3, 4]
    assert "image>text" not in tasks_of(scores)
    wrong = [(shown.reference, shown.written) for shown in scores.details.writings if not shown.correct]
    assert wrong == [("one two three", "one too")]


def test_sound_alone(tmp_path: Path) -> None:
    """Clips without any text are classified if a list and a .cls name their classes; nothing else can be scored."""
    spec = shard(tmp_path / "clips" / "0.tar", {key: {"audio": n, "cls": str(n)} for n, key in enumerate("abc")})
    (tmp_path / "clips" / "classnames.txt").write_text("\n".join(NAMES))
    scores = evaluate(Planted({("audio", "a"): axis(0), ("audio", "b"): axis(1), ("audio", "c"): axis(1)}, NAMED), spec)
    assert tasks_of(scores) == {"audio->text"} and value(scores, "audio->text", "acc@1") == pytest.approx(2 / 3)


def test_what_no_model_can_answer(tmp_path: Path) -> None:
    """Sounds and texts for a model that only sees, and embeddings of NaN, which must not come out as ranks."""
    spec = shard(tmp_path / "clips" / "0.tar", {"a": {"audio": 0, "txt": "cat"}})
    with pytest.raises(UserError, match=r"clips: none of its 1 samples has what this model reads \(image\)"):
        evaluate(Planted({}, NAMED, cfg=replace(SMALL, audio=None, text=None)), spec)
    spec, model = pets(tmp_path)
    nn.init.constant_(model.weight, math.nan)
    with pytest.raises(UserError, match="image: the model gives numbers that are not finite"):
        evaluate(model, spec)


def test_scores_during_training_are_those_of_eval(tmp_path: Path) -> None:
    """Same values for the same samples, of the split and of suites; the model is left in training mode as it was."""
    spec, model = pets(tmp_path)
    model.tasks, model.written = ("image>text",), dict.fromkeys(PETS, "cat")
    model.train()
    suite = tmp_path / "mine.py"
    suite.write_text(
        "from mmfm.evals.suite import *\n\n\ndef suite():\n    tasks = (Retrieve(data=Tars(shards='pets')),)\n"
        f"    return Suite(name='mine', tasks=tasks, root={str(tmp_path)!r})\n"
    )
    data, scored = config.Data(val=spec), config.Eval(suites=(str(suite),))
    during, _ = scores_during_training(model, config.Run(name="r", data=data, eval=scored))
    assert model.training
    whole = {f"pets/{row.task}/{row.metric}": row.value for row in evaluate(model, spec).rows}
    names = ("image->text/acc@1", "image->text/R@1", "text->image/R@1", "image>text/exact_match")
    assert {name: score for name, score in during.items() if name[:5] != "mine/"} == {
        f"pets/{name}": whole[f"pets/{name}"] for name in names
    }
    assert {name for name in during if name[:5] == "mine/"} == {"mine/image->text/R@1", "mine/text->image/R@1"}


def test_a_limit_sees_every_class() -> None:
    """Places are distinct, rise, come one from each run, and do not fall into step with classes that take turns."""
    places = spread(1280, 256)
    assert [place // 5 for place in places] == list(range(256))
    assert len({place % 80 for place in places}) > 70  # a stride of five would see 16
    assert spread(7, None) == spread(7, 99) == tuple(range(7))


def test_the_gallery_is_balanced_and_playable(tmp_path: Path) -> None:
    """Half misses where there are enough; pictures are the stored bytes, or smaller where these are large; sounds are
    what the model hears at its rate."""
    assert sum(place < 30 for place in pick(np.arange(60) < 30, 12)) == 6
    assert [place for place in pick(np.arange(60) >= 2, 12) if place < 2] == [0, 1]
    assert len(pick(np.arange(60) >= 2, 12)) == 12 and pick(np.ones(3, bool), 12) == [0, 1, 2]
    spec = shard(tmp_path / "0.tar", {key: {"image": n, "audio": n, "txt": key} for n, key in enumerate("abc")})
    vectors = {(kind, key): axis(n) for kind in ("image", "audio") for n, key in enumerate("abc")}
    shown = evaluate(Planted(vectors, {key: axis(n) for n, key in enumerate("abc")}), spec).details.retrievals
    first = next(one for one in shown if one.task == "image->audio")
    assert first.query.src == "data:image/png;base64," + base64.b64encode(image_bytes(0)).decode()
    assert [(match.item.key, match.hit) for match in first.matches] == [("a", True), ("b", False), ("c", False)]
    wave, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(first.matches[0].item.src.split(",")[1])))
    heard = read_example(Shards(expand(spec))[0], SMALL, Decode()).audio
    assert heard is not None and rate_hz == 8_000
    np.testing.assert_allclose(wave, heard.numpy(), atol=1e-4)
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (500, 1000, 3), np.uint8)).save(out, "PNG")
    uri = picture_uri("png", out.getvalue())
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (320, 160)


def test_names_of_splits(tmp_path: Path) -> None:
    """NAME=SHARDS, else the folder's name, also one with a + in it; two equal names are refused."""
    for folder in ("a/test", "b/test", "b/x=1", "a+b"):
        shard(tmp_path / folder / "0.tar", {"k": {"txt": "t"}})
    a, b, odd, plus = (str(tmp_path / folder) for folder in ("a/test", "b/test", "b/x=1", "a+b"))
    assert named_splits([a, f"other={b}", odd]) == {"test": a, "other": b, "x=1": odd}
    assert named_splits([f"{b}/0.tar"]) == {"test": f"{b}/0.tar"}
    assert asked_and_more(plus) == (plus, "") and named_splits([plus]) == {"a+b": plus}
    with pytest.raises(UserError, match=f"two splits are called 'test': {a} and {b}; name one NAME={b}"):
        named_splits([a, b])


def test_a_run_from_end_to_end(tmp_path: Path) -> None:
    """Without --data the splits that the run names; files hold the rows; the batch size and loader processes change
    nothing."""
    val = numbers(tmp_path / "data" / "val", ("one", "two", "three"))
    test = numbers(tmp_path / "data" / "test", ("four", "five"))
    made, said = saved_run(tmp_path, val, eval=config.Eval(splits=(test,))), io.StringIO()
    common: dict[str, Any] = {"max_tokens": 4, "bootstrap": 20, "console": Console(file=said, width=80)}
    rows = evaluate_run(made.folder, batch_size=1, num_workers=0, **common)
    again = evaluate_run(made.folder, batch_size=7, num_workers=2, out=tmp_path / "b.json", **common)
    assert json.loads((made.folder / "results.json").read_text()) == [asdict(row) for row in rows]
    assert {row.split for row in rows} == {"val", "test"}
    for row, other in zip(rows, again, strict=True):
        for key in ("value", "low", "high", "chance", "n"):
            assert getattr(row, key) == pytest.approx(getattr(other, key), rel=1e-4)
        assert row.low <= row.value <= row.high or row.n < 7
    details = json.loads((made.folder / "results.details.json").read_text())["splits"]
    assert details["test"]["counts"]["audio"] == 4 and (tmp_path / "b.details.json").is_file()
    assert "audio>text" in said.getvalue() and "…" not in said.getvalue()


def test_mistakes_are_told_before_the_work(tmp_path: Path) -> None:
    """A missing run, list, template or shard is one line, and no results are written."""
    made = saved_run(tmp_path, numbers(tmp_path / "data" / "val", ("one",)))
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.txt").write_text("no place\n")
    for words, options in {
        r"nowhere.txt: No such file": {"classes": "nowhere.txt"},
        r"empty.txt is empty": {"classes": tmp_path / "empty.txt"},
        r"bad.txt: the template 'no place' has no \{\}": {"templates": str(tmp_path / "bad.txt")},
        r"the template 'a dog' has no \{\} .*, and there is no file of that name": {"templates": ("a dog",)},
        r"there is no 'nothing'": {"data": ["nothing"]},
        r"limit=-1 must be greater than 0": {"limit": -1},
        r"--out .* is a folder": {"out": tmp_path},
        r"cannot make .*empty.txt: File exists": {"out": tmp_path / "empty.txt" / "results.json"},
    }.items():
        with pytest.raises(UserError, match=words):
            evaluate_run(made.folder, **options)
    with pytest.raises(UserError, match=r"elsewhere: no such folder"):
        evaluate_run(tmp_path / "elsewhere")
    assert not (made.folder / "results.json").exists()


def test_nothing_to_score_is_an_error(tmp_path: Path) -> None:
    """Sounds without texts or classes: the line says what is missing, and no empty results are written."""
    made = saved_run(tmp_path, shard(tmp_path / "val" / "0.tar", {"a": {"audio": 0}, "b": {"audio": 1}}))
    with pytest.raises(UserError, match=r"nothing can be scored in .*no classnames.txt.*2 of 2 samples have no text"):
        evaluate_run(made.folder, num_workers=0)
    assert not (made.folder / "results.json").exists()


def test_a_full_disk_keeps_the_last_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are replaced whole or not at all, and nothing half-written stays."""
    path = tmp_path / "results.json"
    write_json(path, [1])

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*results.json: No space left on device"):
        write_json(path, [2])
    assert json.loads(path.read_text()) == [1] and list(tmp_path.iterdir()) == [path]


def test_many_texts_are_encoded_in_order() -> None:
    """More texts than fit at once come back as one matrix, row by row."""
    texts = {f"t{n}": torch.randn(4).tolist() for n in range(600)}
    with at_rest(model := Planted({}, texts)):
        x = encode_texts(model, list(texts))
    torch.testing.assert_close(x, F.normalize(torch.tensor(list(texts.values())), dim=-1))


def test_the_table_fits(tmp_path: Path) -> None:
    """A terminal of 80 columns shows every headline score whole."""
    spec, model = pets(tmp_path)
    scores, said = evaluate(model, spec), io.StringIO()
    print_split("pets", scores.rows, scores.details, Console(file=said, width=80))
    assert "0.600" in said.getvalue() and "5 samples" in said.getvalue() and "…" not in said.getvalue()
