"""Adapters: what PEFT gives, what rests and what learns, checkpoints without the weights that are elsewhere."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import adapted
import doomed
import peft
import pytest
import torch
from adapted import LORA, adapted_run
from safetensors.torch import load_file
from test_compile import DEEP
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from toys import random_batch, toy_batch, toy_config, toy_model, toy_run

import mmfm
from mmfm.config import Ema, Lora, Optim, ParamGroup, Run, Tower, UserError
from mmfm.models.adapters import AdapterDropout, LoraLinear, adapters_of, is_adapter
from mmfm.models.dropout import Dropout, DropoutKey
from mmfm.models.model import build
from mmfm.objectives.joint import Objectives
from mmfm.training import fit
from mmfm.training.optimizer import learning

ALL = (Lora(pattern="trunk.*", rank=2), Lora(pattern="towers.*", rank=2))
SHORT = Optim(steps=4, lr=3e-3, warmup_steps=1)


class Net(nn.Module):
    """Two linear layers, one with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


@pytest.mark.parametrize("scaling", ["standard", "rs"])
@pytest.mark.parametrize("dora", [False, True])
def test_forward_and_gradient_are_those_of_peft(scaling: str, dora: bool) -> None:
    """On the same weights, with adapters away from their start."""
    torch.manual_seed(0)
    net, x = Net().double(), torch.randn(5, 6, dtype=torch.float64)
    cfg = Lora(rank=3, alpha=5.0, scaling=scaling, dora=dora)  # type: ignore[arg-type]
    ours = {name: LoraLinear(getattr(net, name), cfg, name).double() for name in ("a", "b")}
    how = {"r": 3, "lora_alpha": 5.0, "use_rslora": scaling == "rs", "use_dora": dora}
    theirs = peft.get_peft_model(Net().double(), peft.LoraConfig(target_modules=["a", "b"], **how))
    names = {"lora_a": "lora_A.default.weight", "lora_b": "lora_B.default.weight"}
    names |= {"lora_m": "lora_magnitude_vector.default.weight"} if dora else {}
    for name, layer in ours.items():
        other = theirs.get_submodule(f"base_model.model.{name}")
        with torch.no_grad():
            other.base_layer.load_state_dict(getattr(net, name).state_dict())
            for mine, its in names.items():
                parameter = getattr(layer, mine)
                parameter += 0.3 * torch.randn_like(parameter)
                other.get_parameter(its).copy_(parameter)
    out, expected = ours["b"](torch.tanh(ours["a"](x))), theirs(x)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    out.square().sum().backward()
    expected.square().sum().backward()
    for name, layer in ours.items():
        for mine, its in names.items():
            gradient = theirs.get_submodule(f"base_model.model.{name}").get_parameter(its).grad
            torch.testing.assert_close(getattr(layer, mine).grad, gradient, rtol=1e-10, atol=1e-12)
        merged = layer.merged()
        torch.testing.assert_close(
            merged(x if name == "a" else x.new_ones(2, 8)), layer(x if name == "a" else x.new_ones(2, 8))
        )


@pytest.mark.parametrize("dora", [False, True])
def test_a_fresh_adapter_changes_nothing(dora: bool) -> None:
    """To the bit without DoRA; with it up to the rounding of a length over itself."""
    losses = []
    for adapters in ((), tuple(replace(lora, dora=dora) for lora in ALL)):
        torch.manual_seed(0)
        model = build(toy_config(adapters=adapters), 20, toy_run().contrastive).eval()
        losses.append(Objectives(model, toy_run())(toy_batch_fp32()))
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss, rtol=1e-5 if dora else 0, atol=1e-6 if dora else 0)


def toy_batch_fp32() -> Any:
    batch = toy_batch()
    audio = batch.items["audio"]
    return replace(batch, items={**batch.items, "audio": replace(audio, x=audio.x.float())})


def test_adapters_alone_move() -> None:
    """The parts that hold them rest, norms and biases too; what stands beside learns."""
    run = toy_run(model=toy_config(adapters=ALL))
    model = toy_model(adapters=ALL).train()
    model.lock([name for name, factor in learning(model, run).factor.items() if not factor])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    owner = Objectives(model, run)
    owner.total(owner(toy_batch())).backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    inside = {name for name in moved if name.startswith(("trunk.", "towers."))}
    assert inside == {name for name in before if is_adapter(name)} and {"connectors.image.weight"} < moved
    assert len(inside) == 2 * sum(type(part) is LoraLinear for part in model.modules())


QKV = "trunk.blocks.0.attn.qkv"


@pytest.mark.parametrize(
    ("pattern", "scale", "learns", "rests"),
    [
        ("trunk.*", 0.5, f"{QKV}.lora_a", "trunk.norm.weight"),
        ("trunk.*norm*", 0.1, "trunk.norm.weight", f"{QKV}.weight"),
        ("*.lora_*", 0.0, "connectors.text.bias", f"{QKV}.lora_a"),
    ],
)
def test_groups_speak_of_adapters_or_of_what_they_name_alone(
    pattern: str, scale: float, learns: str, rests: str
) -> None:
    """At their rate, but for the last, which locks adapters while what stands beside learns."""
    groups = (ParamGroup(pattern=pattern, lr_scale=scale),)
    run = toy_run(model=toy_config(adapters=ALL), optim=Optim(param_groups=groups))
    factor = learning(toy_model(adapters=ALL), run).factor
    assert factor[learns] == (scale or 1.0) and factor[rests] == 0


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["trunk.*.qvk"], r"Lora.pattern='trunk.\*.qvk' matches no linear layer; the nearest is"),
        (["trunk.*", "*.qkv"], rf"{QKV} is matched by 'trunk.\*' and by '\*.qkv', and a layer has one"),
    ],
)
def test_patterns_that_fit_no_layer_or_one_twice_are_one_line(patterns: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        toy_model(adapters=tuple(Lora(pattern=pattern) for pattern in patterns))


def test_what_rests_under_an_adapter_cannot_be_made_to_learn() -> None:
    group = ParamGroup(pattern="trunk.*.qkv.weight", lr_scale=1.0)
    with pytest.raises(UserError, match=rf"names {QKV}.weight, which rests under an adapter"):
        learning(toy_model(adapters=ALL), toy_run(optim=Optim(param_groups=(group,))))


def test_dropouts_of_adapters_are_numbered_last() -> None:
    """Those of before keep their numbers, so that an old run drops what it dropped."""
    plain, with_them = toy_model(dropout=0.1), toy_model(dropout=0.1, adapters=(Lora(dropout=0.1),))
    numbers = [int(part.layer) for part in plain.modules() if isinstance(part, Dropout)]
    others = [int(part.layer) for part in with_them.modules() if type(part) is Dropout]
    mine = [int(part.layer) for part in with_them.modules() if type(part) is AdapterDropout]
    assert others == numbers and mine == [*range(len(numbers), len(numbers) + len(mine))] and mine


def test_an_adapter_drops_by_sample_and_place_whatever_else_is_in_the_batch() -> None:
    """Packed, padded or alone: the key of a row and a place decides, in a block of ours."""
    block = toy_model(adapters=(Lora(dropout=0.4),)).train().trunk.blocks[0]
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    rows, places = torch.tensor([[7], [9]]), torch.arange(5).repeat(2, 1)
    both = block(x, noise=DropoutKey(rows, places))
    torch.testing.assert_close(block(x[1:], noise=DropoutKey(rows[1:], places[1:])), both[1:])
    assert not torch.allclose(block(x, noise=DropoutKey(rows + 1, places)), both)


@pytest.mark.parametrize("base", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_gradients_are_the_same_when_blocks_are_computed_again(base: Any, recompute: Any) -> None:
    found = []
    for how in ("none", recompute):
        torch.manual_seed(0)
        adapters = (Lora(rank=2, base=base, dropout=0.3),)
        model = build(toy_config(adapters=adapters), 20, toy_run().contrastive).train()
        for _, layer in adapters_of(model):
            nn.init.normal_(layer.lora_b)
        model.lock([name for name, factor in learning(model, toy_run()).factor.items() if not factor])
        model.set_grad_checkpointing(how)
        owner = Objectives(model, toy_run())
        owner.total(owner(toy_batch_fp32())).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if is_adapter(name)})
    assert all(torch.equal(found[1][name], gradient) and gradient.any() for name, gradient in found[0].items())


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("base", ["fp32", "int8"])
def test_blocks_with_adapters_are_compiled(base: Any) -> None:
    """Few graphs for many shapes, and the losses of the blocks as they are."""
    torch.manual_seed(0)
    model = build(toy_config(trunk=DEEP, adapters=(Lora(rank=2, base=base, dropout=0.1),)), 20, toy_run().contrastive)
    model.lock([name for name, factor in learning(model, toy_run()).factor.items() if not factor])
    owner, counter = Objectives(model.train(), toy_run()), CompileCounterWithBackend("aot_eager")
    batches = [toy_fp32(random_batch(8 + number, number)) for number in range(4)]
    expected = [owner(batch) for batch in batches]
    for block in owner.model.trunk.blocks:
        block.set_compile(counter)
    for batch, losses in zip(batches, expected, strict=True):
        found = owner(batch)
        owner.total(found).backward()
        for name, loss in losses.items():
            torch.testing.assert_close(found[name], loss, rtol=1e-4, atol=1e-5)
    assert 2 <= counter.frame_count <= 8


def toy_fp32(batch: Any) -> Any:
    items = {name: replace(x, x=x.x.float()) if x.x.is_floating_point() else x for name, x in batch.items.items()}
    return replace(batch, items=items)


# Runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Of each kind of base a run of four steps, saved at 2 and 4."""
    runs = {}
    for base in ("fp32", "bf16", "int8"):
        folder = tmp_path_factory.mktemp(base)
        runs[base] = adapted_run(folder, replace(LORA, base=base, dropout=0.1), optim=SHORT)  # type: ignore[arg-type]
        fit.train(runs[base])
    return runs


def weights_at(run: Run, step: int = 4) -> dict[str, Tensor]:
    return load_file(run.folder / f"checkpoints/step-{step:08d}/model.safetensors")


@pytest.mark.parametrize("base", ["fp32", "bf16", "int8"])
def test_a_checkpoint_holds_what_learns_and_says_where_the_rest_is(trained: dict[str, Run], base: str) -> None:
    run = trained[base]
    held = weights_at(run)
    mine = {name for name in held if name.startswith(("trunk.", "embedding"))}
    assert all(is_adapter(name) for name in mine - {"embedding.weight.new"}) and len(mine) == 2 * 4 * 2 + 1
    parts = json.loads((run.folder / "checkpoints/step-00000004/base.json").read_text())["parts"]
    assert {part["part"]: part["source"] for part in parts} == dict.fromkeys(
        ("trunk", "vocabulary"), run.model.trunk.weights
    )
    optimizer = load_file(run.folder / "checkpoints/step-00000004/train.safetensors")
    assert not [name for name in optimizer if "trunk" in name and "lora" not in name]


@pytest.mark.parametrize("base", ["fp32", "bf16", "int8"])
def test_a_resumed_run_is_one_never_stopped(trained: dict[str, Run], base: str, tmp_path: Path) -> None:
    """To the bit, the adapters' dropout included; loaded, it has the base under them."""
    run, whole = replace(trained[base], out=str(tmp_path)), weights_at(trained[base])
    shutil.copytree(trained[base].folder, run.folder)
    shutil.rmtree(run.folder / "checkpoints/step-00000004")
    fit.train(run, resume=True)
    again = weights_at(run)
    assert again.keys() == whole.keys() and all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    one, other = (mmfm.load(each.folder).core.state_dict() for each in (run, trained[base]))
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    source = load_file(Path(run.model.trunk.weights) / "trunk.safetensors")
    held = one["trunk.blocks.0.mlp.down.weight"]
    expected = source["core.trunk.blocks.0.mlp.down.weight"]
    assert held.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.uint8}[base]
    if base != "int8":
        assert torch.equal(held, expected.to(held.dtype))


def using(run: Run) -> dict[str, Callable[[], Any]]:
    longer = replace(run, optim=replace(run.optim, steps=6, extends=(4,)))
    words = str(run.folder / "checkpoints/step-00000004/tokenizer.json")
    plain = replace(run.model, adapters=(), trunk=replace(run.model.trunk, weights=""), tokenizer=words)
    return {
        "load": lambda: mmfm.load(run.folder),
        "resume": lambda: fit.train(longer, resume=True),
        "start": lambda: fit.train(replace(run, name="next", start=str(run.folder), model=plain)),
    }


@pytest.mark.parametrize("use", ["load", "resume", "start"])
def test_without_the_base_or_with_another_it_is_one_line(trained: dict[str, Run], use: str, tmp_path: Path) -> None:
    """With what is to be put back, and how it was made; nothing of the run changes."""
    run = replace(trained["fp32"], out=str(tmp_path))
    shutil.copytree(trained["fp32"].folder, run.folder)
    there = Path(run.model.trunk.weights)
    away = there.rename(there.with_name("away"))
    try:
        with pytest.raises(UserError, match=f"holds adapters alone, .* are to be in {there}.*; put them back"):
            using(run)[use]()
        adapted.language(tmp_path / "lm", tied=True).half().float().save_pretrained(tmp_path / "lm")
        adapted.importer.import_source(str(tmp_path / "lm"), there)
        with pytest.raises(UserError, match=f"{there} holds other weights of .*SHA-256 .*; put those back"):
            using(run)[use]()
    finally:
        shutil.rmtree(there, ignore_errors=True)
        away.rename(there)
    mmfm.load(run.folder)


def test_what_came_from_nowhere_is_saved_whole(tmp_path: Path) -> None:
    """A fresh trunk that rests under adapters: it is in no other place."""
    run = adapted_run(tmp_path, optim=replace(SHORT, steps=2))
    fresh = replace(run, model=replace(toy_config(adapters=(replace(LORA, base="int8"),)), tokenizer="bytes"))
    fit.train(fresh)
    step = fresh.folder / "checkpoints/step-00000002"
    held = load_file(step / "model.safetensors")
    assert not (step / "base.json").exists() and held["trunk.blocks.0.attn.qkv.weight"].dtype == torch.uint8
    assert all(torch.equal(held[name], x) for name, x in mmfm.load(fresh.folder).core.state_dict().items())


def test_a_table_that_learns_whole_is_saved_whole(tmp_path: Path) -> None:
    """Adapters of a tower alone, under which a language model learns with its table: what is read back is trained."""
    lora = Lora(rank=2, pattern="towers.image.blocks.*.qkv")
    run = adapted_run(tmp_path, lora, optim=replace(SHORT, steps=2))
    fit.train(run)
    held = weights_at(run, 2)
    core = mmfm.load(run.folder).core
    span, table = core.vocabulary.span("text"), core.embedding.weight
    assert "embedding.weight.new" not in held and torch.equal(held["embedding.weight"], table)
    begun = load_file(Path(run.model.trunk.weights) / "vocabulary.safetensors")["core.embedding.weight"]
    assert not torch.equal(table[span.start : span.stop], begun[: len(span)])
    assert (table[span.start : span.stop] - begun[: len(span)]).abs().max() < 0.1


def test_an_average_has_the_new_rows_of_a_table(tmp_path: Path) -> None:
    """Of a table of which a checkpoint holds these alone: marks are averaged, and rows of text are the base's."""
    run = adapted_run(tmp_path, optim=replace(SHORT, steps=3, ema=Ema(decay=0.5)))
    fit.train(run)
    plain, average = (mmfm.load(run.folder, ema=ema).core for ema in (False, True))
    state = load_file(run.folder / "checkpoints/step-00000003/train.safetensors")
    (kept,) = [x for name, x in state.items() if name.endswith("state/embedding.weight/ema")]
    text = slice(plain.vocabulary.span("text").start, plain.vocabulary.span("text").stop)
    assert torch.equal(average.embedding.weight, kept) and not torch.equal(plain.embedding.weight, kept)
    assert torch.equal(average.embedding.weight[text], plain.embedding.weight[text])


def test_adapters_of_a_started_run_go_on(trained: dict[str, Run], tmp_path: Path) -> None:
    """A second stage from a first: the same adapters go on from there, and the base is found through both."""
    first = trained["bf16"]
    second = replace(first, name="second", out=str(tmp_path), start=str(first.folder), optim=replace(SHORT, lr=1e-9))
    fit.train(second)
    here, there = weights_at(second), weights_at(first)
    for name, tensor in there.items():
        torch.testing.assert_close(here[name], tensor, rtol=0, atol=1e-6)
    assert mmfm.load(second.folder).encode_text(["one"]).isfinite().all()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_are_one_process_and_go_on_after_a_kill(strategy: str, tmp_path: Path) -> None:
    """Two ranks have the losses of one; killed after a checkpoint, two go on to the bit and one up to rounding."""
    from mmfm.config import Parallel

    adapters = replace(LORA, dropout=0.1, base="int8")
    optim = Optim(steps=6, lr=3e-3, warmup_steps=2)
    adapted_run(tmp_path, adapters, optim=optim, save_every_steps=3, parallel=Parallel(strategy=strategy))
    killed = doomed.Life(name="two", devices=2, step=3, moment="saved")
    lives = [doomed.Life(name="whole", devices=2), doomed.Life(name="alone")]
    lives += [killed, replace(killed, step=0), replace(killed, name="one"), doomed.Life(name="one")]
    statuses = doomed.live(tmp_path, lives)
    assert statuses == [0, 0, -9, 0, -9, 0], [doomed.said(tmp_path, n) for n in range(len(lives))]
    whole = mmfm.load(tmp_path / "runs/whole").core.state_dict()
    for name, bound in (("two", 0.0), ("one", 1e-3), ("alone", 1e-3)):
        other = mmfm.load(tmp_path / "runs" / name).core.state_dict()
        torch.testing.assert_close(other, whole, rtol=0, atol=bound)


def test_a_tower_of_another_library_is_adapted_and_left_out(tmp_path: Path) -> None:
    """A ViT of transformers under 8 bits: fresh adapters change what those bits change alone, the checkpoint does not
    hold the tower, and the run needs its source as any other base."""
    import transformers

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    vit = transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, num_channels=3, **small))
    vit.save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    lora = Lora(pattern="towers.image.*", rank=2, base="int8", dropout=0.1)
    run = adapted_run(tmp_path, LORA, optim=replace(SHORT, steps=2))
    model = replace(run.model, image=Tower(source=str(tmp_path / "vit")), adapters=(LORA, lora))
    run = replace(run, model=model)
    fit.train(run)
    held = weights_at(run, 2)
    mine = [name for name in held if name.startswith("towers.image.")]
    alike = [name for name in mine if len(held[name].unique()) == 1]  # zeros and ones, which are as when they are fresh
    rest = {name.removeprefix("towers.image.encoder.trunk.") for name in mine if not is_adapter(name)} - {
        name.removeprefix("towers.image.encoder.trunk.") for name in alike
    }
    assert len(mine) > len(alike) + 1 and rest == {"pooler.dense.weight"}, "which is a buffer, as nothing reads it"
    loaded, pixels = mmfm.load(run.folder, device="cpu"), torch.randn(2, 3, 8, 8)
    tower = loaded.core.towers["image"]
    for _, part in adapters_of(tower):
        nn.init.zeros_(part.lora_b)
    keep = torch.ones(2, 1, dtype=torch.bool)
    with torch.no_grad():
        expected = vit.eval()(pixels).last_hidden_state
        found = tower((pixels * 0.5 + 0.5 - 0.5) / 0.5, keep).x
    assert 0 < (found - expected).abs().max() < 0.02 * expected.abs().max()
    (tmp_path / "vit").rename(tmp_path / "away")
    with pytest.raises(UserError, match=f"the weights of towers.image .* are to be in {tmp_path / 'vit'}"):
        mmfm.load(run.folder)
