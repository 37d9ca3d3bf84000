"""Which splits are scored and looked at: those that a run or a person names, called after what they are."""

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from planted import SMALL, numbers, saved_run, shard
from rich.console import Console

from mmfm.config import Data, Eval, Generative, Optim, RemoteCache, Run, Source, UserError
from mmfm.data import index, shard_list
from mmfm.data.shard_specs import expand
from mmfm.data.splits import asked_and_more, named, named_splits, splits_of
from mmfm.doctor.shard_integrity import sets_of
from mmfm.evals.resampling import Bootstrap
from mmfm.evals.run import evaluate_run
from mmfm.report.comparison import board_of
from mmfm.report.scored_runs import read_contenders
from mmfm.training.check_summary import opener_for
from mmfm.training.fit import train
from mmfm.training.preflight import check


def quiet() -> Console:
    return Console(file=io.StringIO(), width=80)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("data/val", "val"),
        ("data/numbers/", "numbers"),
        ("data/test/0.tar", "test"),
        ("data/test/image-*.tar", "test"),
        ("data/test/{a,b}-{000..003}.tar", "test"),
        ("data/val/*/*.tar", "val"),
        ("data/val/pics,data/val/sounds", "val"),
        ("data/val/pics/a.tar, data/val/sounds/*.tar", "val"),
        ("a/test,b/test", "test"),
        ("data/test-unseen+data/test", "test-unseen"),
        ("mine=data/val", "mine"),
        ("https://h/data/val", "val"),
        ("https://h/data/val/", "val"),
        ("https://h/data/val/a-{0..3}.tar", "val"),
        ("https://h/data/my%20val/a.tar?key=s", "my val"),
        ("https://h/v/pics,https://h/v/sounds", "v"),
        ("s3://bucket", "bucket"),
        ("hf://datasets/a/b/val", "val"),
    ],
)
def test_a_split_is_called_after_the_folder_of_its_shards(spec: str, name: str) -> None:
    """By hand, whether or not anything is there."""
    assert named(spec)[0] == name


def test_a_name_is_no_part_of_a_place() -> None:
    """A folder or a query with "=" is none; a URL's "+" divides only where another URL follows."""
    assert named("x/a=b") == ("a=b", "x/a=b")
    assert named("https://h/v/a.tar?k=1") == ("v", "https://h/v/a.tar?k=1")
    assert asked_and_more("https://h/a+b/x.tar") == ("https://h/a+b/x.tar", "")
    assert asked_and_more("https://h/a+https://h/b") == ("https://h/a", "https://h/b")
    with pytest.raises(UserError, match=r"'/0\.tar' has no folder to be called after; give it a name: NAME=/0\.tar"):
        named("/0.tar")


@pytest.mark.parametrize("spec", ["data/test+", "+data/test", "+"])
def test_a_plus_has_shards_on_both_sides(spec: str) -> None:
    """Else a gallery that was asked for would be left out in silence."""
    with pytest.raises(UserError, match=r"has no shards on one side of its \+; give SHARDS\+MORE, or SHARDS alone"):
        asked_and_more(spec)


def test_a_folder_beside_is_not_scored(tmp_path: Path) -> None:
    """What the configuration names is, under its own name, beside folders that are called val and test; in training
    too; and the doctor looks at the same."""
    mine = numbers(tmp_path / "data" / "mine", ("one", "two"))
    for other in ("val", "test", "test-unseen"):
        numbers(tmp_path / "data" / other, ("three", "four"))
    made = saved_run(tmp_path, mine)
    rows = evaluate_run(made.folder, max_tokens=2, bootstrap=5, console=quiet())
    assert {row.split for row in rows} == {"mine"}
    details = json.loads((made.folder / "results.details.json").read_text())["splits"]
    assert {name: split["source"] for name, split in details.items()} == {"mine": mine}
    assert [(one.label, one.spec) for one in sets_of(made)] == [("mine", mine)]


def test_a_run_names_more_splits(tmp_path: Path) -> None:
    """In the order of the run, one that it names twice once; two places of one name are refused, with the remedy."""
    data = Data(val="data/val")
    run = Run(name="r", data=data, eval=Eval(splits=("data/val", "data/test", "rare=data/b+data/test", "x/y.tar")))
    assert splits_of(run) == {"val": "data/val", "test": "data/test", "rare": "data/b+data/test", "x": "x/y.tar"}
    assert [one.label for one in sets_of(run)] == ["val", "test", "rare", "x"]
    twice = replace(run, eval=Eval(splits=("other/val",)))
    with pytest.raises(UserError, match="two splits are called 'val': data/val and other/val; name one NAME=other/val"):
        splits_of(twice)
    assert named_splits(["data/val", "b=other/val"]) == {"val": "data/val", "b": "other/val"}
    alone = replace(run, data=Data(), eval=Eval(splits=("data/test",)))
    assert splits_of(alone) == {"test": "data/test"}


def test_the_quickstart_names_its_splits() -> None:
    from mmfm.config.load import read_run

    run = read_run(Path(__file__).parent.parent / "configs" / "quickstart.py")
    assert list(splits_of(run)) == ["val", "test", "test-unseen"]
    assert splits_of(run)["test-unseen"] == "data/numbers/test-unseen+data/numbers/test"


def test_a_folder_of_folders_is_one_set(tmp_path: Path) -> None:
    """Whatever its depth, in order; hidden folders are not looked into; where it has tars itself, just these; splits
    side by side are refused."""
    for name in ("val/pics/a.tar", "val/sounds/deep/b.tar", "val/.cache/c.tar", "both/x.tar", "both/in/y.tar"):
        shard(tmp_path / name, {"k": {"txt": "t"}})
    assert expand(str(tmp_path / "val")) == [tmp_path / "val/pics/a.tar", tmp_path / "val/sounds/deep/b.tar"]
    assert expand(str(tmp_path / "both")) == [tmp_path / "both/x.tar"]
    shard(tmp_path / "all" / "train" / "0.tar", {"k": {"txt": "t"}})
    shard(tmp_path / "all" / "test-unseen" / "0.tar", {"k": {"txt": "t"}})
    with pytest.raises(UserError, match=r"all' holds several splits \(test-unseen, train\); name one of them"):
        expand(str(tmp_path / "all"))


def test_a_nested_split_has_its_list_of_classes_at_its_top(tmp_path: Path) -> None:
    """Pictures in one folder and sounds in another: one split, of its own name, whose classes are listed once."""
    shard(tmp_path / "val" / "pics" / "0.tar", {"p": {"image": 1, "txt": "one"}, "q": {"image": 2, "txt": "two"}})
    shard(tmp_path / "val" / "sounds" / "0.tar", {"s": {"audio": 1, "txt": "one"}})
    (tmp_path / "val" / "classnames.txt").write_text("one\ntwo\nthree\n")
    made = saved_run(tmp_path, str(tmp_path / "val"))
    rows = evaluate_run(made.folder, max_tokens=2, bootstrap=5, console=quiet())
    assert {row.split for row in rows} == {"val"}
    assert next(row.chance for row in rows if row.metric == "acc@1") == pytest.approx(1 / 3)


# Behind a URL


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "data")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def listed(folder: str) -> str:
    for tar in Path(folder).glob("*.tar"):
        index.write(tar)
    shard_list.write_list(Path(folder))
    return folder


def test_a_split_behind_a_url_scores_as_on_disk(tmp_path: Path, served: str) -> None:
    """Rows, galleries and examples, with the list of classes beside it; also one that is only searched in."""
    val = listed(numbers(tmp_path / "data" / "val", ("one", "two", "three")))
    more = listed(shard(tmp_path / "data" / "more" / "0.tar", {"m": {"image": 77, "txt": "four"}}))
    (tmp_path / "data" / "val" / "classnames.txt").write_text("one\ntwo\nthree\nfour\n")
    (tmp_path / "data" / "val" / "templates.txt").write_text("a {}\n")
    made, found = saved_run(tmp_path, val), {}
    run_json = json.loads((made.folder / "run.json").read_text())
    run_json["data"]["remote_cache"]["folder"] = str(tmp_path / "store")
    (made.folder / "run.json").write_text(json.dumps(run_json))
    for name, spec in {"disk": f"{val}+{more}", "url": f"{served}/val+{served}/more"}.items():
        out = tmp_path / f"{name}.json"
        found[name] = evaluate_run(made.folder, data=[spec], out=out, max_tokens=2, bootstrap=5, console=quiet())
        details = json.loads((tmp_path / f"{name}.details.json").read_text())["splits"]["val"]
        found[name] += [{key: value for key, value in details.items() if key != "source"}]
    assert found["disk"] == found["url"]
    assert found["url"][-1]["templates"] == ["a {}"] and len(found["url"][-1]["classes"]) == 4


def test_runs_are_compared_on_a_set_behind_a_url(tmp_path: Path, served: str) -> None:
    """They pair by its samples, also with a run that was scored on the copy on disk, under one name."""
    val, folders = listed(numbers(tmp_path / "data" / "val", ("one", "two", "three"))), []
    for name, spec in (("a", f"{served}/val"), ("b", f"{served}/val"), ("c", val)):
        (tmp_path / name).mkdir()
        made = saved_run(tmp_path / name, val)
        tree = json.loads((made.folder / "run.json").read_text())
        tree["data"]["remote_cache"]["folder"] = str(tmp_path / "store")
        (made.folder / "run.json").write_text(json.dumps(tree))
        evaluate_run(made.folder, data=[spec], max_tokens=2, bootstrap=5, console=quiet())
        folders.append(made.folder)
    shown = board_of(read_contenders(folders), Bootstrap(resamples=50))
    assert {one.split for one in shown.comparisons} == {"val"} and {one.outcome.n for one in shown.comparisons} >= {12}
    assert {(one.first, one.second) for one in shown.comparisons} == {(0, 1), (0, 2), (1, 2)}
    assert all(one.outcome.difference == 0 for one in shown.comparisons)


def test_training_scores_a_set_behind_a_url_as_on_disk(tmp_path: Path, served: str) -> None:
    """The same numbers at the same steps, of shards that are fetched while it trains."""
    val = listed(numbers(tmp_path / "data" / "val", ("one", "two")))
    found = {}
    for name, spec in {"disk": val, "url": f"{served}/val"}.items():
        data = Data(train=(Source(shards=val, modalities=("text",)),), val=spec, batch_size=4, num_workers=0)
        run = Run(
            name=name,
            out=str(tmp_path / "runs"),
            model=SMALL,
            data=replace(data, remote_cache=RemoteCache(folder=str(tmp_path / "store"))),
            generative=(Generative(task=">text"),),
            optim=Optim(steps=2, warmup_steps=1),
            eval=Eval(every_steps=1, samples=8),
            accelerator="cpu",
        )
        train(run, look=lambda run=run: check(run, opener_for(run)))
        lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
        found[name] = [line for line in lines if any(key.startswith("score/val/") for key in line)]
    assert [line["step"] for line in found["disk"]] == [1, 2] and found["disk"] == found["url"]
    assert any((tmp_path / "store").rglob("*.tar*"))


def test_check_looks_at_the_validation_set_behind_a_url(tmp_path: Path, served: str) -> None:
    """One that is there passes, with the list alone; one that is not is refused before anything is trained."""
    val = listed(numbers(tmp_path / "data" / "val", ("one", "two")))
    made = saved_run(tmp_path, val, eval=Eval(every_steps=5))
    source = Source(shards=val, modalities=())
    data = Data(train=(source,), val=f"{served}/val", remote_cache=RemoteCache(folder=str(tmp_path / "store"), tries=1))
    for write in (made.generative[:1],):
        run = replace(
            made, data=replace(data, train=(replace(source, modalities=("image", "text")),)), generative=write
        )
        run = replace(run, data=replace(run.data, max_bad_fraction=1.0))
        assert check(run, opener_for(run)) and not (tmp_path / "store").exists()
        gone = replace(run, data=replace(run.data, val=f"{served}/gone"))
        with pytest.raises(UserError, match=r"there is no .*gone/shards\.json"):
            check(gone, opener_for(gone))


def test_check_refuses_a_validation_set_that_cannot_be_scored(tmp_path: Path) -> None:
    """Sounds alone, for a run that reads none, would end training at its first scoring."""
    train = shard(tmp_path / "train" / "0.tar", {"p": {"image": 1, "txt": "one"}})
    val = shard(tmp_path / "val" / "0.tar", {"s": {"audio": 1}})
    made = saved_run(tmp_path, val)
    data = Data(train=(Source(shards=train, modalities=("image", "text")),), val=val)
    run = replace(made, model=replace(made.model, audio=None), generative=made.generative[:1], data=data)
    assert check(run)
    with pytest.raises(UserError, match=r"data\.val=.*: none of its 1 samples has what this run reads \(image, text\)"):
        check(replace(run, eval=Eval(every_steps=5)))
