"""Suites over conversations: a small model that counts dots, held against the definitions of what is scored of it."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from planted import QUICK, SMALL, asked, image_bytes, pets, saved_run, shard, value
from ranks import on_ranks
from test_chat_template import SMOLLM, language_folder
from test_leaderboard import board
from torch import Tensor
from whole_passes import by_key, shaken, slow_texts

from mmfm import config
from mmfm.config import Chat, ChatTemplate, Run, UserError
from mmfm.data.batch import Batch
from mmfm.data.decode import collate
from mmfm.data.sample import Sample
from mmfm.evals import run
from mmfm.evals.answer_baselines import first_sentence, majority
from mmfm.evals.answering import right_choices
from mmfm.evals.questions import QuestionReader, asking, open_questions, question_of
from mmfm.evals.replies import Replies, blinded, questions, replies
from mmfm.evals.run import evaluate_run
from mmfm.evals.suite import Answer, Suite
from mmfm.export.importer import import_source
from mmfm.inference.bundle.load import from_pretrained as load_whole
from mmfm.inference.interface import Interface
from mmfm.inference.load import load_model
from mmfm.models.model import build
from mmfm.objectives.joint import Objectives
from mmfm.preprocessing import BadSample
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.report.report import write_report

TEMPLATE = ChatTemplate(user=("Q: ", "\n"), assistant=("A: ", "\n"))
WORDS = ("one", "two")
MODEL = replace(SMALL, chat=TEMPLATE, trunk=config.Trunk(width=32, depth=2, heads=2, kv_heads=1))


def conversation(question: str, answer: str, picture: int | None = None, **more: Any) -> dict[str, Any]:
    """The parts of a sample; picture: its seed."""
    parts = [] if picture is None else [{"type": "image"}]
    content = [*parts, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    found: dict[str, Any] = {"json": json.dumps({"messages": messages, **more})}
    return found if picture is None else {**found, "0.png": image_bytes(picture)}


def dots(root: Path) -> None:
    """Eight questions about four pictures: how many, of which two are one and two are two, and in which words."""
    samples = {}
    for picture in range(4):
        answer = WORDS[picture % 2]
        samples[f"n{picture}"] = conversation("How many?", answer, picture, kind="count", choices=list(WORDS))
        samples[f"k{picture}"] = conversation("Is it?", "yes", picture, kind="is", answers=["yes", "yeah"])
    shard(root / "dots" / "0.tar", samples)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    dots(folder)
    return folder


def fresh(seed: int = 0, model: config.Model = MODEL) -> Interface:
    torch.manual_seed(seed)
    run = Run(name="toy", model=model, data=config.Data(), chat=Chat())
    tokenizer = load_tokenizer("bytes")
    return Interface(build(model, tokenizer.size), run, tokenizer).eval()


def batch_of(model: Interface, root: Path, keys: str = "") -> Batch:
    questions = open_questions("dots", root, config.RemoteCache())
    reader = QuestionReader(model=model.config, decode=QUICK.decode, tokenizer=model.tokenizer)
    samples = [questions[at] for at in range(len(questions))]
    return collate([reader.read(one).example for one in samples if one.key.startswith(keys)], model.tokenizer)


@pytest.fixture(scope="module")
def counting(root: Path) -> Interface:
    """Trained until it answers by the pictures."""
    model = fresh()
    batch, objectives = batch_of(model, root), Objectives(model.core, model.run)
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    with torch.enable_grad():
        for _ in range(150):
            optimiser.zero_grad()
            objectives.total(objectives(batch)).backward()
            optimiser.step()
        assert float(objectives(batch)["chat"].detach()) < 0.02
    return model.eval()


def test_answers_are_scored_by_kind_beside_the_blind_and_the_commonest(root: Path, counting: Interface) -> None:
    """It answers all by the pictures; blind it says one thing to each kind, as the commonest answer does, which is
    right for half of the counts. Four pictures are drawn, and not eight questions."""
    whole = replace(QUICK, batch_size=8)
    tasks = {"zeros": Answer(shards="dots", blind="zeros"), "swapped": Answer(shards="dots", blind="swapped")}
    found = {how: asked(counting, root, task, config=whole) for how, task in tasks.items()}
    for scores in found.values():
        assert by_key(scores) == {**{f"n{n}": WORDS[n % 2] for n in range(4)}, **{f"k{n}": "yes" for n in range(4)}}
        expected = {"": (1.0, 1.0, 1.0), " (blind)": (0.75, 0.5, 1.0), " (majority)": (0.75, 0.5, 1.0)}
        if scores is found["swapped"]:
            expected[" (blind)"] = (0.5, 0.0, 1.0)  # the next picture always shows another number
        for control, each in expected.items():
            tasks = [f"messages>text{kind}{control}" for kind in ("", ":count", ":is")]
            assert tuple(value(scores, task, "exact_match") for task in tasks) == pytest.approx(each), control
            rows = [row for row in scores.rows if row.task in tasks]
            assert {row.clusters for row in rows} == {4} and {row.n for row in rows} == {4, 8}
    scores = found["zeros"]
    assert value(scores, "messages>text:count", "choice_acc") == 1.0
    assert value(scores, "messages>text:count (blind)", "choice_acc") == 0.5
    assert value(scores, "messages>text:count", "choice_acc", "chance") == 0.5
    assert scores.details.choices["majority"] == {
        "of": "the split itself, dots",
        "answers": {"count": "one", "is": "yes"},
    }
    assert "4 of 8 questions have several answers: one pass is of the reference alone" in scores.details.left_out


def said(model: Interface, batch: Batch, choices: Sequence[Sequence[str]] = (), most: int = 16) -> Replies:
    """With one pass and writing; choices: of each sample."""
    return replies(model, batch, choices or [()] * batch.size, one_pass=True, max_tokens=most)


@pytest.mark.parametrize("seed", range(3))
def test_one_pass_says_what_greedy_writes(root: Path, counting: Interface, seed: int) -> None:
    """For a trained model, and for ones whose answers are partly or never right: bytes can be spelled in one way."""
    model = counting if not seed else shaken(fresh(), counting, 0.1 * seed)
    batch = batch_of(model, root)
    written = slow_texts(model, batch, 16)
    references = [answer for n in range(4) for answer in (WORDS[n % 2], "yes")]
    equal = [a == b and not c for (a, c), b in zip(written, references, strict=True)]
    assert said(model, batch).exact == equal
    assert all(equal) if not seed else not all(equal)


@torch.no_grad()
def test_bits_per_byte_are_of_the_reference_and_its_end(root: Path, counting: Interface) -> None:
    """Of one question its tokens laid end to end, one forward by hand."""
    batch = batch_of(counting, root, "n0")
    core, tokenizer = counting.core, counting.tokenizer
    tokens = core.tokens("image", batch.items["image"])
    picture = core.connectors["image"](tokens.x[0])

    def words(text: str) -> Tensor:
        return core.vocabulary.shared("text", torch.tensor(tokenizer.encode(text)))

    before, between = words("Q: "), words("How many?\nA: ")
    answer = torch.cat([words("one"), torch.tensor([core.vocabulary.end])])
    x = torch.cat([core.embedding(before), picture, core.embedding(between), core.embedding(answer)])[None]
    seen = torch.ones(x.shape[1], x.shape[1]).tril().bool()
    block = slice(len(before), len(before) + len(picture))
    seen[block, block] = True
    states = core.trunk.run(x, seen[None, None], torch.arange(x.shape[1])[None])[0]
    logits = core.logits(states[-len(answer) - 1 : -1])
    nats = float(F.cross_entropy(logits, answer, reduction="sum"))
    assert said(counting, batch).nats == [pytest.approx(nats, rel=1e-4)]
    scores = asked(counting, root, Answer(shards="dots", write=False))
    assert not scores.details.answers and {row.metric for row in scores.rows if "(" not in row.task} == {
        "exact_one_pass", "bits_per_byte", "choice_acc", "choice_acc_per_token"
    }  # fmt: skip
    total = sum(sum(said(counting, batch_of(counting, root, key)).nats) for key in ("n", "k"))
    bits = total / math.log(2) / len("onetwoonetwo" + 4 * "yes")
    assert value(scores, "messages>text", "bits_per_byte") == pytest.approx(bits, rel=1e-5)


def test_swapped_pictures_are_of_other_samples(root: Path) -> None:
    """Also where neighbours show one picture; what has no other keeps its own and is counted."""
    model = fresh()
    batch = model.encoded(batch_of(model, root), ("image",))
    media = [str(n // 2) for n in range(8)]
    found, alone = blinded(batch, "swapped", media)
    own, other = batch.items["image"].tokens, found.items["image"].tokens
    assert own is not None and other is not None and alone == 0
    assert torch.equal(other.x, own.x[[2, 2, 4, 4, 6, 6, 0, 0]]) and torch.equal(
        found.items["image"].rows, torch.arange(8)
    )
    same, alone = blinded(batch, "swapped", ["a"] * 8)
    kept = same.items["image"].tokens
    assert kept is not None and torch.equal(kept.x, own.x) and alone == 8


def test_figures_do_not_depend_on_batches_or_ranks(root: Path, counting: Interface) -> None:
    task = Answer(shards="dots", blind="zeros")
    whole = asked(counting, root, task, config=replace(QUICK, batch_size=8))
    small = asked(counting, root, task, config=replace(QUICK, batch_size=3))
    assert [(a.task, a.metric, a.n) for a in whole.rows] == [(a.task, a.metric, a.n) for a in small.rows]
    assert [a.value for a in whole.rows] == pytest.approx([a.value for a in small.rows], rel=1e-5)
    suite = Suite(name="s", tasks=(task,))
    first: Any
    first, *others = on_ranks(2, lambda ranks: run.evaluate(counting, suite, QUICK, root=root, ranks=ranks))
    assert others == [{}] and first["s"].rows == small.rows


def test_what_cannot_be_asked_is_counted(tmp_path: Path) -> None:
    """A conversation without an answer, one that lacks its picture, one whose answer holds one, and a sample that is
    none; what follows the answer is not asked, and the answers before it are not scored."""
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")]
    talk = {"messages": [{"role": role, "content": text} for role, text in turns]}
    lacking = {"json": conversation("what?", "x", 1)["json"]}
    unanswered = json.dumps({"messages": [{"role": "user", "content": "?"}]})
    shown = json.loads(conversation("?", "x", 1)["json"])["messages"]
    shown[1]["content"] = ["so", *shown[0]["content"]]
    shown = {"json": json.dumps({"messages": [{"role": "user", "content": "?"}, shown[1]]}), "0.png": image_bytes(1)}
    samples = {"a": {"json": json.dumps(talk)}, "b": lacking, "c": {"json": unanswered}, "d": {"txt": "x"}, "e": shown}
    shard(tmp_path / "t" / "0.tar", samples)
    scores = asked(fresh(), tmp_path, Answer(shards="t"))
    assert value(scores, "messages>text", "exact_match", "n") == 1
    assert scores.details.unusable == {
        "b": "messages_parts",
        "c": "messages_unanswered",
        "e": "messages_content",
    }
    assert "files that are not read: samples without messages (1)" in scores.details.left_out
    (first, *_) = scores.details.answers
    assert (first.question, first.answers) == ("c", ("d",))
    questions = open_questions("t", tmp_path, config.RemoteCache())
    told = json.loads(asking(questions[0]).parts["json"])["messages"]
    assert [(one["content"], one.get("learn", True)) for one in told] == [
        ("a", False), ("b", False), ("c", False), ("d", True)
    ]  # fmt: skip


def sample(messages: list[Any], **more: Any) -> Sample:
    return Sample("k", {"json": json.dumps({"messages": messages, **more}).encode()}, "here")


def test_answers_stand_in_the_list_or_in_the_last_turn() -> None:
    """With a list a last question needs no turn behind it; what is said is the reference all the same."""
    ask, say = {"role": "user", "content": "how many?"}, {"role": "assistant", "content": " two "}
    assert question_of(sample([ask, say])).answers == ("two",)
    both = question_of(sample([ask, say], answers=["2", "two"]))
    assert (both.reference, both.answers) == ("two", ("2", "two"))
    listed = sample([ask, say, {"role": "user", "content": "and now?"}], answers=["3"])
    found = question_of(listed)
    assert (found.question, found.reference, found.source) == ("and now?", "3", "and now?")
    assert [one["content"] for one in json.loads(asking(listed).parts["json"])["messages"]][-1] == "3"
    assert right_choices(question_of(sample([ask, say], choices=["1", "Two.", "3"]))) == {1}
    for wrong, code in (({"answers": ["x", 1]}, "messages_answers"), ({"choices": "x"}, "messages_choices")):
        with pytest.raises(BadSample) as told:
            question_of(sample([ask, say], **wrong))
        assert told.value.code == code
    with pytest.raises(BadSample) as told:
        question_of(sample([ask]))
    assert told.value.code == "messages_unanswered"


def test_baselines_of_texts(tmp_path: Path) -> None:
    """Copying the source and its first sentence, by their words; the commonest answer is of the shards named."""
    text = "A small dog. It barks."
    shard(tmp_path / "test" / "0.tar", {"a": conversation(f"Shorten: {text}", "A small dog", text=text)})
    train = {f"t{n}": conversation("Shorten: x", answer) for n, answer in enumerate(("a cat", "The dog", "Dog!"))}
    shard(tmp_path / "train" / "0.tar", train)
    baselines = ("majority", "source", "first_sentence")
    task = Answer(shards="test", baselines=baselines, majority_of="train", metrics=("exact", "rouge"))
    scores = asked(fresh(), tmp_path, task)
    found = {
        name: value(scores, f"messages>text ({name})", "rouge1") for name in ("source", "first sentence", "majority")
    }
    assert found == pytest.approx({"source": 2 * 3 / (3 + 5), "first sentence": 1.0, "majority": 2 * 1 / (3 + 2)})
    assert value(scores, "messages>text (source)", "words_written") == 5
    assert scores.details.choices["majority"] == {"of": "train", "answers": {"": "The dog"}}
    assert first_sentence("v1.2 is out! Get it.") == "v1.2 is out!" and first_sentence(" no end ") == "no end"
    assert majority([]) == {}


def test_mistakes_are_told_before_the_work(root: Path, tmp_path: Path) -> None:
    _, planted = pets(tmp_path)
    with pytest.raises(UserError, match="Answer s needs a model that reads messages; train one with"):
        asked(planted, root, Answer(shards="dots"))
    with pytest.raises(UserError, match="none of its 5 samples is a conversation with an answer"):
        asked(fresh(), tmp_path, Answer(shards="pets"))
    with pytest.raises(UserError, match="'bleurt' is none of exact, vqa"):
        Answer(shards="dots", metrics=("bleurt",))
    with pytest.raises(UserError, match="asks nothing with one_pass=False and write=False"):
        Answer(shards="dots", one_pass=False, write=False)


def test_prompts_end_with_the_opening_of_the_answer(root: Path) -> None:
    model = fresh()
    (found,) = questions(model, batch_of(model, root, "n1"), [()])
    ids = [index for index in found.prompt.ids if index >= 0]
    assert model.tokenizer.decode(ids) == "Q: How many?\nA: " and model.tokenizer.decode(found.reference) == "two"


def test_a_run_of_conversations_is_asked_them_without_a_suite(root: Path, tmp_path: Path) -> None:
    """Also while it trains, by one pass; the report and a comparison with itself read what is written."""
    spec = str(root / "dots")
    made = saved_run(tmp_path, val=spec, model=MODEL, tasks=(), chat=Chat())
    rows = evaluate_run(made.folder, bootstrap=20, num_workers=0)
    assert {row.split for row in rows} == {"dots"} and value(rows, "messages>text:count", "exact_match", "n") == 4
    scores, _ = run.scores_during_training(load_model(made.folder), made)
    one_pass = "messages>text/exact_one_pass"
    assert scores[f"dots/{one_pass}"] == value(rows, "messages>text", "exact_one_pass")
    assert not any("(" in name for name in scores)
    text = write_report(made.folder).read_text("utf-8")
    assert "messages&gt;text (blind)" in text and "exact match" in text
    other = shutil.copytree(made.folder, tmp_path / "other")
    compared = board(made.folder, other).comparisons
    assert len(compared) > 5 and {one.better for one in compared} == {None}


@torch.no_grad()
def test_an_imported_language_model_is_asked_without_training(tmp_path: Path) -> None:
    """Of two questions one has for its answer just what the model says to it."""
    import_source(str(language_folder(tmp_path / "lm", SMOLLM)), tmp_path / "bundle")
    said = load_whole(tmp_path / "bundle").chat([{"role": "user", "content": "the user of"}], max_tokens=40)
    samples = {"a": conversation("the user of", str(said)), "b": conversation("of the user", "something else")}
    shard(tmp_path / "asked" / "0.tar", samples)
    suite = tmp_path / "suite.py"
    suite.write_text(
        "from mmfm.evals.suite import Answer, Suite\n"
        'def suite(): return Suite(name="s", tasks=(Answer(shards="asked", by_kind=False),))\n'
    )
    more = {"root": str(tmp_path), "out": tmp_path / "found.json", "num_workers": 0, "bootstrap": 10, "max_tokens": 40}
    rows = evaluate_run(tmp_path / "bundle", suite, **more)
    assert value(rows, "messages>text", "exact_match") == 0.5 and {row.weights for row in rows} != {""}
