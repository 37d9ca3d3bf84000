"""Scores of captions against COCO's own scorers on the same tokens, planted answers, and a treebank's tokens."""

import math

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from mmfm.evals.captioning import caption_scores, ciders, grams, longest_common, matches, rouge_l, words_of
from mmfm.evals.metrics import Bootstrap

VOCABULARY = ("a", "man", "dog", "on", "the", "red", "big", "bus", "runs", "two")


def corpus(seed: int, count: int, least: int = 1) -> tuple[list[list[str]], list[str]]:
    """Sentences of few words, so that long n-grams agree too; one to five references."""
    draws = np.random.Generator(np.random.Philox(seed))

    def sentence(fewest: int) -> str:
        return " ".join(draws.choice(VOCABULARY, draws.integers(fewest, 12)))

    references = [[sentence(1) for _ in range(draws.integers(1, 6))] for _ in range(count)]
    near = [texts[0] if draws.random() < 0.3 else sentence(least) for texts in references]
    return references, near


def split(references: list[list[str]], written: list[str]) -> tuple[list[list[list[str]]], list[list[str]]]:
    return [[text.split() for text in texts] for texts in references], [text.split() for text in written]


def theirs(scorer: object, references: list[list[str]], written: list[str]) -> tuple[object, object]:
    found = {str(row): texts for row, texts in enumerate(references)}
    told = {str(row): [text] for row, text in enumerate(written)}
    more = {"verbose": 0} if isinstance(scorer, Bleu) else {}
    return scorer.compute_score(found, told, **more)  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed, count", [(0, 1), (1, 2), (2, 40), (3, 200)])
def test_scores_are_those_of_coco(seed: int, count: int) -> None:
    """BLEU-1 to 4, ROUGE-L and CIDEr of whole corpora and, but for BLEU, of each text; silent captions included."""
    references, written = corpus(seed, count, least=0)
    known, told = split(references, written)
    index, counted = np.arange(count)[None], matches(known, told)
    ours = [counted.bleu(size)(index)[0] for size in (1, 2, 3, 4)]
    np.testing.assert_allclose(ours, theirs(Bleu(4), references, written)[0], rtol=1e-6, atol=1e-9)
    rouges = [rouge_l(texts, words) for texts, words in zip(known, told, strict=True)]
    np.testing.assert_allclose(rouges, theirs(Rouge(), references, written)[1], atol=1e-12)
    np.testing.assert_allclose(ciders(known, told, True), theirs(Cider(), references, written)[1], atol=1e-9)


def test_a_resample_is_the_corpus_of_its_items() -> None:
    """BLEU of drawn items is BLEU of the corpus that they make, not a mean of what each scores."""
    references, written = corpus(4, 30)
    counted, index = matches(*split(references, written)), np.random.default_rng(0).integers(0, 30, (3, 30))
    for row, value in zip(index, counted.bleu(4)(index), strict=True):
        again = theirs(Bleu(4), [references[at] for at in row], [written[at] for at in row])[0]
        assert value == pytest.approx(again[3], rel=1e-6)  # type: ignore[index]


def test_planted_scores() -> None:
    """The references themselves score 1 and ten; other words score nothing; half the words half of BLEU-1."""
    references = [["a red bus in the rain", "one bus"], ["two dogs run on grass", "dogs"]]
    known = [[text.split() for text in texts] for texts in references]
    same = [texts[0] for texts in known]
    assert matches(known, same).bleu(4)(np.arange(2)[None])[0] == pytest.approx(1)
    assert [rouge_l(texts, words) for texts, words in zip(known, same, strict=True)] == [1.0, 1.0]
    alone = [[texts[0]] for texts in known]
    np.testing.assert_allclose(ciders(alone, same, True), 10)
    np.testing.assert_allclose(ciders(alone, same, False), 10)
    other = [["green", "trees", "grow", "very", "tall", "there"]] * 2
    assert ciders(known, other, True).tolist() == [0, 0] and rouge_l(known[0], other[0]) == 0
    half = [["a", "red", "tree", "stands"], ["two", "dogs", "never", "sleep"]]
    counted = matches([[texts[0][:4]] for texts in known], half)
    assert counted.bleu(1)(np.arange(2)[None])[0] == pytest.approx(1 / 2)
    brief = matches([[["a", "b", "c", "d"]]], [["a", "b"]])
    assert brief.bleu(1)(np.array([[0]]))[0] == pytest.approx(math.exp(1 - 4 / 2))


def test_plain_cider_by_hand() -> None:
    """The cosine of rarity-weighted counts, for each n: repeating a word costs only the plain one nothing."""
    known = [[["dog"]], [["cat"]]]
    assert ciders(known, [["dog", "dog"], ["cat"]], False)[0] == pytest.approx(10 / 4)  # of four n, one has a match
    clipped = ciders(known, [["dog", "dog"], ["cat"]], True)[0]
    assert clipped == pytest.approx(10 / 4 * (1 / 2) * math.exp(-1 / (2 * 36)))


def test_rare_words_weigh_more() -> None:
    """A word that all references have is worth nothing to CIDEr; one that few have is."""
    known = [[["the", "dog"]], [["the", "cat"]], [["the", "owl"]]]
    common, rare = ciders(known, [["the"], ["the"], ["the"]], False), ciders(known, [["dog"], ["cat"], ["owl"]], False)
    assert common.tolist() == [0, 0, 0] and rare.min() > 2


def test_chance_and_interval_of_captions() -> None:
    """Silence scores the chance level of each metric, and every interval holds its value."""
    references, written = corpus(5, 60)
    for figure in caption_scores("image>text", references, [""] * 60):
        assert figure.value == pytest.approx(figure.chance, abs=1e-4)
    for figure in caption_scores("image>text", references, written):
        low, high = figure.interval(Bootstrap(resamples=100))
        assert low <= figure.value <= high and figure.n == 60


def test_common_subsequence() -> None:
    """Planted lengths, in both orders."""
    for a, b, length in (("abcbdab", "bdcaba", 4), ("", "abc", 0), ("abc", "abc", 3), ("abc", "cba", 1)):
        assert longest_common(list(a), list(b)) == longest_common(list(b), list(a)) == length


def test_grams_are_counted() -> None:
    """Runs of one to four words, each as often as it occurs."""
    found = grams(["a", "b", "a", "b"])
    assert found[0] == {("a",): 2, ("b",): 2} and found[1] == {("a", "b"): 2, ("b", "a"): 1}
    assert len(found) == 4 and found[3].total() == 1


@pytest.mark.parametrize(
    "text, tokens",
    [  # as Stanford's PTBTokenizer 3.4.1 with COCO's list of punctuation has them
        ("A man's dog isn't on the t-shirt.", "a man 's dog is n't on the t-shirt"),
        ("He can't, won't & shouldn't go!", "he ca n't wo n't & should n't go"),
        ("Mr. Smith lives in the U.S. and the U.K.", "mr. smith lives in the u.s. and the u.k."),
        ("It is 10:30 a.m. (about 1,000 people).", "it is 10:30 a.m. -lrb- about 1,000 people -rrb-"),
        ("a 3.5-inch disk; $5.00, 50% off", "a 3.5-inch disk $ 5.00 50 % off"),
        ('The "quick" brown fox -- really... jumps', "the quick brown fox really jumps"),
        ("a black/white photo", "a black/white photo"),
        ("cannot gonna wanna gotta", "can not gon na wan na got ta"),
        ("Kids' toys and children's books", "kids toys and children 's books"),
        ("It's 5 o'clock for rock 'n' roll", "it 's 5 o'clock for rock 'n' roll"),
        ("Who's that? I'd say they'll've gone", "who 's that i 'd say they 'll 've gone"),
        ("an 8-year-old boy ate 1/2 cup", "an 8-year-old boy ate 1/2 cup"),
        ("it’s “fine” – ok…", "it 's fine ok"),
        ("what?! no!!! hmm....", "what ?! no !!! hmm"),
        ("the '80s and the 1980's", "the '80s and the 1980 's"),
        ("A&W root beer, pb&j, AT&T", "a&w root beer pb & j at&t"),
        ("e-mail me at a@b.com", "e-mail me at a@b.com"),
        ("lemons, etc.", "lemons etc."),
        ("a coin (0.01 €)", "a coin -lrb- 0.01 $ -rrb-"),
        ("  spaces\tand\nlines ", "spaces and lines"),
        ("...", ""),
    ],
)
def test_tokens(text: str, tokens: str) -> None:
    """Lower case, clitics apart, punctuation gone."""
    assert words_of(text) == tokens.split()
