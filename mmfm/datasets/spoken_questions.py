"""Questions spoken by espeak-ng: voices of training, val and test are apart, as those of the data set `numbers` are."""

from collections.abc import Generator, Sequence
from random import Random

from mmfm.datasets import speech
from mmfm.datasets.espeak import Utterance
from mmfm.datasets.numbers_plan import PITCHES, RATES_WPM, Split, splits
from mmfm.datasets.scene_questions import Question


def voices(split: str) -> Split:
    """The accents and variants that speak in a split."""
    return next(one for one in splits() if one.name == split)


def plan(split: str, questions: Sequence[Question], seed: int) -> list[Utterance]:
    """Who says each question, and how fast and high."""
    known = voices(split)
    return [
        _utterance(known, question.text, Random(f"{seed} {split} voice {n}")) for n, question in enumerate(questions)
    ]


def _utterance(known: Split, text: str, random: Random) -> Utterance:
    voice = f"{random.choice(known.accents)}+{random.choice(known.variants)}"
    return Utterance(text=text, voice=voice, rate_wpm=random.randint(*RATES_WPM), pitch=random.randint(*PITCHES))


def speak(utterances: Sequence[Utterance]) -> Generator[bytes, None, None]:
    """Each as FLAC, in order. The same list gives the same bytes."""
    return speech.speak(utterances)


def others(questions: Sequence[Question]) -> list[int]:
    """For each question another one of the list, of another kind: what is spoken in the control."""
    half = len(questions) // 2
    found = []
    for number, question in enumerate(questions):
        turns = (questions[(number + half + step) % len(questions)] for step in range(len(questions)))
        other = next((one for one in turns if one.kind != question.kind), question)
        found.append(questions.index(other))
    return found
