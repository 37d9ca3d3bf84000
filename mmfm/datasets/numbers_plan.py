"""What the data set `numbers` holds: its words, its splits, and every picture and clip before it is drawn or spoken.

Scans are split before they are paired, voices before anything is spoken, and twenty numbers are kept out of training
altogether. A number below ten is shown as two digits, "07", and called by its name, "seven".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from mmfm.config import require
from mmfm.datasets import espeak
from mmfm.datasets.espeak import Utterance

UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

# A walk over tens 2-9 and units 1-9 that meets each of them two or three times, so that all of them stay in training.
UNSEEN = tuple(sorted(10 * (2 + step % 8) + 1 + 4 * step % 9 for step in range(20)))
SEEN = tuple(number for number in range(100) if number not in UNSEEN)

PLAIN = "{}"  # half of the training captions, and every caption of the other splits
PHRASES = {
    "image": (
        *("the number {}", "this is {}", "it says {}", "a picture of {}", "handwritten {}", "someone wrote {}"),
        *("two digits, {}", "it reads {}"),
    ),
    "audio": (
        *("the number {}", "this is {}", "it says {}", "a voice says {}", "spoken {}", "someone said {}"),
        *("you hear {}", "it sounds like {}"),
    ),
}

# Variants that differ in little more than their name stay in one split. Measured as the distance of log-mel spectra
# aligned in time, no voice of val or test is nearer to one of training than the accents en and en-gb-x-rp are.
VARIANTS_TEST = (
    *("Andrea", "Denis", "Gene", "Gene2", "Marco", "Mario", "Nguyen", "anika", "anikaRobot", "belinda", "ed", "f3"),
    *("linda", "m2", "m7", "paul", "quincy", "rob", "robert", "victor"),
)
VARIANTS_VAL = ("Annie", "boris", "f1", "m4", "norbert", "sandro", "steph", "steph2", "steph3", "travis")
VARIANTS_LEFT_OUT = ("RicishayMax", "RicishayMax2", "RicishayMax3", "zac")  # an echo longer than the word; a squeak
ACCENTS_TRAIN = ("en", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-x-rp", "en-us", "en-us-nyc")
ACCENTS_TEST = ("en-029", "en-gb-scotland")
RATES_WPM, PITCHES = (130, 220), (25, 75)

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Where a split's numbers, scans and voices come from."""

    name: str
    numbers: tuple[int, ...]
    scans: range
    variants: tuple[str, ...]
    accents: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Picture:
    number: int
    scans: tuple[int, int]
    caption: str


@dataclass(frozen=True, kw_only=True)
class Clip:
    number: int
    utterance: Utterance
    caption: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a split will hold, in the order of its shards."""

    split: Split
    pictures: list[Picture]
    clips: list[Clip]


def name(number: int) -> str:
    """In words: 7 is "seven", 42 is "forty-two"."""
    if number < len(UNITS):
        return UNITS[number]
    return TENS[number // 10 - 2] + (f"-{UNITS[number % 10]}" if number % 10 else "")


def splits() -> tuple[Split, ...]:
    """Train, val, test and test-unseen. Training has every variant of the wheel that no other split needs."""
    apart = {*VARIANTS_TEST, *VARIANTS_VAL, *VARIANTS_LEFT_OUT}
    missing = sorted(apart.difference(espeak.variants()))
    require(not missing, f"espeak-ng has no variant {', '.join(missing)}; install espeakng-loader 0.2.4")
    train = tuple(variant for variant in espeak.variants() if variant not in apart)
    own, strange = range(1_437, 1_797), {"variants": VARIANTS_TEST, "accents": ACCENTS_TEST}
    return (
        Split(name="train", numbers=SEEN, scans=range(1_297), variants=train, accents=ACCENTS_TRAIN),
        Split(name="val", numbers=SEEN, scans=range(1_297, 1_437), variants=VARIANTS_VAL, accents=ACCENTS_TRAIN),
        Split(name="test", numbers=SEEN, scans=own, **strange),
        Split(name="test-unseen", numbers=UNSEEN, scans=own, **strange),
    )


def plan(digits: Sequence[int], *, seed: int, images: int, clips: int, evals: int) -> list[Plan]:
    """Every split, with `images` and `clips` of each number in train, `evals` in val and test, thrice that in
    test-unseen. digits: what each scan shows. What a split gets does not depend on the size of another."""
    plans = []
    for split in splits():
        own = 3 * evals if split.name == "test-unseen" else evals
        shown, heard = (images, clips) if split.name == "train" else (own, own)
        pictures = _pictures(split, digits, shown, Random(f"{seed} {split.name} pictures"))
        spoken = _clips(split, heard, Random(f"{seed} {split.name} clips"))
        plans.append(Plan(split=split, pictures=pictures, clips=spoken))
    return plans


def _pictures(split: Split, digits: Sequence[int], count: int, random: Random) -> list[Picture]:
    """`count` of each number, no two of the same scans; scans of one digit come about equally often."""
    decks = {digit: _deal([scan for scan in split.scans if digits[scan] == digit], random) for digit in range(10)}
    made = []
    for number in split.numbers:
        captions = _captions(split, "image", number, count, random)
        pairs: dict[tuple[int, int], None] = {}
        while len(pairs) < count:
            left, right = next(decks[number // 10]), next(decks[number % 10])
            if left != right:
                pairs[left, right] = None
        made += [Picture(number=number, scans=pair, caption=c) for pair, c in zip(pairs, captions, strict=True)]
    return random.sample(made, len(made))


def _clips(split: Split, count: int, random: Random) -> list[Clip]:
    """`count` of each number, every voice as often as the others, at random rates and pitches."""
    voices = _deal([f"{accent}+{variant}" for accent in split.accents for variant in split.variants], random)
    made = []
    for number in split.numbers:
        for caption in _captions(split, "audio", number, count, random):
            rate_wpm, pitch = random.randint(*RATES_WPM), random.randint(*PITCHES)
            said = Utterance(text=name(number), voice=next(voices), rate_wpm=rate_wpm, pitch=pitch)
            made.append(Clip(number=number, utterance=said, caption=caption))
    return random.sample(made, len(made))


def _captions(split: Split, modality: str, number: int, count: int, random: Random) -> list[str]:
    """Half of them plain in training, the others phrased; all of them plain elsewhere."""
    phrased = count // 2 if split.name == "train" else 0
    phrases = _deal(PHRASES[modality], random)
    return [(next(phrases) if i < phrased else PLAIN).format(name(number)) for i in range(count)]


def _deal(items: Sequence[Item], random: Random) -> Iterator[Item]:
    """Every item once in a random order, then all again in another, without end."""
    while True:
        yield from random.sample(items, len(items))
