"""Every direction learns by heart what there is to learn, and gives it back to the id; and who may learn from whom."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toys import TEXT_IDS, toy_batch, toy_config, toy_model

from mmfm.config import AudioCodec, Generative, ImageCodec, Mel, Run, TextTower, Trunk
from mmfm.config.task import parse
from mmfm.data.augment import DRAWS
from mmfm.data.batch import Batch, Ids, Items
from mmfm.generation import GenerationConfig, fill, write
from mmfm.inference.pipeline import holding, of_rows, without_last
from mmfm.models.model import UnifiedModel, build
from mmfm.models.transformer import Segment
from mmfm.objectives.continuation import with_halves
from mmfm.objectives.joint import Objectives
from mmfm.objectives.task_pass import forward_task

IMAGE = ImageCodec(height_px=8, width_px=16, channels=1, patch_px=4, levels=(3, 3), width=8, depth=1)
AUDIO = AudioCodec(mel=Mel(bins=16), frame_stack=4, levels=(3, 3), width=16, depth=1)
STEP = 640  # samples of one audio code
TRIPLES, SHOTS, PAIRS = 8, 4, 4
TEXT, SOUND = 4, 6  # tokens; codes
CODES = 9
TASKS = (
    ">text", "text>text", "image>text", "audio>text", "text>image", "text>audio", "image>audio", "audio>image",
    "audio>audio", "image,text>text", "image,text,image>text", "text~", "image~", "audio~", "text>image~",
)  # fmt: skip

HARD = {"text~": 2.0, "image~": 4.0, "audio~": 3.0, "text>image~": 4.0, "audio>audio": 2.0, "audio>image": 2.0}
WRITES = tuple(
    Generative(task=task, weight=HARD.get(task, 1.0), mask_ratio=(0.5, 1.0) if ">" in task else (0.1, 0.5))
    for task in TASKS
)


def drawn(generator: torch.Generator, count: int) -> Tensor:
    return torch.rand(count, DRAWS, generator=generator)


def rows_of(modality: str) -> Tensor:
    """Eight rows with one thing of each kind, four with two pictures and two texts, four with two texts."""
    single, shots, pairs = torch.arange(TRIPLES), TRIPLES + torch.arange(SHOTS), TRIPLES + SHOTS + torch.arange(PAIRS)
    twice = {"image": [shots], "audio": [], "text": [shots, pairs]}[modality]
    return torch.cat([single, *(rows.repeat_interleave(2) for rows in twice)])


def things(seed: int = 0) -> Batch:
    """Random things, all different; but for the rows with shots, whose last picture is the same in two of them: what is
    to be said of it depends on what was said of the picture before."""
    draw = torch.Generator().manual_seed(seed)
    held = {}
    for name in ("image", "audio", "text"):
        rows = rows_of(name)
        count = len(rows)
        if name == "text":
            x = torch.randint(0, TEXT_IDS, (count, TEXT), generator=draw)
            held[name] = Items(x=x, keep=torch.ones_like(x, dtype=torch.bool), rows=rows)
            continue
        length = IMAGE.length if name == "image" else SOUND
        ids = torch.randint(0, CODES, (count, length), generator=draw)
        written = Ids(ids, torch.ones_like(ids, dtype=torch.bool))
        if name == "image":
            x = torch.randint(0, 256, (count, 1, 8, 16), generator=draw, dtype=torch.uint8)
            last = TRIPLES + 1 + 2 * torch.arange(SHOTS)
            x[last[1::2]] = x[last[::2]]
            keep = torch.ones(count, 1, dtype=torch.bool)
        else:
            loud = 10 ** (-6 * torch.rand(count, SOUND, generator=draw)).repeat_interleave(STEP, 1)
            x = loud * torch.randn(count, STEP * SOUND, generator=draw)
            keep = torch.ones_like(x, dtype=torch.bool)
        held[name] = Items(x=x, keep=keep, rows=rows, written=written)
    size = TRIPLES + SHOTS + PAIRS
    return Batch(size=size, items=held, positive_ids=torch.arange(size))


def learned(
    batch: Batch, tasks: tuple[Generative, ...], *, steps: int, width: int = 32, rate: float = 1e-2
) -> UnifiedModel:
    """A tiny model that was trained on this one batch, every step with other draws."""
    torch.manual_seed(0)
    cfg = toy_config(
        text=TextTower(width=16, depth=1, heads=2),
        trunk=Trunk(width=width, depth=2, heads=4, kv_heads=4),
        image_codec=IMAGE,
        audio_codec=AUDIO,
    )
    model = build(cfg, TEXT_IDS)
    for name, parameter in model.codecs.named_parameters():
        parameter.requires_grad_(False)
        if "decoder" not in name and "leave" not in name:  # codes that differ, from codecs that nobody trained
            parameter.add_(0.5 * torch.randn_like(parameter))
    goal = Objectives(model, Run(name="toy", model=cfg, generative=tasks))
    live = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(live, rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        held = {name: replace(items, draws=drawn(draw, len(items.rows))) for name, items in batch.items.items()}
        optimiser.zero_grad()
        goal.total(goal(replace(batch, items=held))).backward()
        torch.nn.utils.clip_grad_norm_(live, 1.0)
        optimiser.step()
        schedule.step()
    return model.eval()


def answers(model: UnifiedModel, name: str, batch: Batch) -> tuple[Tensor, list[list[int]], list[list[int]]]:
    """The samples that hold all of the task, what is true of them and what the model gives, as local ids."""
    task = parse(name)
    whole = with_halves(model, task, batch)
    rows = holding(whole, task)
    sources, items = without_last(of_rows(whole, rows), str(task.target))
    ids, keep = model.written(str(task.target), items)
    true = [row[kept].tolist() for row, kept in zip(ids, keep, strict=True)]
    if not task.fill:
        return rows, true, write(model, task, sources, GenerationConfig(max_tokens=12)).ids
    some = keep & (torch.arange(ids.shape[1]) % 4 == rows[:, None] % 4)
    hidden = keep if task.sources else some
    _, found = fill(model, task, sources, Ids(ids.masked_fill(hidden, 0), keep), hidden, GenerationConfig(num_steps=8))
    return rows, true, found.tolist()


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    return learned(things(), WRITES, steps=135, width=96, rate=6e-3)


@pytest.mark.parametrize("name", [task for task in TASKS if task != ">text"])
def test_every_direction_is_learned_by_heart(model: UnifiedModel, name: str) -> None:
    """One run of all tasks: greedily written, or filled in, every target is the true one, to the id; but where the
    task cannot know it: of two rows with one picture, what is said without the shot before is true of one of them."""
    rows, true, found = answers(model, name, things())
    wrong = [row for row, a, b in zip(rows.tolist(), true, found, strict=True) if a != b]
    every = {"text>text": 16, "image,text>text": 12, "image,text,image>text": 4, "text~": 16}
    shots = {"image>text", "text>image", "image~", "text>image~"}
    assert len(rows) == every.get(name, TRIPLES + SHOTS if name in shots else TRIPLES)
    if name == "image>text":
        assert len(wrong) == 2 and wrong[0] // 2 != wrong[1] // 2 and min(wrong) >= TRIPLES
    else:
        assert wrong == []


def test_a_text_of_the_heart_comes_from_nothing(model: UnifiedModel) -> None:
    """Without a source the likeliest text is one that was learned."""
    text = things().items["text"]
    (found,) = {tuple(row) for row in write(model, parse(">text"), things(), GenerationConfig(max_tokens=12)).ids}
    assert list(found) in text.x.tolist()


def test_the_answer_depends_on_the_shot(model: UnifiedModel) -> None:
    """The shots of two rows with one last picture change places, and so do the answers."""
    batch, task = things(), parse("image,text,image>text")
    rows = holding(batch, task)
    sources, _ = without_last(of_rows(batch, rows), "text")
    plain = write(model, task, sources, GenerationConfig(max_tokens=12)).ids
    image, text = sources.items["image"], sources.items["text"]
    swap = torch.tensor([2, 1, 0, 3, 6, 5, 4, 7])  # first pictures of the rows, two by two
    other = replace(image, x=image.x[swap], written=None)
    items = {**sources.items, "image": other, "text": replace(text, x=text.x[[1, 0, 3, 2]])}
    changed = write(model, task, replace(sources, items=items), GenerationConfig(max_tokens=12)).ids
    assert changed == [plain[at] for at in (1, 0, 3, 2)] and plain[0] != plain[1]


def test_codes_of_real_codecs_come_back_as_pictures_and_sounds() -> None:
    """Nothing stored: the codecs make the codes that are learned, and what is written decodes to what the codec makes
    of the thing itself."""
    batch = of_rows(things(), torch.arange(4))
    held = {name: replace(items, written=None) for name, items in batch.items.items()}
    bare = replace(batch, items=held)
    tasks = tuple(Generative(task=task) for task in ("text>image", "text>audio"))
    model = learned(bare, tasks, steps=30, width=48)
    texts = replace(bare, items={"text": held["text"]})
    for name in ("image", "audio"):
        true = model.written(name, held[name])
        assert len(torch.unique(true.ids, dim=0)) > 1, "a codec that tells nothing apart is no test"
        made = write(model, parse(f"text>{name}"), texts, GenerationConfig(max_tokens=12)).ids
        assert made == true.ids.tolist()
        again = model.codec(name).decode(torch.tensor(made), torch.ones_like(true.keep))
        whole = model.codec(name).decode(true.ids, true.keep)
        assert all(map(torch.equal, again, whole))


# Who may learn from whom


def with_draws(batch: Batch, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    held = {name: replace(items, draws=drawn(generator, len(items.rows))) for name, items in batch.items.items()}
    return replace(batch, items=held)


def test_a_dropped_source_has_no_gradient_from_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many rows some have their picture dropped: these pictures alone get exactly none, and the loss knows."""
    model, batch, task = toy_model(), with_draws(toy_batch(48)), parse("image>text")
    seen: list[Tensor] = []
    source = model.source

    def watched(modality: str, items: Items) -> Segment:
        segment = source(modality, items)
        seen.append(segment.tokens.x)
        return segment

    monkeypatch.setattr(model, "source", watched)
    reading = forward_task(model, task, batch, Generative(task="image>text", condition_dropout=0.5))
    assert reading is not None
    (gradient,) = torch.autograd.grad(reading.states.square().sum(), seen[0])
    held = torch.isin(reading.rows, batch.items["text"].rows)
    learns = gradient.abs().sum((1, 2))[held] > 0
    assert 0 < int(learns.sum()) < len(learns)
    dropped = reading.rows[held][~learns]
    other = replace(batch.items["image"], x=255 - batch.items["image"].x)
    changed = forward_task(
        model,
        task,
        replace(batch, items={**batch.items, "image": other}),
        Generative(task="image>text", condition_dropout=0.5),
    )
    assert changed is not None
    same = (changed.states == reading.states).all(1)
    assert torch.equal(same, torch.isin(reading.sample_ids, dropped))


def test_the_embedding_does_not_know_of_the_drop() -> None:
    """One pass with dropped sources gives every picture the embedding that it has alone."""
    model, batch = toy_model(), with_draws(toy_batch(24))
    joint = forward_task(model, parse("image>text"), batch, Generative(task="image>text", condition_dropout=0.5))
    alone = forward_task(model, parse("image"), batch)
    assert joint is not None and alone is not None
    known = torch.isin(alone.rows, joint.rows)
    torch.testing.assert_close(joint.embedding, alone.embedding[known], rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", ["text~", "image>text~"])
def test_what_is_masked_is_not_seen(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ids at the masked places: the same states there to the bit, and other labels. One that is not masked counts
    for its row."""
    model, batch = toy_model(), with_draws(toy_batch(12))
    masks: list[Tensor] = []
    filled = model.filled

    def watched(modality: str, ids: Tensor, hidden: Tensor, keep: Tensor) -> Segment:
        masks.append(hidden)
        return filled(modality, ids, hidden, keep)

    monkeypatch.setattr(model, "filled", watched)
    how = Generative(task=task, mask_ratio=(0.3, 0.7))
    before = forward_task(model, parse(task), batch, how)
    assert before is not None
    text, hidden = batch.items["text"], masks[0]
    mine = torch.isin(text.rows, before.rows)
    wide = torch.zeros_like(text.keep)
    wide[mine, : hidden.shape[1]] = hidden
    for where, same in ((wide, True), (text.keep & ~wide, False)):
        other = replace(text, x=torch.where(where, (text.x + 1) % TEXT_IDS, text.x))
        after = forward_task(model, parse(task), replace(batch, items={**batch.items, "text": other}), how)
        assert after is not None and torch.equal(masks[-1], hidden)
        assert torch.equal(after.states, before.states) == same
        assert bool((after.labels != before.labels).all()) == same


def test_what_is_blind_is_predicted_and_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """About half of the inputs stand as the mark of what is hidden, no label does; a row's own, alone and in a batch.
    Without draws, as in evaluation, everything is seen."""
    model, batch, how = toy_model(), with_draws(toy_batch(60)), Generative(task="image>text", target_dropout=0.5)
    seen: list[Tensor] = []
    target = model.target

    def watched(ids: Tensor, keep: Tensor) -> Segment:
        seen.append(ids[:, 1:][keep[:, 1:]])
        return target(ids, keep)

    monkeypatch.setattr(model, "target", watched)
    task, mark = parse("image>text"), model.vocabulary.hidden
    every, plain = forward_task(model, task, batch, how), forward_task(model, task, batch)
    assert every is not None and plain is not None and torch.equal(every.labels, plain.labels)
    hidden = seen[0] == mark
    assert 0.35 < hidden.float().mean() < 0.65 and not (seen[1] == mark).any()
    assert torch.equal(seen[0][~hidden], seen[1][~hidden])
    rows = every.rows[7:9]
    assert forward_task(model, task, of_rows(batch, rows), how) is not None
    lengths = torch.bincount(every.sample_ids)[every.rows] - 1
    start = int(lengths[:7].sum())
    assert torch.equal(seen[2], seen[0][start : start + int(lengths[7:9].sum())])
    bare = {name: replace(items, draws=None) for name, items in batch.items.items()}
    assert forward_task(model, task, replace(batch, items=bare), how) is not None
    assert torch.equal(seen[3], seen[1])


@pytest.mark.parametrize("task", ["image>text", ">text", "text~"])
def test_the_share_is_of_positions_and_not_of_ranks(task: str) -> None:
    """Half of the samples: the same ones, whether they come in one batch or in two; and about half."""
    model, batch, how = toy_model(), with_draws(toy_batch(48)), Generative(task=task, sample_fraction=0.5)

    def chosen(part: Batch) -> list[int]:
        reading = forward_task(model, parse(task), part, how)
        return [] if reading is None else reading.rows.tolist()

    whole = chosen(batch)
    first, second = (of_rows(batch, torch.arange(at, at + 24)) for at in (0, 24))
    assert whole == [*chosen(first), *(24 + row for row in chosen(second))]
    every = forward_task(model, parse(task), batch)
    assert every is not None and 0.3 < len(whole) / len(every.rows) < 0.7
