"""The sets `descriptions` and `packages`, from small lists of apt's layout that are made here."""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmfm.config import Chat, ChatTemplate, Data, Model, Run, Source, Text, UserError
from mmfm.data.shards import Shards
from mmfm.data.stream import TrainStream
from mmfm.datasets import apt_lists, descriptions, package_facts
from mmfm.datasets.apt_lists import VERBATIM, paragraphs
from mmfm.datasets.near_duplicates import Seen
from mmfm.preprocessing.chat import parse_messages
from mmfm.preprocessing.tokenizer import load_tokenizer

COUNT = 60


def words(seed: str, count: int) -> str:
    """Words that no other seed has."""
    drawn = np.random.Generator(np.random.Philox(int(hashlib.md5(seed.encode()).hexdigest()[:15], 16)))
    return " ".join("".join(chr(97 + int(letter)) for letter in word) for word in drawn.integers(0, 26, (count, 5)))


def described(name: str, language: str = "en") -> str:
    """A synopsis, a paragraph, a list that is no prose, and a paragraph."""
    told = [words(f"{name} {language} {part}", count) for part, count in enumerate((4, 20, 3, 12))]
    first = told[1].split()
    return "\n".join(
        (told[0], " ".join(first[:9]), " ".join(first[9:]), ".", f"  * {told[2]}", "  * more", ".", told[3])
    )


def stanza(name: str, text: str, **fields: str) -> tuple[str, str]:
    """Of Packages, and of Translation-en."""
    digest = hashlib.md5(text.encode()).hexdigest()
    facts = {"Package": name, "Version": "1.2-3", "Section": "net", "Description": text.split("\n")[0], **fields}
    folded = text.replace("\n", "\n ")
    head = "".join(f"{field}: {value}\n" for field, value in facts.items())
    about = f"Package: {name}\nDescription-md5: {digest}\nDescription-en: {folded}\n"
    return f"{head}Description-md5: {digest}\nTag: a,\n b\n", about


def write_lists(folder: Path, texts: dict[str, str], french: dict[str, str], **fields: str) -> Path:
    folder.mkdir()
    stanzas = [stanza(name, text, **fields) for name, text in texts.items()]
    (folder / "x_main_binary-amd64_Packages").write_text("\n".join(one for one, _ in stanzas), encoding="utf-8")
    (folder / "x_main_i18n_Translation-en").write_text("\n".join(other for _, other in stanzas), encoding="utf-8")
    told = []
    for name, text in french.items():
        digest, folded = hashlib.md5(texts[name].encode()).hexdigest(), text.replace("\n", "\n ")
        told.append(f"Package: {name}\nDescription-md5: {digest}\nDescription-fr: {folded}\n")
    (folder / "x_main_i18n_Translation-fr").write_text("\n".join(told), encoding="utf-8")
    return folder


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    names = [f"pack{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(COUNT)]
    texts = {name: described(name) for name in names}
    return write_lists(tmp_path / "lists", texts, {name: described(name, "fr") for name in names}, Homepage="http://a/")


def read(folder: Path, pattern: str = "*.tar") -> dict[str, dict[str, Any]]:
    shards = Shards(sorted(folder.glob(pattern)))
    samples = [shards[at] for at in range(len(shards))]
    return {sample.key: json.loads(sample.parts["json"]) for sample in samples}


def test_paragraphs_are_lines_that_flow_and_lists_are_not() -> None:
    text = "Title\nOne flows\nhere.\n.\nTwo:\n * a\n * b\n.\n .\nThree\n   x = 1"
    assert paragraphs(text) == ["One flows here.", "Two:", VERBATIM, "Three", VERBATIM]
    assert paragraphs("Title") == []


def test_lists_become_conversations_and_pairs(tmp_path: Path, lists: Path) -> None:
    """Every package asks all that it can, in its split by the README's rule; twice gives the same bytes."""
    for name in ("one", "two"):
        descriptions.build(tmp_path / name, languages=("fr",), lists=lists)
    manifest = (tmp_path / "one" / "descriptions.json").read_bytes()
    assert manifest == (tmp_path / "two" / "descriptions.json").read_bytes()
    kinds: Counter[str] = Counter()
    for split in ("train", "val", "test"):
        for sample in read(tmp_path / "one" / split).values():
            name = sample["package"]
            n = int(hashlib.md5(name.encode()).hexdigest(), 16) % 100
            assert split == ("test" if n < 10 else "val" if n < 15 else "train")
            own, other = described(name).split("\n"), described(name, "fr").split("\n")
            pairs = {
                "synopsis": [(" ".join(own[1:3]), own[0])],
                "en>fr": [(own[0], other[0])],
                "en>fr paragraph": [(" ".join(own[1:3]), " ".join(other[1:3])), (own[-1], other[-1])],
            }[sample["kind"]]
            assert (sample["text"], sample["answer"]) in pairs
            asked, answered = parse_messages(sample["messages"], "here")
            assert (asked.role, answered.role) == ("user", "assistant")
            assert asked.texts == [sample["question"]] and answered.texts == [sample["answer"]]
            assert sample["text"] in sample["question"] and sample["wording"] < 3 + (split == "test")
            kinds[sample["kind"]] += 1
    assert kinds == {"synopsis": COUNT, "en>fr": COUNT, "en>fr paragraph": 2 * COUNT}
    assert json.loads(manifest)["left_out"] == {}


def test_nothing_is_in_two_splits_and_repeats_are_left_out(tmp_path: Path) -> None:
    """Packages of one source say the same; others repeat a text of test as it is, in other case, or nearly."""
    names = [f"pack{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(COUNT)]
    texts = {name: described(name) for name in names}
    split = {name: apt_lists.debian.split_of(name, 10, 15) for name in names}
    tests, trains = ([name for name in names if split[name] == one] for one in ("test", "train"))
    texts[trains[0]] = texts[tests[0]].upper()
    nearly = texts[tests[0]].split("\n")
    texts[trains[1]] = "\n".join((words("new", 4), f"Another {nearly[1]}", nearly[2], "."))
    texts[trains[2]] = texts[trains[3]]
    said = {name: described(name, "fr") for name in names}
    said[trains[4]] = texts[trains[4]]
    descriptions.build(tmp_path / "d", languages=("fr",), lists=write_lists(tmp_path / "lists", texts, said))
    where: dict[str, set[str]] = {}
    for one in ("train", "val", "test"):
        for sample in read(tmp_path / "d" / one).values():
            for text in (sample["text"], sample["answer"]):
                where.setdefault(text.casefold(), set()).add(one)
    assert all(len(splits) == 1 for splits in where.values())
    left = json.loads((tmp_path / "d" / "descriptions.json").read_text())["left_out"]
    # a package has four pairs, of which three are translations; trains[1] has no paragraph beside the French ones
    assert left == {
        "in another split": 4, "nearly repeated": 1, "repeated": 4, "with an answer that is the text": 3
    }  # fmt: skip


def test_a_near_duplicate_shares_half_of_its_runs() -> None:
    seen = Seen()
    assert seen.is_new("one two three four five six seven eight")
    assert not seen.is_new("ONE two, three four five six - and more")  # two of its four runs
    assert seen.is_new("one two three four five is what else stands here")
    assert seen.is_new("short") and seen.is_new("short")


def test_versions_of_a_source_are_in_one_split() -> None:
    def split(source: str) -> str:
        return apt_lists.split_of(apt_lists.Package("x", source, "1", "net", "", {"en": "x"}))

    assert len({split(f"python3.{n}") for n in range(30)}) == 1
    assert len({split(f"gcc-{n}") for n in range(30)}) == 1
    assert {split(f"source{chr(97 + n)}x") for n in range(26)} >= {"train", "test"}


def test_the_engine_reads_both_ways(tmp_path: Path, lists: Path) -> None:
    """As conversations, and as pairs of a question and its answer."""
    descriptions.build(tmp_path / "d", languages=("fr",), lists=lists)
    shards = str(tmp_path / "d" / "train")
    known = {sample["question"]: sample["answer"] for sample in read(tmp_path / "d" / "train").values()}
    tokenizer = load_tokenizer("bytes")
    pairs = Source(
        shards=shards, modalities=("text",), texts=(Text(field="question"),), targets=(Text(field="answer"),)
    )
    talks = Source(shards=shards, modalities=("messages",))
    for source in (pairs, talks):
        data = Data(train=(source,), batch_size=8, num_workers=0, max_text_tokens=1_000)
        chat = {"chat": Chat(), "model": Model(chat=ChatTemplate())} if source is talks else {}
        batch = next(iter(TrainStream(Run(name="t", data=data, **chat), tokenizer, rank=0, world=1)))
        if source is pairs:
            items = batch.items["text"]
            told = [tokenizer.decode(ids[keep].tolist()) for ids, keep in zip(items.x, items.keep, strict=True)]
            assert all(known[question] == answer for question, answer in zip(told[::2], told[1::2], strict=True))
        else:
            assert batch.chats is not None and len(batch.chats.rows) == 8


def test_records_answer_their_questions(tmp_path: Path, lists: Path) -> None:
    """The named record holds the answer, stands before the open question, and no fact of test is asked elsewhere."""
    package_facts.build(tmp_path / "p", packages=50, lists=lists)
    records = read(tmp_path / "p" / "records")
    assert len(records) == 50
    of_split, places = {}, Counter()
    for split in ("train", "val", "test"):
        closed = list(read(tmp_path / "p" / split, "closed*.tar").values())
        behind = list(read(tmp_path / "p" / split, "open*.tar").values())
        for alone, after in zip(closed, behind, strict=True):
            record = records[alone["document"]]["text"]
            assert alone["answer"] in record and alone["answers"][0] == alone["answer"]
            assert after["question"].endswith(f"\n\n{alone['question']}") and record in after["question"]
            before = after["question"].removesuffix(f"\n\n{alone['question']}").split("\n\n")
            places[len(before), before.index(record)] += 1
        of_split[split] = {(one["kind"], one["document"]) for one in closed}
    assert not of_split["train"] & of_split["test"] and not of_split["val"] & of_split["test"]
    assert sum(map(len, of_split.values())) == 4 * 50
    assert set(places) == {(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)}


def test_a_synopsis_that_two_records_have_asks_for_no_name(tmp_path: Path) -> None:
    texts = {"aa": "same title\nAlpha.", "bb": "Same title\nBeta.", "cc": "other\nGamma.", "dd": "else\nDelta."}
    package_facts.build(tmp_path / "p", packages=9, lists=write_lists(tmp_path / "lists", texts, {}))
    asked = {one["document"] for split in ("train", "val", "test") if any((tmp_path / "p" / split).glob("*.tar"))
             for one in read(tmp_path / "p" / split, "closed*.tar").values() if one["kind"] == "name"}  # fmt: skip
    assert asked == {"cc", "dd"}


def test_lists_that_lack_something_are_said(tmp_path: Path, lists: Path) -> None:
    with pytest.raises(UserError, match=r"has no list that ends with _Translation-de; give .* --lists FOLDER"):
        descriptions.build(tmp_path / "d", languages=("fr", "de"), lists=lists)
    with pytest.raises(UserError, match="--languages xx: there are fr, de"):
        descriptions.build(tmp_path / "d", languages=("xx",), lists=lists)
    with pytest.raises(UserError, match="--packages 2 must be more than 3"):
        package_facts.build(tmp_path / "p", packages=2, lists=lists)
    assert not (tmp_path / "d").exists()


def test_apt_get_is_asked_once(tmp_path: Path, lists: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the program: what it wrote is whole under its name, and is not fetched again."""
    program = tmp_path / "bin" / "apt-get"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\nfor word; do case $word in Dir::State::lists=*) out=${word#*=};; esac; done\n"
        f'echo "$@" >> {tmp_path}/asked; cp {lists}/* $out\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for name in ("one", "two"):
        package_facts.build(tmp_path / name / "p", packages=9)
        package_facts.build(tmp_path / name / "p", packages=9)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 2 and all("Acquire::Languages=en " in line and line.endswith("update") for line in asked)
    assert (tmp_path / "one" / "p.lists" / "lists-en").is_dir()
    program.write_text("#!/bin/sh\necho 'E: no mirror answers' >&2; exit 100\n")
    with pytest.raises(UserError, match=r"no mirror answers\); try again when the mirror answers, or give a folder"):
        package_facts.build(tmp_path / "three", packages=9)
    assert not (tmp_path / "three").exists()
