"""A step makes one pass of each tower and one of the trunk, over real tokens only; what it gives is what padded passes
of each task give, to rounding in float64: embeddings, states, gradients, with dropout and hidden sources."""

import pytest
import torch
from test_dropout import drawn
from torch import Tensor, nn
from toys import pick, random_batch, toy_batch, toy_model, toy_run

from mmfm.config import Augment, Generative
from mmfm.config.task import parse, parse_writing
from mmfm.models.model import UnifiedModel
from mmfm.models.packing import Places, Visibility, pack, pad_packed, take
from mmfm.models.transformer import Sentences
from mmfm.objectives.joint import Objectives
from mmfm.objectives.task_pass import PassOutput, PlannedPass, forward_passes, plan_task

WRITING = (
    Generative(task="image>text", condition_dropout=0.5),
    Generative(task="image,audio>text", condition_dropout=0.5, target_dropout=0.3),
    Generative(task="audio>text", sample_fraction=0.7),
    Generative(task=">text"),
    Generative(task="text~"),
    Generative(task="text>text"),
)
READING = ("image", "audio", "text")


def planned(model: UnifiedModel, batch) -> list[PlannedPass]:
    plans = [plan_task(model, parse_writing(item.task), batch, item) for item in WRITING]
    plans += [plan_task(model, parse(task), batch) for task in READING]
    return [one for one in plans if one is not None]


def padded_trunk(model: UnifiedModel, sizes: list[int]):
    """`trunk.packed` by the trunk's padded pass, task by task, for `forward_passes` to use."""

    def packed(passes: list[Sentences]) -> tuple[Tensor, list[Tensor]]:
        states, where, start = [], [], 0
        for one in passes:
            x = torch.cat(model.trunk(one.segments, seeds=one.seeds), dim=1)
            sizes.append(x.shape[0] * x.shape[1])
            states.append(x.flatten(0, 1))
            where.append(torch.arange(start, start + sizes[-1]).view(x.shape[:2]))
            start += sizes[-1]
        return torch.cat(states), where

    return packed


def gradients(model: UnifiedModel, outputs: list[PassOutput]) -> dict[str, Tensor]:
    """Of a sum in which every number of every output has a weight of its own."""
    draw = torch.Generator().manual_seed(3)
    total = torch.zeros((), dtype=torch.float64)
    for one in outputs:
        for x in (one.embedding, one.states):
            total = total + (x * torch.randn(x.shape, generator=draw, dtype=x.dtype)).sum()
    model.zero_grad()
    total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_same(
    found: list[PassOutput], expected: list[PassOutput], ours: dict[str, Tensor], theirs: dict[str, Tensor]
) -> None:
    """Embeddings, states, labels and gradients, to rounding in float64."""
    for a, b in zip(found, expected, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tokens_dropped", [0.0, 0.4])
def test_one_packed_pass_gives_what_padded_passes_give(seed: int, tokens_dropped: float, monkeypatch) -> None:
    model, batch = toy_model(dropout=0.3).train(), random_batch(24, seed)
    model.augment = Augment(tower_token_dropout=tokens_dropped)
    found = forward_passes(model, planned(model, batch))
    ours = gradients(model, found)
    sizes: list[int] = []
    monkeypatch.setattr(model.trunk, "packed", padded_trunk(model, sizes))
    expected = forward_passes(model, planned(model, batch))
    theirs = gradients(model, expected)
    assert len(found) == len(WRITING) + len(READING) and len(sizes) == len(found)
    check_same(found, expected, ours, theirs)


def calls_of(module: nn.Module) -> list[int]:
    """How many rows each call of its first block gets."""
    seen: list[int] = []
    block = next(part for name, part in module.named_modules() if name == "blocks.0")
    block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:2].numel()))
    return seen


def test_a_step_reads_each_item_once_and_the_trunk_has_no_padding(monkeypatch) -> None:
    """Six writing tasks and three contrasts: one call of each tower, one of the trunk; its tokens are the real ones."""
    run = toy_run(generative=tuple(item for item in WRITING if item.task != "text>text"))
    model = toy_model().train()
    step, batch = Objectives(model, run), drawn(toy_batch(12))
    seen = {name: calls_of(tower) for name, tower in model.towers.items()}
    trunk = calls_of(model.trunk)
    real: list[int] = []
    packed = model.trunk.packed

    def counted(passes: list[Sentences]) -> tuple[Tensor, list[Tensor]]:
        real.append(sum(int(part.tokens.keep.sum()) for one in passes for part in one.segments))
        return packed(passes)

    monkeypatch.setattr(model.trunk, "packed", counted)
    step.total(step(batch)).backward()
    assert {name: len(rows) for name, rows in seen.items()} == {"image": 1, "audio": 1, "text": 1}
    assert trunk == real and len(real) == 1


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_last_block_computes_only_what_is_asked(checkpointed: bool) -> None:
    """All blocks but the last give all tokens; the last one gives a pool token of each first source, and the places
    whose labels count."""
    model, batch = toy_model(dropout=0.3).train(), random_batch(24, 1)
    model.set_grad_checkpointing("full" if checkpointed else "none")
    tokens: list[int] = []
    for block in model.trunk.blocks:
        block.get_submodule("mlp").register_forward_hook(lambda _, __, out: tokens.append(out.shape[1]))
    found = forward_passes(model, planned(model, batch))
    asked = sum(len(one.embedding) + len(one.labels) for one in found)
    assert len(tokens) == len(model.trunk.blocks) > 1
    assert tokens[-1] == asked < 0.8 * tokens[0] and set(tokens[:-1]) == {tokens[0]}


def test_dropped_tokens_cost_nothing() -> None:
    """FLIP: of the tokens that a tower gives, those that no one sees do not enter the trunk."""
    model, batch = toy_model().train(), drawn(toy_batch(12))
    trunk = calls_of(model.trunk)
    for chance in (0.0, 0.5):
        model.augment = Augment(tower_token_dropout=chance)
        forward_passes(model, [one for one in [plan_task(model, parse("image"), batch)] if one])
    images = len(batch.items["image"].rows)
    tokens = 8 * images
    assert trunk[0] == tokens + images  # and a pool token each
    assert 0.3 * tokens < trunk[1] - images < 0.7 * tokens


def test_a_codec_is_asked_once_for_all_tasks_that_write_of_it(monkeypatch) -> None:
    model, batch = toy_model(), toy_batch(12)
    asked: list[str] = []
    written = model.written
    monkeypatch.setattr(model, "written", lambda name, items: (asked.append(name), written(name, items))[1])
    forward_passes(model, planned(model, batch))
    assert asked.count("text") == 1 + 1  # the whole texts, and those that text>text cut in two


def test_one_token_alone_and_no_pass_at_all() -> None:
    model, batch = toy_model(), pick(toy_batch(), [0])
    batch.items["text"].keep[:] = False  # an empty text: nothing but the mark that begins it
    one = plan_task(model, parse(">text"), batch)
    assert one is not None
    (output,) = forward_passes(model, [one])
    assert output.states.shape == (1, model.trunk.width) and output.states.isfinite().all()
    assert output.labels.tolist() == [model.vocabulary.end]
    assert forward_passes(model, []) == []


def test_who_sees_whom_in_a_group() -> None:
    """Two sentences of two segments each, planted: a source of two tokens and a causal target, hidden in the second."""
    real = torch.tensor([[True, True, True, True], [True, True, True, False]])
    segment = torch.tensor([[0, 0, 1, 1]]).expand(2, -1)
    hidden = torch.tensor([[False] * 4, [True, True, False, False]])
    row = pack([Places(real, Visibility(segment, segment == 1, hidden))])
    assert row.lengths == [3, 4] and [group.size for group in row.packed.groups] == [(2, 4)]
    mask = row.packed.groups[0].mask
    assert mask is not None
    sees = [["".join("x" if seen else "." for seen in query) for query in sentence[0]] for sentence in mask]
    assert sees[0][:3] == ["xx..", "xx..", "..x."]
    assert sees[1] == ["xx..", "xx..", "xxx.", "xxxx"]
    assert mask.any(-1).all()  # padding too sees something, lest its softmax be no number
    assert row.where[0].tolist() == [[3, 4, 5, 6], [0, 1, 2, 0]]


def test_groups_are_of_like_lengths_and_hold_every_token_once() -> None:
    """Texts of 1 to 90 tokens: at most a quarter of the places that attention sees is padding, or four a sentence."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 91, (200,), generator=draw)
    real = torch.arange(90) < lengths[:, None]
    row = pack([Places(real)])
    assert sorted(row.source.tolist()) == real.flatten().nonzero().squeeze(1).tolist()
    assert sum(row.lengths) == len(row.source) and row.lengths == sorted(row.lengths)
    for group in row.packed.groups:
        places = group.size[0] * group.size[1]
        assert places <= max(1.25 * (group.stop - group.start), group.stop - group.start + 4 * group.size[0])
    x = torch.randn(len(row.source), 3)
    for group in row.packed.groups:
        part = x[group.start : group.stop]
        assert torch.equal(take(pad_packed(part, group.places, group.size).flatten(0, 1), group.places), part)


def test_the_gradient_of_taking_is_that_of_indexing() -> None:
    x, index = torch.randn(7, 2, dtype=torch.float64, requires_grad=True), torch.tensor([4, 0, 6])
    assert torch.autograd.gradcheck(lambda x: take(x, index), x)
