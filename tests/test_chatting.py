"""Answers to conversations: those that whole passes give, one by one or many at once, and how they end."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from planted import shard
from test_conversation import chat_run
from toys import toy_config, toy_run
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from mmfm.__main__ import main
from mmfm.config import Chat, ChatTemplate, Model, Optim, UserError
from mmfm.data.conversations import conversations_of
from mmfm.inference import chat_command
from mmfm.inference.chat import Asked, answering
from mmfm.inference.chat_args import ChatArgs
from mmfm.inference.chat_command import user
from mmfm.inference.chat_documents import read_documents
from mmfm.inference.documents import Document, readable
from mmfm.inference.interface import Interface
from mmfm.inference.processing import Sound, Text
from mmfm.models.model import build
from mmfm.objectives.conversation import plan_chats
from mmfm.objectives.joint import Objectives
from mmfm.objectives.task_pass import forward_passes
from mmfm.preprocessing.chat import ChatIds
from mmfm.preprocessing.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("bytes")
TEMPLATE = ChatTemplate(user=("U:", "\n"), assistant=("B:", "\n"))


def model_of(seed: int = 0, **changes: object) -> Interface:
    torch.manual_seed(seed)
    run = toy_run(model=replace(toy_config(**changes), chat=TEMPLATE), chat=Chat(), contrastive=(), generative=())
    core = build(run.model, TOKENIZER.size).eval()
    with torch.no_grad():
        core.embedding.weight.mul_(3)
    return Interface(core, run, TOKENIZER)


def picture(shade: int) -> Image.Image:
    return Image.fromarray(np.full((8, 16), shade, np.uint8))


def talks() -> list[list[dict]]:
    """Of text alone, with a picture, with two and a sound, of several turns."""
    sound = Sound(torch.sin(torch.arange(2_400) / 9), 16_000)
    one = [{"type": "image", "image": picture(40)}, {"type": "text", "text": "what?"}]
    three = [*one, {"type": "audio", "audio": sound}, {"type": "image", "image": picture(200)}]
    return [
        [{"role": "user", "content": "hi"}],
        [{"role": "user", "content": one}],
        [
            {"role": "user", "content": three},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "no?"},
        ],
        [{"role": "system", "content": "be"}, {"role": "user", "content": "a longer question than these"}],
    ]


def next_scores(model: Interface, asked: Asked, written: Sequence[int]) -> torch.Tensor:
    """Of the text ids and last the end, by a whole pass over all that was said and written."""
    ids, count = [*asked.ids.ids, *written, 0], len(asked.ids.ids) + len(written)
    learn = [False] * count + [True]
    read = model.chatting.batch([asked])
    batch = replace(read, chats=conversations_of([(0, ChatIds(ids, learn, [0] * len(ids)))]))
    planned = plan_chats(batch)
    assert planned is not None
    with torch.no_grad():
        (state,) = forward_passes(model.core, [planned])[0].states
        logits, span = model.core.logits(state), model.core.vocabulary.span("text")
    return torch.cat([logits[span.start : span.stop], logits[model.core.vocabulary.end][None]])


def naive(model: Interface, messages: list[dict], most: int, **how: float) -> tuple[list[int], list[float]]:
    """The likeliest ids, each by a pass of its own, and their log-likelihoods."""
    asked, written, chances = model.chatting.asked(messages), [], []
    penalty = RepetitionPenaltyLogitsProcessor(how.get("repetition_penalty", 1.0))
    while len(written) < most:
        scores = next_scores(model, asked, written)
        said = torch.tensor([[token for token in (*asked.ids.ids, *written) if token >= 0]])
        scores = penalty(said, scores[None])[0]
        if len(written) < how.get("min_tokens", 0):
            scores[-1] = -torch.inf
        best = int(scores.argmax())
        chances.append(float(scores.double().log_softmax(-1)[best]))
        if best == len(scores) - 1:
            break
        written.append(best)
    return written, chances


@pytest.mark.parametrize("how", [{}, {"repetition_penalty": 1.7, "min_tokens": 3}], ids=["greedy", "penalties"])
def test_answers_are_those_of_whole_passes_and_many_at_once_are_each_alone(how: dict) -> None:
    model = model_of()
    alone = [model.chat(messages, max_tokens=8, logprobs=True, **how) for messages in talks()]
    together = model.chat_many(talks(), max_tokens=8, logprobs=True, **how)
    assert together == alone == model.chat_many(talks(), max_tokens=8, batch_size=3, **how)
    for messages, said, other in zip(talks(), alone, together, strict=True):
        ids, chances = naive(model, messages, 8, **how)
        assert said == TOKENIZER.decode(ids)
        np.testing.assert_allclose(said.logprobs, chances, atol=1e-4)
        np.testing.assert_allclose(other.logprobs, chances, atol=1e-4)
    assert len(set(alone)) > 1


def test_a_template_s_own_end_ends_an_answer_and_is_never_written() -> None:
    """The likeliest id after the question is made the end: the answer is empty; with min_tokens it comes later."""
    model = model_of()
    question = [{"role": "user", "content": "hi"}]
    first = naive(model, question, 1)[0][0]
    end = chr(first) if 32 < first < 127 else "~"
    other = replace(TEMPLATE, assistant=("B:", f"{end}\n"), end=end)
    model.run = replace(model.run, model=replace(model.run.model, chat=other))
    if ord(end) == first:
        assert model.chat(question, max_tokens=4) == ""
    longer = model.chat(question, max_tokens=4, min_tokens=2)
    assert len(longer) >= 1 and end not in longer


def test_a_picture_is_given_as_its_file_holds_it() -> None:
    model, out = model_of(), io.BytesIO()
    picture(40).save(out, "PNG")
    said = [[{"type": "image", "image": thing}, "what?"] for thing in (picture(40), out.getvalue())]
    one, other = model.chat_many([[{"role": "user", "content": content}] for content in said], max_tokens=4)
    assert one == other
    with pytest.raises(UserError, match="the picture: "):
        model.chat([{"role": "user", "content": [{"type": "image", "image": b"no picture"}]}])


def test_an_answer_comes_in_pieces_and_says_how_it_ended() -> None:
    model = model_of()
    pieces, finish = model.stream_chat(talks()[1], max_tokens=5), None
    said = ""
    while finish is None:
        try:
            said += next(pieces)
        except StopIteration as end:
            finish = end.value
    whole = model.chat(talks()[1], max_tokens=5)
    assert (said, finish) == (whole, whole.finish)
    drawn = [model.chat(talks()[0], temperature=1.0, seed=seed, max_tokens=6) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_text_is_continued_without_a_template() -> None:
    model = model_of()
    model.run = replace(model.run, chat=None, model=replace(model.run.model, chat=None))
    (said,) = model.complete("once", max_tokens=4)
    asked, ids = model.chatting.continued("once"), []
    for _ in range(4):
        best = int(next_scores(model, asked, ids).argmax())
        if best == TOKENIZER.size:
            break
        ids.append(best)
    assert said == TOKENIZER.decode(ids)
    with pytest.raises(UserError, match="no chat template"):
        model.chat(talks()[0])


def test_tuples_are_read_as_lists() -> None:
    model, one = model_of(), talks()[1]
    (turn,) = one
    assert model.chat(({**turn, "content": tuple(turn["content"])},), max_tokens=4) == model.chat(one, max_tokens=4)


def test_what_cannot_be_answered_says_so() -> None:
    model = model_of(audio=None)
    user = {"role": "user", "content": "hi"}
    for messages, words in (
        ([user, {"role": "assistant", "content": "yo"}], "end with one of the user"),
        ([], "no messages; give"),
        ([{"role": "user", "content": None}], "must be a text, or a list"),
        ([{"role": "user", "content": [{"type": "image"}]}], "holds nothing"),
        ([{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}], "no audio tower"),
    ):
        with pytest.raises(UserError, match=words):
            model.chat(messages)
    for options, words in (
        ({"guidance": 2.0}, "not for conversations"),
        ({"max_token": 2}, "there is no option"),
        ({"min_tokens": 9, "max_tokens": 3}, "over max_tokens"),
        ({"repetition_penalty": 2.0, "num_beams": 2}, "or the beams"),
    ):
        with pytest.raises(UserError, match=words):
            model.chat([user], **options)


def test_a_small_model_learns_to_answer_about_what_it_sees() -> None:
    """Dark or light, asked in a conversation; from 40 % of the pictures' grey on it is light."""
    model = model_of()
    asked = [model.chatting.asked([{"role": "user", "content": [{"type": "image", "image": picture(shade)}, "so?"]}])
             for shade in range(0, 256, 16)]  # fmt: skip
    answers = ["dark" if shade < 100 else "light" for shade in range(0, 256, 16)]
    read = model.chatting.batch(asked)
    chats = []
    for row, (one, answer) in enumerate(zip(asked, answers, strict=True)):
        ids = [*answer.encode(), -3]
        learn = [False] * len(one.ids.ids) + [True] * len(ids)
        chats.append((row, ChatIds([*one.ids.ids, *ids], learn, [0] * len(learn))))
    batch = replace(read, chats=conversations_of(chats))
    objectives = Objectives(model.core.train(), chat_run(contrastive=(), generative=()))
    optimizer = torch.optim.Adam(model.core.parameters(), lr=Optim(lr=1e-2).lr)
    for _ in range(60):
        optimizer.zero_grad()
        objectives.total(objectives(batch)).backward()
        optimizer.step()
    model.core.eval()
    said = model.chat_many(
        [
            [{"role": "user", "content": [{"type": "image", "image": picture(shade)}, "so?"]}]
            for shade in (20, 70, 150, 220)
        ],
        max_tokens=8,
    )
    assert said == ["dark", "dark", "light", "light"]


class Parrot:
    """A model that says what it was asked."""

    config = Model(image=None, chat=TEMPLATE)

    def chat_many(self, chats, **options):
        return [Text(json.dumps(messages[-1]["content"])) for messages in chats]

    def stream_chat(self, messages, **options):
        yield f"{len(messages)} {json.dumps(messages[-1]['content'])}"
        return "length" if options["max_tokens"] == 1 else "stop"

    def complete(self, text, **options):
        return [Text(text[::-1])]


def said(capsys, **args) -> tuple[str, str]:
    asked = ChatArgs(run="runs/x", **args)
    asked.check()
    chat_command.converse(Parrot(), asked, read_documents(asked))
    out = capsys.readouterr()
    return out.out, out.err


def test_a_question_a_folder_and_a_file_of_messages(capsys, tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    text = [{"type": "text", "text": "what?"}]
    image = {"type": "image", "image": str(tmp_path / "a.png")}
    assert said(capsys, text="what?")[0] == f"1 {json.dumps(text)}\n"
    out, _ = said(capsys, text="what?", image=(str(tmp_path),))
    assert [line.split("\t")[0] for line in out.splitlines()] == [str(tmp_path / name) for name in ("a.png", "b.png")]
    assert out.splitlines()[0].split("\t")[1] == json.dumps([image, *text])
    (tmp_path / "m.json").write_text(json.dumps([{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]))
    assert said(capsys, messages=str(tmp_path / "m.json"))[0] == f"1 {json.dumps([image])}\n"
    assert said(capsys, text="abc", complete=True)[0] == "cba\n"
    assert "--max-tokens" in said(capsys, text="x", max_tokens=1)[1]


def test_lines_are_turns_of_one_conversation(capsys, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    shown = f"/image {tmp_path / 'a.png'}"
    lines = iter(["one", shown, "two", "/image none.png", "/imgae a.png", "/new", "three", "/quit", "four"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    out, err = said(capsys)
    counts = [line.split()[0] for line in out.splitlines()]
    assert counts == ["1", "3", "1"] and "a.png" in out.splitlines()[1] and "'none.png'" in err
    assert "there is no /imgae" in err

    def ended(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", ended)
    out, err = said(capsys, image=(str(tmp_path / "a.png"),))
    assert not out and "nothing was said about" in err and "a.png" in err


GAP = "\n\n"
TEXTS = {"cat": "the cat sat", "dog": "the dog ran", "bird": "a bird sang of a cat and a dog"}


def test_documents_stand_before_a_question_and_are_its_sources(capsys, tmp_path: Path) -> None:
    """The best first; those without a word of the question are left out, also where none is left."""
    documents = shard(tmp_path / "d" / "0.tar", {key: {"txt": text} for key, text in TEXTS.items()})
    out, err = said(capsys, text="dog?", documents=documents)
    whole = GAP.join([TEXTS["dog"], TEXTS["bird"], "dog?"])
    assert (out, err) == (f"1 {json.dumps(whole)}\n", "sources: dog, bird\n")
    assert said(capsys, text="dog?", documents=documents, k=1)[1] == "sources: dog\n"
    rest = "sources: none, no document has a word of the question\n"
    assert said(capsys, text="zebra?", documents=documents)[1] == rest
    with pytest.raises(UserError, match="write it as text"):
        said(capsys, audio=(str(tmp_path / "d" / "0.tar"),), documents=documents)


def test_documents_of_a_folder_messages_and_lines(capsys, monkeypatch, tmp_path: Path) -> None:
    """Before the last question alone: what was said before has none."""
    documents = shard(tmp_path / "d" / "0.tar", {key: {"txt": text} for key, text in TEXTS.items()})
    (tmp_path / "p").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "p" / name).write_bytes(b"")
    out, err = said(capsys, text="dog?", image=(str(tmp_path / "p"),), documents=documents, k=1)
    image = {"type": "image", "image": str(tmp_path / "p" / "a.png")}
    pieces = [{"type": "text", "text": f"{TEXTS['dog']}{GAP}"}, image, {"type": "text", "text": "dog?"}]
    assert out.splitlines()[0].split("\t")[1] == json.dumps(pieces) and err == "sources: dog\n"
    told = [{"role": "user", "content": "cat?"}, {"role": "assistant", "content": "no"}]
    (tmp_path / "m.json").write_text(json.dumps([*told, {"role": "user", "content": ["dog?"]}]))
    out, err = said(capsys, messages=str(tmp_path / "m.json"), documents=documents, k=1)
    assert (out, err) == (f"3 {json.dumps(TEXTS['dog'] + GAP + 'dog?')}\n", "sources: dog\n")
    lines = iter(["cat?", "dog?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    out, err = said(capsys, documents=documents, k=1)
    assert err == "sources: cat\nsources: dog\n" and "the cat sat" not in out.splitlines()[1]


def test_a_question_that_follows_is_looked_up_by_those_before_it(capsys, monkeypatch, tmp_path: Path) -> None:
    """By its own words first, and in a new conversation by these alone."""
    texts = {"cat": "the cat sat", "dog": "the dog ran", "bird": "a bird sang"}
    documents = shard(tmp_path / "d" / "0.tar", {key: {"txt": text} for key, text in texts.items()})
    lines = iter(["dog?", "was it loud?", "no, cat?", "/new", "was it loud?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    _, err = said(capsys, documents=documents, k=1)
    assert err.splitlines()[:3] == ["sources: dog", "sources: dog", "sources: cat"]
    assert err.splitlines()[3].startswith("sources: none")


def test_a_mistake_in_the_documents_is_told_before_a_model_is_loaded(capsys, tmp_path: Path) -> None:
    """There is no run either, and it is not asked for."""
    for more in (["--documents", str(tmp_path / "none")], ["--documents", str(tmp_path), "--retriever", "bm52"]):
        assert main(["chat", str(tmp_path / "run"), "--text", "x", *more]) == 2
        told = capsys.readouterr().err
        assert ("bm52" if "bm52" in more else "none") in told and "run" not in told.replace("folder of a run", "")


def test_a_document_may_be_a_picture(capsys, tmp_path: Path) -> None:
    """It stands before the question as one that is given does; a model that reads none has its caption."""
    asked = ChatArgs(run="x", text="dog?", documents="d", k=1, max_tokens=6)
    file = io.BytesIO()
    picture(200).save(file, "PNG")
    shelf = [Document("dog", "a dog", file.getvalue()), Document("cat", "a cat", file.getvalue())]
    model = model_of()
    chat_command.converse(model, asked, shelf)
    turn = [{"type": "image", "image": picture(200)}, f"a dog{GAP}dog?"]
    whole = model.chat([{"role": "user", "content": turn}], max_tokens=6)
    blind = model.chat([{"role": "user", "content": f"a dog{GAP}dog?"}], max_tokens=6)
    out = capsys.readouterr()
    assert out.out == f"{whole}\n" != f"{blind}\n" and out.err.startswith("sources: dog\n")
    chat_command.converse(Parrot(), asked, shelf)
    assert capsys.readouterr().out == f"1 {json.dumps(f'a dog{GAP}dog?')}\n"
    with pytest.raises(UserError, match=r"1 of 2 documents are pictures without a text, such as \['dog'\]"):
        readable([Document("dog", "", b"x"), shelf[1]], sees=False)


def test_a_model_reads_what_is_found(capsys, tmp_path: Path) -> None:
    """The answer is the one to the documents and the question in one turn."""
    documents = shard(tmp_path / "0.tar", {key: {"txt": text} for key, text in TEXTS.items()})
    model, asked = model_of(), ChatArgs(run="x", text="dog?", documents=documents, k=1, max_tokens=6)
    chat_command.converse(model, asked, read_documents(asked))
    whole = model.chat([{"role": "user", "content": f"{TEXTS['dog']}{GAP}dog?"}], max_tokens=6)
    assert capsys.readouterr().out == f"{whole}\n" != f"{model.chat([user('dog?')], max_tokens=6)}\n"


@pytest.mark.parametrize(
    "args, words",
    [
        ({"image": ("none.png",)}, "no file"),
        ({"messages": "m.json"}, "no file"),
        ({"complete": True}, "give --text"),
        ({"text": "x", "image": (".", ".")}, "only one"),
        ({"image": (".",)}, "say what by --text"),
        ({"text": "x", "complete": True, "documents": "d"}, "leave one of them out"),
        ({"text": "x", "k": 2}, "are for --documents"),
        ({"text": "x", "k": 0, "documents": "d"}, "--k 0"),
    ],
)
def test_what_cannot_be_asked_says_so(args: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ChatArgs(run="runs/x", **args).check()


def test_options_are_those_of_the_command() -> None:
    told = ChatArgs(run="x").options
    answering({name: value for name, value in told.items() if name not in ("batch_size", "seed")})
    assert main(["chat"]) == 2
