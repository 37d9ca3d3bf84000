"""Comparing runs: tests have the error rates that they promise, runs pair by sample, the page says what is so."""

import io
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import numbers, saved_run, shard
from rich.console import Console
from scipy.stats import binomtest
from test_report import Reader

from mmfm.__main__ import main
from mmfm.config import Optim, Run, UserError
from mmfm.config.serialization import to_json
from mmfm.data.sample import Sample
from mmfm.evals.metrics import Score, mean, mean_per_class, median, ratio
from mmfm.evals.records import Scores, SplitDetails
from mmfm.evals.resampling import Bootstrap, resampled
from mmfm.evals.results import finish, row_of, samples_of
from mmfm.evals.run import evaluate_run
from mmfm.evals.split import SampleInfo, Split
from mmfm.report.compare import compare
from mmfm.report.compare_page import unbroken
from mmfm.report.comparison import HOLM, board_of, letter, p_value, sentences
from mmfm.report.paired import discordant, estimated, holm, least_p, mcnemar, sign_flips
from mmfm.report.report import write_report
from mmfm.report.scored_runs import read_contenders

FEW = Bootstrap(resamples=400)


class Nowhere:
    """Samples that nobody reads."""

    def __init__(self) -> None:
        self.ignored = Counter[str]()

    def __len__(self) -> int:
        return 0

    def __getitem__(self, sample: int, /) -> Sample:
        raise AssertionError


def a_split(name: str, n: int, **changes: Any) -> Split:
    media = changes.pop("media", ("",) * n)
    infos = tuple(SampleInfo(f"k{i}", None, (None, None), "", media=own) for i, own in enumerate(media))
    parts = {"name": name, "source": f"data/{name}", "samples": Nowhere(), "places": tuple(range(n)), "own": n}
    return Split(**{**parts, "infos": infos, "digest": f"{name} {n}", **changes})


def accuracy(values: Sequence[float] | np.ndarray, task: str = "image->text", metric: str = "acc@1") -> Score:
    names = tuple(f"k{i}" for i in range(len(values)))
    return Score(
        task=task, metric=metric, statistic=mean(np.asarray(values, float)), n=len(values), chance=0.1, items=names
    )


def scored(
    folder: Path,
    name: str,
    figures: Mapping[str, Sequence[Score]],
    *,
    splits: Mapping[str, Split] | None = None,
    classes: Sequence[str] = ("a", "b"),
    templates: Sequence[str] = ("{}",),
    suite: str = "",
    **changes: Any,
) -> Path:
    """A run's folder as `mmfm eval` leaves it, with these figures for each split."""
    run = Run(name=name, optim=Optim(steps=1_000), **changes)
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "run.json").write_text(to_json(run))
    scores = {}
    for split, own in figures.items():
        seen = (splits or {}).get(split) or a_split(split, max(figure.n for figure in own))
        rows = tuple(row_of(split, figure, FEW) for figure in own)
        details = SplitDetails(source=split, classes=tuple(classes), templates=tuple(templates))
        scores[split] = Scores(rows=rows, details=details, samples=samples_of([seen], own, details))
    out = place / f"results{suite and '.' + suite}.json"
    finish(scores, out, Console(file=io.StringIO()))
    return place


def flips(n: int, right: int, seed: int = 0) -> np.ndarray:
    """`right` ones among n, in an order of its own."""
    return np.random.default_rng(seed).permutation(np.arange(n) < right).astype(float)


@pytest.mark.parametrize(
    ("b", "c"), [(0, 0), (1, 0), (0, 5), (5, 5), (6, 5), (3, 14), (40, 71), (900, 1_100), (9_000, 9_300)]
)
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    """As scipy's two-sided test of a fair coin, whichever run comes first."""
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == mcnemar(c, b) == pytest.approx(expected, rel=1e-9)


def test_only_what_is_right_or_wrong_is_counted() -> None:
    """Two items that only the first has, one that only the second has; an item that ties decide leaves no count."""
    first, second = np.array([1.0, 1.0, 1.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0, 1.0, 0.0])
    assert discordant(first, second) == (2, 1)
    assert discordant(first, np.array([0.5, 0.0, 0.0, 1.0, 0.0])) is None


def test_holm_by_hand() -> None:
    """Four tests: .01 * 4, .02 * 3 = .06, .03 * 2 = .06, .2 * 1; their order does not matter, and none exceeds 1."""
    assert holm([0.03, 0.01, 0.2, 0.02]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and holm([0.04]) == [0.04] and holm([]) == []


def test_a_planted_difference_is_found_with_its_size() -> None:
    """The interval holds the true difference and is as wide as theory says of pairs, whose errors are shared."""
    draw = np.random.default_rng(0)
    hard = draw.normal(size=2_000)
    first, second = (hard + 0.3 + 0.2 * draw.normal(size=2_000)), (hard + 0.2 * draw.normal(size=2_000))
    values, draws = resampled([mean(first), mean(second)], 2_000, FEW)
    found = estimated(values, draws, 2_000, 2_000)
    assert found.difference == pytest.approx(first.mean() - second.mean()) and found.low < 0.3 < found.high
    z = (first - second).mean() / ((first - second).std() / np.sqrt(2_000))
    assert 0 < found.p < 1e-9 and z > 6  # no floor of 1 / (resamples + 1)
    theory = 1.96 * (first - second).std() / np.sqrt(2_000)
    assert found.high - found.difference == pytest.approx(theory, rel=0.2)


def test_the_same_run_twice_is_no_difference() -> None:
    """Also where rounding moves the last bit of each resample: p is 1."""
    values = np.random.default_rng(0).random(99) * 1e3
    both = resampled([mean(values), mean(values[::-1][::-1].copy())], 99, FEW)
    found = estimated(*both, 99, 99)
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_equal_models_are_seldom_told_apart() -> None:
    """Of 250 pairs that are equally good, correlated as two models are, each test calls about 5 % different, not more
    than chance allows; McNemar's exact one is never liberal."""
    draw, found = np.random.default_rng(0), {"bootstrap": 0, "mcnemar": 0, "ratio": 0}
    for _ in range(250):
        ease = draw.random(150)
        first, second = ((draw.random(150) < ease).astype(float) for _ in range(2))
        values, draws = resampled(
            [mean(first), mean(second)], 150, Bootstrap(resamples=200, seed=int(draw.integers(1e9)))
        )
        found["bootstrap"] += estimated(values, draws, 150, 150).p < 0.05
        only = discordant(first, second)
        assert only is not None
        found["mcnemar"] += mcnemar(*only) < 0.05
        lengths = draw.integers(1, 20, 150)
        edits = [draw.binomial(lengths, 0.2 + 0.3 * ease) for _ in range(2)]
        values, draws = resampled([ratio(edit, lengths) for edit in edits], 150, Bootstrap(resamples=200))
        found["ratio"] += estimated(values, draws, 150, 150).p < 0.05
    assert (
        2 <= found["bootstrap"] <= 23 and 2 <= found["ratio"] <= 23
    )  # 12.5 +- three standard deviations, and its grid
    assert found["mcnemar"] <= 17


def captions(draw: np.random.Generator, images: int, each: int, equal: bool = True) -> tuple[np.ndarray, ...]:
    """Hits of two equally good models on the captions of images, which each find a matter of the image; and the image
    of each caption."""
    rows = np.repeat(np.arange(images), each)
    ease = draw.beta(0.5, 0.5, (2, images)) if equal else np.stack([np.full(images, 0.6), np.full(images, 0.4)])
    return (*((draw.random(len(rows)) < one[rows]).astype(float) for one in ease), rows)


def test_captions_of_one_image_do_not_reject_a_true_null() -> None:
    """Five captions an image, two models that are equally good: about 5 % of the tests reject, where McNemar's over
    captions rejects far more; also the t test of rates that are no shares."""
    draw, trials, found = np.random.default_rng(2), 400, {"signs": 0, "t": 0, "McNemar": 0}
    for trial in range(trials):
        first, second, rows = captions(draw, 60, 5)
        sums = np.bincount(rows, weights=first - second).astype(int)
        found["signs"] += sign_flips(sums) < 0.05
        only = discordant(first, second)
        assert only is not None
        found["McNemar"] += mcnemar(*only) < 0.05
        both = resampled([mean(first), mean(second)], 300, Bootstrap(resamples=200, seed=trial), rows)
        found["t"] += estimated(*both, 60, 300).p < 0.05
    assert 8 <= found["signs"] <= 33 and 8 <= found["t"] <= 36  # 20 +- three standard deviations
    assert found["McNemar"] > 80


def test_the_test_of_signs_is_exact() -> None:
    """As counting all signs by hand; with every item 1 or -1 it is McNemar's; many captions of many images are quick
    and have no floor."""
    for sums in ([3, -1, 2], [1, 1, -1, 0], [5, 5, 5, -2, 1], [0, 0], [2]):
        own = [value for value in sums if value]
        signs = list(itertools.product((1, -1), repeat=len(own)))
        far = [abs(sum(s * abs(v) for s, v in zip(some, own, strict=True))) >= abs(sum(own)) for some in signs]
        assert sign_flips(np.array(sums)) == pytest.approx(np.mean(far))
    assert sign_flips(np.array([1] * 14 + [-1] * 3)) == mcnemar(14, 3)
    first, second, rows = captions(np.random.default_rng(3), 5_000, 5, equal=False)
    assert 0 <= sign_flips(np.bincount(rows, weights=first - second).astype(int)) < 1e-12


def test_captions_are_compared_by_image_from_file_to_page(tmp_path: Path) -> None:
    """The clusters of a figure come back from results.samples.json: a difference that five captions of each of few
    images seem to prove is none, and the interval is wider than that of captions alone."""
    better_on = np.arange(24) < 18
    rows = np.repeat(np.arange(24), 5)
    hits = [np.where(better_on, 1.0, 0.0)[rows], np.where(better_on, 0.0, 1.0)[rows]]
    names = tuple(f"k{row}, caption {n}" for n, row in enumerate(rows))
    found = {}
    for told, clusters in (("images", tuple(f"k{row}" for row in rows)), ("captions", ())):
        folders = []
        for name, values in zip("ab", hits, strict=True):
            figure = replace(accuracy(values, "text->image", "R@1"), items=names, clusters=clusters)
            folders.append(scored(tmp_path / told, name, {"test": [figure]}))
        (found[told],) = board(*folders).comparisons
    images, alone = found["images"].outcome, found["captions"].outcome
    assert (images.n, images.items, images.test) == (120, 24, "signs of items")
    assert images.p == pytest.approx(mcnemar(int(better_on.sum()), int((~better_on).sum())))
    assert (alone.items, alone.test) == (120, "McNemar") and alone.p < images.p / 100
    assert images.high - images.low > 1.8 * (alone.high - alone.low)


def test_a_page_of_many_comparisons_can_be_won(tmp_path: Path) -> None:
    """Three hundred tasks, each with a word error rate that one run has plainly lower: all are found, whatever the
    number of resamples, since families are tasks and p has no floor; of five items nothing can be found, and that is
    told."""
    draw, folders = np.random.default_rng(5), []
    lengths = draw.integers(3, 9, 60)
    for name, rate in (("good", 0.1), ("bad", 0.5)):
        figures = [
            Score(task=f"t{at}", metric="wer", statistic=ratio(draw.binomial(lengths, rate), lengths), n=60, chance=1.0)
            for at in range(300)
        ]
        few = Score(task="few", metric="wer", statistic=ratio(np.full(5, 9 * rate), np.full(5, 9)), n=5, chance=1.0)
        folders.append(scored(tmp_path, name, {"test": [*figures, few]}))
    shown = board_of(read_contenders(folders), Bootstrap(resamples=99))
    assert [one.better for one in shown.comparisons] == [0] * 300 + [None]
    assert shown.comparisons[-1].outcome.p == least_p(5) == 1 / 16
    assert shown.notes == ["test: too few items for any difference to be beyond chance: few (5 items, 1 comparisons)"]


def test_other_normalizers_are_not_compared(tmp_path: Path) -> None:
    """Two runs whose transcripts were normalised by other rules: told, and not tested."""
    lengths, folders = np.full(40, 5), []
    for name, rule in (("a", "letters"), ("b", "whisper_english")):
        rate = ratio(np.arange(40) % 3, lengths)
        told = {"task": "audio>text", "metric": "wer", "n": 40, "chance": 1.0, "normalizer": rule}
        folders.append(scored(tmp_path, name, {"test": [Score(statistic=rate, **told)]}))
    shown = board(*folders)
    words = "test: audio>text WER is of texts that were normalised differently (letters, whisper_english), and is not"
    assert shown.comparisons == [] and shown.notes == [f"{words} tested"]


def test_holm_keeps_the_whole_page_honest(tmp_path: Path) -> None:
    """Twelve comparisons of equally good runs: in at most about one page of twenty anything is said to differ."""
    draw, false = np.random.default_rng(1), 0
    for _ in range(120):
        ease = draw.random(80)
        pairs = [[(draw.random(80) < ease) for _ in range(2)] for _ in range(12)]
        p = [mcnemar(int((a & ~b).sum()), int((b & ~a).sum())) for a, b in pairs]
        false += min(holm(p)) < 0.05
    assert false <= 12


def board(*folders: Path) -> Any:
    return board_of(read_contenders(folders), FEW)


def test_runs_pair_by_the_names_of_samples(tmp_path: Path) -> None:
    """The same outcomes in another order are no difference; what one run lacks is left out for both, and told."""
    values = flips(60, 40)
    first = scored(tmp_path, "first", {"test": [accuracy(values)]})
    turned = accuracy(values[::-1])
    turned = replace(turned, items=tuple(reversed(turned.items)))
    second = scored(tmp_path, "second", {"test": [turned]})
    (one,) = board(first, second).comparisons
    assert (one.only, one.outcome.p, one.outcome.difference) == ((0, 0), 1.0, 0.0)
    fewer = replace(accuracy(values[:50]), items=tuple(f"k{i}" for i in range(50)))
    third = scored(tmp_path, "third", {"test": [fewer]}, splits={"test": a_split("test", 60)})
    shown = board(first, third)
    assert shown.comparisons[0].outcome.n == 50 and shown.comparisons[0].outcome.difference == 0.0
    assert shown.notes == ["test: image->text acc@1 is compared on the 50 of 60 items that all runs have"]


def test_every_kind_of_figure_is_compared_as_it_is_scored(tmp_path: Path) -> None:
    """Means, word error rates and their kin come back from the file with the value that results.json has; where lower
    is better the lower one wins; a figure that keeps no outcomes is shown and not tested."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(2, 9, 200)

    def figures(errors: float) -> list[Score]:
        edits = draw.binomial(lengths, errors)
        rate = Score(task="audio>text", metric="wer", statistic=ratio(edits, lengths), n=200, chance=1.0)
        middle = Score(task="a", metric="median_rank", statistic=median(edits.astype(float)), n=200, chance=1.0)
        balanced = mean_per_class((edits == 0).astype(float), lengths)
        per_class = Score(task="a", metric="mean_per_class", statistic=balanced, n=200, chance=0.1)
        loose = Score(task="b", metric="mAP", statistic=lambda index: index.mean(1), n=200, chance=0.1)
        return [rate, middle, per_class, loose]

    good, bad = (scored(tmp_path, name, {"test": figures(e)}) for name, e in (("good", 0.1), ("bad", 0.4)))
    shown = board(bad, good)
    (one,) = shown.comparisons
    assert (one.metric, one.outcome.test, one.only) == ("wer", "t", None)
    assert one.better == 1 and one.outcome.difference > 0.2
    assert sentences(shown)[1].startswith("test, audio>text WER: good is better than bad, ")
    (note,) = shown.notes
    assert note.startswith("shown and not tested, as each is of all items at once") and note.endswith(": test, b mAP")
    assert set(read_contenders([bad, good])[0].kept) == {
        ("test", "audio>text", "wer"), ("test", "a", "median_rank"), ("test", "a", "mean_per_class"),
    }  # fmt: skip


def test_different_data_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    """Another number of samples, the same number of others, other classes, no split in common: one line each."""
    first = scored(tmp_path, "first", {"test": [accuracy(flips(60, 40))]})
    for other, words in (
        (
            scored(tmp_path, "b", {"test": [accuracy(flips(50, 40))]}),
            "split test has 60 samples in one and 50 in the other",
        ),
        (
            scored(
                tmp_path, "c", {"test": [accuracy(flips(60, 40))]}, splits={"test": a_split("test", 60, digest="x")}
            ),
            "split test has 60 samples in both, but not the same ones; score both by the same --data and --limit",
        ),
        (
            scored(tmp_path, "d", {"test": [accuracy(flips(60, 40))]}, classes=("a", "c")),
            "split test has other classes to choose from; score both by the same --classes",
        ),
        (
            scored(tmp_path, "e", {"val": [accuracy(flips(60, 40))]}),
            "no split of one name: one has test, the other val",
        ),
    ):
        with pytest.raises(UserError, match=words) as why:
            read_contenders([first, other])
        assert str(first) in str(why.value) and str(other) in str(why.value) and "\n" not in str(why.value)


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer than two runs, one twice, one not scored, one scored before outcomes were kept, files that do not belong
    together or are damaged: status 2, and what to do."""
    first, second = (scored(tmp_path, name, {"test": [accuracy(flips(60, 40))]}) for name in ("a", "b"))
    bare = tmp_path / "bare"
    bare.mkdir()
    for words, told in (
        ([str(first)], "mmfm compare needs at least two runs"),
        ([str(first), str(first)], f"{first} is named twice"),
        ([str(first), str(bare)], f"{bare} holds no run.json"),
        ([str(first), str(second), "--out", str(tmp_path)], f"--out {tmp_path} is a folder"),
        ([str(first), str(second), "--resamples", "0"], "--resamples 0 must be greater than 0"),
    ):
        assert main(["compare", *words]) == 2
        said = capsys.readouterr().err
        assert told in said and said.count("\n") == 1
    (bare / "run.json").write_text((first / "run.json").read_text())
    with pytest.raises(UserError, match=f"{bare} holds no results.json; score it first: mmfm eval {bare}"):
        read_contenders([first, bare])
    (bare / "results.json").write_text((first / "results.json").read_text())
    with pytest.raises(UserError, match=r"no results.samples.json, which says what each sample gave; score it again"):
        read_contenders([first, bare])
    other = scored(tmp_path, "other", {"test": [accuracy(flips(60, 41))]})
    (bare / "results.samples.json").write_text((other / "results.samples.json").read_text())
    with pytest.raises(
        UserError, match=r"results.json and results.samples.json do not belong together \(test, image->te"
    ):
        read_contenders([first, bare])
    for damage in ("{", '{"splits": {"test": {}}}', '{"splits": {"test": []}}'):
        (bare / "results.samples.json").write_text(damage)
        with pytest.raises(UserError, match=r"results\.samples\.json"):
            read_contenders([first, bare])


def test_suites_join_and_what_only_one_has_is_told(tmp_path: Path) -> None:
    """results.SUITE.json stands beside results.json under SUITE/; a split that one run lacks is noted, and other
    templates are too."""
    first = scored(tmp_path, "first", {"test": [accuracy(flips(60, 40))]})
    scored(tmp_path, "first", {"fold": [accuracy(flips(30, 20), "audio->text")]}, suite="esc50")
    second = scored(tmp_path, "second", {"test": [accuracy(flips(60, 40))]}, templates=("a {}",))
    shown = board(first, second)
    assert ("esc50/fold", "audio->text", "acc@1") in shown.keys and len(shown.comparisons) == 1
    assert shown.notes[0].startswith("test: the runs were asked with different templates")
    assert shown.notes[1] == "esc50/fold: not scored for second"
    scored(tmp_path, "second", {"fold": [accuracy(flips(30, 20), "audio->text")]}, suite="esc50")
    assert len(board(first, second).comparisons) == 2


def test_what_differs_is_said_from_the_better_runs_side(tmp_path: Path) -> None:
    """Forty more of 200 right than wrong: the sentence has both values, the difference, its interval and p; three runs
    make three comparisons, and where nothing differs that is said."""
    base = flips(200, 100)
    more = base.copy()
    more[np.flatnonzero(base == 0)[:40]] = 1.0
    runs = {"low": base, "same": base, "high": more}
    folders = [scored(tmp_path, name, {"test": [accuracy(values)]}) for name, values in runs.items()]
    shown = board(*folders)
    head, *told = sentences(shown)
    assert (
        head
        == "2 of 3 comparisons differ beyond chance (p < 0.05 after Holm's correction within each task of a split)."
    )
    assert told[0].startswith(
        "test, image->text acc@1: high is better than low, 70.0 % against 50.0 % (by 20.0 points, 95 %"
    )
    assert told[0].endswith("; p < 0.0001).") and "high is better than same" in told[1]
    by_hand = 3 * binomtest(0, 40).pvalue
    assert [one.adjusted for one in shown.comparisons] == pytest.approx([1.0, by_hand, by_hand])
    low, same = folders[:2]
    assert sentences(board(low, same)) == [f"Nothing differs beyond chance: {HOLM} none of 1 comparisons has p < 0.05."]


def page_of(html: str) -> Any:
    reader = Reader()
    reader.feed(html)
    assert len(reader.stack) == 1, "every element is closed"
    return reader.stack[0]


def test_the_page_the_terminal_and_the_file_say_the_same(tmp_path: Path) -> None:
    """Values, differences and verdict; a run's name cannot act in the page, which loads nothing; numbers of samples,
    seeds and resamples are there; the terminal of 80 columns shows every figure whole."""
    base = flips(200, 100)
    folders = [
        scored(tmp_path / "x", "plain", {"test": [accuracy(base), accuracy(base, "image->audio", "R@1")]}, seed=7),
        scored(tmp_path / "y", "better", {"test": [accuracy(np.maximum(base, flips(200, 100, 1)))]}),
    ]
    said = io.StringIO()
    page, tree = tmp_path / "compare.html", tmp_path / "compare.json"
    compare(folders, out=str(page), json=str(tree), resamples=300, seed=5, console=Console(file=said, width=80))
    shown = page_of(page.read_text())
    told = json.loads(tree.read_text())
    (one,) = told["comparisons"]
    assert one["better"] == "better" and one["outcome"]["n"] == 200
    for sentence in told["sentences"]:
        assert unbroken(sentence) in shown.text and sentence in said.getvalue()
    assert "300 resamples, seed 5" in shown.text and "300 resamples, seed 5" in said.getvalue()
    assert "seed 7" in said.getvalue() and "…" not in said.getvalue() and "test (200)" in shown.text
    assert "<script src" not in page.read_text() and "http" not in page.read_text().replace("http-equiv", "")
    (row,) = [row for row in shown.all("tr", "beyond")]
    assert [cell.text for cell in row.all("td")][3] == "A − B" and row.all("td")[-1].text == "B"
    lanes = [table for table in shown.all("table", "dots") if "image → audio" in table.text]
    assert len(lanes) == 1 and len(lanes[0].all("tr")) == 1  # only one run has it


def test_a_name_of_a_run_is_text(tmp_path: Path) -> None:
    """Two runs of one name are told apart by their folders, and neither folder nor split is markup."""
    folders = [scored(tmp_path / place, "same", {"<b>t": [accuracy(flips(20, 9))]}) for place in ("<i>x", "y")]
    compare(folders, out=str(tmp_path / "c.html"), resamples=50, console=Console(file=io.StringIO()))
    html = (tmp_path / "c.html").read_text()
    assert "<i>x" not in html and "<b>t" not in html and "&lt;i&gt;x" in html
    assert [one.name for one in read_contenders(folders)] == [str(folder) for folder in folders]


def test_letters_and_small_numbers() -> None:
    """Columns have names for any number of runs; a p that would round to zero is not shown as zero."""
    assert [letter(place) for place in (0, 25, 26, 53)] == ["A", "Z", "A1", "B2"]
    assert [p_value(p) for p in (0.5, 0.042, 0.0031, 0.00001)] == ["p = 0.50", "p = 0.04", "p = 0.0031", "p < 0.0001"]


def test_real_runs_are_compared_from_what_eval_writes(tmp_path: Path) -> None:
    """Two untrained models over the same shards, one of them twice: the same weights are no difference anywhere."""
    val = numbers(tmp_path / "data" / "val", ("one", "two", "three"))
    folders = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made = saved_run(tmp_path / name, val)
        evaluate_run(made.folder, max_tokens=2, bootstrap=20, console=Console(file=io.StringIO()))
        folders.append(made.folder)
    shown = board(*folders)
    assert {"image->text", "audio->image", "image>text", ">text"} <= {one.task for one in shown.comparisons}
    assert all(one.outcome.p == 1.0 and one.outcome.difference == 0.0 for one in shown.comparisons)


def test_a_split_of_one_sample_has_values_without_intervals(tmp_path: Path) -> None:
    """One item says nothing of how others differ: no interval, no difference beyond chance, and a page all the same."""
    val, folders = shard(tmp_path / "data" / "val" / "0.tar", {"k": {"image": 1, "audio": 2, "txt": "one"}}), []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made = saved_run(tmp_path / name, val)
        rows = evaluate_run(made.folder, max_tokens=2, bootstrap=20, console=Console(file=io.StringIO()))
        assert {(row.value, row.n) for row in rows if row.metric in ("R@1", "acc@1")} == {(1.0, 1)}
        assert all(row.low is None and row.high is None and row.value is not None for row in rows)
        assert write_report(made.folder).stat().st_size
        folders.append(made.folder)
    shown = board(*folders)
    assert shown.comparisons and all(one.adjusted == 1.0 and one.better is None for one in shown.comparisons)
    assert any("too few items for any difference to be beyond chance" in line for line in shown.notes)
    assert main(["compare", *map(str, folders), "--out", str(tmp_path / "c.html"), "--resamples", "50"]) == 0


def test_the_use_of_codes_is_shown_and_said_not_to_be_tested(tmp_path: Path) -> None:
    """Which codes occur is of all items together; the line names each such figure once."""

    def share(index: np.ndarray) -> np.ndarray:
        return (np.sort(index, axis=1)[:, 1:] != np.sort(index, axis=1)[:, :-1]).mean(1)

    used = [
        Score(task="image codec", metric=f"codebook_usage/{book}", statistic=share, n=9, chance=0.1) for book in (0, 1)
    ]
    folders = [scored(tmp_path, name, {"test": [*used, accuracy(flips(9, 5))]}) for name in ("a", "b")]
    (note,) = [line for line in board(*folders).notes if "not tested" in line]
    assert note.count("codes used") == 2 and "test, image codec codes used" in note
