"""Figures of codecs, of what is filled in and of what judges read draw pictures again, not the samples of a picture."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from test_codec_metrics import PICTURES, Cells, score
from test_leaderboard import a_split

from mmfm.data.vocabulary import CodeFormat
from mmfm.datasets.encode import Coder
from mmfm.evals.codec import codec_scores
from mmfm.evals.generation import Generated, Own, Product
from mmfm.evals.masked_prediction import task_scores
from mmfm.evals.metrics import Bootstrap, Score
from mmfm.evals.split import Coded, Filled

PICTURE_COUNT, CAPTIONS, TRUTH, TRIALS = 30, 5, 0.4, 100
CODER = Coder(codec=Cells(), contract=PICTURES.pixels, cfg=PICTURES)
Right = Sequence[float]


def of_codec(media: tuple[str, ...], right: Right) -> Iterator[Score]:
    n = len(media)
    codes = [4 * np.arange(4)] * n
    values, plain = ({"psnr": np.array(x, float)} for x in (right, [0.0] * n))
    found = Coded([f"k{i}" for i in range(n)], list(media), values, plain, codes, [1.0] * n)
    yield from codec_scores("image", CODER, found)[0]


def of_filling(media: tuple[str, ...], right: Right) -> Iterator[Score]:
    items = [Filled(row, 1.0, 1, int(value), 1) for row, value in enumerate(right)]
    split = a_split("s", len(media), media=media, filled={"image~": items})
    yield from task_scores(split, "image~", CodeFormat((4,)))


def of_reading(media: tuple[str, ...], right: Right) -> Iterator[Score]:
    """Of what was made alone."""
    products = [Product(row, [1], 0, {"eye": "one" if value else "two"}) for row, value in enumerate(right)]
    making = Generated(products={"text>image": products}, expected=("one",) * len(media))
    yield from making.scores(a_split("s", len(media), media=media))


def of_making(media: tuple[str, ...], right: Right) -> Iterator[Score]:
    read = [{"eye": "one" if value else "two"} for value in right]
    products = {
        "text>image": [Product(row, [1], 0, told) for row, told in enumerate(read)],
        ">image": [Product(row, [1], 0, told) for row, told in enumerate(read)],
    }
    own = {"image": {row: Own(row, told, told) for row, told in enumerate(read)}}
    names = {"image": frozenset(["one"])}
    making = Generated(products=products, own=own, expected=("one",) * len(media), names=names)
    yield from making.scores(a_split("s", len(media), media=media))


MADE = {
    "psnr": of_codec,
    "masked_acc@15": of_filling,
    "eye/read": of_reading,
}


@pytest.mark.parametrize("metric", MADE)
def test_the_interval_covers_where_five_samples_are_of_one_picture(metric: str) -> None:
    """A picture that is right is so five times: about 95 % of the intervals hold the truth; were samples drawn one by
    one, intervals would be too narrow by the root of five, and some 62 % would."""
    draw, media = np.random.default_rng(0), tuple(f"m{i // CAPTIONS}" for i in range(PICTURE_COUNT * CAPTIONS))
    make: Callable[..., Iterator[Score]] = MADE[metric]
    covered = 0
    for trial in range(TRIALS):
        right = np.repeat((draw.random(PICTURE_COUNT) < TRUTH).astype(float), CAPTIONS)
        figure = next(one for one in make(media, right.tolist()) if one.metric == metric)
        assert (figure.n, figure.independent) == (PICTURE_COUNT * CAPTIONS, PICTURE_COUNT)
        low, high = figure.interval(Bootstrap(resamples=200, seed=trial))
        covered += low <= TRUTH <= high
    assert 0.88 <= covered / TRIALS <= 1.0


@pytest.mark.parametrize("make", [of_codec, of_filling, of_making])
def test_every_figure_draws_pictures(make: Callable[..., Iterator[Score]]) -> None:
    """None of them takes two samples of one picture for two; where all pictures differ each sample is its own."""
    right = [1.0, 0.0, 1.0, 1.0]
    assert {one.independent for one in make(("a", "a", "b", "c"), right)} == {3}
    assert {one.independent for one in make(("a", "d", "b", "c"), right)} == {4}


def test_a_codec_knows_one_picture_by_its_bytes(tmp_path: Path, write_shard, encode_image) -> None:
    """Of samples with a caption each, whatever their keys and texts."""
    first, second = (encode_image(np.full((16, 16), value, np.uint8)) for value in (10, 200))
    parts = [(first, b"one"), (first, b"two"), (second, b"one"), (first, b"one")]
    write_shard(tmp_path / "a.tar", {f"k{i}": {"png": png, "txt": text} for i, (png, text) in enumerate(parts)})
    scores, _ = score({"image": CODER}, tmp_path / "a.tar", 3)
    assert {(one.n, one.independent) for one in scores} == {(4, 2)}
