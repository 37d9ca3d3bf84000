"""Evaluation reads samples as training does: documents, fields of texts, questions with answers, shots; what is written
is compared with what was to be written, and what is not scored is named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import (
    CONFUSION,
    NAMED,
    PETS,
    QUICK,
    SMALL,
    Planted,
    asked,
    axis,
    evaluate,
    image_bytes,
    pets,
    read,
    shard,
    sound_bytes,
    tasks_of,
    value,
)

from mmfm.config import Data, Eval, Generative, Run, Source, Text
from mmfm.data.batch import Batch
from mmfm.data.decode import Decode, collate
from mmfm.data.sample import Sample
from mmfm.evals.config import EvalConfig, config_of
from mmfm.evals.judges.contract import compared
from mmfm.evals.judges.figures import read_right, word_errors
from mmfm.evals.reading import Reader
from mmfm.evals.run import scores_during_training
from mmfm.evals.split import at_rest
from mmfm.evals.suite import Caption, Retrieve, Tars
from mmfm.inference.interface import Interface
from mmfm.inference.processing import Text as MadeText
from mmfm.models.model import build
from mmfm.preprocessing.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

BYTES = load_tokenizer("bytes")


def interface(*tasks: str, **data: Any) -> Interface:
    torch.manual_seed(0)
    run = Run(name="r", model=SMALL, generative=tuple(Generative(task=task) for task in tasks), data=Data(**data))
    return Interface(build(SMALL, BYTES.size, run.contrastive), run, BYTES)


def rows_of(model: Interface, spec: str, **changes: Any) -> dict[tuple[str, str], tuple[float, int]]:
    own = {"batch_size": 3, "max_tokens": 3, "bootstrap": QUICK.bootstrap, **changes}
    scores = evaluate(model, spec, replace(config_of(model.run), **own))
    return {(row.task, row.metric): (row.value, row.n) for row in scores.rows}


# Documents


def test_documents_score_as_their_last_items(tmp_path: Path) -> None:
    """Two pictures, sounds and texts to a sample: every figure is that of samples of the last ones alone, which
    training contrasts and writes too; that there are several is told."""
    last = {f"d{n}": {"image": n, "audio": n, "txt": f"name {n}"} for n in range(7)}
    documents = {
        key: {"0.png": image_bytes(50 + n), "1.txt": f"before {n}", "2.flac": sound_bytes(70 + n),
              "3.png": image_bytes(n), "4.flac": sound_bytes(n), "5.txt": f"name {n}"}
        for n, key in enumerate(last)
    }  # fmt: skip
    model = interface("image>text", "audio>text")
    plain, many = (shard(tmp_path / name / "0.tar", samples) for name, samples in (("a", last), ("b", documents)))
    alone, counted = rows_of(model, plain), rows_of(model, many)
    assert alone.keys() == counted.keys() and ("image->text", "R@1") in alone
    for key, (score, n) in alone.items():
        assert counted[key] == (pytest.approx(score, abs=1e-5), n), key
    lines = evaluate(model, many, replace(QUICK, max_tokens=3)).details.left_out
    assert "7 of 7 samples hold several items of image: the last one is embedded, as in training" in lines


def test_a_document_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    """Rows of vectors are rows of samples: planted vectors are found under their own keys."""
    samples: dict[str, dict[str, Any]] = {
        key: {"image": n, "txt": name} for n, (key, (name, _)) in enumerate(PETS.items())
    }
    samples["b"] = {"0.png": image_bytes(40), "1.png": image_bytes(41), "txt": "cat"}
    model = Planted({("image", key): vector for key, (_, vector) in PETS.items()}, NAMED)
    scores = evaluate(model, shard(tmp_path / "pets" / "0.tar", samples))
    assert scores.details.confusion == {"image->text": CONFUSION}


# Texts


def test_text_is_read_as_in_training(tmp_path: Path) -> None:
    """By the field of the source with the largest weight that is there, of a list the first; by what a sample holds its
    source is known; a text that no source finds is its plain one, and counted."""
    captions = {"captions": {"fr": ["un", "deux"], "en": "one"}}
    samples = {
        "a": {"image": 0, "json": json.dumps(captions), "txt": "plain"},
        "b": {"image": 1, "json": json.dumps({"captions": {"en": "two"}})},
        "c": {"image": 2, "txt": "three"},
        "d": {"audio": 3, "json": json.dumps(captions), "txt": "heard"},
    }
    texts = (Text(field="captions.en"), Text(field="captions.fr", weight=2.0))
    sources = (
        Source(shards="x", modalities=("image", "text"), texts=texts),
        Source(shards="y", modalities=("audio", "text")),
    )
    model = interface("image>text", train=sources, batch_size=4)
    spec, how = shard(tmp_path / "s" / "0.tar", samples), config_of(model.run, max_tokens=2)
    split = read(model, spec, how)
    assert split.texts == ("un", "two", "three", "heard")
    assert [info.plain for info in split.infos] == [False, False, True, False] and split.infos[0].texts == (
        "un",
        "deux",
    )
    other = read(model, spec, replace(how, texts=(Text(field="txt"),)))
    assert other.texts == ("plain", None, "three", "heard")
    told = evaluate(model, spec, how).details.left_out
    assert any(
        line.startswith("1 of 4 samples have no text at a field that a source of the run names") for line in told
    )


@pytest.mark.parametrize("letters", [BYTES, train_tokenizer(["one two three"] * 9, 260)], ids=["bytes", "merges"])
def test_half_of_a_surrogate_pair_is_read_as_one_sign(letters: Tokenizer, tmp_path: Path) -> None:
    """JSON can hold it and no UTF-8 can: every figure is there, and is that of a "?" in its place, but where the bytes
    of the text are counted."""
    model = interface("image>text", "text~", ">text")
    model = Interface(build(SMALL, letters.size, ()), model.run, letters)
    found = []
    for name, sign in (("half", "\\ud83d"), ("sign", "?")):
        samples = {f"{n}": {"image": n, "json": f'{{"caption": "one {sign} {n}"}}'} for n in range(3)}
        found.append(rows_of(model, shard(tmp_path / name / "0.tar", samples)))
    half, sign = found
    assert half.keys() == sign.keys() and {"image->text", "image>text", "text~", ">text"} <= {task for task, _ in half}
    for key, (score, n) in sign.items():
        wanted = pytest.approx(score, rel=1e-4)
        assert half[key] == (wanted, n) or ("bits_per_byte" in key[1] and 0 < half[key][0] < score), key


def test_a_list_of_captions_is_told(tmp_path: Path) -> None:
    """What takes the first alone is said, and where a sample has one caption it is not counted."""
    samples = {f"{n}": {"image": n, "json": json.dumps({"captions": [f"a {n}", "b"][: 1 + (n < 2)]})} for n in range(3)}
    sources = (Source(shards="x", modalities=("image", "text"), texts=(Text(field="captions"),)),)
    model = interface("image>text", train=sources, batch_size=4)
    spec, how = shard(tmp_path / "s" / "0.tar", samples), config_of(model.run, max_tokens=2)
    told = evaluate(model, spec, how).details.left_out
    (line,) = (line for line in told if "several texts" in line)
    assert line.startswith("2 of 3 samples have several texts: classes, WER, CER and likelihood are of the first, ")


def test_several_captions_score_as_in_a_suite(tmp_path: Path) -> None:
    """Plain evaluation and a suite agree about the same samples: an item is found where any of its captions is, and
    what is written is held against all of them; exact match takes any. A caption of two samples is right for both."""
    words = {f"{n}": [f"a {n}", "two words", f"c {n}"][: 2 + n % 2] for n in range(4)} | {"4": ["alone here"]}
    words = {
        key: [text if text != "two words" else f"two words {key}" for text in texts] for key, texts in words.items()
    }
    samples = {key: {"image": int(key), "json": json.dumps({"captions": texts})} for key, texts in words.items()}
    spec = shard(tmp_path / "s" / "0.tar", samples)
    rng = np.random.default_rng(0)
    vectors = {("image", key): rng.standard_normal(3).tolist() for key in words}
    texts = {text: rng.standard_normal(3).tolist() for own in words.values() for text in own}
    written = {key: own[-1] if key != "0" else "something else" for key, own in words.items()}
    model = Planted(vectors, texts, written, tasks=("image>text",))
    source = Source(shards="x", modalities=("image", "text"), texts=(Text(field="captions"),))
    plain = evaluate(model, spec, replace(QUICK, sources=(source,)))
    data = Tars(shards=spec, captions="captions")
    suite = asked(model, tmp_path, Retrieve(data=data), Caption(data=data))
    for task, metric in [(row.task, row.metric) for row in suite.rows]:
        assert value(plain, task, metric) == value(suite, task, metric), (task, metric)
    assert {("text->image", "R@1"), ("image>text", "cider")} <= {(row.task, row.metric) for row in suite.rows}
    assert value(plain, "image>text", "exact_match") == pytest.approx(4 / 5)
    assert value(plain, "text->image", "R@1", "n") == sum(map(len, words.values()))


def test_a_caption_of_two_samples_finds_either(tmp_path: Path) -> None:
    """Of three pictures two share a caption: it finds the second in first place, and the third is none of it."""
    words = {"a": ["shared", "one"], "b": ["two", "shared"], "c": ["three"]}
    samples = {key: {"image": n, "json": json.dumps({"captions": own})} for n, (key, own) in enumerate(words.items())}
    spec = shard(tmp_path / "s" / "0.tar", samples)
    vectors = {("image", "a"): axis(0), ("image", "b"): axis(1), ("image", "c"): axis(2)}
    model = Planted(vectors, {"shared": axis(1), "one": axis(0), "two": axis(2), "three": axis(2)})
    source = Source(shards="x", modalities=("image", "text"), texts=(Text(field="captions"),))
    scores = evaluate(model, spec, replace(QUICK, sources=(source,)))
    assert value(scores, "text->image", "R@1", "n") == 4
    assert value(scores, "text->image", "R@1") == pytest.approx(3 / 4)  # "two" finds the third picture
    assert value(scores, "image->text", "R@1") == pytest.approx((1 + 1 + 1 / 2) / 3)  # "two" ties with "three"
    assert value(scores, "image->text", "R@1", "chance") == pytest.approx((2 / 4 + 2 / 4 + 1 / 4) / 3)


def test_scores_in_training_follow_the_fields_too(tmp_path: Path) -> None:
    """Captions in lists of the .json alone: named by `texts` they are scored; without, it is said why nothing is."""
    samples = {f"{n}": {"image": n, "json": json.dumps({"captions": [f"a {n}", "other"]})} for n in range(4)}
    spec = shard(tmp_path / "val" / "0.tar", samples)
    source = Source(shards=spec, modalities=("image", "text"), texts=(Text(field="captions"),))
    model = interface("image>text", train=(source,), val=spec, batch_size=4)
    scores, _ = scores_during_training(model, model.run)
    assert {"val/image->text/R@1", "val/image->text/acc@1", "val/image>text/exact_match"} <= scores.keys()
    bare = interface("image>text", val=spec)
    scores, left_out = scores_during_training(bare, bare.run)
    assert scores == {} and any("4 of 4 samples have no text" in line for line in left_out)


def test_classes_of_pictures_are_captions_of_pictures(tmp_path: Path) -> None:
    """Without a list, what sounds are called is no choice for a picture."""
    spec, model = pets(tmp_path)
    samples = {f"s{n}": {"audio": n, "txt": f"noise {n}"} for n in range(4)}
    both = f"{spec},{shard(tmp_path / 'noise' / '0.tar', samples)}"
    model.vectors |= {("audio", key): [1.0, 0.0, 0.0] for key in samples}
    model.texts = {**NAMED, **{f"noise {n}": [1.0, 0.1 * n, 0.0] for n in range(4)}}
    scores = evaluate(model, both)
    assert value(scores, "image->text", "acc@1") == pytest.approx(3 / 5)
    assert value(scores, "image->text", "acc@1", "chance") == pytest.approx(1 / 3)
    assert value(scores, "audio->text", "acc@1", "chance") == pytest.approx(1 / 4)


# Questions and answers, shots


def asked_split(folder: Path, answers: dict[str, str]) -> str:
    samples = {
        key: {"image": n, "json": json.dumps({"question": f"what is {key}", "answer": told})}
        for n, (key, told) in enumerate(answers.items())
    }
    return shard(folder / "0.tar", samples)


QUESTIONS = (Source(
    shards="x", modalities=("image", "text"), texts=(Text(field="question"),), targets=(Text(field="answer"),)
),)  # fmt: skip


def test_answers_are_scored_and_never_read(tmp_path: Path) -> None:
    """image,text>text has figures over all samples; what is written depends on pictures and questions, not on the
    answers that it is compared with; the gallery shows the question."""
    model = interface("image,text>text", train=QUESTIONS, batch_size=1)
    how = replace(config_of(model.run), batch_size=2, max_tokens=4, bootstrap=QUICK.bootstrap)
    texts = []
    for name, answer in (("a", "yes"), ("b", "never in the world")):
        spec = asked_split(tmp_path / name, dict.fromkeys("pqr", answer))
        scores = evaluate(model, spec, how)
        assert value(scores, "image,text>text", "exact_match", "n") == 3
        assert value(scores, "image,text>text", "bits_per_byte", "n") == 3
        shown = scores.details.writings
        assert {one.reference for one in shown} == {answer}
        assert [one.source.caption for one in shown] == [f"what is {key}" for key in "pqr"]
        texts.append([one.written for one in shown])
        assert not any("is not scored" in line for line in scores.details.left_out)
    assert texts[0] == texts[1]


def test_nats_of_answers_are_those_of_the_model(tmp_path: Path) -> None:
    """Bits per byte of the answers alone, given picture and question, as the loss has them."""
    model = interface("image,text>text", train=QUESTIONS, batch_size=1)
    spec = asked_split(tmp_path / "s", {"p": "yes", "q": "no"})
    split = read(model, spec, config_of(model.run, max_tokens=2))
    model.train().core.trunk.eval()
    with at_rest(model):
        assert not any(part.training for part in model.modules())
        batch = collate([split.reader.read(split.sample(row)).example for row in range(2)], BYTES)
        nats = model.nats("image,text>text", batch)
    np.testing.assert_allclose(split.nats["image,text>text"], nats.double().numpy(), rtol=1e-5)
    assert not model.core.trunk.training and model.core.towers.training


def test_a_text_alone_is_no_question(tmp_path: Path) -> None:
    """It could only be cut in two, which has no one answer: the task is named with the reason."""
    model = interface("image,text>text", "image>text", "text>image", "audio>text")
    spec = shard(tmp_path / "s" / "0.tar", {f"{n}": {"image": n, "txt": f"name {n}"} for n in range(3)})
    scores = evaluate(model, spec, replace(QUICK, max_tokens=2))
    assert tasks_of(scores) == {"image->text", "text->image", "image>text"}
    assert [line for line in scores.details.left_out if "is not scored" in line] == [
        "image,text>text is not scored: no sample holds an image and 2 items of text",
        "text>image is not scored: judges read what it makes, and none was named (--judges)",
        "audio>text is not scored: no sample holds a sound and a text",
    ]


def test_shots_are_other_samples_of_the_split(tmp_path: Path) -> None:
    """image,text,image>text is scored behind one other picture with its text, the same one in any batch."""
    source = Source(shards="x", modalities=("image", "text"), num_shots=1)
    model = interface("image,text,image>text", train=(source,), batch_size=2)
    spec = shard(tmp_path / "s" / "0.tar", {f"{n}": {"image": n, "txt": f"name {n}"} for n in range(5)})
    changes = ({"batch_size": 2}, {"batch_size": 5, "num_workers": 2})
    splits = [read(model, spec, config_of(model.run, max_tokens=2, **change)) for change in changes]
    for split in splits:
        written = split.written["image,text,image>text"]
        assert [item.row for item in written] == list(range(5))
        assert all(item.prompt in set(split.texts) - {split.texts[item.row]} for item in written)
    assert splits[0].written == splits[1].written


# What is written


class Chatty(Planted):
    """Writes "a" as long as it may."""

    def write(self, task: str, batch: Batch, max_tokens: int) -> tuple[list[int], list[str]]:
        rows = batch.items[task.partition(">")[0]].rows.tolist()
        self.most = max_tokens
        return rows, [MadeText("a" * max_tokens, "length" if row % 2 else "stop") for row in rows]


def test_what_was_cut_is_counted_and_said(tmp_path: Path) -> None:
    """There is room for twice the longest text of the split, in its own tokens, unless a limit is given; the share that
    ended there is a score."""
    spec, plain = pets(tmp_path, a={"txt": "x" * 50})
    model = Chatty(plain.vectors, {**NAMED, "x" * 50: [1.0, 0, 0]}, tasks=("image>text",))
    scores = evaluate(model, spec, replace(QUICK, max_tokens=0))
    assert model.most == 100
    assert value(scores, "image>text", "truncated") == pytest.approx(2 / 5)
    assert "image>text: 2 of 5 texts were cut after 100 tokens; --max-tokens allows more" in scores.details.left_out
    evaluate(model, spec, replace(QUICK, max_tokens=7))
    assert model.most == 7
    assert EvalConfig().max_tokens == Eval().max_tokens == 0


def test_the_interface_says_what_it_cut(tmp_path: Path) -> None:
    """An untrained model goes on to the limit."""
    model = interface("image>text")
    batch = collate(
        [Reader(model=SMALL, decode=Decode()).read(Sample("k", {"png": image_bytes(1)}, "w")).example], BYTES
    )
    _, (text,) = model.write("image>text", batch, 3)
    assert getattr(text, "finish", None) == "length"


# What judges read


def test_what_was_wanted_is_spelled_as_what_was_read() -> None:
    """Marks and digits make no difference on either side; something else that a judge heard is a word too many."""
    assert compared("It's forty two!") == compared("it's 42") == "it's forty-two"
    assert compared("forty-two ?") == "forty-two ?" != compared("forty-two")
    assert compared("really?") == "really"
    figure = read_right("t", "j", [compared("Forty-two.")], [compared("forty two")])
    assert figure.value == 1.0
    assert word_errors("t", "j", ["forty-two"], ["forty-two ?"]).value == pytest.approx(1 / 2)
