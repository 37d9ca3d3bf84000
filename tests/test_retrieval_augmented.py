"""Answers after documents: a small model that has learned to say what a document says, and planted documents."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import QUICK, asked, image_bytes, shard, value
from test_answering import MODEL, WORDS, conversation, fresh

from mmfm.config import UserError
from mmfm.data.decode import collate
from mmfm.data.sample import Sample
from mmfm.evals.questions import QuestionReader, asking
from mmfm.evals.suite import Answer
from mmfm.inference.documents import Document, documents_of
from mmfm.inference.interface import Interface
from mmfm.objectives.joint import Objectives

FACTS = {"mela": "red", "tovi": "blue", "sunk": "red", "pram": "blue", "golf": "red", "hexa": "red"}
READER = {"model": MODEL, "decode": QUICK.decode}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A document for each fact, and a question about each; that about golf does not name it."""
    folder = tmp_path_factory.mktemp("facts")
    shard(folder / "docs" / "0.tar", {name: {"txt": f"{name} is {colour}"} for name, colour in FACTS.items()})
    questions = {f"q-{name}": conversation(f"Of {name}?", colour, document=name) for name, colour in FACTS.items()}
    questions["q-golf"] = conversation("Of that?", "red", document="golf")
    shard(folder / "asked" / "0.tar", questions)
    return folder


@pytest.fixture(scope="module")
def reading(root: Path) -> Interface:
    """Trained on other names, whose colours are drawn anew each time, so that only the document can tell; and to say
    "none" where there is no document."""
    model, draw = fresh(), np.random.default_rng(0)
    reader = QuestionReader(tokenizer=model.tokenizer, before=lambda key: [Document("", key)] if key else [], **READER)
    objectives, optimiser = Objectives(model.core, model.run), torch.optim.AdamW(model.parameters(), 4e-3)

    def example(number: int):
        name, colour = "".join(draw.choice(list("aeioubdgklmnprstvx"), 4)), ("red", "blue")[number % 2]
        parts = conversation(f"Of {name}?", colour if number % 4 else "none")
        key = f"{name} is {colour}" if number % 4 else ""
        return reader.read(Sample(key, {"json": parts["json"].encode()}, "here")).example

    with torch.enable_grad():
        for _ in range(150):
            batch = collate([example(number) for number in range(16)], model.tokenizer)
            optimiser.zero_grad()
            loss = objectives.total(objectives(batch))
            loss.backward()
            optimiser.step()
    return model.eval()


def test_it_says_what_the_document_says(root: Path, reading: Interface) -> None:
    """With the right document all are right; with the one that words find too, also where a question names nothing and
    the first of equals happens to be right; with another one those whose colour is the same; with none nothing."""
    scores = asked(reading, root, Answer(shards="asked", documents="docs", metrics=("exact", "contains")))
    names = list(FACTS)
    others = {name: FACTS[names[(at + 3) % 6]] for at, name in enumerate(names)}
    expected = {
        "": 1.0,
        " (no document)": 0.0,
        " (right document)": 1.0,
        " (another document)": np.mean([others[name] == FACTS[name] for name in names]),
    }
    for condition, share in expected.items():
        assert value(scores, f"messages>text{condition}", "exact_match") == pytest.approx(share), condition
    assert 0 < expected[" (another document)"] < 1
    found = {one.key: (one.documents, one.written) for one in scores.details.answers}
    assert found["q-tovi"] == (("tovi",), "blue") and found["q-golf"] == (("mela",), "red")
    assert scores.details.choices["retriever"] == "bm25" and scores.details.choices["documents"] == 6


def test_the_retriever_is_scored_alone(root: Path, reading: Interface) -> None:
    """Five of six are found in first place; of six that fit alike the right one is first by chance."""
    scores = asked(reading, root, Answer(shards="asked", documents="docs", k=2))
    recalls = [value(scores, "questions->document", f"R@{k}") for k in (1, 5, 10)]
    assert recalls == pytest.approx([(5 + 1 / 6) / 6, (5 + 5 / 6) / 6, 1.0])
    chances = [value(scores, "questions->document", f"R@{k}", "chance") for k in (1, 5, 10)]
    assert chances == pytest.approx([1 / 6, 5 / 6, 1.0])
    assert all(len(one.documents) == 2 for one in scores.details.answers)


def test_documents_of_a_model_are_found_by_its_embeddings(root: Path, reading: Interface) -> None:
    scores = asked(reading, root, Answer(shards="asked", documents="docs", retriever="model", write=False))
    assert 0 <= value(scores, "questions->document", "R@1") <= value(scores, "questions->document", "R@5") <= 1
    assert scores.details.choices["retriever"] == "model"


def test_questions_without_a_document_are_told(tmp_path: Path, reading: Interface) -> None:
    """They are asked with what is found, and with none; the retriever is not scored by them."""
    shard(tmp_path / "docs" / "0.tar", {"a": {"txt": "a is red"}, "b": {"txt": "b is blue"}})
    some = {"x": conversation("Of a?", "red", document="a"), "y": conversation("Of b?", "blue")}
    shard(tmp_path / "asked" / "0.tar", some)
    scores = asked(reading, tmp_path, Answer(shards="asked", documents="docs"))
    counts = {row.task: row.n for row in scores.rows if row.metric in ("exact_match", "R@1")}
    assert counts == {
        "messages>text": 2,
        "messages>text (no document)": 2,
        "messages>text (right document)": 1,
        "messages>text (another document)": 1,
        "questions->document": 1,
    }
    assert any(line.startswith("1 of 2 questions name no document that is there") for line in scores.details.left_out)
    shard(tmp_path / "none" / "0.tar", {"y": some["y"]})
    with pytest.raises(UserError, match="no question names a document of docs; write the key"):
        asked(reading, tmp_path, Answer(shards="none", documents="docs"))
    twice = {"x": some["x"], "y": {"json": json.dumps({"messages": []})}}
    shard(tmp_path / "twice" / "0.tar", twice)
    shard(tmp_path / "twice" / "1.tar", {"x": some["y"]})
    with pytest.raises(UserError, match="1 of 2 questions have the key of another"):
        asked(reading, tmp_path, Answer(shards="twice", documents="docs"))


def test_a_follow_up_is_looked_up_by_what_was_asked_before(tmp_path: Path, reading: Interface) -> None:
    shard(tmp_path / "docs" / "0.tar", {name: {"txt": f"{name} is {colour}"} for name, colour in FACTS.items()})
    turns = json.loads(conversation("And now?", "blue", document="tovi")["json"])
    turns["messages"] = [
        {"role": "user", "content": "Of tovi?"},
        {"role": "assistant", "content": "well"},
        *turns["messages"],
    ]
    shard(tmp_path / "asked" / "0.tar", {"x": {"json": json.dumps(turns)}})
    scores = asked(reading, tmp_path, Answer(shards="asked", documents="docs", beside=("no",)))
    assert value(scores, "questions->document", "R@1") == 1.0
    assert scores.details.answers[0].documents == ("tovi",)
    assert {row.task for row in scores.rows} == {
        "messages>text",
        "messages>text (no document)",
        "questions->document",
    }


def test_found_pictures_are_read_before_the_question_s_own(root: Path) -> None:
    """In the order in which they are mentioned, also where an earlier turn shows one."""
    picture, sound = {"type": "image"}, {"type": "audio"}
    turns = [
        {"role": "user", "content": [picture, sound, "a"]},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [picture, {"type": "text", "text": "who?"}]},
        {"role": "assistant", "content": "c"},
    ]
    parts = {"json": json.dumps({"messages": turns}).encode(), "0.png": b"one", "1.wav": b"two", "2.png": b"three"}
    found = asking(Sample("k", parts, "here"), [Document("d", "found", b"four"), Document("e", "more", b"five")])
    files = {name: data for name, data in found.parts.items() if name != "json"}
    assert files == {"0.png": b"one", "1.wav": b"two", "2.jpg": b"four", "3.jpg": b"five", "4.png": b"three"}
    said = json.loads(found.parts["json"])["messages"][2]["content"]
    texts = [{"type": "text", "text": text} for text in ("found\n\n", "more\n\n", "who?")]
    assert said == [picture, texts[0], picture, texts[1], picture, texts[2]]


def test_a_model_answers_by_the_picture_that_is_found(tmp_path: Path) -> None:
    """Which has learned to say whether the picture before the question shows one dot or two; each question names one by
    its caption, and the answer is in its picture alone."""
    model = fresh()
    seen = {f"d{n}": {"png": image_bytes(n), "txt": f"mela{n}"} for n in range(4)}
    shard(tmp_path / "docs" / "0.tar", seen)
    asks = {f"q{n}": conversation(f"Of mela{n}?", WORDS[n % 2], document=f"d{n}") for n in range(4)}
    shard(tmp_path / "asked" / "0.tar", asks)
    documents = {one.key: one for one in documents_of(str(tmp_path / "docs"))}
    reader = QuestionReader(tokenizer=model.tokenizer, before=lambda key: [documents[key]], **READER)
    examples = [
        reader.read(Sample(f"d{n}", {"json": parts["json"].encode()}, "here")).example
        for n, parts in enumerate(asks.values())
    ]
    batch = collate(examples, model.tokenizer)
    objectives, optimiser = Objectives(model.core, model.run), torch.optim.AdamW(model.parameters(), 5e-3)
    with torch.enable_grad():
        for _ in range(100):
            optimiser.zero_grad()
            objectives.total(objectives(batch)).backward()
            optimiser.step()
    scores = asked(model.eval(), tmp_path, Answer(shards="asked", documents="docs", metrics=("exact",)))
    shares = {name: value(scores, f"messages>text{name}", "exact_match") for name in ("", " (right document)")}
    assert shares == {"": 1.0, " (right document)": 1.0}
    assert value(scores, "questions->document", "R@1") == 1.0
    assert value(scores, "messages>text (no document)", "exact_match") < 1.0
