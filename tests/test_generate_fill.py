"""Filling in: what was given stays, forms are obeyed, one a round is the surest first, the schedule is the paper's."""

import math

import pytest
import torch
from toys import pick, toy_batch, toy_model

from mmfm.config import UserError
from mmfm.config.task import Task, parse
from mmfm.data.batch import Ids
from mmfm.data.vocabulary import CodeFormat
from mmfm.generation import GenerationConfig, fill
from mmfm.generation import masked_decoding as module
from mmfm.objectives.task_pass import sources_of

SIZE, TIME = 6, 8
FORMS = {"one book": CodeFormat((7,), length=TIME), "two books": CodeFormat((4, 3), length=TIME)}


def filler(form: CodeFormat = FORMS["one book"]):
    model = toy_model(3, image_codes=7)
    model.forms["image"] = form
    return model


def given(form: CodeFormat, seed: int = 0) -> tuple[Ids, torch.Tensor]:
    """Ids of which each row hides others, one row all of them and one row one."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.stack(
        [
            torch.randint(min(span), max(span) + 1, (SIZE,), generator=draw)
            for span in map(form.candidates, range(TIME))
        ],
        1,
    )
    hidden = torch.rand(SIZE, TIME, generator=draw) < 0.6
    hidden[0], hidden[1] = True, torch.arange(TIME) == 3
    return Ids(ids, torch.ones_like(hidden)), hidden


def logits_at(model, task: Task, batch, row: int, ids: torch.Tensor, hidden: torch.Tensor, hide=()) -> torch.Tensor:
    """Of every place of one sample alone, over all local ids."""
    one = pick(batch, [row])
    _, sources = sources_of(model, task, one) if task.sources else ([], [])
    seen = [part._replace(hidden=torch.tensor([no])) for part, no in zip(sources, hide or [False] * 9, strict=False)]
    segment = model.filled("image", ids[None], hidden[None], torch.ones(1, TIME, dtype=torch.bool))
    states = model.trunk([*seen, segment])[-1][0, 1:]
    span = model.vocabulary.span("image")
    return model.logits(states)[:, span.start : span.stop]


@torch.no_grad()
def surest_first(model, task: Task, batch, row: int, ids: torch.Tensor, hidden: torch.Tensor, passes) -> list[int]:
    """One place at a time: the one whose likeliest id is the likeliest of all."""
    ids, hidden, form = ids.clone(), hidden.clone(), model.forms["image"]
    allowed = torch.tensor([[local in form.candidates(at) for local in range(7)] for at in range(TIME)])
    while hidden.any():
        logits = sum(weight * logits_at(model, task, batch, row, ids, hidden, hide) for hide, weight in passes)
        chances, found = logits.masked_fill(~allowed, -torch.inf).softmax(-1).max(-1)
        place = int(chances.masked_fill(~hidden, -1).argmax())
        ids[place], hidden[place] = found[place], False
    return ids.tolist()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("task", "guidance"), [("image~", 1.0), ("text>image~", 1.0), ("text>image~", 3.0)])
def test_as_many_rounds_as_places_is_the_surest_first(form, task, guidance):
    """By hand, each sample alone and without a cache; what was given is there still."""
    model, batch, (ids, hidden) = filler(FORMS[form]), toy_batch(SIZE), given(FORMS[form])
    passes = [((), 1.0)] if guidance == 1 else [((True,), 1 - guidance), ((), guidance)]
    task = parse(task)
    rows, found = fill(model, task, batch, ids, hidden, GenerationConfig(num_steps=TIME, guidance=guidance))
    assert len(rows) >= 5
    for at, row in enumerate(rows):
        assert torch.equal(found[at][~hidden[row]], ids.ids[row][~hidden[row]])
        assert found[at].tolist() == surest_first(model, task, batch, row, ids.ids[row], hidden[row], passes)


@pytest.mark.parametrize("rounds", [1, 3, 20])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forms_are_obeyed_and_rows_are_alone(rounds, temperature):
    """Every place has an id of its book, and a row is what it is without the others, drawn or not."""
    form = FORMS["two books"]
    model, batch, (ids, hidden) = filler(form), toy_batch(SIZE), given(form)
    how, seeds = GenerationConfig(num_steps=rounds, temperature=temperature), 100 * torch.arange(SIZE)
    rows, found = fill(model, parse("text>image~"), batch, ids, hidden, how, seeds=seeds)
    assert all(local in form.candidates(at) for row in found.tolist() for at, local in enumerate(row))
    for at, row in enumerate(rows):
        alone = Ids(ids.ids[[row]], ids.keep[[row]])
        own = fill(model, parse("text>image~"), pick(batch, [row]), alone, hidden[[row]], how, seeds=seeds[[row]])
        assert torch.equal(own[1][0], found[at]) and torch.equal(found[at][~hidden[row]], ids.ids[row][~hidden[row]])


def test_a_round_of_draws_follows_the_softmax():
    """All places at once, a thousand seeds: each place's frequencies lie near its softmax, and places differ."""
    model, batch, (ids, hidden) = filler(), toy_batch(SIZE), given(FORMS["one book"])
    ids = Ids(ids.ids[:1].expand(SIZE, -1), ids.keep)
    hidden = hidden[:1].expand(SIZE, -1)
    how, drawn = GenerationConfig(num_steps=1, temperature=1.0), []
    for part in range(200):
        seeds = SIZE * part + torch.arange(SIZE)
        drawn.append(fill(model, parse("image~"), batch, ids, hidden, how, seeds=seeds)[1])
    drawn = torch.cat(drawn)
    expected = logits_at(model, parse("image~"), batch, 0, ids.ids[0], hidden[0]).softmax(-1)
    frequencies = torch.stack([(drawn == local).double().mean(0) for local in range(7)], 1)
    assert ((frequencies - expected).abs() < 5 * (expected * (1 - expected) / len(drawn)).sqrt() + 1e-3).all()
    assert (drawn[:, 0] == drawn[:, 1]).double().mean() < 0.9


def test_the_schedule_is_a_cosine(monkeypatch):
    """How many places are left after each round, of a row with all hidden and of one with a single one."""
    model, batch, (ids, hidden) = filler(), toy_batch(SIZE), given(FORMS["one book"])
    left, guess = [], module._guess
    monkeypatch.setattr(module, "_guess", lambda *args: (left.append(args[3].sum(1).tolist()), guess(*args))[1])
    fill(model, parse("image~"), batch, ids, hidden, GenerationConfig(num_steps=4))
    assert [row[0] for row in left] == [TIME, *(math.floor(TIME * math.cos(math.pi * r / 8)) for r in (1, 2, 3))]
    assert [row[1] for row in left] == [1, 0, 0, 0]


def test_scores_that_are_no_numbers_fill_nothing():
    model, batch, (ids, hidden) = filler(), toy_batch(SIZE), given(FORMS["one book"])
    with torch.no_grad():
        model.trunk.blocks[0].attn.qkv.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"the weights trunk\.blocks\.0\.attn\.qkv\.weight are not: give another"):
        fill(model, parse("text>image~"), batch, ids, hidden, GenerationConfig(num_steps=2))


def test_what_cannot_be_filled_is_refused():
    model, batch, (ids, hidden) = filler(), toy_batch(SIZE), given(FORMS["one book"])
    with pytest.raises(UserError, match="filling in has no beams, draws or stop strings"):
        fill(model, parse("image~"), batch, ids, hidden, GenerationConfig(num_beams=2))
    with pytest.raises(UserError, match="a place to fill in is padding"):
        fill(model, parse("image~"), batch, Ids(ids.ids, ~hidden), hidden, GenerationConfig())
    with pytest.raises(UserError, match="guidance needs sources"):
        fill(model, parse("image~"), batch, ids, hidden, GenerationConfig(guidance=2.0))
