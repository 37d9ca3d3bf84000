"""Data that was moved, or is scored by another set, is the same data: a run goes on from its checkpoint."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mmfm.config import Data, Generative, Model, Optim, Run, Source, TextTower, UserError
from mmfm.data.stream import TrainStream
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.training.resume import check_same_configuration


def run_on(shards: str, **changes: object) -> Run:
    source = Source(shards=shards, modalities=("text",))
    data = Data(**{"train": (source,), "batch_size": 4, "num_workers": 0, **changes})
    model = Model(image=None, audio=None, text=TextTower(width=32, heads=2))
    return Run(
        name="t", model=model, data=data, generative=(Generative(task=">text"),), optim=Optim(steps=5, warmup_steps=1)
    )


def plan(run: Run) -> str:
    return TrainStream(run, load_tokenizer("bytes"), rank=0, world=1).fingerprint()


def test_shards_elsewhere_are_the_same_by_content(
    tmp_path: Path, write_shard: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved, by a relative path or an absolute one, under a name or none, and with another val set or none."""
    write_shard(tmp_path / "a" / "t.tar", {f"{n}": {"txt": b"x"} for n in range(5)})
    before = run_on(str(tmp_path / "a"), val=str(tmp_path / "val"))
    known = plan(before)
    shutil.move(tmp_path / "a", tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    named = Source(shards="b", modalities=("text",), name="texts")
    for now in (run_on(str(tmp_path / "b")), run_on("b", val="other"), run_on("b/t.tar"), run_on("", train=(named,))):
        check_same_configuration(before, now)
        assert plan(now) == known
    for wrong in (
        run_on("b", batch_size=8),
        replace(run_on("b"), seed=1),
        run_on("b", train=(replace(named, weight=2),)),
    ):
        with pytest.raises(UserError, match="was trained with another configuration"):
            check_same_configuration(before, wrong)
    write_shard(tmp_path / "b" / "t.tar", {f"{n}": {"txt": b"x"} for n in range(6)})
    assert plan(run_on("b")) != known, "other shards of the same name are others"


def test_a_tokenizer_elsewhere_is_the_same_by_content(tmp_path: Path) -> None:
    """The checkpoint has its own; a path to another one is refused."""
    own = load_tokenizer("bytes").to_json()
    for name in ("a", "b"):
        (tmp_path / name).write_text(own)
    before, now, gone = (
        replace(run_on("b"), model=replace(run_on("b").model, tokenizer=str(tmp_path / name)))
        for name in ("a", "b", "none")
    )
    check_same_configuration(before, now, own)
    for run, known in ((now, "{}"), (gone, own)):
        with pytest.raises(UserError, match=r"another configuration: model\.tokenizer was .*/a\" and is "):
            check_same_configuration(before, run, known)
