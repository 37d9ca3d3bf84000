"""A metric of one's own, in a file beside the suite: scored, recorded, compared and shown as those of mmfm are."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import NAMED, Planted, asked, pets, saved_run, value

from mmfm.config import Metric, UserError
from mmfm.config.extend import execute
from mmfm.evals import metrics_table
from mmfm.evals.run import evaluate_run
from mmfm.evals.suite import Caption, Classify, Retrieve, Tars
from mmfm.report.scored_runs import read_contenders

EXAMPLE = Path(__file__).parent.parent / "configs" / "extensions" / "reciprocal_rank.py"
SUITE = """
from reciprocal_rank import ReciprocalRank

from mmfm.evals.suite import Retrieve, Suite, Tars

def suite():
    task = Retrieve(data=Tars(shards="pets"), metrics=(ReciprocalRank(),))
    return Suite(name="mine", tasks=(task,))
"""
ReciprocalRank: Any = execute(EXAMPLE).ReciprocalRank


@pytest.fixture(autouse=True)
def forgotten():
    """Tables forget what a test has taught them."""
    yield
    metrics_table.OWN.clear()


@dataclass(frozen=True, kw_only=True)
class WordRecall(Metric):
    """Words of the first reference that are written, of all of its words."""

    unit = "share"
    higher_is_better = True
    made: str = "right"

    def values(self, first: Any, second: Any) -> Any:
        if self.made == "short":
            return [1.0]
        if self.made == "broken":
            raise TypeError("no list")
        words = [set(texts[0].split()) for texts in first]
        return [len(own & set(text.split())) for own, text in zip(words, second, strict=True)], [*map(len, words)]


def test_a_reciprocal_rank_of_random_orders() -> None:
    """Where scores tie it is the mean over their orders, by drawing them; where all do it is the chance level."""
    draw = np.random.default_rng(0)
    scores, relevant = draw.integers(0, 3, (6, 7)).astype(float), draw.random((6, 7)) < 0.3
    relevant[:, 0] = True
    found, tries = ReciprocalRank().values(scores, relevant), np.zeros(6)
    for _ in range(4_000):
        order = np.lexsort((draw.random(scores.shape), -scores), axis=1)
        tries += 1 / (1 + np.take_along_axis(relevant, order, 1).argmax(1))
    np.testing.assert_allclose(found, tries / 4_000, atol=0.02)
    metric = ReciprocalRank()
    assert metric.chance(scores, relevant) == pytest.approx(metric.values(np.zeros_like(scores), relevant).mean())


def test_it_stands_among_the_others(tmp_path: Path) -> None:
    """In retrieval and among classes: value, chance, interval, and what is kept to compare and to show it by."""
    _, model = pets(tmp_path)
    data, own = Tars(shards="pets"), (ReciprocalRank(),)
    scores = asked(model, tmp_path, Classify(data=data, metrics=own))
    found = value(scores, "image->text", "ReciprocalRank")
    assert found == pytest.approx(np.mean([1, 1, 1 / 2, 1, 1 / 2]), abs=1e-6)
    assert value(scores, "image->text", "ReciprocalRank", "chance") == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    low, high = (value(scores, "image->text", "ReciprocalRank", end) for end in ("low", "high"))
    assert low < found < high
    known = scores.details.metrics["ReciprocalRank"]
    assert known.extension == "reciprocal_rank.py:ReciprocalRank" and known.label == "MRR"
    assert known.sha256 == hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()
    assert metrics_table.label("ReciprocalRank") == "MRR" and metrics_table.better("ReciprocalRank", 0.1) == 1
    both = asked(model, tmp_path, Retrieve(data=data, metrics=own))
    assert {row.task for row in both.rows if row.metric == "ReciprocalRank"} == {"image->text", "text->image"}


def test_texts_are_scored_by_two_sums(tmp_path: Path) -> None:
    """Five words of references, of which three are written."""
    written = {"a": "cat", "b": "a cat", "c": "dog", "d": "dog", "e": ""}
    _, model = pets(tmp_path)
    model = Planted(model.vectors, NAMED, written, tasks=("image>text",))
    scores = asked(model, tmp_path, Caption(data=Tars(shards="pets"), metrics=(WordRecall(),)))
    assert value(scores, "image>text", "WordRecall") == pytest.approx(3 / 5)
    assert value(scores, "image>text", "WordRecall", "chance") is None


def test_what_it_gives_is_checked(tmp_path: Path) -> None:
    """One line each: too few numbers, an error of its own, of another kind of task, a name that is taken."""
    _, model = pets(tmp_path)
    model = Planted(model.vectors, NAMED, dict.fromkeys("abcde", "cat"), tasks=("image>text",))
    for made, told in (("short", r"gave \[1, 1\] for 5 rows"), ("broken", "fails with TypeError")):
        with pytest.raises(UserError, match=rf"test_own_metrics.py:WordRecall {told}"):
            asked(model, tmp_path, Caption(data=Tars(shards="pets"), metrics=(WordRecall(made=made),)))
    with pytest.raises(UserError, match="WordRecall takes texts, and this task gives ranking"):
        Retrieve(data=Tars(shards="pets"), metrics=(WordRecall(),))
    with pytest.raises(UserError, match="has the name of another metric"):
        Retrieve(data=Tars(shards="pets"), metrics=(ReciprocalRank(), ReciprocalRank()))


def test_runs_are_compared_by_it_without_its_file(tmp_path: Path) -> None:
    """A suite imports the file beside it. Results say what it means; those of another file are not compared."""
    pets(tmp_path / "data")
    (tmp_path / "mine.py").write_text(SUITE)
    folders = []
    for name in ("a", "b"):
        run = saved_run(tmp_path, tasks=(), name=name)
        folders.append(run.folder)
        (tmp_path / "reciprocal_rank.py").write_text(EXAMPLE.read_text())
        evaluate_run(run.folder, tmp_path / "mine.py", root=str(tmp_path / "data"), bootstrap=20, num_workers=0)
    metrics_table.OWN.clear()
    first = read_contenders(folders)[0]
    key = ("mine/mine", "image->text", "ReciprocalRank")
    assert first.kept[key].value == pytest.approx(first.rows[key].value)
    assert metrics_table.label("ReciprocalRank") == "MRR" and metrics_table.is_headline("ReciprocalRank")
    (tmp_path / "reciprocal_rank.py").write_text(EXAMPLE.read_text() + "\n# changed\n")
    evaluate_run(folders[1], tmp_path / "mine.py", root=str(tmp_path / "data"), bootstrap=20, num_workers=0)
    with pytest.raises(UserError, match="were asked by different suites"):
        read_contenders(folders)
