"""Metrics of answers: planted values from their definitions, and parity with the libraries that tables come from."""

from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from test_captioning import corpus

from mmfm.evals.answer_metrics import (
    ANSWER_METRICS,
    Choices,
    Told,
    answer_scores,
    choice_scores,
    contains,
    edit_similarity,
    exact,
    exact_line,
    shared_word,
    token_f1,
    vqa_accuracy,
    vqa_text,
)
from mmfm.evals.metrics import STATISTICS, Bootstrap, Kept
from mmfm.evals.metrics_table import entry_of
from mmfm.evals.text_overlap import bleu, chrf, rouge_l, rouge_n

LINES = (
    'The "quick" brown fox, 1,000.5 times -- e.g. twice; it\'s 3.14% (well-known).',
    "A fox &amp; a dog: 10-20 km/h, $5.00!",
    "Ein Fuchs springt über den faulen Hund.",
    "l'été, c'est loin... n'est-ce pas ?",
    "rocket",
    "",
    "The fox",
)


@pytest.mark.parametrize(
    "text, rule",
    [
        ("The Two dogs.", "2 dogs"),
        ("a dog, and an owl!", "dog and owl"),
        ("well-known", "well known"),  # a space where a sign stands between letters
        ("- well-known", "wellknown"),  # and nothing where the same sign stands by a space
        ("1,000 people/day", "1000 peopleday"),  # a thousand takes all signs away
        ("3.5 km.", "3.5 km"),
        ("dont  couldntve couldnt've", "don't couldntve couldn't've"),
        ("none", "0"),
        ("A", "a"),  # an article is an answer where nothing else is
        ("?", "?"),
    ],
)
def test_the_rule_of_vqa(text: str, rule: str) -> None:
    """By the challenge's own list of signs, articles, numbers and contractions."""
    assert vqa_text(text) == rule


@pytest.mark.parametrize("same, score", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_of_ten_people(same: int, score: float) -> None:
    """m of ten: (m min(1, (m - 1) / 3) + (10 - m) min(1, m / 3)) / 10, from the definition: 3 of 10 people are 0.9."""
    people = ["two"] * same + [f"word {n}" for n in range(10 - same)]
    assert vqa_accuracy("Two.", people) == pytest.approx(score)


def test_vqa_accuracy_is_only_of_items_that_enough_people_answered() -> None:
    told = Told(["cat", "dog"], [["cat"] * 10, ["dog"]], items=("a", "b"))
    (score,) = answer_scores("answer", told, ("vqa",))
    assert (score.metric, score.n, score.value, score.items, score.normalizer) == (
        "vqa_accuracy",
        1,
        1.0,
        ("a",),
        "vqa",
    )
    assert answer_scores("answer", told.take([1]), ("vqa",)) == []


def test_matches_of_words() -> None:
    assert exact("two!", ["three", "2"]) == 1 and exact("two cats", ["2"]) == 0
    assert contains("There are two of them.", ["2"]) == 1 and contains("twofold", ["two"]) == 0
    assert shared_word("A black bear", ["the bear of the north"]) == 1
    assert shared_word("the dog of the house", ["the cat of the north"]) == 0 and shared_word("it", ["It"]) == 1
    assert token_f1("the cat sat down", ["a dog", "cat sat"]) == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert token_f1("the", ["a"]) == 1 and token_f1("the", ["cat"]) == 0
    assert edit_similarity("kitten", ["sitting", "x"]) == pytest.approx(1 - 3 / 7) and edit_similarity("", [""]) == 1
    assert exact_line("\n  return x \nand more", ["return x"]) == 1 and exact_line("return y", ["return x"]) == 0


@pytest.mark.parametrize("seed, count", [(0, 1), (2, 40)])
def test_rouge_is_that_of_rouge_score(seed: int, count: int) -> None:
    """Of each text against its best reference; silence too."""
    references, written = corpus(seed, count, least=0)
    references, written = [*references, *([[LINES[1]], list(LINES[:2])])], [*written, LINES[0], "The Fox, the (fox)"]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for texts, told in zip(references, written, strict=True):
        theirs = scorer.score_multi(texts, told)
        for name, ours in (("rouge1", rouge_n(1)), ("rouge2", rouge_n(2)), ("rougeL", rouge_l)):
            assert ours(told, texts) == pytest.approx(theirs[name].fmeasure, abs=1e-12)
    assert rouge_n(1)("über", ["uber"]) == 0 and rouge_n(1)("नमस्ते", ["नमस्ते"]) == 1


def streams(references: list[list[str]]) -> list[Any]:
    """As sacrebleu wants them: the first reference of all, the second, ..."""
    most = max(map(len, references))
    return [[texts[n] if n < len(texts) else None for texts in references] for n in range(most)]


@pytest.mark.parametrize("seed, count", [(0, 1), (1, 2), (2, 40), (3, 200)])
def test_bleu_and_chrf_are_those_of_sacrebleu(seed: int, count: int) -> None:
    """Of a corpus, of resamples of it, and made again from the counts that results keep."""
    references, written = corpus(seed, count, least=0)
    references, written = [*references, *([line] for line in LINES)], [*written, *LINES[1:], LINES[0]]
    index = np.random.default_rng(seed).integers(0, len(written), (4, len(written)))
    index = np.concatenate([np.arange(len(written))[None], index])
    for ours, theirs in ((bleu(written, references), BLEU()), (chrf(written, references), CHRF())):
        assert isinstance(ours, Kept)
        again = STATISTICS[ours.kind](**{name: part.astype(np.float64) for name, part in ours.parts.items()})
        for row, value, kept in zip(index, ours(index), again(index), strict=True):
            drawn = streams([references[at] for at in row])
            expected = theirs.corpus_score([written[at] for at in row], drawn).score / 100
            assert value == pytest.approx(expected, rel=1e-9, abs=1e-12) and kept == pytest.approx(value)


@pytest.mark.parametrize("written", [["a b"], ["the cat sat on"], ["x y z q r"], [""]])
def test_bleu_of_short_and_of_foreign_texts(written: list[str]) -> None:
    """No runs of four words, no match of some order, no match at all, nothing at all."""
    references = [["the cat sat under the mat"]]
    expected = BLEU().corpus_score(written, streams(references)).score / 100
    assert bleu(written, references)(np.zeros((1, 1), int))[0] == pytest.approx(expected, abs=1e-12)


def test_multiple_choice_by_likelihood() -> None:
    """A long right answer wins by its mean token alone; ties count as a random order would have it."""
    asked = [
        Choices(np.array([-6.0, -4.0]), np.array([4.0, 1.0]), frozenset({0})),
        Choices(np.array([-1.0, -1.0, -1.0, -9.0]), np.array([1.0, 1.0, 1.0, 1.0]), frozenset({2})),
    ]
    whole, token = choice_scores("answer", asked, ("a", "b"))
    assert (whole.metric, token.metric) == ("choice_acc", "choice_acc_per_token")
    assert (whole.value, token.value) == pytest.approx((1 / 6, (1 + 1 / 3) / 2))
    assert whole.chance == pytest.approx((1 / 2 + 1 / 4) / 2) and whole.items == ("a", "b")


def test_scores_have_entries_and_lengths_stand_beside_rouge() -> None:
    """All that can be asked for, with planted lengths; intervals draw whole pictures."""
    told = Told(["cat", "a red car"], [["cat"] * 4, ["car"]], items=("q1", "q2"), clusters=("p", "p"))
    scores = {score.metric: score for score in answer_scores("answer", told, ANSWER_METRICS)}
    assert all(entry_of(name) for name in scores) and len(scores) == 15
    assert (scores["words_written"].value, scores["length_ratio"].value) == (2.0, 2.0)
    assert scores["exact_match"].value == 0.5 and scores["contains"].value == 1.0
    assert np.isnan(scores["exact_match"].interval(Bootstrap())).all()  # both questions are about one picture
