"""Questions about scenes, with exact answers: each is planned from its answer, so that the question never tells it.

The answer is drawn first and evenly, and everything else, wording included, is drawn without regard to it: who does not
see the picture can only guess among equals. The last wording of each question is of the test splits alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from mmfm.datasets.scene_pictures import COLOURS, Placed, Scene, Shelf, alone, corner, ground_of

COUNTS = ("one", "two", "three", "four")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
SIDES = ("left", "right")
WORDINGS = {
    "kind": (
        *(
            "What kind of thing is this?",
            "Of what kind is the thing you see?",
            "Which kind of thing do you see?",
        ),
        "Say what kind of thing is shown.",
    ),
    "count": (
        *("How many things are in the picture?", "How many things do you see?", "Count the things here."),
        "What is the number of things shown?",
    ),
    "animal": (
        *("Is there an animal in the picture?", "Do you see an animal?", "Is any of these an animal?"),
        "Does the picture show an animal?",
    ),
    "where": (
        *("Where is the {}?", "In which corner is the {}?", "Which corner holds the {}?"),
        "Say in what corner the {} can be found.",
    ),
    "side": (
        *("What is on the {}?", "What kind of thing is on the {}?", "Which kind of thing do you see on the {}?"),
        "Name the kind of thing that is on the {} side.",
    ),
    "colour": (
        *("What colour is the ground?", "Which colour does the ground have?", "What is the colour behind the things?"),
        "Name the colour of the background.",
    ),
    "name": (
        *("What is this?", "What do you see in the picture?", "What does the picture show?"),
        "Name the thing in the picture.",
    ),
}
ABOUT = {  # of a name alone, without a picture
    "text-kind": (
        *("What kind of thing is {}?", "Of what kind is {}?", "Which kind of thing is {}?"),
        "Say what kind of thing {} is.",
    ),
    "text-animal": (
        *("Is {} an animal?", "Would you call {} an animal?", "Is an animal what {} is?"),
        "Does {} count as an animal?",
    ),
}
DESCRIBED = (
    *("Describe the picture.", "Say all that is in the picture, and where.", "What does the whole picture look like?"),
    "Tell me everything about the picture.",
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """kind: under which it is scored. answers: all that are right, the one to be learned first. choices: of which one
    is right; none: it is open. new: its wording is not in training. scene: None where there is no picture."""

    kind: str
    text: str
    answers: tuple[str, ...]
    choices: tuple[str, ...]
    new: bool
    scene: Scene | None


def plan(split: str, shelf: Shelf, seed: int, count: int, use: str = "scene") -> list[Question]:
    """`count` of each of WORDINGS. All that is random about one is of the seed, the split, its use and its number."""
    made = []
    for kind, maker in MAKERS.items():
        draws = (Random(f"{seed} {split} {use} {kind} {number}") for number in range(count))
        made += [maker(shelf, random, number, wordings(split, kind)) for number, random in enumerate(draws)]
    return made


def wordings(split: str, kind: str) -> tuple[str, ...]:
    """Those of a split: test has the one that is held out, too."""
    known = (WORDINGS | ABOUT)[kind]
    return known if split.startswith("test") else known[:-1]


def plan_text(split: str, shelf: Shelf, seed: int, count: int) -> list[Question]:
    """`count` of each of ABOUT: questions about the names of a split, without a picture."""
    made, kinds = [], shelf.kinds()
    for number in range(count):
        random = Random(f"{seed} {split} text {number}")
        called = [shelf.things[n] for n in shelf.names()]
        kind, animal = kinds[number % len(kinds)], number % 2 == 0
        texts, rest = wordings(split, "text-kind"), number // len(kinds)
        thing = random.choice([one for one in called if one.kind == kind] or called)
        made.append(_asked("text-kind", texts, rest, thing.called, (thing.kind,), tuple(kinds), None))
        other = random.choice([one for one in called if (one.kind == "animal") == animal])
        truth = ("yes" if animal else "no",)
        made.append(
            _asked("text-animal", wordings(split, "text-animal"), number // 2, other.called, truth, ("yes", "no"), None)
        )
    return made


def plan_described(split: str, shelf: Shelf, seed: int, count: int) -> list[Question]:
    """`count` pictures of which everything is to be said that other questions ask: how many things, on which ground, of
    which kinds, and where; of a fifth, which show one thing, its name instead of its place."""
    texts = DESCRIBED if split.startswith("test") else DESCRIBED[:-1]
    made = []
    for number in range(count):
        random = Random(f"{seed} {split} described {number}")
        colour, kinds = random.choice(list(COLOURS)), shelf.kinds()
        if number % 5 == 4:
            thing = shelf.draw(random, kinds[number // 5 % len(kinds)], colour)
            scene = Scene(ground_of(random, colour), (alone(random, thing),))
            seen = [f"{shelf.things[thing].kind}, {shelf.things[thing].called}"]
        else:
            places = sorted(random.sample(range(4), number % 5 + 1))
            shown = [random.choice(kinds) for _ in places]
            scene = Scene(ground_of(random, colour), _placed(shelf, random, colour, shown, places))
            seen = [f"{kind} at the {CORNERS[place]}" for kind, place in zip(shown, places, strict=True)]
        things = f"{COUNTS[len(seen) - 1]} thing{'s'[: len(seen) > 1]} on a {colour} ground"
        text = texts[number // 5 % len(texts)]
        told = {"answers": (f"{things}: {'; '.join(seen)}",), "choices": (), "new": text == DESCRIBED[-1]}
        made.append(Question(kind="described", text=text, scene=scene, **told))
    return made


# One maker for each question: (shelf, random, number, wordings). The number runs through the answers first.


def _asked(
    kind: str,
    texts: tuple[str, ...],
    number: int,
    about: str,
    answers: tuple[str, ...],
    choices: tuple[str, ...],
    scene: Scene | None,
) -> Question:
    text = texts[number % len(texts)]
    new = text == (WORDINGS | ABOUT)[kind][-1]
    return Question(kind=kind, text=text.format(about), answers=answers, choices=choices, new=new, scene=scene)


def _kind(shelf: Shelf, random: Random, number: int, texts: tuple[str, ...]) -> Question:
    kinds = tuple(shelf.kinds())
    kind, colour = kinds[number % len(kinds)], random.choice(list(COLOURS))
    scene = Scene(ground_of(random, colour), (alone(random, shelf.draw(random, kind, colour)),))
    return _asked("kind", texts, number // len(kinds), "", (kind,), kinds, scene)


def _count(shelf: Shelf, random: Random, number: int, texts: tuple[str, ...]) -> Question:
    count = number % len(COUNTS) + 1
    colour = random.choice(list(COLOURS))
    kinds = [random.choice(shelf.kinds()) for _ in range(count)]
    answers = (COUNTS[count - 1], str(count))
    return _asked("count", texts, number // len(COUNTS), "", answers, COUNTS, _spread(shelf, random, colour, kinds))


def _animal(shelf: Shelf, random: Random, number: int, texts: tuple[str, ...]) -> Question:
    """As many things with an animal as without one; no decorations, as some of these are animals."""
    there, count, colour = number % 2 == 0, number // 2 % 4 + 1, random.choice(list(COLOURS))
    others = [kind for kind in shelf.kinds() if kind not in ("animal", "decoration")]
    kinds = [random.choice(others) for _ in range(count)]
    if there:
        kinds[random.randrange(count)] = "animal"
    scene = _spread(shelf, random, colour, kinds)
    return _asked("animal", texts, number // 8, "", ("yes" if there else "no",), ("yes", "no"), scene)


def _where(shelf: Shelf, random: Random, number: int, texts: tuple[str, ...]) -> Question:
    """One thing of the kind that is asked for, and up to three of other kinds."""
    place, colour, kinds = number % 4, random.choice(list(COLOURS)), shelf.kinds()
    kind = kinds[number // 4 % len(kinds)]
    others = random.sample([one for one in kinds if one != kind], random.randint(0, 3))
    places = [place, *random.sample([one for one in range(4) if one != place], len(others))]
    things = _placed(shelf, random, colour, [kind, *others], places)
    scene = Scene(ground_of(random, colour), things)
    name = CORNERS[place]
    answers = (name, f"the {name}", name.replace("top", "upper").replace("bottom", "lower"))
    return _asked("where", texts, number // (4 * len(kinds)), kind, answers, CORNERS, scene)


def _side(shelf: Shelf, random: Random, number: int, texts: tuple[str, ...]) -> Question:
    """Two things of two kinds, side by side."""
    kinds, colour = tuple(shelf.kinds()), random.choice(list(COLOURS))
    kind, side = kinds[number % len(kinds)], number // len(kinds) % 2
    other = random.choice([one for one in kinds if one != kind])
    places = [side + 2 * random.randrange(2), 1 - side + 2 * random.randrange(2)]
    scene = Scene(ground_of(random, colour), _placed(shelf, random, colour, [kind, other], places))
    return _asked("side", texts, number // (2 * len(kinds)), SIDES[side], (kind,), kinds, scene)


def _colour(shelf: Shelf, random: Random, number: int, texts: tuple[str, ...]) -> Question:
    colour = list(COLOURS)[number % len(COLOURS)]
    kinds = [random.choice(shelf.kinds()) for _ in range(random.randint(1, 4))]
    scene = _spread(shelf, random, colour, kinds)
    answers = (colour, "gray") if colour == "grey" else (colour,)
    return _asked("colour", texts, number // len(COLOURS), "", answers, tuple(COLOURS), scene)


def _name(shelf: Shelf, random: Random, number: int, texts: tuple[str, ...]) -> Question:
    """Every cut-out of the split in turn: names are open, and no two splits share one."""
    names = shelf.names()
    thing = names[number % len(names)]
    colour = random.choice(sorted(shelf.things[thing].seen_on) or list(COLOURS))
    called = shelf.things[thing].called
    first, _, rest = called.partition(" ")
    answers = (called, rest) if first in ("a", "an", "the", "some") and rest else (called,)
    return _asked("name", texts, number, "", answers, (), Scene(ground_of(random, colour), (alone(random, thing),)))


def _spread(shelf: Shelf, random: Random, colour: str, kinds: list[str]) -> Scene:
    places = random.sample(range(4), len(kinds))
    return Scene(ground_of(random, colour), _placed(shelf, random, colour, kinds, places))


def _placed(shelf: Shelf, random: Random, colour: str, kinds: list[str], places: list[int]) -> tuple[Placed, ...]:
    pairs: Iterator[tuple[str, int]] = zip(kinds, places, strict=True)
    return tuple(corner(random, place, shelf.draw(random, kind, colour)) for kind, place in pairs)


MAKERS: dict[str, Callable[[Shelf, Random, int, tuple[str, ...]], Question]] = {
    "kind": _kind,
    "count": _count,
    "animal": _animal,
    "where": _where,
    "side": _side,
    "colour": _colour,
    "name": _name,
}
