"""Projectors: planted maps, parity with transformers, what is left out has no gradient, padded is as alone, a step."""

import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from test_dropout import drawn
from test_host_syncs import META, Watched
from test_packing import check_same, gradients, padded_trunk, planned
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toys import PAIRS, TEXT_IDS, pick, random_batch, toy_batch, toy_chats, toy_config, toy_model, toy_run
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

from mmfm.config import CHATML, Augment, Chat, Data, Projector, Run, Tower, Trunk, UserError, Vit
from mmfm.config.serialization import from_json, parse, to_json
from mmfm.config.task import parse as task_of
from mmfm.data.batch import Tokens
from mmfm.data.token_counts import TokenCounts
from mmfm.export.graphs import graphs
from mmfm.export.program import trace
from mmfm.models import projectors
from mmfm.models.dropout import Dropout
from mmfm.models.flops import costs_of
from mmfm.models.model import UnifiedModel, build
from mmfm.models.projectors import Grid, Map, Resampler, connect, grid_of, grid_pool, pixel_shuffle
from mmfm.objectives.joint import Objectives
from mmfm.objectives.task_pass import forward_passes, forward_task
from mmfm.preprocessing.text_limits import _tokens as tokens_of
from mmfm.training.initialize import check_augment

CPU = torch.device("cpu")
WIDE = Trunk(width=128, depth=1, heads=4, kv_heads=2)
PREFIXED = Vit(height_px=8, width_px=16, patch_px=4, channels=1, width=16, depth=1, heads=2, prefix=3)  # 3 + 2 x 4
KINDS = {
    "linear": (Projector(norm=True),),
    "mlp": (Projector(kind="mlp", hidden=24, norm=True, start_rms=0.2), Projector(modality="audio", kind="mlp")),
    "grid": (Projector(kind="mlp", grid=2, norm=True),),
    "shuffle": (Projector(pixel_shuffle=2),),
    "places": (
        Projector(kind="mlp", grid=2, positions=True),
        Projector(modality="audio", positions=True),
        Projector(modality="text", kind="mlp", positions=True),
    ),
    "whole": (Projector(positions=True),),
    "resampler": (
        Projector(kind="resampler", queries=3, heads=2),
        Projector(modality="audio", kind="resampler", queries=5, depth=1, hidden=24),
        Projector(modality="text", kind="resampler", queries=2, depth=1),
    ),
}


def projected(kind: str, **changes: Any) -> UnifiedModel:
    return toy_model(image=PREFIXED, projectors=KINDS[kind], **changes)


def test_a_map_averaged_to_a_grid_and_its_mean() -> None:
    """Planted: 2 x 4 patches behind two other tokens; windows that do not divide overlap, as torch's pooling has it."""
    x = torch.tensor([90.0, 91, 1, 3, 5, 7, 11, 13, 15, 17])[None, :, None]
    assert grid_pool(x, Grid(2, 2, 4), 2).flatten().tolist() == [2, 6, 12, 16, 9]
    x = torch.randn(2, 49, 5, dtype=torch.float64)
    expected = torch.nn.functional.adaptive_avg_pool2d(x.transpose(1, 2).unflatten(2, (7, 7)), 4)
    found = grid_pool(x, Grid(0, 7, 7), 4)
    torch.testing.assert_close(found[:, :16], expected.flatten(2).transpose(1, 2))
    torch.testing.assert_close(found[:, 16], x.mean(1))


def test_pixel_shuffle_is_that_of_idefics3() -> None:
    x = torch.randn(2, 36, 5)
    for by in (2, 3):
        theirs = Idefics3Connector.pixel_shuffle(SimpleNamespace(), x, by)  # type: ignore[arg-type]
        assert torch.equal(pixel_shuffle(torch.cat([x[:, :1], x], 1), Grid(1, 6, 6), by), theirs)
    planted = torch.arange(8.0)[None, :, None]  # 2 x 4, which theirs does not read
    assert pixel_shuffle(planted, Grid(0, 2, 4), 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_the_resampler_is_that_of_idefics() -> None:
    """Its own ReLU exchanged for GELU; the same weights under other names, all of them."""
    inner = SimpleNamespace(embed_dim=32)
    cfg = SimpleNamespace(perceiver_config=SimpleNamespace(qk_layer_norms_perceiver=False), vision_config=inner)
    theirs = IdeficsPerceiverResampler(cfg, 32, depth=2, n_heads=4, head_dim=8, n_latents=6).double()  # type: ignore
    ours = Resampler(32, queries=6, depth=2, heads=4).double()
    state = dict(theirs.state_dict())
    for block in theirs.blocks:
        block[1].act = torch.nn.GELU()  # type: ignore[index]
    names = {
        "0.context_layer_norm": "norm_tokens", "0.latents_layer_norm": "norm_queries", "0.q_proj": "q",
        "0.output_proj": "proj", "1.ln": "norm", "1.fc": "fc1", "1.c_proj": "fc2",
    }  # fmt: skip
    mapped = {
        "queries": state["latents"],
        "norm.weight": state["layer_norm.weight"],
        "norm.bias": state["layer_norm.bias"],
    }
    for layer in range(2):
        for their, our in names.items():
            for leaf in ("weight", "bias"):
                if (value := state.get(f"blocks.{layer}.{their}.{leaf}")) is not None:
                    mapped[f"layers.{layer}.{our}.{leaf}"] = value
        kv = [state[f"blocks.{layer}.0.{name}_proj.weight"] for name in "kv"]
        mapped[f"layers.{layer}.kv.weight"] = torch.cat(kv)
    ours.load_state_dict(mapped, strict=True)
    x = torch.randn(3, 11, 32, dtype=torch.float64)
    expected = theirs(x)
    torch.testing.assert_close(ours(Tokens(x, torch.ones(3, 11, dtype=torch.bool))), expected)
    padded = torch.cat([x, torch.randn(3, 4, 32, dtype=torch.float64)], 1)
    torch.testing.assert_close(ours(Tokens(padded, (torch.arange(15) < 11).expand(3, -1))), expected)


@pytest.mark.parametrize(
    ("tokens", "height", "width", "expected"),
    [
        (196, 224, 224, Grid(0, 14, 14)),  # SigLIP, a patch of 16
        (197, 224, 224, Grid(1, 14, 14)),  # a class token
        (198, 224, 224, Grid(2, 14, 14)),  # and one of distillation
        (261, 224, 224, Grid(5, 16, 16)),  # DINOv2 with four registers
        (49, 224, 224, Grid(0, 7, 7)),  # a CNN
        (50, 224, 224, Grid(1, 7, 7)),  # CLIP, a patch of 32
        (12 * 9 + 1, 384, 288, Grid(1, 12, 9)),
        (8 * 10, 240, 320, Grid(0, 8, 10)),  # a stride of 32, which pads
        (7 * 10, 240, 320, Grid(0, 7, 10)),  # or cuts
        (1, 224, 224, Grid(0, 1, 1)),
        (60, 224, 224, None),
        (0, 224, 224, None),
    ],
)
def test_the_map_of_a_picture_is_found(tokens: int, height: int, width: int, expected: Grid | None) -> None:
    assert grid_of(tokens, height, width) == expected


def test_a_tower_of_ours_says_where_its_map_begins() -> None:
    """Three tokens before 2 x 4 patches; a larger picture has a larger map; others are one line."""
    there = Map(8, 16, 3)
    assert there.grid(11) == Grid(3, 2, 4) and there.grid(35) == Grid(3, 4, 8)
    with pytest.raises(UserError, match="the image tower gives 12 tokens, which make no map of a picture of 8 x 16 px"):
        there.grid(12)


@pytest.mark.parametrize("kind", ["grid", "shuffle"])
def test_tokens_before_the_map_are_left_out(kind: str) -> None:
    """What they hold reaches nothing; every patch reaches the embedding."""
    model, batch = projected(kind), toy_batch()
    tokens = model.tokens("image", batch.items["image"])
    leaf = tokens.x.detach().requires_grad_()
    items = replace(batch.items["image"], tokens=tokens._replace(x=leaf))
    out = forward_task(model, task_of("image"), replace(batch, items={"image": items}))
    assert out is not None
    (gradient,) = torch.autograd.grad(out.embedding.square().sum() + out.embedding.sum(), leaf)
    assert not gradient[:, :3].any() and bool((gradient[:, 3:].abs().sum(-1) > 0).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["image>text", "audio>text", "text>text"])
def test_padded_in_a_batch_is_as_alone(kind: str, task: str) -> None:
    model, batch = projected(kind), toy_batch()
    together = forward_task(model, task_of(task), batch)
    assert together is not None
    for place, row in enumerate(together.rows.tolist()):
        alone = forward_task(model, task_of(task), pick(batch, [row]))
        assert alone is not None
        torch.testing.assert_close(together.embedding[place : place + 1], alone.embedding, rtol=0, atol=1e-6)
        torch.testing.assert_close(together.states[together.sample_ids == row], alone.states, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_cpu_knows_is_what_the_device_has(kind: str) -> None:
    model, batch = projected(kind), drawn(toy_batch(9))
    counts = {"linear": 11, "mlp": 11, "grid": 5, "shuffle": 2, "places": 5, "whole": 11, "resampler": 3}
    for name, items in batch.items.items():
        segment = model.source(name, items)
        assert segment.known is not None and torch.equal(segment.known, segment.tokens.keep)
    assert model.source("image", batch.items["image"]).tokens.x.shape[1] == counts[kind] + 1


@pytest.mark.parametrize(
    ("changes", "first", "size"), [({}, 3, (2, 4)), ({"pixel_shuffle": 2}, 0, (1, 2)), ({"grid": 2}, 0, (2, 2))]
)
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_positions_tell_equal_tokens_of_a_map_apart(
    kind: Any, changes: dict[str, Any], first: int, size: tuple[int, int]
) -> None:
    """At first not at all. What is no part of the map (before it, or its mean behind it) is as it was."""
    cfg = toy_config(image=PREFIXED, projectors=(Projector(kind=kind, norm=True, positions=True, **changes),))
    part = build(cfg, TEXT_IDS, PAIRS).double().connectors["image"]
    assert isinstance(part, projectors.Projector)
    tokens = Tokens(torch.randn(1, 1, 16).double().expand(2, 11, 16), torch.ones(2, 11, dtype=torch.bool))
    before = part(tokens).x
    torch.testing.assert_close(before, before[:, :1].expand_as(before))
    torch.nn.init.normal_(part.places.weight.weight)
    after = part(tokens).x
    places, (rows, columns) = torch.arange(after.shape[1]), size
    inside = (places >= first) & (places < first + rows * columns)
    assert torch.equal(after[:, ~inside], before[:, ~inside])
    of = after[0, inside].unflatten(0, size)
    assert torch.pdist(of.flatten(0, 1)).min() > 0.01
    if kind == "linear":
        torch.testing.assert_close(of[0, 0] + of[-1, -1], of[0, -1] + of[-1, 0])  # a row and a column are added


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_pass_gives_what_padded_passes_give(kind: str, monkeypatch) -> None:
    model, batch = projected(kind, dropout=0.3, connector_dropout=0.2).train(), random_batch(12, 1)
    model.augment = Augment(tower_token_dropout=0.3)
    found = forward_passes(model, planned(model, batch))
    ours = gradients(model, found)
    monkeypatch.setattr(model.trunk, "packed", padded_trunk(model, []))
    expected = forward_passes(model, planned(model, batch))
    check_same(found, expected, ours, gradients(model, expected))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_with_conversations_reaches_all_of_it_and_asks_its_device_nothing(kind: str, monkeypatch) -> None:
    real, shapes = torch.autocast, []
    monkeypatch.setattr(torch, "autocast", lambda kind, **how: nullcontext() if kind == "meta" else real(kind, **how))
    for device in (CPU, META):
        model = projected(kind, dropout=0.1).train().to(device)
        run = toy_run(chat=Chat(), model=replace(toy_run().model, chat=CHATML))
        step, batch = Objectives(model, run), toy_chats(drawn(toy_batch(9))).to(device)
        with Watched() as watched:
            step.total(step(batch)).backward()
        assert watched.asked == 0
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        own = {name for name, _ in model.named_parameters() if name.startswith("connectors.")}
        assert own <= grads.keys() and (device == META or all(bool(grads[name].any()) for name in own))
        shapes.append({name: grad.shape for name, grad in grads.items()})
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("kind", ["mlp", "grid", "resampler"])
def test_a_toy_run_learns_which_picture_is_which(kind: str) -> None:
    """Six pictures of noise and their texts: tower and trunk locked, their contrast falls below a tenth."""
    torch.manual_seed(0)
    model = build(toy_config(image=PREFIXED, projectors=KINDS[kind]), TEXT_IDS, PAIRS)
    model.lock([name for name, _ in model.named_parameters() if name.startswith(("towers.image.", "trunk."))])
    batch = toy_batch(9)
    step = Objectives(model.train(), toy_run(contrastive=PAIRS[:1], generative=()))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = step.total(step(batch))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    "projector",
    [
        Projector(norm=True, start_rms=0.2),
        Projector(kind="mlp", norm=True, start_rms=0.2),
        Projector(kind="mlp", grid=2, norm=True, start_rms=0.2),
        Projector(kind="mlp", grid=2, norm=True, start_rms=0.2, positions=True),
        Projector(kind="resampler", start_rms=0.2),
    ],
)
def test_it_begins_with_the_size_that_is_asked(projector: Projector) -> None:
    """Whatever the size of the tower's tokens."""
    torch.manual_seed(0)
    model = build(toy_config(image=PREFIXED, projectors=(projector,), trunk=WIDE), TEXT_IDS)
    found = model.connectors["image"](Tokens(30 * torch.randn(8, 11, 16), torch.ones(8, 11, dtype=torch.bool)))
    assert found.x.detach().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_its_flops_by_formula_are_what_torch_counts(kind: str) -> None:
    """Of each projector alone, its forward, on 64 items of eight tokens: positions of a map are made once."""
    cfg = toy_config(image=replace(PREFIXED, prefix=0), projectors=KINDS[kind], trunk=WIDE)
    model = build(cfg, TEXT_IDS)
    costs = {name: cost._replace(passes=False, learned=0.0) for name, cost in costs_of(model)[len(model.towers) : -1]}
    for name, module in model.connectors.items():
        tokens = Tokens(torch.randn(64, 8, 16), torch.ones(64, 8, dtype=torch.bool))
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            connect(module, tokens)
        flops = costs[name].flops({"items": 64, "tokens": 512, "pairs": 0, "wanted": 0})
        assert flops == pytest.approx(counter.get_total_flops(), rel=0.12), name


@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_tokens_are_counted_before_they_are_read(kind: str) -> None:
    """Of a picture and a sound as many as the trunk is given, for budgets and for the room that the window leaves."""
    projectors = KINDS.get(kind, ())
    model, batch = toy_model(image=PREFIXED, projectors=projectors), toy_batch()
    run = toy_run(model=toy_config(image=PREFIXED, projectors=projectors))
    counts = TokenCounts(run, ())
    given = {name: model.source(name, batch.items[name]).tokens.keep.sum(1) - 1 for name in ("image", "audio")}
    assert {counts._of_image, tokens_of(run, "image")} == set(given["image"].tolist())
    seconds = batch.items["audio"].keep.sum(1) / run.model.towers["audio"].mel.rate_hz
    found = [round(counts._of_sound(float(one))) for one in seconds]
    np.testing.assert_allclose(found, given["audio"].tolist(), atol=1)
    longest = replace(run, data=Data(max_seconds=float(seconds.max())))
    assert tokens_of(longest, "audio") == int(given["audio"].max())


@pytest.mark.parametrize(("changes", "image", "second"), [({}, 196, 50), ({"pool": "mean"}, 1, 1)])
def test_tokens_of_other_libraries_are_guessed(changes: dict[str, Any], image: int, second: int) -> None:
    """A tower that gives one token counts as one, and what is made of its tokens as what it makes."""
    tower = Tower(source="timm:x", **changes)
    counts = TokenCounts(toy_run(model=toy_config(image=tower, audio=replace(tower, source="hf:y"))), ())
    assert (counts._of_image, counts._of_sound(1.0)) == (image, second)
    made = toy_config(image=Tower(source="timm:x"), projectors=(Projector(kind="resampler", queries=3),))
    assert TokenCounts(toy_run(model=made), ())._of_image == 3
    stacked = toy_config(audio=Tower(source="hf:y", frame_stack=5))
    assert TokenCounts(toy_run(model=stacked), ())._of_sound(2.0) == 20


def test_a_model_without_projectors_is_what_it_was() -> None:
    """The same names and the same fresh numbers; a run.json of before, without the field, is read."""
    torch.manual_seed(0)
    model = build(toy_config(), TEXT_IDS, PAIRS)
    linear = {name: type(part) for name, part in model.connectors.items()}
    assert linear == dict.fromkeys(("image", "audio", "text"), torch.nn.Linear)
    torch.manual_seed(0)
    other = build(toy_config(projectors=(Projector(modality="text", norm=True),)), TEXT_IDS, PAIRS)
    same = [part.layer.item() for part in model.modules() if isinstance(part, Dropout)]
    assert same == [part.layer.item() for part in other.modules() if isinstance(part, Dropout)]
    tree = json.loads(to_json(toy_run()))
    del tree["model"]["projectors"]
    assert parse(Run, json.dumps(tree), "run.json", older=True) == toy_run()


def test_projectors_are_saved_with_the_run() -> None:
    run = toy_run(model=toy_config(image=PREFIXED, projectors=KINDS["resampler"]))
    assert from_json(to_json(run)) == run
    assert [one.modality for one in run.model.reading(("audio",)).projectors] == ["audio"]


@pytest.fixture
def unwatched():
    """While a model is traced its sizes are symbols, which jaxtyping's checks would turn into numbers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("kind", ["grid", "places", "resampler"])
def test_an_exported_graph_has_it(kind: str, unwatched) -> None:
    """torch.export of the way of pictures and of sounds: other batch sizes give what the model gives."""
    model = projected(kind).float()
    for graph in graphs(model, toy_config(image=PREFIXED, projectors=KINDS[kind]), ("image", "audio"), TEXT_IDS):
        program = trace(graph).module()
        for size in graph.checked:
            arrays = graph.example(size)
            for ours, theirs in zip(program(*arrays), graph.module(*arrays), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": 4, "pixel_shuffle": 2}, "both make a map smaller; set one to 0"),
        ({"pixel_shuffle": 1}, "joins nothing"),
        ({"hidden": 8}, "is the width inside an MLP or a resampler"),
        ({"start_rms": 0.2}, "set norm=True"),
        ({"kind": "resampler", "grid": 4}, "as many tokens as it has queries"),
        ({"queries": 0}, "must be greater than 0"),
        ({"grid": -1}, "must not be negative"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Projector(**changes)


@pytest.mark.parametrize(
    ("projectors", "message"),
    [
        ((Projector(), Projector()), "one modality has two"),
        ((Projector(modality="depth"),), "there is no tower for 'depth'"),
        ((Projector(modality="audio", grid=2),), "are of pictures"),
        ((Projector(grid=3),), "is more than the 2 x 4 patches"),
        ((Projector(pixel_shuffle=3),), "does not divide the 2 x 4 patches"),
        ((Projector(kind="resampler", heads=3),), "heads=3 is no divisor of its width 16"),
    ],
)
def test_a_model_that_cannot_be_is_refused(projectors: tuple[Projector, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        toy_config(projectors=projectors)


def test_a_tower_whose_map_is_gone_is_refused() -> None:
    tower = Tower(source="timm:resnet18", pool="mean")
    with pytest.raises(UserError, match=r"which Tower.frame_stack and Tower.pool undo"):
        toy_config(image=tower, projectors=(Projector(grid=2),))


def test_patches_that_are_dropped_make_no_map() -> None:
    run = toy_run(model=toy_config(projectors=(Projector(grid=2),)))
    run = replace(run, data=replace(run.data, augment=Augment(patch_dropout=0.5)))
    with pytest.raises(UserError, match=r"augment.patch_dropout leaves holes in the map"):
        check_augment(run)
