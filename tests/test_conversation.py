"""A conversation in the trunk: text causal, pictures and sounds whole at their places, answers learned and no more."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_packing import check_same, gradients, padded_trunk, planned
from test_varlen import kernel as kernel
from torch import Tensor
from toys import PAIRS, TEXT_IDS, random_batch, toy_batch, toy_chats, toy_model, toy_run

from mmfm.config import CHATML, Chat, ChatTemplate, Contrastive, Embedded, Run
from mmfm.config.serialization import from_json, to_json
from mmfm.config.task import parse
from mmfm.data.batch import Batch
from mmfm.models.model import UnifiedModel
from mmfm.objectives.conversation import plan_chats
from mmfm.objectives.grad_cache import grad_cache_backward
from mmfm.objectives.joint import Objectives
from mmfm.objectives.task_pass import PassOutput, forward_passes, forward_task, plan_task

IMAGE, AUDIO, END = -1, -2, -3


def output_of(model: UnifiedModel, batch: Batch, objective: Chat | None = None) -> PassOutput:
    one = plan_chats(batch, objective)
    assert one is not None
    return forward_passes(model, [one])[0]


def by_hand(model: UnifiedModel, batch: Batch, at: int) -> tuple[Tensor, list[int]]:
    """States before the learned tokens of one conversation, and these: its tokens laid end to end, and a mask
    that is written down pair by pair."""
    chats = batch.chats
    assert chats is not None
    row, count = int(chats.rows[at]), int(chats.keep[at].sum())
    ids, learn = chats.ids[at, :count].tolist(), chats.learn[at, :count].tolist()
    held: dict[int, list[Tensor]] = {}
    for name, mark in (("image", IMAGE), ("audio", AUDIO)):
        items = batch.items[name].take((batch.items[name].rows == row).nonzero()[:, 0])
        if len(items.rows):
            tokens = model.tokens(name, items)
            held[mark] = [model.connectors[name](x[keep]) for x, keep in zip(tokens.x, tokens.keep, strict=True)]
    xs, block, labels = [], [], []
    for place, (token, learned) in enumerate(zip(ids, learn, strict=True)):
        if token in (IMAGE, AUDIO):
            x = held[token].pop(0)
            xs, block, labels = [*xs, x], [*block, *[place + 1] * len(x)], [*labels, *[None] * len(x)]
            continue
        shared = model.vocabulary.end if token == END else int(model.vocabulary.shared("text", torch.tensor(token)))
        xs, block = [*xs, model.embedding.weight[shared][None]], [*block, 0]
        labels.append(shared if learned else None)
    x, size = torch.cat(xs)[None], len(block)
    seen = [[k <= q or 0 < block[q] == block[k] for k in range(size)] for q in range(size)]
    states = model.trunk.run(x, torch.tensor(seen)[None, None], torch.arange(size)[None])[0]
    asked = [place for place, label in enumerate(labels) if label is not None]
    return states[[place - 1 for place in asked]], [label for label in labels if label is not None]


@pytest.mark.parametrize("seed", range(2))
def test_states_and_labels_are_those_of_a_sentence_written_by_hand(seed: int) -> None:
    model, batch = toy_model(), toy_chats(toy_batch(7, seed), seed)
    found = output_of(model, batch)
    assert batch.chats is not None
    expected = [by_hand(model, batch, at) for at in range(len(batch.chats.rows))]
    assert found.labels.tolist() == [label for _, labels in expected for label in labels]
    torch.testing.assert_close(found.states, torch.cat([states for states, _ in expected]), rtol=1e-10, atol=1e-10)
    owners = [int(row) for row, (_, labels) in zip(batch.chats.rows, expected, strict=True) for _ in labels]
    assert found.sample_ids.tolist() == owners and model.vocabulary.end in found.labels.tolist()


@pytest.mark.parametrize("masked", [True, False], ids=["masks", "kernel"])
def test_beside_other_tasks_it_is_what_it_is_alone(masked: bool, request) -> None:
    """Packed with nine other sentences, dropout on, as padded passes have it: states, embeddings, gradients."""
    model, batch = toy_model(dropout=0.3).train(), toy_chats(random_batch(12, 5))
    passes = [*planned(model, batch), plan_chats(batch)]
    packed = model.trunk.packed
    model.trunk.packed = padded_trunk(model, [])  # type: ignore[method-assign]
    expected = forward_passes(model, passes)
    theirs = gradients(model, expected)
    model.trunk.packed = packed  # type: ignore[method-assign]
    if not masked:
        request.getfixturevalue("kernel")
    found = forward_passes(model, passes)
    check_same(found, expected, gradients(model, found), theirs)


def test_an_answer_is_not_moved_by_what_comes_behind_it() -> None:
    model, batch = toy_model(), toy_chats(toy_batch(4))
    chats = batch.chats
    assert chats is not None
    before = output_of(model, batch)
    last = chats.turns == chats.turns.amax(1, keepdim=True)
    other = torch.where(last & (chats.ids >= 0), (chats.ids + 1) % TEXT_IDS, chats.ids)
    after = output_of(model, replace(batch, chats=replace(chats, ids=other)))
    first = torch.cat([t[k & w] for t, k, w in zip(chats.turns, chats.keep, chats.learn, strict=True)]) == 1
    assert torch.equal(before.states[first], after.states[first])
    assert not torch.equal(before.states[~first], after.states[~first])


def test_the_first_patch_sees_the_last_one_and_no_word_before_a_picture_sees_it() -> None:
    """Gradient facts: of an answer before a picture none reaches it; of one behind it all patches get some."""
    model, batch = toy_model(), toy_batch(2)
    ids = torch.tensor([[1, 2, END, IMAGE, 3, END]])
    learn = torch.tensor([[False, True, True, False, True, True]])
    turns = torch.tensor([[0, 1, 1, 2, 3, 3]])
    chats = toy_chats(batch).chats
    assert chats is not None
    one = replace(
        chats, rows=torch.tensor([0]), ids=ids, keep=torch.ones_like(learn), learn=learn, turns=turns, seeds=None
    )
    tokens = model.tokens("image", batch.items["image"])
    leaf = tokens.x.detach().requires_grad_()
    items = {"image": replace(batch.items["image"], tokens=tokens._replace(x=leaf))}
    found = output_of(model, replace(batch, items=items, chats=one))
    assert len(found.labels) == 4
    (early,) = torch.autograd.grad(found.states[:2].sum(), leaf, retain_graph=True)
    (late,) = torch.autograd.grad(found.states[2:].sum(), leaf)
    assert not early.any() and bool((late[0].abs().sum(-1) > 0).all())


def test_every_answer_counts_alike_or_every_token() -> None:
    """Planted: an answer of one token and one of three."""
    model, batch = toy_model(), toy_batch(2)
    chats = toy_chats(batch).chats
    assert chats is not None
    ids = torch.tensor([[1, END, 2, 5, 6, END]])
    learn = torch.tensor([[False, True, False, True, True, True]])
    turns = torch.tensor([[0, 1, 2, 3, 3, 3]])
    chats = replace(chats, rows=torch.tensor([0]), ids=ids, keep=learn | True, learn=learn, turns=turns, seeds=None)
    losses = {}
    for objective in (Chat(), Chat(per="turn"), Chat(turns="last")):
        run = toy_run(contrastive=(), generative=(), chat=objective, model=replace(toy_run().model, chat=CHATML))
        losses[objective] = Objectives(model, run)(replace(batch, chats=chats))["chat"]
    found = output_of(model, replace(batch, chats=chats))
    nats = F.cross_entropy(model.logits(found.states), found.labels, reduction="none")
    expected = [nats.mean(), (nats[0] + nats[1:].mean()) / 2, nats[1:].mean()]
    torch.testing.assert_close(torch.stack([*losses.values()]), torch.stack(expected))


def chat_run(**changes: object) -> Run:
    model = replace(toy_run().model, chat=ChatTemplate())
    return toy_run(model=model, chat=Chat(weight=0.7, per="turn"), **changes)


def test_parts_of_a_batch_and_the_whole_have_one_gradient() -> None:
    model, batch = toy_model(dropout=0.2).train(), toy_chats(random_batch(10, 2))
    objectives = Objectives(model, chat_run())
    losses = objectives(batch)
    objectives.total(losses).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    found = grad_cache_backward(objectives, batch, 3)
    torch.testing.assert_close(found, {name: loss.detach() for name, loss in losses.items()})
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-9, atol=1e-9, msg=name)


def test_a_text_source_without_a_tower_reads_as_the_trunk_alone_does() -> None:
    """Its states are those of a causal sentence of the same ids through the table; from both sides they are others."""
    batch = toy_batch(5)
    text = batch.items["text"]
    states = {}
    for causal in (True, False):
        model = toy_model(text=Embedded(causal=causal), contrast=(Contrastive(pair=("image", "text")),))
        names = [name for name, _ in model.named_parameters()]
        assert not any("towers.text" in name or "connectors.text" in name for name in names)
        found = forward_task(model, parse("text"), batch)
        assert found is not None
        states[causal] = found.embedding
        for at, (ids, keep) in enumerate(zip(text.x, text.keep, strict=True)):
            x = model.embedding(model.vocabulary.shared("text", ids[keep]))
            x = torch.cat([x, model.pools["text"][None]])[None]
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
            mask = mask.tril() if causal else mask
            own = model.trunk.run(x, mask[None, None], torch.arange(x.shape[1])[None])
            torch.testing.assert_close(model.head("text", own)[0], found.embedding[at], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(states[True], states[False])


def test_a_question_without_a_tower_is_answered_by_a_task() -> None:
    """ "text>text": the second half is written behind a causal first one; kernel and masks agree elsewhere."""
    model, batch = toy_model(text=Embedded(), contrast=()), toy_batch(5)
    one = plan_task(model, parse("text>text"), batch)
    assert one is not None
    (found,) = forward_passes(model, [one])
    found.states.sum().backward()
    assert len(found.labels) > 0 and model.embedding.weight.grad is not None


def test_a_run_with_conversations_is_saved_and_read_back() -> None:
    run = chat_run()
    embedded = replace(run, model=replace(run.model, text=Embedded(), chat=CHATML))
    for one in (run, embedded):
        assert from_json(to_json(one), "run.json") == one


def test_pairs_and_conversations_in_one_step() -> None:
    """The contrast of a batch is not moved by its conversations, nor they by it."""
    model, batch = toy_model(), toy_batch(6)
    alone = Objectives(model, toy_run())(batch)
    both = Objectives(model, chat_run())(toy_chats(batch))
    for item in PAIRS:
        torch.testing.assert_close(both[item.name], alone[item.name])
    assert bool(both["chat"] > 0)
