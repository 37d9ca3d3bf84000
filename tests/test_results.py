"""Results say what they are of, are refused where the run has gone on, and are written whatever the numbers are."""

import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import NAMED, PETS, QUICK, Planted, asked, axis, evaluate, numbers, pets, picture, saved_run, shard, value
from rich.console import Console
from test_leaderboard import accuracy, board, flips, scored

from mmfm.config import Run, UserError
from mmfm.config.serialization import to_json
from mmfm.evals.metrics import Score, mean, ratio
from mmfm.evals.provenance import digest_of, weights_of
from mmfm.evals.records import Scores, SplitDetails
from mmfm.evals.results import finish, row_of, write_json
from mmfm.evals.run import evaluate_run
from mmfm.evals.suite import KNN, Caption, ClassFolders, Classify, Coco, Retrieve, Suite
from mmfm.models.checkpoint import folder_of, save
from mmfm.models.model import build
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.report.document import save_page
from mmfm.report.markup import tag
from mmfm.report.report import write_report
from mmfm.report.run_record import read_record
from mmfm.report.scored_runs import read_contenders
from mmfm.training import resume

QUIET = {"max_tokens": 2, "bootstrap": 10}


def silent() -> Console:
    return Console(file=io.StringIO(), width=80)


def again(made: Run, step: int, seed: int = 1) -> None:
    """Another checkpoint of the run: other weights."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer("bytes")
    core = build(made.model, tokenizer.size, made.contrastive)
    save(made.folder, step, made, tokenizer, core.state_dict(), {})


def test_every_row_says_what_it_is_of(tmp_path: Path) -> None:
    """Step and checksum of the checkpoint, a digest of the samples, and the version; so do both other files."""
    val = numbers(tmp_path / "data" / "val", ("one", "two"))
    other = numbers(tmp_path / "data" / "more", ("four", "five"))
    made = saved_run(tmp_path, val)
    again(made, 2)
    specs = [f"a={val}", f"b={other}"]
    first, last = (evaluate_run(made.folder, data=specs, step=step, console=silent(), **QUIET) for step in (1, None))
    for rows, step in ((first, 1), (last, 2)):
        manifest = json.loads((folder_of(made.folder, step) / "manifest.json").read_text())
        checksum = f"{manifest['files']['model.safetensors']['crc32']:08x}"
        assert {(row.step, row.weights, row.version) for row in rows} == {(step, checksum, "0.1.0")}
    assert len({row.data for row in last}) == 2 and {row.data for row in first} == {row.data for row in last}
    for name in ("details", "samples"):
        about = json.loads((made.folder / f"results.{name}.json").read_text())["about"]
        assert (about["step"], about["weights"]) == (2, last[0].weights)


def suite_of(*tasks: Any) -> Suite:
    return Suite(name="s", tasks=tasks)


def test_a_suite_has_a_digest() -> None:
    """Equal for the same questions, another for any other."""
    one = suite_of(Classify(data=ClassFolders()))
    assert digest_of(one) == digest_of(suite_of(Classify(data=ClassFolders())))
    assert digest_of(one) != digest_of(suite_of(Classify(data=ClassFolders(path="x"))))


def told_of(folder: Path) -> str:
    """The notes of the report on results that are not of the run as it is."""
    write_report(folder)
    return " ".join(read_record(folder).doubts)


def notes_of(folders: list[Path]) -> list[str]:
    """What a comparison says of the runs, but for how few items they were scored on."""
    return [line for line in board(*folders).notes if "too few items" not in line]


def test_stale_results_are_marked_and_not_compared(tmp_path: Path) -> None:
    """Other weights at the same step, a step that is gone, and rows of several checkpoints are refused in one line; an
    earlier step and results that do not say are noted; of suites as of results.json."""
    val = numbers(tmp_path / "data" / "val", ("one", "two"))
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        runs.append(saved_run(tmp_path / name, val))
        evaluate_run(runs[-1].folder, data=[f"val={val}"], console=silent(), **QUIET)
    made, folder = runs[0], runs[0].folder
    both = [run.folder for run in runs]
    assert told_of(folder) == "" and notes_of(both) == []
    again(made, 2)
    told = f"{folder}/results.json is of step 1; the last of {folder} is 2"
    assert told_of(folder) == told and notes_of(both) == [told]
    again(made, 1)
    told = f"{folder}/results.json is of other weights than step 1 has now; score it again: mmfm eval {folder}"
    assert told_of(folder) == told and told in (folder / "report.html").read_text().replace("&#x27;", "'")
    with pytest.raises(UserError) as error:
        read_contenders(both)
    assert str(error.value) == told
    rows = json.loads((folder / "results.json").read_text())
    for change, words in (
        (lambda row: {**row, "step": 7}, "is of step 7, which"),
        (lambda row: {**row, "step": 1 + (row["metric"] == "R@1")}, "is of several checkpoints; score it again"),
    ):
        (folder / "results.json").write_text(json.dumps([change(row) for row in rows]))
        with pytest.raises(UserError, match=words):
            read_contenders(both)
    bare = [{name: value for name, value in row.items() if name not in ("step", "weights")} for row in rows]
    (folder / "results.json").write_text(json.dumps(bare))
    assert notes_of(both) == [
        f"{folder}/results.json does not say of which weights it is; score it again: mmfm eval {folder}"
    ]
    for name in ("results.json", "results.samples.json"):
        (folder / name.replace("results", "results.mine")).write_text((folder / name).read_text())
    (folder / "results.mine.json").write_text(json.dumps(rows))
    assert f"{folder}/results.mine.json is of other weights" in told_of(folder)


def test_other_suites_and_versions(tmp_path: Path) -> None:
    """Two runs that were asked by different suites of one name are not compared; other versions are noted."""
    folders = [scored(tmp_path, name, {"fold": [accuracy(flips(30, 20))]}, suite="esc50") for name in ("a", "b")]

    def mark(**told: str) -> None:
        for folder, suffix in zip(folders, "12", strict=True):
            path = folder / "results.esc50.json"
            rows = json.loads(path.read_text())
            path.write_text(json.dumps([{**row, **{k: v + suffix for k, v in told.items()}} for row in rows]))

    mark(version="0.")
    assert board(*folders).notes == ["the runs were scored by different versions of mmfm: 0.1, 0.2"]
    mark(suite="s")
    with pytest.raises(UserError, match="were asked by different suites in esc50/fold; score both by one"):
        board(*folders)


def test_training_anew_removes_all_results(tmp_path: Path) -> None:
    """--force leaves nothing of the model before: no scores of suites, none that were broken off, and no report."""
    made = saved_run(tmp_path, "")
    names = ["results.json", "results.esc50.json", "results.esc50.details.json", "results.mine.samples.json"]
    names += ["results.json.partial", "results.mine.details.json.partial", "report.html", "metrics.jsonl"]
    for name in (*names, "notes.txt"):
        (made.folder / name).write_text("old")
    resume.clear_for_start(made, None)
    left = {path.name for path in made.folder.iterdir()}
    assert not left & set(names) and {"notes.txt", "run.json"} <= left


def strict(path: Path) -> Any:
    """Of JSON that holds nothing but JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{path} holds {word}")

    return json.loads(path.read_text(encoding="ascii"), parse_constant=refuse)


def by_name(rows: list[dict[str, Any]]) -> Mapping[tuple[str, str], dict[str, Any]]:
    return {(row["task"], row["metric"]): row for row in rows}


def test_one_vector_that_is_not_finite_costs_no_other_score(tmp_path: Path) -> None:
    """What is made of it is null and says why, in all files and on the terminal; everything else is as without it; a
    run is compared by what has a value."""
    spec, model = pets(tmp_path)
    model.tasks, model.written = ("image>text",), dict.fromkeys(PETS, "cat")
    sound = evaluate(model, spec, split="pets")
    broken = Planted({**model.vectors, ("image", "c"): [math.nan, 0.0, 1.0]}, NAMED, model.written, model.tasks)
    scores = evaluate(broken, spec, split="pets")
    said = Console(file=io.StringIO(), width=200)
    folders = []
    for name, own in (("whole", sound), ("broken", scores)):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        (folders[-1] / "run.json").write_text(to_json(Run(name=name)))
        finish({"pets": own}, folders[-1] / "results.json", said)
    whole, found = (by_name(strict(folder / "results.json")) for folder in folders)
    assert whole.keys() == found.keys()
    for key, row in found.items():
        if "image->" in key[0] or "->image" in key[0]:
            assert row["value"] is row["low"] is None and row["reason"] == "1 of 5 vectors of image are not finite"
        else:
            assert row == whole[key] and row["reason"] == ""
    strict(folders[1] / "results.details.json"), strict(folders[1] / "results.samples.json")
    told = said.file.getvalue()  # type: ignore[attr-defined]
    assert "no value: image->text acc@1: 1 of 5 vectors of image are not finite" in told
    assert {one.task for one in board(*folders).comparisons} == {"image>text"}
    write_report(folders[1])


def test_one_surprise_that_is_not_finite_costs_no_other_score(tmp_path: Path) -> None:
    """Bits per byte are null; exact match is not."""
    spec, model = pets(tmp_path)
    model.tasks, model.written = ("image>text",), dict.fromkeys(PETS, "cat")
    nats = model.nats
    model.nats = lambda task, batch: torch.where(  # type: ignore[method-assign]
        torch.tensor([key == "d" for key in batch.keys]), torch.inf, nats(task, batch)
    )
    scores = evaluate(model, spec)
    assert value(scores, "image>text", "bits_per_byte", "reason") == "1 of 5 surprises are not finite"
    assert value(scores, "image>text", "exact_match") == pytest.approx(3 / 5)


def test_a_suite_with_a_vector_that_is_not_finite(tmp_path: Path) -> None:
    """Classes, neighbours and retrieval are null and say why; what is written is scored."""
    for n, key in enumerate("pq"):
        picture(tmp_path / "val" / key / f"{key}.jpg", n)
    tree = {"images": [{"id": n, "file_name": f"{key}/{key}.jpg"} for n, key in enumerate("pq")]}
    tree["annotations"] = [{"image_id": n, "caption": text} for n, text in enumerate(("one two", "three"))]
    (tmp_path / "c.json").write_text(json.dumps(tree))
    vectors = {("image", "p/p"): axis(0), ("image", "q/q"): [math.inf, 0.0, 0.0]}
    texts = {"one two": axis(0), "three": axis(1), "p": axis(0), "q": axis(1)}
    model = Planted(vectors, texts, {"p/p": "one two", "q/q": "\ud83d"}, ("image>text",))
    coco, folders = Coco(annotations="c.json", media="val"), ClassFolders(path="val")
    tasks = (Retrieve(data=coco), Caption(data=coco), KNN(train=folders, test=folders, k=1))
    scores = {"s": asked(model, tmp_path, *tasks)}
    scores["c"] = asked(model, tmp_path, Classify(data=folders, templates=("{}",)))
    finish(scores, tmp_path / "results.s.json", silent())
    rows = strict(tmp_path / "results.s.json")
    assert {row["task"] for row in rows if row["value"] is None} == {"image->text", "text->image", "image:knn"}
    assert all(row["reason"].endswith("not finite") for row in rows if row["value"] is None)
    assert by_name(rows)["image>text", "bleu1"]["value"] > 0
    strict(tmp_path / "results.s.details.json")


def test_what_was_scored_before_a_fault_is_kept(tmp_path: Path) -> None:
    """The second of three splits cannot be read: the first stands in results.json.partial, which is told, and results
    of before are as they were; once all is well nothing partial stays."""
    good = numbers(tmp_path / "data" / "good", ("one", "two"))
    bad = shard(tmp_path / "data" / "bad" / "0.tar", {"a": {"image": 0, "cls": "x"}})
    made, said = saved_run(tmp_path, good), io.StringIO()
    (made.folder / "results.json").write_text("[]")
    console = Console(file=said, width=300)
    with pytest.raises(UserError, match=r"the \.cls is no whole number"):
        evaluate_run(made.folder, data=[f"a={good}", f"b={bad}", f"c={good}"], console=console, **QUIET)
    assert (made.folder / "results.json").read_text() == "[]"
    rows = strict(made.folder / "results.json.partial")
    assert {row["split"] for row in rows} == {"a"} and rows[0]["step"] == 1
    assert "a: kept in results.json.partial, beside " in said.getvalue()
    done = evaluate_run(made.folder, data=[f"a={good}", f"c={good}"], console=console, **QUIET)
    assert [asdict(row) for row in done if row.split == "a"] == rows
    assert not list(made.folder.glob("*.partial"))


def test_odd_numbers_and_signs_are_written(tmp_path: Path) -> None:
    """Whatever is not finite is null, halves of surrogate pairs are escapes, in files, pages and on a terminal."""
    write_json(tmp_path / "x.json", {"a": [math.nan, -math.inf, 1.5], "\udc80": ("\ud83d",)})
    assert strict(tmp_path / "x.json") == {"a": [None, None, 1.5], "\udc80": ["\ud83d"]}
    save_page(tag("p", "\ud83d"), tmp_path / "x.html")
    assert (tmp_path / "x.html").read_text("utf-8") == "<p>\\ud83d</p>"
    odd = replace(accuracy(np.array([1.0, math.nan])), task="\udc80")
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    row = row_of("s", odd, QUICK.bootstrap)
    assert (row.value, row.reason) == (None, "the statistic has no finite value")
    scores = {"s": Scores(rows=(row,), details=SplitDetails(left_out=("\ud83d",)))}
    finish(scores, tmp_path / "results.json", Console(file=out, width=80))
    assert strict(tmp_path / "results.json")[0]["task"] == "\udc80"


def test_chance_that_is_unknown_is_null(tmp_path: Path) -> None:
    """A level that cannot be computed, and a rate over nothing, cost no other figure."""
    figures = [
        Score(task="c", metric="stoi", statistic=mean(np.ones(4)), n=4, chance=math.nan),
        Score(task="d", metric="wer", statistic=ratio(np.ones(4), np.zeros(4)), n=4, chance=1.0),
    ]
    folder = scored(tmp_path, "a", {"test": figures})
    rows = strict(folder / "results.json")
    assert [(row["value"], row["chance"]) for row in rows] == [(1.0, None), (None, 1.0)]
    other = scored(tmp_path, "b", {"test": figures})
    assert [one.outcome.p for one in board(folder, other).comparisons] == [1.0, 1.0]


def test_weights_without_a_manifest(tmp_path: Path) -> None:
    """Nothing is known of what is no checkpoint, and nothing is refused."""
    assert weights_of(tmp_path) is None
    (tmp_path / "manifest.json").write_text('{"step": 1, "files": []}')
    assert weights_of(tmp_path) is None
