"""Answers scored as continuations of what was read once: they are those of whole passes, one by one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import shard
from test_answering import conversation
from test_chatting import TEMPLATE, TOKENIZER, model_of, talks
from whole_passes import slow_nats, slow_texts

from mmfm.config import RemoteCache, Trunk, UserError
from mmfm.data.batch import Batch
from mmfm.data.conversations import conversations_of
from mmfm.evals import replies as module
from mmfm.evals.questions import open_questions, spread_over_kinds
from mmfm.evals.replies import Replies, blinded, in_groups, questions, read, replies
from mmfm.generation import GenerationConfig, write_on
from mmfm.generation.continuations import Scored, Tree, score_continuations
from mmfm.inference.interface import Interface
from mmfm.preprocessing.chat import ChatIds

CHOICES = [["yes", "yet", "no", ""], [], ["a longer answer", "a longer one"], ["b"]]
REFERENCES = ["yes", "two cats", "a longer one", "x"]
ENDS = {"its own end": TEMPLATE, "a token": replace(TEMPLATE, assistant=("B:", "~\n"), end="~")}


def asked_of(model: Interface, references: Sequence[str] = REFERENCES) -> Batch:
    """Of `talks`, which have no picture, one, and two and a sound; each with an answer that is learned."""
    asked = [model.chatting.asked(messages) for messages in talks()]
    chats = []
    for row, (one, text) in enumerate(zip(asked, references, strict=True)):
        own = [*TOKENIZER.encode(text), model.chatting.end]
        ids, learn, turns = one.ids
        asking = [False] * len(learn)
        chats.append((row, ChatIds([*ids, *own], [*asking, *[True] * len(own)], [*turns, *[9] * len(own)])))
    return replace(model.chatting.batch(asked), chats=conversations_of(chats))


def ended(how: str, seed: int = 0) -> Interface:
    model = model_of(seed)
    model.run = replace(model.run, model=replace(model.run.model, chat=ENDS[how]))
    return model


def said(model: Interface, batch: Batch, choices: Sequence[Sequence[str]] = CHOICES, **more: Any) -> Replies:
    return replies(model, batch, choices, **{"one_pass": True, "max_tokens": 5, **more})


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("blind", [False, True])
def test_answers_are_those_of_whole_passes(how: str, blind: bool) -> None:
    """The likelihood of the reference and of each choice, and what is written, blind too; one choice says nothing."""
    model = ended(how)
    batch = asked_of(model)
    if blind:
        seeing = said(model, batch).nats
        batch, _ = blinded(model.encoded(batch, ("image", "audio")), "zeros", [""] * 4)
    found = said(model, batch)
    if blind:
        assert [a == pytest.approx(b) for a, b in zip(found.nats, seeing, strict=True)] == [True, False, False, True]
    for at, one in enumerate(questions(model, batch, CHOICES)):
        assert found.nats[at] == pytest.approx(slow_nats(model, batch, one, one.reference), abs=1e-4, rel=1e-5)
        for (nats, tokens), text in zip(found.choices[at], CHOICES[at], strict=True):
            ids = TOKENIZER.encode(text)
            assert nats == pytest.approx(slow_nats(model, batch, one, ids), abs=1e-4, rel=1e-5)
            assert tokens == len(ids) + 1
    assert found.rows == [0, 1, 2, 3] and [*zip(found.texts, found.cut, strict=True)] == slow_texts(model, batch, 5)


def test_many_at_once_are_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one group, in groups of like length, and with other choices beside."""
    model = model_of()
    batch = asked_of(model)
    whole = said(model, batch)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 1)
    lengths = [
        len(Tree.of([one.reference, *one.choices]).ids) for (one,) in in_groups(questions(model, batch, CHOICES))
    ]
    assert lengths == sorted(lengths) and len(set(lengths)) > 1
    alone = said(model, batch)
    assert (alone.texts, alone.cut, alone.exact) == (whole.texts, whole.cut, whole.exact)
    assert alone.nats == pytest.approx(whole.nats, rel=1e-5)
    without = said(model, batch, [()] * 4)
    assert without.texts == whole.texts and without.nats == pytest.approx(whole.nats, rel=1e-5)


def test_an_answer_that_nothing_is_asked_before_is_foretold_by_its_first_token() -> None:
    """As a template without marks has it: the rest of it is what the same question with that token asks."""
    model, end, text = model_of(), model_of().chatting.end, [*TOKENIZER.encode("hello")]

    def one(begin: int) -> Batch:
        flags = [False] * begin + [True] * (len(text) + 1 - begin)
        return replace(asked_of(model), items={}, chats=conversations_of([(0, ChatIds([*text, end], flags, [9] * 6))]))

    alone, given = (said(model, one(begin), [()] * 4) for begin in (0, 1))
    assert alone.nats == given.nats and alone.texts == given.texts
    assert questions(model, one(0), [()] * 4)[0].reference == text[1:]


def test_what_greedy_writes_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference, and a choice, that are just what is written: no step is taken for them. Cut texts are none."""
    model = model_of()
    table, span = model.core.embedding.weight, model.core.vocabulary.span("text")
    later = slow_texts(model, asked_of(model), 5)[1][0][2]
    with torch.no_grad():  # the end comes instead of what one of the texts goes on with
        table[model.core.vocabulary.end] = 2 * table[span.start + ord(later)]
    expected = slow_texts(model, asked_of(model), 12)
    able = [not cut and "\ufffd" not in text for text, cut in expected]  # no text has the bytes of the others
    assert {*able} == {True, False} and any(text and one for (text, _), one in zip(expected, able, strict=True))
    references = [text if one else "other" for (text, _), one in zip(expected, able, strict=True)]
    batch = asked_of(model, references)
    stepped = list[int]()

    def counted(begun: Any, *args: Any, **more: Any) -> Any:
        stepped.extend(begun.rows)
        return write_on(begun, *args, **more)

    monkeypatch.setattr(module, "write_on", counted)
    for choices, asked in (([()] * 4, batch), ([(text,) for text in references], asked_of(model, ["no"] * 4))):
        stepped.clear()
        found = said(model, asked, choices, max_tokens=12)
        assert [*zip(found.texts, found.cut, strict=True)] == expected
        assert stepped == [row for row in range(4) if not able[row]]
        assert found.exact == [asked is batch and one for one in able]
    short = said(model, batch, [()] * 4, max_tokens=1)
    assert [*zip(short.texts, short.cut, strict=True)] == slow_texts(model, batch, 1)
    assert short.cut == [text != "" for text, _ in expected]


def test_a_tree_holds_what_is_shared_once() -> None:
    tree = Tree.of([[1, 2], [1, 3], [1], [], [1, 2]])
    assert tree.ids[1:] == [1, 2, 3] and tree.paths == [[0, 1, 2], [0, 1, 3], [0, 1], [0], [0, 1, 2]]
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 1]]
    assert tree.sees(5).int().tolist() == expected and tree.longest == 3
    assert Tree.of([]).ids[1:] == [] and Tree.of([]).longest == 1


@torch.no_grad()
def test_what_was_read_stays_as_it_was() -> None:
    """The same is scored again, and written behind it, also where the tree is longer than the room that was made."""
    model = model_of()
    asked = questions(model, asked_of(model), CHOICES)
    begun = read(model, asked_of(model), asked, 3)
    trees = [Tree.of([one.reference, *one.choices]) for one in asked]
    assert max(len(tree.ids) for tree in trees) > 4
    first: list[Scored] = score_continuations(begun.state, trees)
    assert score_continuations(begun.state, trees) == first
    how = GenerationConfig(max_tokens=3)
    texts = write_on(begun, how, decode=TOKENIZER.decode).texts
    assert texts == [text for text, _ in slow_texts(model, asked_of(model), 3)]


def test_answers_that_do_not_fit_and_scores_that_are_no_numbers_say_so() -> None:
    small = model_of(trunk=Trunk(width=16, depth=1, heads=2, kv_heads=1, max_position_embeddings=60))
    with pytest.raises(UserError, match=r"over Trunk\.max_position_embeddings=60"):
        said(small, asked_of(small), [()] * 4, max_tokens=50)
    with pytest.raises(UserError, match=r"over Trunk\.max_position_embeddings=60"):
        said(small, asked_of(small), [("x" * 70,), (), (), ()], max_tokens=0)
    broken = model_of()
    with torch.no_grad():
        broken.core.trunk.norm.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="are no numbers"):
        said(broken, asked_of(broken))
    found = said(broken, asked_of(broken), max_tokens=0)
    assert not any(found.exact) and all(nats != nats for nats in found.nats)


def test_a_limit_takes_of_each_kind_its_share(tmp_path: Path) -> None:
    """Also where kinds take turns, and where one comes last; without a limit all come in their order."""
    kinds = ["a", "b"] * 10 + ["c"] * 10
    samples = {f"{at:02}": conversation("?", "x", kind=kind) for at, kind in enumerate(kinds)}
    shard(tmp_path / "t" / "0.tar", samples)
    questions = open_questions("t", tmp_path, RemoteCache())
    for limit in (3, 6, 15, 29):
        places = spread_over_kinds(questions, limit)
        counts = Counter(kinds[place] for place in places)
        assert len(places) == limit and list(places) == sorted(set(places))
        assert max(counts.values()) - min(counts.values()) <= (limit % 3 > 0)
    assert spread_over_kinds(questions, None) == spread_over_kinds(questions, 99) == tuple(range(30))
