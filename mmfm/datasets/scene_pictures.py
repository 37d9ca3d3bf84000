"""Pictures of `scenes`: cut-outs on a coloured ground, composed from a plan that says where each of them stands.

Cut-outs are the stamps of Tux Paint, whose folders say of what kind they are, or emoji of a font, as another style.
"""

import io
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from mmfm.datasets.debian import SPLITS
from mmfm.datasets.stamps_read import Stamp, split_of
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.image import decode_image

SIDE_PX, LARGEST_PX, QUALITY = 224, 200, 90
FAINT, SEEN_PART, SEEN_DIFFERENCE = 8, 0.3, 40.0  # of alpha; of the opaque pixels; of 255, from the ground
MOST_WORDS = 6  # of a caption that is a name
EMOJI_PX = 109  # the one size of NotoColorEmoji

COLOURS = {
    "red": (214, 58, 50),
    "green": (72, 166, 82),
    "blue": (74, 118, 214),
    "yellow": (244, 214, 76),
    "purple": (148, 84, 184),
    "grey": (156, 156, 156),
}
KINDS = {  # the word, and the folders of the stamps that are of this kind
    "animal": ("animals",),
    "food": ("food",),
    "plant": ("plants",),
    "vehicle": ("vehicles", "military/vehicles"),
    "building": ("town/houses", "town/monuments"),
    "letter": ("symbols/alphabets/english", "symbols/alphabets/german", "symbols/alphabets/spanish"),
    "money": ("symbols/money",),
    "household item": ("household",),
    "decoration": ("seasonal",),
    "sports item": ("sports",),
}
EMOJI = {
    "animal": "🐘🦉🐄🐎🐖🐓🐍🐢🐬🦈🐝🦋🐕🐈🐅🐒🦒🐪🐇🦆🐧🐊",
    "food": "🍎🍌🍇🍓🍕🍔🍞🥕🌽🍅🥦🍩🍰🥚🍒🍐",
    "plant": "🌳🌲🌴🌵🌷🌹🌻🌼🍀🌾🌱🌺",
    "vehicle": "🚗🚕🚌🚑🚒🚜🚲🚂🚁🚢⛵🚚🚓🛵",
    "building": "🏠🏢🏥🏫🏭🏰🏯⛪🏛🏨🏪🏦",
    "letter": "🇦🇧🇨🇩🇪🇫🇬🇭🇮🇯🇰🇱🇲🇳🇴🇵🇶🇷🇸🇹🇺🇻🇼🇽🇾🇿",
    "money": "💵💶💷💴💰🪙",
    "household item": "🔨🔧🪑🛏🛋🚪🪣🧹🧺🥄💡🕯⏰🔑🪚",
    "decoration": "🎄🎃🎁🎀🎈🎉🎐🎏🕎",
    "sports item": "⚽🏀🏈🎾🏐🏉🏓🏸🏒🏏🥊🏆🎳⛸",
}


@dataclass(frozen=True, kw_only=True)
class CutOut:
    """A thing without its ground. kind: one of KINDS, or empty. seen_on: the COLOURS that it stands out from."""

    name: str
    caption: str
    kind: str
    picture: Image.Image
    seen_on: frozenset[str]

    @property
    def called(self) -> str:
        """As an answer has it: "an owl"."""
        return self.caption[:1].lower() + self.caption[1:].rstrip(".! ")


class Placed(NamedTuple):
    """The place of a cut-out: its number on the shelf, its centre and its longer side, in px."""

    number: int
    x: int
    y: int
    longest: int


class Scene(NamedTuple):
    """The plan of a picture."""

    ground: tuple[int, int, int]
    things: tuple[Placed, ...]


class Shelf:
    """The cut-outs of one split, by kind."""

    def __init__(self, things: Sequence[CutOut]) -> None:
        self.things = things
        self.by_kind: dict[str, list[int]] = defaultdict(list)
        for number, thing in enumerate(things):
            self.by_kind[thing.kind].append(number)

    def kinds(self, least: int = 1) -> list[str]:
        """Of those that have at least so many cut-outs."""
        return [kind for kind in KINDS if len(self.by_kind[kind]) >= least]

    def names(self) -> list[int]:
        """The cut-outs of a kind whose caption is short enough to be a name."""
        return [n for n, thing in enumerate(self.things) if thing.kind and len(thing.called.split()) <= MOST_WORDS]

    def draw(self, random: Random, kind: str, colour: str) -> int:
        """One of a kind, and of those that stand out from this ground where there are any."""
        known = self.by_kind[kind]
        return random.choice([n for n in known if colour in self.things[n].seen_on] or known)


def ground_of(random: Random, colour: str) -> tuple[int, int, int]:
    """A shade of a colour."""
    red, green, blue = (value + random.randint(-10, 10) for value in COLOURS[colour])
    return red, green, blue


def corner(random: Random, place: int, number: int) -> Placed:
    """A cut-out in a quarter of the picture: 0 top left, 1 top right, 2 bottom left, 3 bottom right."""
    longest, half = random.randint(64, 96), SIDE_PX // 2
    slack = (half - longest) // 2
    x, y = ((place % 2) * half + half // 2, (place // 2) * half + half // 2)
    return Placed(number, x + random.randint(-slack, slack), y + random.randint(-slack, slack), longest)


def alone(random: Random, number: int) -> Placed:
    """One cut-out, near the middle and large."""
    longest = random.randint(110, 190)
    slack = (SIDE_PX - longest) // 2
    middle = SIDE_PX // 2
    return Placed(number, middle + random.randint(-slack, slack), middle + random.randint(-slack, slack), longest)


def compose(scene: Scene, shelf: Shelf) -> bytes:
    """The picture, as JPEG."""
    canvas = Image.new("RGB", (SIDE_PX, SIDE_PX), scene.ground)
    for thing in scene.things:
        picture = shelf.things[thing.number].picture
        scale = thing.longest / max(picture.size)
        width, height = (max(1, round(side * scale)) for side in picture.size)
        shown = picture.resize((width, height), Image.Resampling.LANCZOS)
        canvas.paste(shown, (thing.x - width // 2, thing.y - height // 2), shown)
    file = io.BytesIO()
    canvas.save(file, format="JPEG", quality=QUALITY)
    return file.getvalue()


# Where cut-outs come from


def stamp_shelves(stamps: Iterable[Stamp], left_out: Counter[str]) -> dict[str, Shelf]:
    """By split, which is that of the English caption; a picture of the same bytes as one of test or val is left out."""
    found: dict[str, list[CutOut]] = {split: [] for split in SPLITS}
    earlier: dict[bytes, str] = {}
    pictured = [(stamp, stamp.picture) for stamp in stamps if stamp.picture]
    for split in SPLITS:
        for stamp, path in pictured:
            if split_of(stamp.caption) != split:
                continue
            data = path.read_bytes()
            if earlier.setdefault(data, split) != split:
                left_out["the same bytes as in val or test"] += 1
                continue
            try:
                found[split].append(_cut_out(stamp.name, stamp.caption, kind_of(stamp.name), _opened(data)))
            except BadSample as why:
                left_out[why.code] += 1
    return {split: Shelf(things) for split, things in found.items()}


def emoji_shelf(font: Path) -> Shelf:
    """Emoji of the same kinds, by their Unicode names."""
    drawn = ImageFont.truetype(str(font), EMOJI_PX)
    things = []
    for kind, characters in EMOJI.items():
        for character in characters:
            canvas = Image.new("RGBA", (SIDE_PX, SIDE_PX))
            ImageDraw.Draw(canvas).text((20, 20), character, font=drawn, embedded_color=True)
            things.append(_cut_out(f"emoji/{ord(character):x}", _caption(character), kind, canvas))
    return Shelf(things)


def kind_of(name: str) -> str:
    """By the folder of a stamp; empty: none of KINDS."""
    return next((kind for kind, roots in KINDS.items() if any(name.startswith(f"{root}/") for root in roots)), "")


def _caption(character: str) -> str:
    name = unicodedata.name(character).lower()
    if name.startswith("regional indicator symbol letter"):
        return f"The letter {name[-1].upper()}."
    return f"{'An' if name[0] in 'aeiou' else 'A'} {name}."


def _opened(data: bytes) -> Image.Image:
    """Raises BadSample for a picture that is damaged, or that fills all of its frame."""
    decode_image(data)
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    if np.asarray(image.getchannel("A")).min() == 255:
        raise BadSample("image_empty", "the picture has no transparent ground; it is no cut-out")
    return image


def _cut_out(name: str, caption: str, kind: str, image: Image.Image) -> CutOut:
    """Cropped to what is seen of it, and reduced."""
    box = image.getchannel("A").point([255 * (value > FAINT) for value in range(256)]).getbbox()
    if box is None:
        raise BadSample("image_empty", "nothing of the picture is seen")
    cropped = image.crop(box)
    scale = min(1.0, LARGEST_PX / max(cropped.size))
    width, height = (max(1, round(side * scale)) for side in cropped.size)
    picture = cropped.resize((width, height), Image.Resampling.LANCZOS)
    return CutOut(name=name, caption=caption, kind=kind, picture=picture, seen_on=_seen_on(np.asarray(picture)))


def _seen_on(pixels: UInt8[np.ndarray, "height width 4"]) -> frozenset[str]:
    """The grounds from which enough of it differs."""
    colours: Mapping[str, Float[np.ndarray, " 3"]] = {name: np.array(rgb, float) for name, rgb in COLOURS.items()}
    opaque = pixels[pixels[..., 3] > 128][:, :3].astype(float)
    if not len(opaque):
        return frozenset()
    far = {name: np.abs(opaque - rgb).mean(1) > SEEN_DIFFERENCE for name, rgb in colours.items()}
    return frozenset(name for name, different in far.items() if different.mean() >= SEEN_PART)
