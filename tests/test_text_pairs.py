"""Suites of conversations put to a model that reads a text from both sides and writes one: it has no turns."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from planted import QUICK, asked, pets, shard, value
from ranks import on_ranks
from whole_passes import by_key, shaken

from mmfm import config
from mmfm.config import Chat, ChatTemplate, Embedded, Generative, Run, UserError
from mmfm.data.batch import Batch
from mmfm.data.decode import collate
from mmfm.evals import run
from mmfm.evals.questions import open_questions
from mmfm.evals.suite import Answer, Suite
from mmfm.evals.text_pairs import TASK, PairReader, likelihood
from mmfm.inference.interface import Interface
from mmfm.inference.pipeline import without_last
from mmfm.models.model import build
from mmfm.objectives.joint import Objectives
from mmfm.preprocessing.tokenizer import load_tokenizer

MODEL = config.Model(
    image=None,
    audio=None,
    text=Embedded(causal=False),
    trunk=config.Trunk(width=32, depth=2, heads=2, kv_heads=1),
    embed_dim=8,
)
PAIRS = {"red": "rouge", "one": "un", "two": "deux", "blue": "bleu"}
METRICS = ("exact", "rouge", "chrf")
TALKING = ChatTemplate(user=("Q: ", "\n"), assistant=("A: ", "\n"))


def conversation(question: str, answer: str, **more: Any) -> dict[str, str]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"json": json.dumps({"messages": messages, **more})}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four words into French, and two numbers the other way round."""
    folder = tmp_path_factory.mktemp("pairs")
    samples = {text: conversation(f"fr: {text}", answer, kind="en>fr", text=text) for text, answer in PAIRS.items()}
    samples |= {answer: conversation(f"en: {answer}", text, kind="fr>en") for text, answer in [*PAIRS.items()][1:3]}
    shard(folder / "words" / "0.tar", samples)
    return folder


def fresh(seed: int = 0, **changes: Any) -> Interface:
    torch.manual_seed(seed)
    made = Run(name="toy", model=MODEL, data=config.Data(), generative=(Generative(task=TASK),))
    made = replace(made, **changes)
    tokenizer = load_tokenizer("bytes")
    return Interface(build(made.model, tokenizer.size), made, tokenizer).eval()


def batch_of(model: Interface, root: Path) -> Batch:
    questions = open_questions("words", root, config.RemoteCache())
    reader = PairReader(model=model.config, decode=QUICK.decode, tokenizer=model.tokenizer)
    return collate([reader.read(questions[at]).example for at in range(len(questions))], model.tokenizer)


@pytest.fixture(scope="module")
def knowing(root: Path) -> Interface:
    """Trained until it answers all."""
    model = fresh()
    batch, objectives = batch_of(model, root), Objectives(model.core, model.run)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    with torch.enable_grad():
        for _ in range(150):
            optimiser.zero_grad()
            objectives.total(objectives(batch)).backward()
            optimiser.step()
        assert float(objectives(batch)[TASK].detach()) < 0.05
    return model.eval()


def test_it_is_asked_what_a_chat_model_is_asked(root: Path, knowing: Interface) -> None:
    """All is right; every figure of a chat model stands there under the same name, of the same samples."""
    task = Answer(shards="words", metrics=METRICS, baselines=("majority", "source"))
    scores = asked(knowing, root, task)
    assert by_key(scores) == {**PAIRS, "un": "one", "deux": "two"}
    for name in ("messages>text", "messages>text:en>fr", "messages>text:fr>en"):
        assert [value(scores, name, metric) for metric in ("exact_match", "rougeL", "exact_one_pass")] == [1.0] * 3
        assert value(scores, name, "chrf") == 1.0
    assert value(scores, "messages>text:en>fr (majority)", "exact_match") == 0.25
    assert value(scores, "messages>text:en>fr (source)", "exact_match") == 0.0
    assert scores.details.choices["reads"] == TASK
    chat = fresh(model=replace(MODEL, text=None, chat=TALKING), generative=(), chat=Chat())
    other = asked(chat, root, task)
    assert [(a.task, a.metric, a.n) for a in scores.rows] == [(b.task, b.metric, b.n) for b in other.rows]
    assert value(other, "messages>text", "exact_match") == 0.0
    some = replace(QUICK, limit=4)
    assert by_key(asked(knowing, root, task, config=some)).keys() == by_key(asked(chat, root, task, config=some)).keys()


@torch.no_grad()
def test_bits_are_those_of_one_forward_by_hand(root: Path) -> None:
    """Of each pair alone, laid end to end: the source is seen from both sides, the answer causally behind it."""
    model = fresh(3)
    core, tokenizer = model.core, model.tokenizer
    batch = batch_of(model, root)
    found = likelihood(model, batch)

    def ids(text: str) -> torch.Tensor:
        return core.vocabulary.shared("text", torch.tensor(tokenizer.encode(text)))

    expected = []
    for question, answer in [(f"fr: {a}", b) for a, b in PAIRS.items()] + [("en: un", "one"), ("en: deux", "two")]:
        source = torch.cat([core.embedding(ids(question)), core.pools["text"][None]])
        begin = torch.tensor([core.vocabulary.begin("text")])
        target = torch.cat([begin, ids(answer)])
        x = torch.cat([source, core.embedding(target)])[None]
        sees = torch.ones(x.shape[1], x.shape[1]).tril().bool()
        sees[: len(source), : len(source)] = True
        states = core.trunk.run(x, sees[None, None], torch.arange(x.shape[1])[None])[0, len(source) :]
        labels = torch.cat([ids(answer), torch.tensor([core.vocabulary.end])])
        expected.append(float(F.cross_entropy(core.logits(states), labels, reduction="sum")))
    assert [found[row][0] for row in range(6)] == pytest.approx(expected, rel=1e-4)
    assert model.nats(TASK, batch).tolist() == pytest.approx(expected, rel=1e-4)
    scores = asked(model, root, Answer(shards="words", write=False))
    answers = [*PAIRS.values(), "one", "two"]
    bits = sum(expected) / math.log(2) / len("".join(answers))
    assert value(scores, "messages>text", "bits_per_byte") == pytest.approx(bits, rel=1e-4)
    assert not scores.details.answers


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_pass_says_what_greedy_writes(root: Path, knowing: Interface, seed: int) -> None:
    """Also of models whose answers are partly or never right; bytes can be spelled in one way."""
    model = shaken(fresh(), knowing, 0.05 * seed)
    batch = batch_of(model, root)
    rows, texts = model.write(TASK, without_last(batch, "text")[0], 16)
    answers = [*PAIRS.values(), "one", "two"]
    equal = [text == answer and text.finish == "stop" for text, answer in zip(texts, answers, strict=True)]
    assert [likelihood(model, batch)[row][1] for row in rows] == equal
    assert all(equal) if not seed else not all(equal)


def test_figures_do_not_depend_on_batches_or_ranks(root: Path, knowing: Interface) -> None:
    model, task = shaken(fresh(), knowing, 0.05), Answer(shards="words", metrics=METRICS)
    whole = asked(model, root, task, config=replace(QUICK, batch_size=6))
    small = asked(model, root, task, config=replace(QUICK, batch_size=2))
    assert by_key(whole) == by_key(small)
    assert [a.value for a in whole.rows] == pytest.approx([a.value for a in small.rows], rel=1e-5)
    suite, apart = Suite(name="s", tasks=(task,)), replace(QUICK, batch_size=2)
    first: Any
    first, *others = on_ranks(2, lambda ranks: run.evaluate(model, suite, apart, root=root, ranks=ranks))
    assert others == [{}] and first["s"].rows == small.rows


def test_what_is_no_pair_is_counted(tmp_path: Path) -> None:
    """Several turns, a system turn, a picture, no answer, and a question beyond what is read."""
    ask, say = {"role": "user", "content": "fr: red"}, {"role": "assistant", "content": "rouge"}
    seen = {"role": "user", "content": [{"type": "image"}, "which?"]}
    talks: dict[str, list[dict[str, Any]]] = {
        "good": [ask, say, ask],
        "turns": [ask, say, ask, say],
        "system": [{"role": "system", "content": "be brief"}, ask, say],
        "seen": [seen, say],
        "unanswered": [ask],
        "long": [{"role": "user", "content": 90 * "x"}, say],
    }
    shard(tmp_path / "t" / "0.tar", {key: {"json": json.dumps({"messages": turns})} for key, turns in talks.items()})
    model = fresh(data=config.Data(max_text_tokens=80))
    scores = asked(model, tmp_path, Answer(shards="t", metrics=METRICS))
    assert value(scores, "messages>text", "exact_match", "n") == 1 and list(by_key(scores)) == ["good"]
    assert scores.details.unusable == {
        "turns": "messages_no_pair",
        "system": "messages_no_pair",
        "seen": "messages_no_pair",
        "unanswered": "messages_unanswered",
        "long": "messages_too_long",
    }


def refusals(tmp_path: Path) -> Iterator[tuple[Any, Answer, str]]:
    pair = fresh()
    yield pair, Answer(shards="t", documents="d"), f"documents is for a model that reads conversations, .* {TASK}"
    yield pair, Answer(shards="t", blind="zeros"), f"blind is for a model that reads conversations, .* {TASK}"
    causal = fresh(generative=(Generative(task=">text"),))
    yield causal, Answer(shards="t"), "needs a model that reads messages; train one with"
    yield pets(tmp_path)[1], Answer(shards="t"), "needs a model that reads messages; train one with"


def test_mistakes_are_told_before_the_work(tmp_path: Path) -> None:
    for model, task, told in refusals(tmp_path):
        with pytest.raises(UserError, match=told):
            asked(model, tmp_path, task)
