"""Distillation: what a student takes from a teacher, and that nothing of the teacher moves or is kept."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from ranks import on_ranks
from torch import Tensor
from toys import pick, random_batch, toy_batch, toy_chats, toy_config, toy_model, toy_run

from mmfm.config import (
    Chat,
    ChatTemplate,
    Data,
    Distil,
    Generative,
    Optim,
    Run,
    Source,
    UserError,
)
from mmfm.config.serialization import from_json, to_json
from mmfm.config.task import Task
from mmfm.data.batch import Batch
from mmfm.data.decode import Example, collate
from mmfm.models import checkpoint
from mmfm.models.model import UnifiedModel, build
from mmfm.objectives.distil import Teacher
from mmfm.objectives.grad_cache import grad_cache_backward
from mmfm.objectives.joint import Objectives
from mmfm.objectives.linear_kl import linear_kl
from mmfm.preprocessing.tokenizer import load_tokenizer
from mmfm.runtime.distributed import SingleProcess
from mmfm.training import fit
from mmfm.training.teachers import load_teachers, reading, sha256_of

ALONE = SingleProcess()
FEATURES = Distil(modality="image", teacher="t", features=0.7, similarities=0.3, weight=2.0)
NEAR = Distil(modality="text", teacher="t", similarities=1.0, similarity_temperature=0.2)
LIKELY = Distil(modality="text", teacher="t", logits=1.0, temperature=2.0)
TASK = Task((), "text")
ALL = (FEATURES, NEAR, LIKELY)
CENTERED = (replace(FEATURES, center="batch"), replace(NEAR, center="batch"))


def student_run(*items: Distil, **changes: object) -> Run:
    chat = {"model": replace(toy_config(), chat=ChatTemplate()), "chat": Chat(weight=0.7)}
    return toy_run(**({"distil": items, "contrastive": (), "generative": (Generative(task=">text"),)} | chat | changes))


def taught(
    items: tuple[Distil, ...] = ALL,
    student: UnifiedModel | None = None,
    teacher: UnifiedModel | None = None,
    ranks: object = ALONE,
    marked: bool = True,
) -> Objectives:
    student, teacher = student or toy_model(1), teacher or toy_model(2)
    known = {item.name: Teacher(teacher, marked=marked) for item in items}
    return Objectives(student, student_run(*items), ranks, known)  # type: ignore[arg-type]


def distilled(owner: Objectives, batch: Batch) -> dict[str, Tensor]:
    return {name: loss for name, loss in owner(batch).items() if name.startswith("distil")}


def test_divergence_is_that_of_torch_in_tiles_too() -> None:
    """torch's kl_div of whole logits at a temperature, and its gradients."""
    draw = torch.Generator().manual_seed(0)
    x, w, tx, tw = (
        torch.randn(*size, generator=draw, dtype=torch.float64) for size in ((7, 4), (9, 4), (7, 5), (9, 5))
    )
    x, w = x.requires_grad_(), w.requires_grad_()
    expected = F.kl_div(
        (x @ w.T / 1.7).log_softmax(1), (tx @ tw.T / 1.7).log_softmax(1), reduction="sum", log_target=True
    )
    gradients = torch.autograd.grad(3 * expected, (x, w))
    for tile_mb in (32.0, 2 * 9 * 8 / 2**20, 1e-9):
        found = linear_kl(x, w, tx, tw, 1.7, tile_mb)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(3 * found, (x, w)), gradients)


def test_an_item_is_not_compared_with_itself() -> None:
    """As torch has it of a square of scores whose diagonal is taken out, in tiles too."""
    draw = torch.Generator().manual_seed(0)
    x, t = (F.normalize(torch.randn(6, 3, generator=draw, dtype=torch.float64), dim=1) for _ in range(2))
    off = ~torch.eye(6, dtype=torch.bool)
    scores = [(a @ a.T / 0.1)[off].view(6, 5).log_softmax(1) for a in (x, t)]
    expected = F.kl_div(*scores, reduction="sum", log_target=True)
    for tile_mb in (32.0, 1e-9):
        parts = [linear_kl(x[rows], x, t[rows], t, 0.1, tile_mb, rows.start) for rows in (slice(0, 2), slice(2, 6))]
        torch.testing.assert_close(torch.stack(parts).sum(), expected)


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    """Losses of 0, and no gradient."""
    batch = toy_chats(random_batch(12, 1))
    owner = taught(student=toy_model(1), teacher=toy_model(1))
    losses = distilled(owner, batch)
    assert set(losses) == {"distil image", "distil text", "distil >text"}
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(0.0, abs=1e-12), name
    sum(losses.values(), torch.zeros(())).backward()
    for name, parameter in owner.named_parameters():
        assert parameter.grad is None or float(parameter.grad.abs().max()) < 1e-7, name


def test_another_student_learns_and_the_teacher_does_not() -> None:
    """Every loss is above 0 and reaches the student's weights; a teacher's have no gradient and belong to no module."""
    owner, batch = taught(), toy_chats(toy_batch(12))
    before = sha256_of(owner.teachers["distil image"].core)
    losses = distilled(owner, batch)
    for name, weight in (("image", "towers.image.norm.weight"), ("text", "towers.text.norm.weight")):
        loss, parameter = losses[f"distil {name}"], owner.model.get_parameter(weight)
        assert loss.item() > 0.01
        (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        assert gradient.abs().max() > 1e-4
    owner.total(owner(batch)).backward()
    for teacher in owner.teachers.values():
        assert all(p.grad is None and not p.requires_grad for p in teacher.core.parameters())
    assert sha256_of(owner.teachers["distil image"].core) == before
    assert {*owner.state_dict()} == {f"model.{name}" for name in owner.model.state_dict()}


def test_next_tokens_are_those_of_the_teachers_own_pass() -> None:
    """Over texts and conversations without parts, by whole logits: torch's kl_div over the ids of texts."""
    batch = toy_batch(8, seed=3)
    batch = toy_chats(replace(batch, items={name: batch.items[name] for name in ("audio", "text")}))
    student, teacher = toy_model(1), toy_model(2)
    found = distilled(taught((LIKELY,), student, teacher), batch)["distil >text"]
    run = student_run()
    read = [Objectives(model, run).run_passes(batch) for model in (student, teacher)]
    whole, tokens = torch.zeros((), dtype=torch.float64), 0
    free = {row for row, ids in enumerate(batch.chats.ids.tolist()) if not {-1, -2} & {*ids}}
    for mine, theirs in ((one.outputs[TASK], other.outputs[TASK]) for one, other in [read]):
        keep = mine.labels != student.vocabulary.end
        whole, tokens = (
            whole + divergence(student, teacher, mine.states[keep], theirs.states[keep]),
            tokens + keep.sum(),
        )
    chat, other = read[0].chat, read[1].chat
    keep = torch.tensor([row in free for row in chat.sample_ids.tolist()])
    assert 0 < int(keep.sum()) < len(keep)
    whole, tokens = whole + divergence(student, teacher, chat.states[keep], other.states[keep]), tokens + keep.sum()
    torch.testing.assert_close(found, 4 * whole / tokens)


def divergence(student: UnifiedModel, teacher: UnifiedModel, mine: Tensor, theirs: Tensor) -> Tensor:
    span = student.vocabulary.span("text")
    logs = [
        (model.logits(states)[:, span.start : span.stop] / LIKELY.temperature).log_softmax(1)
        for model, states in ((student, mine), (teacher, theirs))
    ]
    return F.kl_div(*logs, reduction="sum", log_target=True)


def test_a_language_model_reads_a_text_without_the_mark_before_it() -> None:
    """As a conversation of nothing but that text: what it expects after the first token, and not at the mark."""
    teacher, batch = toy_model(2), toy_batch(6, seed=2)
    items = batch.items["text"]
    found = Teacher(teacher, marked=False).next_states(items)
    lengths = items.keep.sum(1)
    assert len(found) == int((lengths - 1).sum())
    ids = teacher.vocabulary.shared("text", items.x)
    at = 0
    for row, length in zip(ids, lengths.tolist(), strict=True):
        if length > 1:
            segment = teacher.target(row[None, : length - 1], torch.ones(1, length - 1, dtype=torch.bool))
            states = teacher.trunk([segment])[0]
            torch.testing.assert_close(found[at : at + length - 1], states[0], rtol=1e-6, atol=1e-8)
        at += length - 1
    whole = taught((LIKELY,), toy_model(2), teacher, marked=False)
    assert distilled(whole, batch)["distil >text"].item() > 0  # the student has the mark before it


@pytest.mark.parametrize(
    ("shares", "items"), [((5, 7), ALL), ((0, 12), ALL), ((3, 4, 5), ALL), ((5, 7), CENTERED), ((0, 12), CENTERED)]
)
def test_any_ranks_are_one_process(shares: tuple[int, ...], items: tuple[Distil, ...]) -> None:
    """Shares add up to the loss of the whole batch, and mean gradients are its gradients."""
    whole = toy_chats(random_batch(12, 4))
    owner = taught(items)
    losses = owner(whole)
    owner.total(losses).backward()
    expected = {name: p.grad.clone() for name, p in owner.model.named_parameters() if p.grad is not None}
    bounds = [sum(shares[:rank]) for rank in range(len(shares) + 1)]
    models = [(toy_model(1), toy_model(2)) for _ in shares]

    def work(joined):
        mine = pick(whole, list(range(bounds[joined.rank], bounds[joined.rank + 1])))
        one = taught(items, *models[joined.rank], joined)
        found = one(mine)
        one.total(found).backward()
        return {name: loss.detach() for name, loss in found.items()}

    found = on_ranks(len(shares), work)
    for one in found:
        if isinstance(one, Exception):
            raise one
    for name, loss in losses.items():
        torch.testing.assert_close(sum(one[name] for one in found), loss.detach(), msg=name)
    for name, gradient in expected.items():
        own = [model.get_parameter(name).grad for model, _ in models]
        mean = sum((x for x in own if x is not None), torch.zeros_like(gradient)) / len(shares)
        torch.testing.assert_close(mean, gradient, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("items", [ALL, CENTERED], ids=["plain", "centered"])
def test_parts_of_a_batch_and_the_whole_have_one_gradient(items: tuple[Distil, ...]) -> None:
    batch, owner, parts = toy_chats(random_batch(10, 2)), taught(items), taught(items)
    losses = owner(batch)
    owner.total(losses).backward()
    found = grad_cache_backward(parts, batch, 3)
    torch.testing.assert_close(found, {name: loss.detach() for name, loss in losses.items()})
    for name, parameter in owner.model.named_parameters():
        if parameter.grad is not None:
            mine = parts.model.get_parameter(name).grad
            torch.testing.assert_close(mine, parameter.grad, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("item", [replace(FEATURES, features=1.0, similarities=0.0), NEAR, LIKELY, CENTERED[1]])
def test_a_student_comes_near_its_teacher(item: Distil) -> None:
    """A few steps on one batch take away half of what is between them, at least."""
    owner, batch = taught((item,)), toy_chats(toy_batch(12))
    optimiser = torch.optim.AdamW(owner.model.parameters(), 3e-3, weight_decay=0.0)
    losses = []
    for _ in range(40):
        loss = owner(batch)[item.name]
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0], losses


def test_a_teacher_reads_what_a_text_says_by_its_own_tokenizer() -> None:
    """The student's ids are of no concern to it, nor is how the student cuts texts."""
    words = load_tokenizer("bytes")
    texts = ["a cat", "a longer text about dogs", "ab"]
    theirs = collate([Example(key="", text=text) for text in texts], words)
    model = build(toy_config(), words.size).double()
    teacher = Teacher(model, items_of=reading(words))
    expected = Teacher(model).embed("text", theirs.items["text"])
    mine = toy_batch(4).items["text"].take(torch.arange(3))
    torch.testing.assert_close(teacher.embed("text", mine, texts), expected)
    with pytest.raises(UserError, match="one text of each sample"):
        teacher.embed("text", mine, [*texts[:2], None])


def test_what_cannot_be_learned_is_said_in_one_line() -> None:
    image = {"modality": "image", "teacher": "t"}
    for change, told in (
        ({}, "nothing to learn; set features, similarities or logits"),
        ({"features": -1.0}, "features=-1.0 must not be negative"),
        ({"logits": 1.0}, "only texts are written"),
        ({"features": 1.0, "similarity_temperature": 0.0}, "similarity_temperature"),
        ({"features": 1.0, "teacher": ""}, "teacher is empty"),
    ):
        with pytest.raises(UserError, match=told):
            Distil(**(image | change))
    with pytest.raises(UserError, match="list two of them"):
        Distil(modality="text", teacher="t", logits=1.0, features=1.0)
    with pytest.raises(UserError, match=r"add Generative\(task='>text'\), or a chat"):
        toy_run(distil=(LIKELY,), generative=())
    with pytest.raises(UserError, match=r"an objective is listed twice: .*distil text"):
        toy_run(distil=(NEAR, NEAR))
    with pytest.raises(UserError, match="mmfm import SOURCE bundles/none makes it"):
        load_teachers(toy_run(distil=(replace(NEAR, teacher="bundles/none"),)), load_tokenizer("bytes"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_shard: Callable[..., Path]) -> Path:
    """A shard of texts, and in runs/teacher a model that was trained on them."""
    folder = tmp_path_factory.mktemp("distil")
    texts = [f"{word} {number}" for number in range(8) for word in ("one", "some cats", "a dog or two", "birds")]
    write_shard(folder / "texts.tar", {f"{at:03d}": {"txt": text.encode()} for at, text in enumerate(texts)})
    fit.train(run_of(folder, "teacher", embed_dim=12))
    return folder


def run_of(folder: Path, name: str, *distil: Distil, embed_dim: int = 8, steps: int = 4) -> Run:
    model = toy_config(image=None, audio=None, embed_dim=embed_dim, dropout=0.1)
    return Run(
        name=name,
        out=str(folder / "runs"),
        model=model,
        data=Data(train=(Source(shards=str(folder / "texts.tar"), modalities=("text",)),), batch_size=8, num_workers=0),
        generative=(Generative(task=">text"),),
        distil=distil,
        optim=Optim(steps=steps, lr=3e-3, warmup_steps=1),
        save_every_steps=2,
    )


def weights_of(folder: Path) -> dict[str, Tensor]:
    return checkpoint.newest_model(folder)[1][1]


def test_a_run_keeps_its_teachers_sha256_and_none_of_its_weights(folder: Path) -> None:
    """And resumes to the bit, but never with another teacher."""
    teacher = str(folder / "runs/teacher")
    items = (
        Distil(modality="text", teacher=teacher, similarities=1.0, feature_cache_dir=str(folder / "kept")),
        Distil(modality="text", teacher=teacher, logits=0.5),
    )
    whole = run_of(folder, "whole", *items)
    fit.train(whole)
    saved = from_json((folder / "runs/whole/run.json").read_text(), "run.json")
    assert from_json(to_json(saved), "again") == saved
    assert all(len(item.sha256) == 64 for item in saved.distil)
    assert {*weights_of(whole.folder)} == {*weights_of(folder / "runs/teacher")}
    assert "distil >text" in (folder / "runs/whole/metrics.jsonl").read_text()
    assert any((folder / "kept").rglob("*.safetensors"))

    half = replace(whole, name="half")
    fit.train(half)
    first, last = sorted((half.folder / "checkpoints").iterdir())
    assert (first.name[-1], last.name[-1]) == ("2", "4")
    shutil.rmtree(last)
    other = folder / "runs/away"
    (folder / "runs/teacher").rename(other)
    fit.train(replace(run_of(folder, "teacher", embed_dim=12), seed=1))
    with pytest.raises(UserError, match="not the teacher that this run began with"):
        fit.train(half, resume=True)
    shutil.rmtree(folder / "runs/teacher")
    other.rename(folder / "runs/teacher")
    fit.train(half, resume=True)
    for name, tensor in weights_of(whole.folder).items():
        assert torch.equal(tensor, weights_of(half.folder)[name]), name


def test_a_teacher_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    teacher, words = str(folder / "runs/teacher"), load_tokenizer("bytes")
    run = run_of(folder, "student", Distil(modality="text", teacher=teacher, features=1.0))
    with pytest.raises(UserError, match=r"12 wide, Model.embed_dim is 8; set embed_dim=12"):
        load_teachers(run, words)
    fits, _ = load_teachers(run_of(folder, "student", *run.distil, embed_dim=12), words)
    assert len(fits.distil[0].sha256) == 64
    run = run_of(folder, "student", Distil(modality="image", teacher=teacher, similarities=1.0))
    with pytest.raises(UserError, match="holds no image encoder"):
        load_teachers(run, words)
