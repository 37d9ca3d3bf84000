"""A step asks its device nothing: all that it is planned by is known on the CPU.

It runs here, forward and backward, on torch's meta device, whose tensors have shapes and no values: `item`, `tolist`,
`nonzero`, an index of bools, `unique`, a copy to the CPU, all of which would wait for a GPU, are errors there.
"""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from test_dropout import drawn
from test_packing import WRITING as TEXTS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import random_batch, toy_batch, toy_chats, toy_model, toy_run

from mmfm.config import AudioCodec, Augment, Chat, ChatTemplate, Distil, Generative, ImageCodec, Lora, Mel, Trunk
from mmfm.data.batch import Batch, Ids
from mmfm.objectives.distil import Teacher
from mmfm.objectives.joint import Objectives
from mmfm.training.module import JointModule

META = torch.device("meta")
DISTIL = (
    Distil(modality="image", teacher="t", features=1.0, similarities=1.0),
    Distil(modality="text", teacher="t", logits=1.0),
)
AUGMENT = Augment(
    rotate_deg=5.0, elastic=0.1, cutout=0.2, speed=0.1, vtlp=0.1, time_mask=3, freq_mask=2, noise=0.1,
    source_token_dropout=0.2, tower_token_dropout=0.3, target_token_dropout=0.2,
)  # fmt: skip
WRITING = (*TEXTS, Generative(task="text>image"), Generative(task="image>audio"))
CODECS = {
    "image_codec": ImageCodec(height_px=8, width_px=16, patch_px=4, channels=1, width=8, levels=(3, 3)),
    "audio_codec": AudioCodec(mel=Mel(bins=16), width=8, levels=(3, 3), num_codebooks=1),
}


class Watched(TorchDispatchMode):
    """Counts what a step asks of its device (answered with 1) and what it sends there. An operation that takes tensors
    of both would copy one of them, and wait: an error."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = self.sent = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        kinds = {x.device.type for x in tensors if x.ndim}
        if func is torch.ops.aten._local_scalar_dense.default and tensors[0].device == META:
            self.asked += 1
            return 1.0
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if copies and kinds == {"cpu"} and torch.device(kwargs.get("device") or "cpu") == META:
            self.sent += 1
        assert copies or len(kinds) < 2, f"{func} takes tensors of {kinds}"
        return func(*args, **kwargs)


def step_of(batch: Batch, device: torch.device, adapters: tuple[Lora, ...] = ()) -> dict[str, torch.Tensor]:
    wide = {"trunk": Trunk(width=64, depth=1, heads=4, kv_heads=2, hidden=64)} if adapters else {}
    model = toy_model(dropout=0.1, **CODECS, **wide, adapters=adapters).train()
    model.lock([name for name, p in model.named_parameters() if not p.is_floating_point()])
    model.augment = AUGMENT
    built = replace(toy_run().model, chat=ChatTemplate(), **CODECS)
    run = toy_run(model=built, generative=WRITING, chat=Chat(per="turn"), distil=DISTIL)
    teachers = {item.name: Teacher(toy_model(**CODECS).to(device)) for item in DISTIL}
    step = Objectives(model.to(device), run, teachers=teachers)
    batch = batch.to(device)
    with Watched() as watched:
        step.total(step(batch)).backward()
    assert watched.asked == 0
    assert watched.sent <= 120  # each of them small, and none waited for
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(autouse=True)
def autocast_of_meta(monkeypatch) -> None:
    """There is none, and here it is only ever switched off."""
    real = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, **how: nullcontext() if kind == "meta" else real(kind, **how))


def with_codes(batch: Batch) -> Batch:
    """Sounds whose codes are stored, as those of an imported codec are: the codec is not asked."""
    sounds, draw = batch.items["audio"], torch.Generator().manual_seed(5)
    lengths = 3 + torch.arange(len(sounds.rows)) % 4
    codes = Ids(torch.randint(0, 9, (len(lengths), 6), generator=draw), torch.arange(6) < lengths[:, None])
    return replace(batch, items={**batch.items, "audio": replace(sounds, written=codes)})


@pytest.mark.parametrize(
    "batch", [drawn(toy_batch(12)), random_batch(24, 1), random_batch(5, 3)], ids=["toy", "24", "5"]
)
def test_a_step_asks_its_device_nothing(batch: Batch) -> None:
    batch = toy_chats(with_codes(batch))
    found, expected = step_of(batch, META), step_of(batch, torch.device("cpu"))
    assert {name: x.shape for name, x in found.items()} == {name: x.shape for name, x in expected.items()}
    assert all(x.device == META for x in found.values())


@pytest.mark.parametrize("base", ["bf16", "int8", "nf4", "q4_1"])
def test_nor_does_one_with_adapters(base: str) -> None:
    """Whatever their locked weights are kept as, with a dropout of their own and the lengths of DoRA."""
    batch, adapters = with_codes(drawn(toy_batch(12))), (Lora(base=base, dropout=0.1, dora=True),)
    found = step_of(batch, META, adapters)
    assert {name.rpartition(".")[2] for name in found} >= {"lora_a", "lora_b", "lora_m"}


def test_facts_of_tensors_that_were_replaced_are_not_believed() -> None:
    """They are asked for anew, which this device refuses; those of items that were taken or counted anew are known."""
    items = drawn(toy_batch(12)).items["text"].to(META)
    assert items.take(torch.tensor([2, 3])).facts.rows.tolist() == [2, 3]
    assert items.behind(-4).facts.rows[0] == 4
    for name in ("rows", "keep", "draws"):
        other = replace(items, **{name: getattr(items, name).clone()})
        with pytest.raises(NotImplementedError):
            _ = other.facts
    assert replace(items, x=items.x.clone()).facts is items.facts


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.unique(),
        lambda x: x.cpu(),
        lambda x: x.masked_select(x > 0),
        lambda x: torch.repeat_interleave(x, x.long()),
        lambda x: x[torch.arange(3)],
        lambda x: x.index_select(0, torch.arange(3)),
    ],
)
def test_what_would_wait_is_an_error(ask) -> None:
    with Watched(), pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        ask(torch.zeros(4, device=META))


def test_a_training_step_asks_for_the_norm_of_its_gradient_alone() -> None:
    """Forward, backward, clipping, the optimizer and the bounds of the temperatures."""
    model = toy_model(dropout=0.1, **CODECS).train().to(META)
    module = JointModule(toy_run(model=replace(toy_run().model, **CODECS), generative=WRITING), model)
    optimizer = torch.optim.AdamW(module.parameters(), foreach=True)
    batch = with_codes(drawn(toy_batch(12))).to(META)
    with Watched() as watched:
        module.objectives.total(module.objectives(batch)).backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        model.clamp_scales()
    assert watched.asked == 1
