"""`scenes`: conversations about pictures made here, with exact answers: written, spoken, without a picture, few shots.

The pictures are composed of the cut-outs of Tux Paint's stamps (Debian's tuxpaint-stamps-default); `test-style` has the
same questions about emoji (fonts-noto-color-emoji). A sample is a `.json` with `messages`, `kind` (under which it is
scored), `answers` (all that are right), `choices`, `new_wording`, and, where someone speaks, `question` and `voice`;
its pictures and sounds are counted, `.0.jpg .1.flac`, in the order in which the messages mention them.

The same arguments give the same bytes: all that is random about a sample is of the seed, its split and its number.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import PIL

from mmfm.config import require
from mmfm.data import shard_list
from mmfm.data.progress import ticker
from mmfm.data.writer import ShardWriter, as_json
from mmfm.datasets import debian, espeak, scene_questions, shots, spoken_questions
from mmfm.datasets.espeak import Utterance
from mmfm.datasets.scene_pictures import KINDS, Shelf, compose, emoji_shelf, stamp_shelves
from mmfm.datasets.scene_questions import Question
from mmfm.datasets.shots import ASKED, Shots
from mmfm.datasets.stamps import PACKAGE
from mmfm.datasets.stamps_read import read_tree

FORMAT = 2  # raised when the same packages and arguments give other bytes
STYLE = debian.Package(
    name="fonts-noto-color-emoji",
    size_mb=10,
    data="usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    option="--emoji-deb",
)
SPLITS = ("train", "val", "test", "test-style")
USES = ("scene", "described", "spoken", "control", "text", "shots")
SHARD_SAMPLES, SHARD_BYTES = 1_000, 64 << 20

README = """\
# scenes

Conversations about pictures that were made here, with exact answers. WebDataset shards; a sample is a `.json` and the
parts that its messages mention, counted in that order (`.0.jpg .1.flac`):

- `scene-*.tar`: a written question and its picture, 224 px.
- `described-*.tar`: a picture and all of it in one answer: how many things, the ground, their kinds and places.
- `spoken-*.tar`: the picture, and the question as a sound. Those of test are among `scene`'s of test.
- `control-*.tar` (test): as `spoken`, but the sound asks another question; who listens cannot be right but by chance.
- `text-*.tar`: a question without a picture, about a name of the split.
- `shots-*.tar`: up to {shots} pictures with their names, and one to be named. Names are made up, true (`-true`) or,
  as a control in test, dealt among the shots at random (`-shuffled`). Only the last answer is learned.

| split | {uses} |
|---|{lines}|
{rows}

| kind | choices | {splits} |
|---|---|{split_lines}|
{kinds}

In the `.json`: `messages`; `kind`, under which it is scored; `answers`, all that are right, the learned one first;
`choices`, of which one is right (a name is open and has none); `new_wording`, whether the question's words are not in
training; `question` and `voice` of a spoken one.

- A cut-out belongs to train, val or test by its English caption, as in the data set `stamps`; the layout is drawn from
  the seed, the split and the number. `test-style` has emoji instead of stamps, and test's wordings.
- Of each question {wordings} wordings are in training and val, and one more in test.
- The answer is drawn first and evenly; the wording and all else without regard to it.
- Kinds are drawn evenly: {kind_names}.
  A kind without a cut-out in a split is not in it. Whether there is an animal is asked of scenes without decorations.
- Voices: espeak-ng {espeak}, an accent and a variant each; those of train, val and test are apart.
{voices}
- Left out: {left_out}.

## Licence

The stamps, of which the pictures are made (also in `LICENSE`):

```
{licence}
```

Emoji are rendered with Noto Color Emoji, which is under the SIL Open Font License 1.1; it does not extend to what is
made with the font. Of what a sound of espeak-ng is under, the README of the data set `numbers` says what is known.
"""


@dataclass(kw_only=True)
class Made:
    """What was written: samples by (split, use, kind), the choices of each kind, and what was left out, why."""

    samples: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    choices: dict[str, int] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    style: dict[str, str] = field(default_factory=dict)

    def count(self, split: str, *, use: str = "", kind: str = "") -> int:
        found = (n for (s, u, k), n in self.samples.items() if s == split and use in ("", u) and kind in ("", k))
        return sum(found)

    def tree(self) -> dict[str, Any]:
        splits = {split: {use: self.count(split, use=use) for use in USES} for split in SPLITS}
        about = {"left_out": dict(sorted(self.left_out.items())), "emoji": self.style}
        made_with = {"pillow": PIL.__version__, "espeak-ng": espeak.version()}
        return {"splits": splits, **about, "made_with": made_with}

    def line(self) -> str:
        return ", ".join(f"{split} {self.count(split):,}" for split in SPLITS) + " conversations"

    def page(self, version: str, licence: str) -> str:
        """The README."""
        kinds = sorted({(USES.index(use), kind) for _, use, kind in self.samples})
        known = {split: spoken_questions.voices(split) for split in SPLITS[:3]}
        return README.format(
            shots=shots.MOST,
            uses=" | ".join(USES),
            lines="|".join("---" for _ in USES),
            rows="\n".join(_row(split, (self.count(split, use=use) for use in USES)) for split in SPLITS),
            splits=" | ".join(SPLITS),
            split_lines="|".join("---" for _ in SPLITS),
            kinds="\n".join(
                _row(kind, (self.choices[kind] or "open", *(self.count(split, kind=kind) for split in SPLITS)))
                for _, kind in kinds
            ),
            wordings=len(scene_questions.WORDINGS["kind"]) - 1,
            kind_names=", ".join(KINDS),
            espeak=espeak.version(),
            voices="\n".join(
                f"  - {split}: {', '.join(one.accents)}; {len(one.variants)} variants" for split, one in known.items()
            ),
            left_out=", ".join(f"{why} {count}" for why, count in sorted(self.left_out.items())) or "nothing",
            licence=licence,
        )


def _row(name: str, cells: Iterator[Any] | Sequence[Any]) -> str:
    return f"| {name} | {' | '.join(str(cell) for cell in cells)} |"


def build(
    folder: Path,
    *,
    seed: int = 0,
    train: int = 720,
    evals: int = 160,
    deb: Path | None = None,
    emoji_deb: Path | None = None,
    progress: bool = True,
) -> None:
    """Write the data set into `folder`, by `debian.build`. train, evals: how many of each written question there are in
    train and test; the other splits and uses are parts of these. Raises UserError where a package cannot be had."""
    for name, value in (("train", train), ("evals", evals)):
        require(8 <= value <= 100_000, f"{name}={value} must be between 8 and 100000 questions of each kind")
    arguments = {"seed": seed, "train": train, "evals": evals, "format": FORMAT}
    cache = folder.resolve().with_name(f"{folder.resolve().name}.deb")

    def write(out: Path, data: Path) -> Made:
        file = emoji_deb or debian.fetch(STYLE, cache)
        made = Made(style={"name": STYLE.name, **debian.origin(STYLE, file)})
        shelves = stamp_shelves(read_tree(data).stamps, made.left_out)
        with debian.unpacked(STYLE, file, out) as root:
            shelves["test-style"] = emoji_shelf(root / STYLE.data)
        _write(out, shelves, seed, train, evals, made, progress)
        return made

    debian.build(folder, "scenes", arguments, PACKAGE, deb, write)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a split will hold."""

    split: str
    written: list[Question]
    described: list[Question]
    spoken: list[Question]
    utterances: list[Utterance]
    text: list[Question]
    shots: list[Shots]

    def __len__(self) -> int:
        control = len(self.spoken) * (self.split == "test")
        return sum(map(len, (self.written, self.described, self.spoken, self.text, self.shots))) + control


def plan(split: str, shelf: Shelf, seed: int, train: int, evals: int) -> Plan:
    """The sizes of a split are parts of those of train or test. What is spoken in test is also written."""
    count = {"train": train, "val": max(8, evals // 4), "test": evals, "test-style": max(8, evals // 2)}[split]
    part = max(4, count // (5 if split == "train" else 4))
    written = scene_questions.plan(split, shelf, seed, count)
    if split == "test":
        spoken = [one for start in range(0, len(written), count) for one in written[start : start + part]]
    elif split == "test-style":
        spoken = []
    else:
        spoken = scene_questions.plan(split, shelf, seed, part, "spoken")
    for name, made in (("written", written), ("spoken", spoken)):
        Random(f"{seed} {split} order {name}").shuffle(made)
    text = scene_questions.plan_text(split, shelf, seed, count // 2) if split != "test-style" else []
    described = scene_questions.plan_described(split, shelf, seed, 2 * count)
    Random(f"{seed} {split} order described").shuffle(described)
    few = shots.plan(split, shelf, seed, part)
    Random(f"{seed} {split} order shots").shuffle(few)
    utterances = spoken_questions.plan(split, spoken, seed) if spoken else []
    asked = {"written": written, "described": described, "spoken": spoken, "text": text}
    return Plan(split=split, utterances=utterances, shots=few, **asked)


def _write(
    out: Path, shelves: Mapping[str, Shelf], seed: int, train: int, evals: int, made: Made, progress: bool
) -> None:
    """All splits. What is spoken is one stream, in the order of the splits."""
    plans = [plan(split, shelves[split], seed, train, evals) for split in SPLITS]
    said = [utterance for one in plans for utterance in one.utterances]
    with ticker("scenes", sum(map(len, plans)), progress) as tick, closing(spoken_questions.speak(said)) as flacs:
        for one in plans:
            (out / one.split).mkdir()
            for use, samples in _uses(one, shelves[one.split], flacs):
                _write_shards(out / one.split, use, samples, made, tick)
            shard_list.write_list(out / one.split)


def _write_shards(folder: Path, use: str, samples: Iterator["Sample"], made: Made, tick: Callable[[str], None]) -> None:
    with ShardWriter(folder, use, samples=SHARD_SAMPLES, bytes=SHARD_BYTES) as writer:
        for number, one in enumerate(samples):
            writer.write(f"{folder.name}-{use}-{number:06d}", one.parts())
            made.samples[folder.name, use, one.about["kind"]] += 1
            known = made.choices.get(one.about["kind"], 0)
            made.choices[one.about["kind"]] = max(known, len(one.about.get("choices", ())))
            tick(f"{folder.name} {use}")


# Samples


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A conversation: messages, the files that they mention, with their extensions, and what else is known."""

    messages: list[dict[str, Any]]
    files: list[tuple[str, bytes]]
    about: dict[str, Any]

    def parts(self) -> dict[str, bytes]:
        files = {f"{number}.{extension}": data for number, (extension, data) in enumerate(self.files)}
        return files | {"json": as_json({"messages": self.messages, **self.about})}


def _uses(plan: Plan, shelf: Shelf, flacs: Iterator[bytes]) -> Iterator[tuple[str, Iterator[Sample]]]:
    yield "scene", (_asked(question, shelf) for question in plan.written)
    yield "described", (_asked(question, shelf) for question in plan.described)
    spoken = [next(flacs) for _ in plan.utterances]
    told = list(zip(plan.utterances, spoken, strict=True))
    yield "spoken", (_heard(question, shelf, *said) for question, said in zip(plan.spoken, told, strict=True))
    if plan.split == "test":
        other = [told[at] for at in spoken_questions.others(plan.spoken)]
        heard = zip(plan.spoken, other, strict=True)
        yield "control", (_heard(question, shelf, *said, "control") for question, said in heard)
    yield "text", (_asked(question, shelf) for question in plan.text)
    yield "shots", (_shown(one, shelf) for one in plan.shots)


def _asked(question: Question, shelf: Shelf) -> Sample:
    """A written question, after its picture where it has one."""
    files = [("jpg", compose(question.scene, shelf))] if question.scene else []
    asked = [*({"type": "image"} for _ in files), {"type": "text", "text": question.text}]
    return Sample(messages=_turns(asked, question.answers[0]), files=files, about=_about(question, question.kind))


def _heard(question: Question, shelf: Shelf, said: Utterance, flac: bytes, use: str = "spoken") -> Sample:
    """A picture, and a question that is spoken."""
    assert question.scene is not None
    files = [("jpg", compose(question.scene, shelf)), ("flac", flac)]
    about = _about(question, f"{use}-{question.kind}") | {"question": said.text, "voice": said.voice}
    return Sample(
        messages=_turns([{"type": "image"}, {"type": "audio"}], question.answers[0]), files=files, about=about
    )


def _turns(asked: list[dict[str, str]], answer: str) -> list[dict[str, Any]]:
    content = asked[0]["text"] if len(asked) == 1 else asked
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def _about(question: Question, kind: str) -> dict[str, Any]:
    choices = {"choices": list(question.choices)} if question.choices else {}
    return {"kind": kind, "answers": list(question.answers), **choices, "new_wording": question.new}


def _shown(one: Shots, shelf: Shelf) -> Sample:
    """The shots as turns of their own, which are not learned, and the one that is to be named."""
    messages: list[dict[str, Any]] = []
    for _, name in (*one.shown, (one.scene, one.answer)):
        opening = [] if messages else [{"type": "text", "text": one.opening}]
        asked = [*opening, {"type": "image"}, {"type": "text", "text": ASKED}]
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": name, "learn": False}]
    messages[-1]["learn"] = True
    files = [("jpg", compose(scene, shelf)) for scene in (*(scene for scene, _ in one.shown), one.scene)]
    about = {"kind": one.kind, "answers": [one.answer], "choices": list(one.choices), "new_wording": one.new}
    return Sample(messages=messages, files=files, about=about)
