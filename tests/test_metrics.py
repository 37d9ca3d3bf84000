"""The figures of an evaluation against planted answers, independent implementations and exact enumeration."""

import itertools
import math

import jiwer
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from mmfm.evals import metrics, resampling
from mmfm.evals.metrics import Ranks, Score
from mmfm.evals.resampling import Bootstrap, drawn, interval, numbered


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def value(statistic: metrics.Statistic, n: int) -> float:
    return Score(task="t", metric="m", statistic=statistic, n=n, chance=0.0).value


def test_planted_recall() -> None:
    """The best of several relevant items decides, and a query counts at k from its rank on."""
    scores = np.array([[0.9, 0.8, 0.7, 0.1], [0.9, 0.8, 0.7, 0.1], [0.1, 0.2, 0.3, 0.4]])
    relevant = np.array([[1, 0, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0]], bool)
    found = metrics.ranks(scores, relevant)
    assert metrics.expected_ranks(found).tolist() == [1, 3, 4]
    assert [metrics.hits(found, k).tolist() for k in (1, 3, 4)] == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_equal_scores_give_exactly_chance(k: int) -> None:
    """A collapsed model gains nothing from where in the gallery its answers stand."""
    relevant = np.zeros((4, 12), bool)
    for query, count in enumerate((1, 2, 5, 12)):
        relevant[query, :count] = True
    found = metrics.ranks(np.full((4, 12), 0.25), relevant)
    assert metrics.hits(found, k).mean() == pytest.approx(metrics.chance_recall(found.relevant, 12, k))


def test_ties_are_their_orders_on_average() -> None:
    """Hits and ranks among ties equal the mean over every order of the items."""
    scores, relevant = np.array([[3.0, 2.0, 2.0, 2.0, 1.0]]), np.array([[0, 1, 0, 1, 1]], bool)
    found = metrics.ranks(scores, relevant)
    firsts = []
    for order in itertools.permutations(range(5)):
        ranked = sorted(order, key=lambda item: -scores[0, item])  # sorted is stable: ties stay in this order
        firsts.append(1 + next(place for place, item in enumerate(ranked) if relevant[0, item]))
    assert metrics.expected_ranks(found)[0] == pytest.approx(np.mean(firsts))
    for k in range(1, 6):
        assert metrics.hits(found, k)[0] == pytest.approx(np.mean(np.array(firsts) <= k))


def test_chance_is_counting() -> None:
    """The chance of a hit is 1 - C(n-r, k) / C(n, k), averaged over queries."""
    relevant = np.array([1, 3, 7, 10])
    for k in (1, 5, 10):
        exact = np.mean([1 - math.comb(10 - r, k) / math.comb(10, k) for r in relevant.tolist()])
        assert metrics.chance_recall(relevant, 10, k) == pytest.approx(exact)


def test_chance_of_the_median_rank() -> None:
    """It is the median of the first relevant rank under random orders."""
    relevant, draws = np.array([1, 2, 8]), generator()
    ranks = [1 + np.argmax(draws.permutation(40) < count) for count in relevant for _ in range(4_000)]
    assert abs(metrics.chance_median_rank(relevant, 40) - np.median(ranks)) <= 1


def test_accuracy_is_that_of_scikit_learn() -> None:
    """acc@k without ties, and mean per class also where a class never occurs."""
    draws = generator(1)
    scores, truth = draws.normal(size=(300, 12)), draws.integers(0, 11, 300)
    found = metrics.ranks(scores, truth[:, None] == np.arange(12))
    for k in (1, 5):
        ours = value(metrics.mean(metrics.hits(found, k)), 300)
        assert ours == pytest.approx(top_k_accuracy_score(truth, scores, k=k, labels=np.arange(12)))
    seldom = np.where(truth == 4, 3, truth)
    found = metrics.ranks(scores, seldom[:, None] == np.arange(12))
    ours = value(metrics.mean_per_class(metrics.hits(found, 1), seldom), 300)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert ours == pytest.approx(balanced_accuracy_score(seldom, scores.argmax(1)))


def sentences(draws: np.random.Generator, count: int, least: int) -> list[str]:
    words = ("one", "two", "twenty", "forty-two", "a", "the")
    return [" ".join(draws.choice(words, draws.integers(least, 9))) for _ in range(count)]


def test_error_rates_are_those_of_jiwer() -> None:
    """Corpus level: all edits over all reference words or characters, empty answers included."""
    draws = generator(2)
    references, written = sentences(draws, 60, 1), sentences(draws, 60, 0)
    for cut, theirs in ((str.split, jiwer.wer), (list, jiwer.cer)):
        edits, lengths = metrics.error_rate(references, written, cut)
        assert value(metrics.ratio(edits, lengths), 60) == pytest.approx(theirs(references, written))


@pytest.mark.parametrize(
    "reference, written, edits",
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("abcdef", "bcdefa", 2), ("aaaa", "aa", 2)],
)
def test_edit_distance(reference: str, written: str, edits: int) -> None:
    """Planted distances, both ways."""
    assert metrics.edit_distance(reference, written) == metrics.edit_distance(written, reference) == edits


def test_what_comparison_forgives() -> None:
    """Case, white space, one final full stop and the form of accents; nothing else."""
    assert metrics.normalised("  Forty-Two \n apples. ") == "forty-two apples"
    assert metrics.normalised("Cafe\u0301") == metrics.normalised("CAF\u00c9")
    assert metrics.normalised("forty two") != metrics.normalised("forty-two")
    assert metrics.normalised("wait..") == "wait."


def test_bits_per_byte_of_uniform_bytes_is_eight() -> None:
    """log 256 nats a byte are 8 bits, however the bytes are spread over texts; letters of two bytes count as two."""
    texts = ["a", "forty", "éé"]
    nats = np.array([1, 5, 4]) * math.log(256)
    assert value(metrics.bits_per_byte(nats, texts), 3) == pytest.approx(8.0)


def test_the_interval_covers() -> None:
    """95 % intervals of a share hold the true one in 91 to 98 of 100 seeded samples."""
    draws, truth, covered = generator(3), 0.3, 0
    for trial in range(400):
        items = (draws.random(120) < truth).astype(float)
        low, high = interval(metrics.mean(items), 120, Bootstrap(resamples=400, seed=trial))
        covered += low <= truth <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_the_interval_is_that_of_scipy() -> None:
    """The percentile bootstrap of a ratio, numerator and denominator drawn together."""
    draws = generator(4)
    lengths = draws.integers(1, 12, 80)
    edits = draws.binomial(lengths, 0.2)
    ours = interval(metrics.ratio(edits, lengths), 80, Bootstrap(resamples=8_000))
    theirs = stats.bootstrap(
        (edits, lengths),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=8_000,
        method="percentile",
        rng=draws,
    ).confidence_interval
    assert np.allclose(ours, (theirs.low, theirs.high), atol=0.006)


def test_a_ratio_that_never_varies_has_no_interval() -> None:
    """Errors in proportion to length leave nothing to be unsure of: sums are not drawn apart."""
    lengths = np.arange(1, 40)
    low, high = interval(metrics.ratio(lengths * 0.25, lengths), 39, Bootstrap())
    assert low == pytest.approx(0.25) and high == pytest.approx(0.25)


def test_resamples_without_a_value_are_left_out() -> None:
    """References may be empty: a resample of those alone has no error rate."""
    low, high = interval(metrics.ratio(np.array([1, 1]), np.array([0, 2])), 2, Bootstrap())
    assert (low, high) == (0.5, 1.0)


def test_memory_bounds_do_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunked resampling equals resampling at once; another seed gives another interval."""
    draws = generator(5)
    hits, classes = draws.integers(0, 2, 150).astype(float), draws.integers(0, 7, 150)
    statistic = metrics.mean_per_class(hits, classes)
    whole = interval(statistic, 150, Bootstrap())
    monkeypatch.setattr(resampling, "DRAWS_AT_ONCE", 1_000)
    assert interval(statistic, 150, Bootstrap()) == whole
    assert interval(statistic, 150, Bootstrap(seed=1)) != whole


def captioned(draws: np.random.Generator, images: int, captions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hits of captions whose images are found as easily as the image lets them, and the image of each."""
    ease = draws.beta(0.6, 0.9, images)
    rows = np.repeat(np.arange(images), captions)
    return (draws.random(len(rows)) < ease[rows]).astype(float), rows


@pytest.mark.parametrize("ragged", [False, True])
def test_the_interval_covers_where_five_captions_are_of_one_image(ragged: bool) -> None:
    """93 to 97 % where images are drawn, also where some have more captions; rows alone would cover far less."""
    draws, truth, covered, alone = generator(8), 0.6 / 1.5, 0, 0
    trials, images = 300, 120
    for trial in range(trials):
        counts = draws.integers(3, 8, images) if ragged else np.full(images, 5)
        hits, rows = captioned(draws, images, counts)
        bootstrap, statistic = Bootstrap(resamples=300, seed=trial), metrics.mean(hits)
        low, high = interval(statistic, len(hits), bootstrap, rows)
        covered += low <= truth <= high
        low, high = interval(statistic, len(hits), bootstrap)
        alone += low <= truth <= high
    assert 0.92 <= covered / trials <= 0.98  # 0.95, give or take what 300 trials allow
    assert alone / trials < 0.86


def test_clusters_are_drawn_whole() -> None:
    """Each resample holds every row of a cluster as often as the others of it, whatever their order and sizes; equal
    sizes come many at once, and both give the interval of the clusters' sums."""
    clusters = numbered(["b", "a", "b", "c", "a", "b", "c"], 7)
    assert clusters is not None and clusters.tolist() == [0, 1, 0, 2, 1, 0, 2]
    for index in drawn(7, clusters, Bootstrap(resamples=50)):
        counts = np.bincount(index[0], minlength=7)
        assert index.shape[0] == 1 and all(len(set(counts[clusters == name].tolist())) == 1 for name in range(3))
        assert sum(counts[at] for at in (0, 1, 3)) == 3
    assert numbered(["a", "b"], 2) is None and numbered([], 4) is None
    hits, rows = captioned(generator(9), 40, np.full(40, 5))
    (whole,) = list(drawn(200, rows, Bootstrap(resamples=30)))
    assert whole.shape == (30, 200)
    sums = np.bincount(rows, weights=hits) / 5
    assert interval(metrics.mean(hits), 200, Bootstrap(), rows) == pytest.approx(
        interval(metrics.mean(sums), 40, Bootstrap())
    )


def test_one_item_has_no_interval() -> None:
    """One sample, or five captions of one image, say nothing of others."""
    for n, clusters in ((1, None), (5, np.zeros(5, int))):
        assert np.isnan(interval(metrics.mean(np.ones(n)), n, Bootstrap(resamples=20), clusters)).all()
    names = ("k", "k", "k")
    figure = Score(task="t", metric="acc@1", statistic=metrics.mean(np.ones(3)), n=3, chance=0.0, items=names)
    assert figure.independent == 1 and np.isnan(figure.interval(Bootstrap(resamples=20))).all()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("\u0645\u06cc\u200c\u0631\u0648\u0645", "\u0645\u06cc\u0631\u0648\u0645"),  # Persian: one verb
        ("co\u00adoperate", "cooperate"),
        ("\ufeffzero\u2060width\u200d", "zerowidth"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u093f\u0928\u094d\u0926\u0940"),  # Hindi
        ("don\u2019t \u02bctis \u2018quoted\u2019", "don't tis quoted"),
        ("well-known, isn't it?", "well known isn't it"),
        ("\ud83d", ""),
    ],
)  # fmt: skip
def test_joiners_part_no_words(text: str, expected: str) -> None:
    """What shapes a word is left out and splits nothing; applying the rule twice changes nothing."""
    assert metrics.letters(text) == expected == metrics.letters(expected)


def test_mean_per_class_resamples_items() -> None:
    """Each resample's value is scikit-learn's for the drawn items."""
    draws = generator(6)
    truth, guess = draws.integers(0, 4, 30), draws.integers(0, 4, 30)
    index = draws.integers(0, 30, (20, 30))
    ours = metrics.mean_per_class((truth == guess).astype(float), truth)(index)
    theirs = [np.mean([np.mean(guess[row][truth[row] == c] == c) for c in np.unique(truth[row])]) for row in index]
    assert np.allclose(ours, theirs)


def test_parts_of_queries_are_all_queries() -> None:
    """Ranking in chunks and joining equals ranking at once."""
    draws = generator(7)
    scores, relevant = draws.normal(size=(20, 9)), draws.random((20, 9)) < 0.3
    relevant[:, 0] = True
    whole = metrics.ranks(scores, relevant)
    parts = metrics.joined([metrics.ranks(scores[part], relevant[part]) for part in (slice(0, 7), slice(7, 20))])
    assert isinstance(whole, Ranks)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))
