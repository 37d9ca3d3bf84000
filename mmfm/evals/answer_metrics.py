"""Metrics of answers: what is written for a question, held against all answers that are right. Pure.

Each function gives a number for every item, of which `answer_scores` makes the scores: value, interval and paired test
are of one statistic. Where there are several right answers an item scores as by the best of them, but for `vqa`, which
counts how many people gave the answer. A name in ANSWER_METRICS stands for what a suite asks.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mmfm.evals.metrics import Score, edit_distance, letters, mean, normalised, ratio
from mmfm.evals.pass_at import Program, passes
from mmfm.evals.suite import ANSWER_METRICS
from mmfm.evals.text_overlap import bleu, chrf, rouge_l, rouge_n, rouge_words

Answers = Sequence[str]
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBER_WORDS)}}
ARTICLES = frozenset(("a", "an", "the"))
SIGNS = ';/[]"{}()=+\\_-><@`,?!'  # in the order of the official list
THOUSANDS, FULL_STOP = re.compile(r"\d,\d"), re.compile(r"\.(?!\d)")
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
    why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
STOP_WORDS = """
    a an and are as at be by for from her his in is it its of on or our some that the their there these they this those
    to was were with
"""
FEWEST_PEOPLE = 4  # with fewer answers no answer could be wholly right by `vqa`


def _contractions() -> dict[str, str]:
    """What each word is with one of its apostrophes left out, or its only one: couldn'tve: couldn't've."""
    places = [(word, at) for word in CONTRACTED.split() for at, sign in enumerate(word) if sign == "'"]
    return {word[:at] + word[at + 1 :]: word for word, at in places}


CONTRACTIONS = _contractions()


def vqa_text(text: str) -> str:
    """The rule of the VQA challenge: lower case, no articles, digits for number words, apostrophes where contractions
    lack them, and punctuation left out, or a space where it stands between words (https://visualqa.org/evaluation.html).

    It is applied to all answers, also where all people agree, and leaves "somebody'd" as it is, which the challenge's
    table spoils. A text of which nothing is left, such as "A", is only
    `normalised`.
    """
    words = (NUMBERS.get(word, word) for word in _without_signs(" ".join(text.split())).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES) or normalised(text)


def _without_signs(text: str) -> str:
    thousands, found = THOUSANDS.search(text) is not None, text
    for sign in SIGNS:
        alone = thousands or f"{sign} " in text or f" {sign}" in text
        found = found.replace(sign, "" if alone else " ")
    return FULL_STOP.sub("", found)


def exact(written: str, answers: Answers) -> float:
    """1 where it is one of the answers, by the rule of `vqa_text`."""
    return float(vqa_text(written) in set(map(vqa_text, answers)))


def vqa_accuracy(written: str, people: Answers) -> float:
    """min(1, matches / 3), where matches are the other people who answered so, in the mean over who is left out (Antol
    et al., arXiv 1505.00468, and the challenge's code)."""
    told = vqa_text(written)
    same = [vqa_text(answer) == told for answer in people]
    return float(np.mean([min(1.0, (sum(same) - own) / 3) for own in same]))


def contains(written: str, answers: Answers) -> float:
    """1 where an answer stands in it as whole words, by the rule of `vqa_text`."""
    told = f" {vqa_text(written)} "
    return float(any(f" {vqa_text(answer)} " in told for answer in answers))


def shared_word(written: str, answers: Answers) -> float:
    """1 where it shares a word that says something with an answer: "a black bear" and "The bear"."""
    told = content_words(written)
    return float(any(told & content_words(answer) for answer in answers))


def content_words(text: str) -> frozenset[str]:
    """Its words but for articles, prepositions and the like; all of them where there are no others."""
    words = frozenset(letters(text).split())
    return words - frozenset(STOP_WORDS.split()) or words


def squad_words(text: str) -> list[str]:
    """Lower-case words without ASCII punctuation and articles, as SQuAD's evaluation has them."""
    plain = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def token_f1(written: str, answers: Answers) -> float:
    """The harmonic mean of precision and recall over words, as often as they occur (SQuAD, arXiv 1606.05250, 6.1)."""
    return max(_f1(squad_words(written), squad_words(answer)) for answer in answers)


def _f1(told: Sequence[str], right: Sequence[str]) -> float:
    if not told or not right:
        return float(told == right)
    return 2 * (Counter(told) & Counter(right)).total() / (len(told) + len(right))


def edit_similarity(written: str, answers: Answers) -> float:
    """1 - edits / the longer length, in letters (Levenshtein); without white space around."""
    pairs = [(written.strip(), answer.strip()) for answer in answers]
    return max(1 - edit_distance(answer, told) / max(len(answer), len(told), 1) for told, answer in pairs)


def exact_line(written: str, answers: Answers) -> float:
    """1 where its first line that is not blank is that of an answer, but for white space around."""
    return float(_first_line(written) in set(map(_first_line, answers)))


def line_similarity(written: str, answers: Answers) -> float:
    """`edit_similarity` of these lines alone."""
    return edit_similarity(_first_line(written), [_first_line(answer) for answer in answers])


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


ITEMS: dict[str, dict[str, Callable[[str, Answers], float]]] = {
    "exact": {"exact_match": exact},
    "contains": {"contains": contains},
    "shared_word": {"shared_word": shared_word},
    "f1": {"token_f1": token_f1},
    "rouge": {"rouge1": rouge_n(1), "rouge2": rouge_n(2), "rougeL": rouge_l},
    "edit": {"edit_similarity": edit_similarity},
    "line": {"exact_line": exact_line, "line_similarity": line_similarity},
}
CORPORA = {"bleu": bleu, "chrf": chrf}
RULES = {"exact_match": "vqa", "vqa_accuracy": "vqa", "contains": "vqa", "bleu": "13a"}
assert {*ITEMS, "vqa", "pass", *CORPORA} == set(ANSWER_METRICS)


class Told(NamedTuple):
    """What was written for some questions: `items` and `clusters` as in `Score`."""

    written: Sequence[str]
    answers: Sequence[Answers]
    items: Sequence[str] = ()
    clusters: Sequence[str] = ()
    programs: Sequence[Program | None] = ()

    def take(self, rows: Sequence[int]) -> "Told":
        def some(column: Sequence[Any]) -> list[Any]:
            return [column[row] for row in rows] if column else []

        return Told(*map(some, self))


def answer_scores(task: str, told: Told, metrics: Collection[str]) -> list[Score]:
    """The scores that are asked for, in the order of ANSWER_METRICS; `vqa` only of the items with answers of enough
    people, `pass` of those with a program, and none where there are none. Every item has an answer. Beside ROUGE stand
    the lengths: it rises where less is written."""
    found = []
    for name in (name for name in ANSWER_METRICS if name in metrics):
        if name == "vqa":
            found += vqa_scores(task, told)
        elif name == "pass":
            found += pass_scores(task, told)
        elif name in CORPORA:
            found.append(score_of(task, name, CORPORA[name](told.written, told.answers), told))
        else:
            pairs = list(zip(told.written, told.answers, strict=True))
            values = {key: np.array([one(*pair) for pair in pairs], float) for key, one in ITEMS[name].items()}
            found += [score_of(task, key, mean(column), told) for key, column in values.items()]
    return found + (length_scores(task, told) if "rouge" in metrics else [])


def vqa_scores(task: str, told: Told) -> list[Score]:
    """Over the items that so many people have answered that a score of 1 is possible."""
    rows = [row for row, answers in enumerate(told.answers) if len(answers) >= FEWEST_PEOPLE]
    if not rows:
        return []
    asked = told.take(rows)
    values = [vqa_accuracy(*pair) for pair in zip(asked.written, asked.answers, strict=True)]
    return [score_of(task, "vqa_accuracy", mean(np.array(values, float)), asked)]


def pass_scores(task: str, told: Told) -> list[Score]:
    """Over the items that can be run."""
    rows = [row for row, program in enumerate(told.programs) if program is not None]
    if not rows:
        return []
    asked = told.take(rows)
    pairs = zip(asked.written, asked.programs, strict=True)
    values = [passes(written, program) for written, program in pairs if program is not None]
    return [score_of(task, "pass_at_1", mean(np.array(values, float)), asked)]


def length_scores(task: str, told: Told) -> list[Score]:
    """Words that were written, and how many for each word of the first answer."""
    words = np.array([len(rouge_words(text)) for text in told.written], float)
    wanted = np.array([len(rouge_words(answers[0])) for answers in told.answers], float)
    lengths = {"words_written": mean(words), "length_ratio": ratio(words, wanted)}
    return [score_of(task, name, statistic, told) for name, statistic in lengths.items()]


def score_of(task: str, metric: str, statistic: Any, told: Told, chance: float = 0.0) -> Score:
    names = {"items": tuple(told.items), "clusters": tuple(told.clusters), "normalizer": RULES.get(metric, "")}
    return Score(task=task, metric=metric, statistic=statistic, n=len(told.written), chance=chance, **names)


class Choices(NamedTuple):
    """One question with several answers to choose from: the log-likelihood of each, its tokens, and the right ones."""

    log_likelihoods: Float[np.ndarray, " choices"]
    tokens: Float[np.ndarray, " choices"]
    right: frozenset[int]


def choice_scores(
    task: str, asked: Sequence[Choices], items: Sequence[str] = (), clusters: Sequence[str] = ()
) -> list[Score]:
    """Multiple choice by likelihood: of the whole answer, and of its mean token, which does not favour short ones
    (lm-eval's acc and acc_norm, which divides by bytes). Ties are broken at random, in expectation."""
    told = Told([""] * len(asked), [()] * len(asked), items, clusters)
    chance = float(np.mean([len(one.right) / len(one.tokens) for one in asked]))
    sums = [chosen(one.log_likelihoods, one.right) for one in asked]
    means = [chosen(one.log_likelihoods / np.maximum(one.tokens, 1), one.right) for one in asked]
    columns = {"choice_acc": np.array(sums), "choice_acc_per_token": np.array(means)}
    return [score_of(task, name, mean(column), told, chance) for name, column in columns.items()]


def chosen(values: Float[np.ndarray, " choices"], right: frozenset[int]) -> float:
    """The probability that a right one is taken among those with the largest value."""
    best = np.flatnonzero(values == values.max())
    return len(right & set(best.tolist())) / len(best)
