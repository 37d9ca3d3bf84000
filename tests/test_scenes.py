"""The data set `scenes`: questions whose text never tells the answer, pictures that do, splits that share nothing."""

import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import center_of_mass, label
from test_build import by_webdataset, everything
from toys import toy_config

from mmfm.config import Chat, ChatTemplate, Data, Run, Source
from mmfm.data.stream import TrainStream
from mmfm.data.writer import Item
from mmfm.datasets import debian, scene_pictures, scenes, shots
from mmfm.datasets.build_check import check_item
from mmfm.datasets.scene_pictures import COLOURS, KINDS, CutOut, Shelf, compose, emoji_shelf, stamp_shelves
from mmfm.datasets.scene_questions import CORNERS, COUNTS, WORDINGS, Question, plan, plan_described, plan_text
from mmfm.datasets.scenes import PACKAGE, STYLE
from mmfm.datasets.stamps_read import read_tree
from mmfm.preprocessing.chat import parse_messages
from mmfm.preprocessing.tokenizer import load_tokenizer

PLAIN = ChatTemplate(user=("User: ", "\n"), assistant=("Bot: ", "\n"))
EACH = 3  # cut-outs of a kind


def disc(shade: int = 0) -> Image.Image:
    """A grey disc: one thing, and darker than every ground."""
    picture = Image.new("RGBA", (60, 60))
    ImageDraw.Draw(picture).ellipse((2, 2, 57, 57), (shade, shade, shade, 255))
    return picture


@pytest.fixture(scope="module")
def shelf() -> Shelf:
    """Three discs of each kind."""
    names = [(kind, number) for kind in KINDS for number in range(EACH)]
    fixed = {"picture": disc(), "seen_on": frozenset(COLOURS)}
    return Shelf([CutOut(name=f"{kind}/{n}", caption=f"A {kind} {n}.", kind=kind, **fixed) for kind, n in names])


def seen(question: Question, shelf: Shelf) -> tuple[list[tuple[float, float]], np.ndarray]:
    """The middles of what is dark in the picture, as (x, y), by scipy's labels; and the colour of its corner."""
    assert question.scene is not None
    with Image.open(io.BytesIO(compose(question.scene, shelf))) as image:
        pixels = np.asarray(image).astype(int)
    dark = pixels.max(-1) < 60
    marked, count = label(dark)  # pyright: ignore[reportGeneralTypeIssues]
    middles = center_of_mass(dark, marked, range(1, count + 1))
    return [(x, y) for y, x in middles], pixels[0, 0]


def test_who_is_blind_can_only_guess(shelf: Shelf) -> None:
    """Of every text of a question, each answer is equally frequent; and so the best guess that training teaches from
    the text is right as often as any other, in test too. `name` is open: no answer comes twice in test."""
    found: dict[str, dict[str, Counter[str]]] = {}
    for split, count in (("train", 720), ("test", 480)):
        texts: dict[str, Counter[str]] = defaultdict(Counter)
        for question in plan(split, shelf, 0, count):
            if question.choices:
                assert question.answers[0] in question.choices
                texts[f"{question.kind}: {question.text}"][question.answers[0]] += 1
        for text, answers in texts.items():
            assert (
                len(answers)
                == {"kind": 10, "count": 4, "animal": 2, "where": 4, "side": 10, "colour": 6}[text.partition(":")[0]]
            )
            assert max(answers.values()) - min(answers.values()) <= 1, text
        found[split] = texts
    assert set(found["train"]) < set(found["test"])


def test_the_answer_is_what_the_picture_shows(shelf: Shelf) -> None:
    """Counted, placed and measured in the pixels, by another program; what is where is said by the plan."""
    counted: Counter[str] = Counter()
    for question in plan("test", shelf, 3, 24):
        assert question.scene is not None
        kinds = [shelf.things[thing.number].kind for thing in question.scene.things]
        middles, ground = seen(question, shelf)
        assert len(middles) == len(kinds), "nothing overlaps, nothing is cut away"
        answer = question.answers[0]
        if question.kind == "count":
            assert answer == COUNTS[len(middles) - 1] and question.answers[1] == str(len(middles))
        elif question.kind == "animal":
            assert answer == ("yes" if "animal" in kinds else "no")
        elif question.kind == "colour":
            assert min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - ground).sum()) == answer
        elif question.kind == "where":
            (asked,) = [thing for thing in question.scene.things if shelf.things[thing.number].kind in question.text]
            x, y = min(middles, key=lambda at: abs(at[0] - asked.x) + abs(at[1] - asked.y))
            assert CORNERS[2 * (y > 112) + (x > 112)] == answer
        elif question.kind == "side":
            left = min(question.scene.things, key=lambda thing: thing.x)
            assert (shelf.things[left.number].kind == answer) == ("left" in question.text)
            assert len({x > 112 for x, _ in middles}) == 2
        else:
            assert len(middles) == 1 and answer in (kinds[0], shelf.things[question.scene.things[0].number].called)
        counted[question.kind] += 1
    assert set(counted.values()) == {24}


def test_a_description_is_what_the_picture_shows(shelf: Shelf) -> None:
    """Its numbers, ground and places are those of the pixels, its kinds those of the plan; a thing alone has a name."""
    sizes: Counter[int] = Counter()
    for question in plan_described("test", shelf, 3, 60):
        assert question.scene is not None
        middles, ground = seen(question, shelf)
        found = re.fullmatch(r"(\w+) things? on a (\w+) ground: (.+)", question.answers[0])
        assert found is not None and found[1] == COUNTS[len(middles) - 1]
        assert min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - ground).sum()) == found[2]
        things = [shelf.things[thing.number] for thing in question.scene.things]
        told = dict.fromkeys(found[3].split("; "))
        if ", " in found[3]:
            assert told == {f"{things[0].kind}, {things[0].called}": None} and len(things) == 1
        else:
            corners = [CORNERS[2 * (thing.y > 112) + (thing.x > 112)] for thing in question.scene.things]
            assert told == {f"{a.kind} at the {b}": None for a, b in zip(things, corners, strict=True)}
            assert {CORNERS[2 * (y > 112) + (x > 112)] for x, y in middles} == set(corners)
        sizes[len(things)] += 1
    assert sizes == {1: 24, 2: 12, 3: 12, 4: 12}


def test_the_held_out_wording_is_of_test_alone(shelf: Shelf) -> None:
    for split in ("train", "val", "test", "test-style"):
        questions = [*plan(split, shelf, 0, 240), *plan_text(split, shelf, 0, 120)]
        questions += plan_described(split, shelf, 0, 60)
        new = {question.kind for question in questions if question.new}
        assert new == ({question.kind for question in questions} if split.startswith("test") else set())
    said = {q.text for q in plan("train", shelf, 0, 240)} & {q.text for q in plan("test", shelf, 0, 240) if q.new}
    assert not said and WORDINGS["name"][-1] in {q.text for q in plan("test", shelf, 0, 240)}


def test_a_split_is_its_own(shelf: Shelf) -> None:
    """Other scenes for another split, use or seed; the same for the same, whatever the size of the others."""
    first = plan("train", shelf, 0, 24)
    assert plan("train", shelf, 0, 24) == first
    ground = [question.scene for question in first]
    for other in (plan("val", shelf, 0, 24), plan("train", shelf, 1, 24), plan("train", shelf, 0, 24, "spoken")):
        assert sum(a == b.scene for a, b in zip(ground, other, strict=True)) < 3
    assert scenes.plan("test", shelf, 0, 8, 16) == scenes.plan("test", shelf, 0, 800, 16)


def test_nothing_but_the_shots_tells_a_made_up_name(shelf: Shelf) -> None:
    """Who reads the shots is right always, and of shuffled names by chance; the name that is said first, that comes
    last, or more often, is right half of the time, exactly; no cut-out comes twice."""
    found: dict[str, list[shots.Shots]] = defaultdict(list)
    for one in shots.plan("test", shelf, 0, 160):
        found[one.kind].append(one)
    assert len(found) == 14 and {len(group) for group in found.values()} == {160}

    def of(scene: Any) -> str:
        return shelf.things[scene.things[0].number].kind

    def share(right: list[bool]) -> float:
        return sum(right) / len(right)

    for kind, group in found.items():
        things = [[scene.things[0].number for scene in (*(s for s, _ in one.shown), one.scene)] for one in group]
        assert all(len(set(row)) == len(row) for row in things)
        assert share([one.choices[0] == one.answer for one in group]) == 0.5
        first = [re.findall("|".join(map(re.escape, one.choices)), one.opening)[0] for one in group]
        assert share([a == one.answer for a, one in zip(first, group, strict=True)]) == 0.5
        read = [name == one.answer for one in group for scene, name in one.shown if of(scene) == of(one.scene)]
        if kind.endswith("shuffled"):
            assert 0.4 < share(read) < 0.6
            continue
        assert all(read) and kind.endswith("true") == (group[0].answer in KINDS)
        if group[0].shown:
            assert read and share([one.shown[-1][1] == one.answer for one in group]) == 0.5
        if len(group[0].shown) % 2:
            most = [Counter(name for _, name in one.shown).most_common(1)[0][0] for one in group]
            assert share([a == one.answer for a, one in zip(most, group, strict=True)]) == 0.5


def test_made_up_names_are_of_one_split(shelf: Shelf) -> None:
    names = {
        split: {name for one in shots.plan(split, shelf, 0, 48) if "true" not in one.kind for name in one.choices}
        for split in ("train", "val", "test", "test-style")
    }
    assert len(names["train"]) > 100
    assert not names["train"] & (names["test"] | names["test-style"] | names["val"])
    assert not names["val"] & names["test"]


def fate(caption: str) -> str:
    n = int(hashlib.md5(caption.lower().rstrip(".").encode()).hexdigest(), 16) % 100
    return "test" if n < 15 else "val" if n < 20 else "train"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three cut-outs of each kind in each split; and one of no kind."""
    root = tmp_path / "package"
    captions: dict[str, Iterator[str]] = {
        split: iter([c for c in (f"Thing {n}." for n in range(2_000)) if fate(c) == split]) for split in debian.SPLITS
    }
    for at, roots in enumerate(KINDS.values()):
        for split in debian.SPLITS:
            for number in range(EACH):
                stem = root / PACKAGE.data / roots[0] / f"{split}{number}"
                stem.parent.mkdir(parents=True, exist_ok=True)
                stem.with_suffix(".txt").write_text(next(captions[split]) + "\n")
                own = {"train": 0, "val": 10, "test": 20}[split] + number + 3 * at % 7
                disc(own).save(stem.with_suffix(".png"))
    (root / PACKAGE.copyright).parent.mkdir(parents=True)
    (root / PACKAGE.copyright).write_text("License: GPL-2\n {as it is}\n")
    return root


def stamp(root: Path, name: str) -> Path:
    return root / PACKAGE.data / name


def test_cut_outs_keep_their_split(tree: Path) -> None:
    """By caption; bytes that test has too are left out of train, and so is what is no cut-out or cannot be seen."""
    expected = stamp_shelves(read_tree(tree / PACKAGE.data).stamps, Counter())
    assert {split: {thing.caption for thing in found.things} for split, found in expected.items()} == {
        split: {one.caption for one in read_tree(tree / PACKAGE.data).stamps if fate(one.caption) == split}
        for split in debian.SPLITS
    }
    unique = disc(200)
    unique.save(stamp(tree, "food/train0.png"))
    unique.save(stamp(tree, "food/test0.png"))
    disc().convert("RGB").save(stamp(tree, "food/train1.png"))
    Image.new("RGBA", (9, 9)).save(stamp(tree, "food/train2.png"))
    stamp(tree, "town/houses/train0.png").write_bytes(b"x")
    left: Counter[str] = Counter()
    found = stamp_shelves(read_tree(tree / PACKAGE.data).stamps, left)
    assert {thing.kind for thing in found["train"].things} == set(KINDS) - {"food"}
    assert any(thing.name == "food/test0" for thing in found["test"].things)
    assert left["the same bytes as in val or test"] >= 1 and left["image_empty"] == 2
    assert left["image_damaged"] == 1


def test_a_thing_is_seen_on_its_ground(shelf: Shelf) -> None:
    """What has the colour of a ground is not put there, while there are others."""
    red = Image.new("RGBA", (20, 20), (*COLOURS["red"], 255))
    hidden = scene_pictures._cut_out("r", "A red thing.", "food", red)
    assert hidden.seen_on == set(COLOURS) - {"red"}
    found = Shelf([hidden, *shelf.things])
    drawn = Counter(found.things[found.draw(Random(n), "food", "red")].name for n in range(200))
    assert "r" not in drawn and len(drawn) == EACH


@pytest.fixture
def build(tree: Path, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """build(name, ...) -> a small data set of `tree`, with discs as emoji."""

    @contextmanager
    def unpacked(package: debian.Package, file: Path, folder: Path) -> Iterator[Path]:
        yield tree if package == PACKAGE else tmp_path

    for name in ("some.deb", "emoji.deb"):
        (tmp_path / name).write_bytes(b"deb")
    monkeypatch.setattr(debian, "unpacked", unpacked)
    monkeypatch.setattr(debian, "output", lambda *asked: b"1.2-3\n")
    monkeypatch.setattr(scenes, "emoji_shelf", lambda font: shelf)

    def run(name: str, **options: Any) -> Path:
        files = {"deb": tmp_path / "some.deb", "emoji_deb": tmp_path / "emoji.deb"}
        scenes.build(tmp_path / name, train=8, evals=16, progress=False, **files, **options)
        return tmp_path / name

    return run


def test_every_conversation_is_one_that_training_reads(
    build: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """By webdataset's reader: the parts are those that are mentioned, in their order, and decode; the answer is the
    last turn; of shots it alone is learned. What is spoken in test is also written there, by no voice of train; the
    control asks something else over the same picture. A second build is the same in every byte, and a third is none."""
    folder = build("scenes")
    voices: dict[str, set[str]] = defaultdict(set)
    for split in ("train", "val", "test", "test-style"):
        for key, parts in by_webdataset(folder / split).items():
            check_item(Item(key, parts), "decode")
            about = json.loads(parts["json"])
            messages = parse_messages(about["messages"], key)
            assert messages[-1].role == "assistant" and messages[-1].content[0] == about["answers"][0]
            assert [one.learn for one in messages if one.role == "assistant"].count(True) == 1 and messages[-1].learn
            assert about["answers"][0] in about.get("choices", about["answers"])
            if "voice" in about:
                voices[split].update(about["voice"].split("+")[1:])
    assert voices["train"] and voices["test"] and not voices["train"] & (voices["test"] | voices["val"])
    assert read_whole(folder / "train") == read_whole(folder / "test") == {}
    test = by_webdataset(folder / "test")
    by_use = {use: [p for key, p in test.items() if key.startswith(f"test-{use}-")] for use in scenes.USES}
    told = [json.loads(parts["json"]) for parts in by_use["scene"]]
    written = {(p["0.jpg"], a["messages"][0]["content"][1]["text"]) for p, a in zip(by_use["scene"], told, strict=True)}
    for one, other in zip(by_use["spoken"], by_use["control"], strict=True):
        own, control = json.loads(one["json"]), json.loads(other["json"])
        assert (one["0.jpg"], own["question"]) in written and one["0.jpg"] == other["0.jpg"]
        assert control["kind"] == own["kind"].replace("spoken", "control") and control["answers"] == own["answers"]
        assert control["question"] != own["question"] and one["1.flac"] != other["1.flac"]
    manifest = json.loads((folder / "scenes.json").read_text())
    assert manifest["splits"]["test"] == {use: len(found) for use, found in by_use.items()}
    page = (folder / "README.md").read_text()
    assert "| where | 4 | 8 | 8 | 16 | 8 |" in page and "{as it is}" in page
    first = everything(folder.rename(folder.with_name("first")))
    assert everything(build("scenes")) == first
    build("scenes")
    assert capsys.readouterr().out.endswith("scenes is complete already; nothing to do\n")


def read_whole(folder: Path) -> dict[Any, int]:
    """Reads a folder by training's own stream, once; the bad samples of it."""
    data = Data(train=(Source(shards=str(folder), modalities=("messages",)),), batch_size=64, num_workers=0)
    run = Run(name="chat", model=replace(toy_config(), chat=PLAIN), data=data, chat=Chat())
    stream = TrainStream(run, load_tokenizer("bytes"), rank=0, world=1)
    keys: set[str] = set()
    for batch in stream:
        if keys & set(batch.keys):
            break
        keys.update(batch.keys)
    return {code: count for code, count in stream.health.bad.items() if count}


def test_emoji_are_of_the_same_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every character has a name that is an answer; of each kind there are enough for shots."""
    font = ImageFont.load_default(109)
    monkeypatch.setattr(scene_pictures.ImageFont, "truetype", lambda path, size: font)
    kinds = Counter(thing.kind for thing in emoji_shelf(Path("x")).things)
    assert set(kinds) == set(KINDS) and min(kinds.values()) >= EACH
    called = {thing.called for thing in emoji_shelf(Path("x")).things}
    assert {"an owl", "a cow", "the letter Q", "an ambulance"} <= called
    assert STYLE.remedy.endswith("as --emoji-deb FILE")


def test_kinds_are_the_folders() -> None:
    """Signs for letters are hands; a road sign is no building."""
    names = {
        "animals/birds/owl": "animal",
        "military/vehicles/tank": "vehicle",
        "symbols/alphabets/asl/a": "",
        "symbols/alphabets/english/a": "letter",
        "town/roadsigns/stop": "",
        "foodstuff/x": "",
    }
    assert {name: scene_pictures.kind_of(name) for name in names} == names
