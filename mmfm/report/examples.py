"""Examples to look at and listen to: what was found for what, and what was written, drawn and said of what.

Captions and media come from data: text is escaped by `tag`, and a src that is no inline picture or sound is not used.
"""

import base64
import binascii
import io
import re
import struct
import wave
from array import array
from collections.abc import Mapping
from difflib import SequenceMatcher
from itertools import pairwise

from mmfm.evals.records import Generation, Item, Match, Retrieval, SplitDetails, Writing
from mmfm.report.markup import Html, join, tag
from mmfm.report.scores import shown

BYTES = r";base64,[A-Za-z0-9+/=\s]+\Z"
MEDIA = {
    "image": re.compile(f"data:image/(png|jpeg|webp){BYTES}"),
    "audio": re.compile(f"data:audio/(wav|flac|ogg|mpeg){BYTES}"),
}
SMALL_PX = 96  # a picture below is shown with its pixels, not blurred
WAVE_BARS = 64
SHOWN = 6  # retrievals of a task; the rest unfolds
NOTE = (
    "Hits and misses were picked in equal number where there were enough of both, so that their share here says "
    "nothing of the whole."
)


def picture_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in px from the header of a PNG or JPEG; None if there is none."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    place = 2
    while data[:2] == b"\xff\xd8" and place + 9 <= len(data) and data[place] == 0xFF:
        marker, size = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # frame headers: ITU-T T.81, table B.1
            height, width = struct.unpack(">HH", data[place + 5 : place + 9])
            return width, height
        place += 2 + size
    return None


def loudness(data: bytes) -> tuple[float, list[float]] | None:
    """Seconds, and the peak of each of WAVE_BARS equal parts relative to the loudest; None if it is no 16-bit WAV."""
    try:
        with wave.open(io.BytesIO(data)) as sound:
            if sound.getsampwidth() != 2:
                return None
            frames, channels, rate_hz = sound.getnframes(), sound.getnchannels(), sound.getframerate()
            samples = array("h", sound.readframes(frames))[::channels]
            seconds = len(samples) / rate_hz
    except (wave.Error, EOFError, ValueError, ZeroDivisionError):
        return None
    edges = [i * len(samples) // WAVE_BARS for i in range(WAVE_BARS + 1)]
    parts = [samples[start:end] for start, end in pairwise(edges)]
    peaks = [max(max(part), -min(part)) if part else 0 for part in parts]
    return seconds, [peak / max(1, *peaks) for peak in peaks]


def media(item: Item) -> Html:
    """The picture, the sound with its outline, or the text of an item; a plain word if there is nothing to show."""
    if item.modality == "text":
        return tag("blockquote", item.caption or "(empty)", class_="media text")
    if not (pattern := MEDIA.get(item.modality)) or not pattern.match(item.src):
        return tag("span", f"no {item.modality} kept", class_="media none quiet")
    try:
        data = base64.b64decode(item.src.partition(",")[2])
    except binascii.Error:
        return tag("span", f"unreadable {item.modality}", class_="media none quiet")
    return _picture(item, data) if item.modality == "image" else _sound(item, data)


def _picture(item: Item, data: bytes) -> Html:
    width, height = picture_size(data) or (None, None)
    small = width is not None and height is not None and max(width, height) <= SMALL_PX
    described = f"picture {item.key}, labelled {item.caption}"
    kind = "media picture pixelated" if small else "media picture"
    return tag("img", src=item.src, alt=described, title=described, width=width, height=height, class_=kind)


def _sound(item: Item, data: bytes) -> Html:
    described = f"sound {item.key}, labelled {item.caption}"
    player = tag("audio", src=item.src, controls=True, preload="none", aria_label=described)
    if (heard := loudness(data)) is None:
        return tag("span", player, class_="media sound", title=described)
    seconds, peaks = heard
    bars = "".join(f"M{2 * i + 1} {20 - 18 * peak:.1f}V{20 + max(18 * peak, 0.5):.1f}" for i, peak in enumerate(peaks))
    outline = {"viewBox": f"0 0 {2 * WAVE_BARS} 40", "preserveAspectRatio": "none", "aria_hidden": "true"}
    drawing = tag("svg", tag("path", d=bars), tag("path", d=bars, class_="played"), **outline)
    length = tag("span", f"{seconds:.1f} s", class_="length quiet")
    return tag("span", drawing, player, length, class_="media sound", title=described)


def difference(reference: str, written: str) -> tuple[Html, Html]:
    """Both texts by words: in the first, what should be inserted is marked, in the second, what should be deleted."""
    old, new = (re.findall(r"\w+|\s+|[^\w\s]", text) for text in (reference, written))
    left, right = [], []
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        before, after = "".join(old[a:b]), "".join(new[c:d])
        left.append(before if kind == "equal" or not before else tag("ins", before))
        right.append(after if kind == "equal" or not after else tag("del", after))
    return join(left), join(right)


def verdict(good: bool, yes: str, no: str) -> Html:
    return tag("span", f"✓ {yes}" if good else f"✗ {no}", class_="verdict good" if good else "verdict bad")


def _caption(item: Item) -> Html | None:
    return None if item.modality == "text" else tag("span", item.caption, class_="caption")


def _match(rank: int, match: Match) -> Html:
    score = "" if match.score is None else f"{match.score:.2f}"
    similarity = tag("span", score, class_="quiet score", title="cosine similarity") if score else None
    foot = tag("span", verdict(match.hit, "hit", "miss"), similarity, class_="foot")
    kind = "answer hit" if match.hit else "answer miss"
    return tag("li", media(match.item), _caption(match.item), foot, class_=kind, title=f"answer {rank}")


def found_first(retrieval: Retrieval) -> bool:
    return bool(retrieval.matches) and retrieval.matches[0].hit


def _retrieval(retrieval: Retrieval) -> Html:
    query = tag("div", media(retrieval.query), _caption(retrieval.query), class_="query")
    answers = tag("ol", *(_match(i, match) for i, match in enumerate(retrieval.matches, 1)), class_="answers")
    arrow = tag("span", "→", class_="arrow quiet", aria_hidden="true")
    return tag("div", query, arrow, answers, class_="retrieval fine" if found_first(retrieval) else "retrieval failed")


def retrievals(task: str, name: str, split: SplitDetails, opened: bool) -> Html | None:
    found = [retrieval for retrieval in split.retrievals if retrieval.task == task]
    good = sum(map(found_first, found))
    heading = _heading(task, name, f"{good} with a match in first place, {len(found) - good} without")
    first, rest = [_retrieval(one) for one in found[:SHOWN]], [_retrieval(one) for one in found[SHOWN:]]
    more = tag("details", tag("summary", f"{len(rest)} more"), *rest, class_="more") if rest else None
    return tag("details", heading, *first, more, open=opened) if found else None


def _heading(task: str, name: str, counted: str) -> Html:
    return tag("summary", tag("b", shown(task)), f" on {name} ", tag("span", counted, class_="quiet"))


def _writing(writing: Writing) -> Html:
    left, right = difference(writing.reference, writing.written)
    nothing = tag("span", "(nothing)", class_="quiet")
    lines = (tag("dt", "reference"), tag("dd", left), tag("dt", "written"), tag("dd", right or nothing))
    source = media(writing.source) if writing.source else None
    state = verdict(writing.correct, "exact", "differs")
    kind = "writing fine" if writing.correct else "writing failed"
    return tag("li", source, tag("dl", *lines), state, class_=kind)


def writings(task: str, name: str, split: SplitDetails, opened: bool) -> Html | None:
    found = [writing for writing in split.writings if writing.task == task]
    good = sum(writing.correct for writing in found)
    heading = _heading(task, name, f"{good} exact, {len(found) - good} not")
    return tag("details", heading, tag("ul", *map(_writing, found), class_="writings"), open=opened) if found else None


def _making(making: Generation) -> Html:
    """What it was made of, what was made, and the sample's own, each with what was read in it."""
    of = tag("div", *map(media, making.sources), _wanted(making), class_="query") if making.sources else None
    state = None if making.correct is None else verdict(making.correct, "read right", "misread")
    new = tag("span", f"new from {making.start:.2f} s on", class_="caption quiet") if making.start else None
    made = tag("div", media(making.made), new, _readings(making.read), tag("span", state, class_="foot"), class_="made")
    own = None
    if making.own is not None:
        name = tag("span", "the split's own", class_="caption quiet")
        own = tag("div", media(making.own), name, _readings(making.own_read), class_="own")
    arrow = tag("span", "→", class_="arrow quiet", aria_hidden="true") if of is not None else None
    return tag("li", of, arrow, made, own, class_="making failed" if making.correct is False else "making fine")


def _wanted(making: Generation) -> Html | None:
    """The caption, where it does not stand there as a text already."""
    told = any(item.modality == "text" and item.caption == making.made.caption for item in making.sources)
    return None if told or not making.made.caption else tag("span", making.made.caption, class_="caption")


def _readings(read: Mapping[str, str]) -> Html | None:
    lines = [
        (tag("dt", f"{judge} reads"), tag("dd", text or tag("span", "(nothing)", class_="quiet")))
        for judge, text in read.items()
    ]
    return tag("dl", *(part for line in lines for part in line), class_="readings") if lines else None


def makings(task: str, name: str, split: SplitDetails, opened: bool) -> Html | None:
    found = [making for making in split.generations if making.task == task]
    good = sum(making.correct is True for making in found)
    judged = any(making.correct is not None for making in found)
    told = f"{good} read right, {len(found) - good} not" if judged else f"{len(found)} made, none judged"
    listing = tag("ul", *map(_making, found), class_="makings")
    return tag("details", _heading(task, name, told), listing, open=opened) if found else None


def examples(splits: Mapping[str, SplitDetails]) -> list[Html]:
    """Every task with its splits, the first of them open."""
    found = dict.fromkeys((retrievals, example.task) for split in splits.values() for example in split.retrievals)
    found |= dict.fromkeys((writings, example.task) for split in splits.values() for example in split.writings)
    found |= dict.fromkeys((makings, example.task) for split in splits.values() for example in split.generations)
    return [
        tag(
            "div",
            *(show(task, name, split, at == 0) for at, (name, split) in enumerate(splits.items())),
            class_="examples",
        )
        for show, task in found
    ]
