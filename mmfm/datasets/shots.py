"""Few shots (Frozen, arXiv 2106.13884; Flamingo, 2204.14198): pictures with names of two kinds, and one more to name.

Names are made up, so that only the shots before tell them, or true. As a control in the test splits, names of the shots
are dealt among them at random: who reads the shots is then right by chance. Nothing but picture and shots tells the
answer: which name is said first, which comes last and which more often are balanced over it.
"""

from dataclasses import dataclass
from random import Random
from typing import Literal

from mmfm.datasets import debian
from mmfm.datasets.scene_pictures import COLOURS, Scene, Shelf, alone, ground_of
from mmfm.datasets.stamps_read import TEST, VAL

MOST, LEAST_THINGS = 4, 3  # shots; cut-outs of a kind that is used, as no picture comes twice
OPENINGS = (
    *("Each picture is called {} or {}.", "These pictures have two names, {} and {}.", "Some are called {}, some {}."),
    "There are two words for what follows: {} and {}.",
)
ASKED = "What is this one called?"
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"

Names = Literal["made-up", "true", "shuffled"]


@dataclass(frozen=True, kw_only=True)
class Shots:
    """kind: "shots-2" of made-up names, "shots-2-true" and "shots-2-shuffled". shown: what comes before, with its name;
    scene: what is to be named."""

    kind: str
    opening: str
    shown: tuple[tuple[Scene, str], ...]
    scene: Scene
    answer: str
    choices: tuple[str, str]
    new: bool


def plan(split: str, shelf: Shelf, seed: int, count: int) -> list[Shots]:
    """`count` of each number of shots and each way of names; shuffled ones are of the test splits."""
    ways: tuple[Names, ...] = ("made-up", "true", "shuffled") if split.startswith("test") else ("made-up", "true")
    return [
        _shots(split, shelf, Random(f"{seed} {split} shots {way} {shots} {number}"), way, shots, number)
        for way in ways
        for shots in range(way == "shuffled", MOST + 1)
        for number in range(count)
    ]


def _shots(split: str, shelf: Shelf, random: Random, way: Names, shots: int, number: int) -> Shots:
    kinds = random.sample(shelf.kinds(LEAST_THINGS), 2)
    names = kinds if way == "true" else _made_up(split, shelf, random)
    truth, order, opening = number % 2, number // 2 % 2, number // 16
    classes = _classes(random, truth, shots, number)
    told = [names[one] for one in classes]
    if way == "shuffled":
        told = [random.choice(names)] if shots == 1 else random.sample(told, shots)
    things = [random.sample(shelf.by_kind[kind], classes.count(at) + (at == truth)) for at, kind in enumerate(kinds)]
    shown = tuple((_alone(shelf, random, things[at].pop()), name) for at, name in zip(classes, told, strict=True))
    known = OPENINGS if split.startswith("test") else OPENINGS[:-1]
    text = known[opening % len(known)]
    return Shots(
        kind=f"shots-{shots}" if way == "made-up" else f"shots-{shots}-{way}",
        opening=text.format(names[order], names[1 - order]),
        shown=shown,
        scene=_alone(shelf, random, things[truth].pop()),
        answer=names[truth],
        choices=(names[0], names[1]),
        new=text == OPENINGS[-1],
    )


def _classes(random: Random, truth: int, shots: int, number: int) -> list[int]:
    """Which of two kinds each shot shows. The last is as often that of the answer as not, and so is the more frequent
    one where their number is odd."""
    last = (truth + number // 4) % 2
    if shots <= 1:
        return [last] * shots
    more = (truth + number // 8) % 2
    classes = [0, 1] * (shots // 2) + [more] * (shots % 2)
    classes.remove(last)
    random.shuffle(classes)
    return [*classes, last]


def _alone(shelf: Shelf, random: Random, thing: int) -> Scene:
    colour = random.choice(sorted(shelf.things[thing].seen_on) or list(COLOURS))
    return Scene(ground_of(random, colour), (alone(random, thing),))


def _made_up(split: str, shelf: Shelf, random: Random) -> list[str]:
    """Two words of five letters that only this split has, and no caption."""
    real = {word for thing in shelf.things for word in thing.called.lower().split()}
    found: list[str] = []
    while len(found) < 2:
        name = "".join(random.choice(VOWELS if place % 2 else CONSONANTS) for place in range(5))
        own = debian.split_of(name, TEST, VAL) == split.partition("-")[0]
        if own and name not in real and name not in found:
            found.append(name)
    return found
