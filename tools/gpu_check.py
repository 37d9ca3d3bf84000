"""Whether a GPU computes what the CPU does, and how fast: for any machine with torch >= 2.11, and nothing else.

    python tools/gpu_check.py                     # on the first GPU; minutes; writes tools/gpu_check.json
    python tools/gpu_check.py --device cpu --small --out here.json    # what of it runs on a CPU, at toy size

Each row is a value and the bound that it must keep; the exit status is 1 where one does not. Checked are layers,
dropout's masks, the trunk (padded, packed, by the kernel of `mmfm.models.varlen`), losses, codecs, a joint step in
single precision and in bf16, that two steps are equal to the bit, that compiled blocks are the eager ones, that a step
asks the GPU nothing, its peak of memory with and without recomputed activations, and steps a second with the fraction
of the measured peak of a matrix product (MFU, by the FLOPs of `torch.utils.flop_counter`).

`tools/gpu_check.json` is not there until it has run on one; tools/README.md lists what this does not check.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


class Anything(ModuleType):
    """A module of which only names are asked, in annotations and in files that this one never calls."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {"__class_getitem__": classmethod(lambda cls, item: Tensor)})


def melscale_fbanks(
    n_freqs: int, f_min: float, f_max: float, n_mels: int, sample_rate: int, norm: None, mel_scale: str
) -> Tensor:
    """torchaudio's triangles on the HTK mel scale, [n_freqs, n_mels]."""
    assert norm is None and mel_scale == "htk"
    frequencies = torch.linspace(0, sample_rate // 2, n_freqs)
    low, high = (2595 * math.log10(1 + f / 700) for f in (f_min, f_max))
    points = 700 * (10 ** (torch.linspace(low, high, n_mels + 2) / 2595) - 1)
    slopes, widths = points[None] - frequencies[:, None], points.diff()
    return torch.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]).clamp(min=0)


def installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def stand_ins() -> list[str]:
    """For what is not installed, modules that are enough for what is checked here; their names."""
    missing = [name for name in ("jaxtyping", "numpy", "safetensors", "torchaudio") if not installed(name)]
    more = {
        "safetensors": ("safetensors.torch",),
        "torchaudio": ("torchaudio.compliance", "torchaudio.compliance.kaldi", "torchaudio.functional"),
    }
    for name in missing:
        for each in (name, *more.get(name, ())):
            module = Anything(each)
            module.__path__ = []  # type: ignore[attr-defined]
            sys.modules[each] = module
            parent, _, child = each.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
    if "torchaudio" in missing:
        sys.modules["torchaudio.functional"].melscale_fbanks = melscale_fbanks  # type: ignore[attr-defined]
    return missing


sys.path.insert(0, str(Path(__file__).parent.parent))
STANDING_IN = stand_ins()

from measure import write_report  # noqa: E402

from mmfm import config  # noqa: E402
from mmfm.config import Contrastive, Generative, Model, Run  # noqa: E402
from mmfm.data.batch import Batch, Items  # noqa: E402
from mmfm.models.dropout import Dropout, DropoutKey  # noqa: E402
from mmfm.models.layers import decoder_block, encoder_block, rotary_cos_sin  # noqa: E402
from mmfm.models.model import build  # noqa: E402
from mmfm.models.packing import Places, pack, pad_packed  # noqa: E402
from mmfm.models.varlen import Visibility, takes_kernel  # noqa: E402
from mmfm.objectives.contrastive_loss import sigmoid_contrast, softmax_contrast  # noqa: E402
from mmfm.objectives.cross_entropy import linear_cross_entropy  # noqa: E402
from mmfm.objectives.joint import Objectives  # noqa: E402

for each in [name for name in sys.modules if name.partition(".")[0] in STANDING_IN]:
    del sys.modules[each]  # torch too looks for some of them, and would take these for the real ones

CPU = torch.device("cpu")
FP32, BF16 = 1e-4, 3e-2  # relative to the largest value: sums in another order; eight bits of mantissa
TEXT_IDS = 32_768
Rows = Iterator[dict[str, Any]]


def row(name: str, value: float, bound: str = "", unit: str = "") -> dict[str, Any]:
    """bound: "<= 1e-4", ">= 0.3" or none."""
    sign, _, limit = bound.partition(" ")
    ok = not bound or (value <= float(limit) if sign == "<=" else value >= float(limit))
    print(f"{'ok  ' if ok else 'FAIL'} {name}: {value:.4g} {unit} {bound}", flush=True)
    return {"name": name, "value": float(f"{value:.4g}"), "bound": bound, "unit": unit, "ok": ok}


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) if len(b.flatten()) else 0.0


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def exact_products() -> Iterator[None]:
    """Without TF32, whose ten bits would hide an error."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# Layers, losses, codecs


def layers(device: torch.device, small: bool) -> Rows:
    width, heads, time_ = (32, 4, 7) if small else (512, 8, 300)
    noise = DropoutKey(torch.arange(3)[:, None] * 77, torch.arange(time_).expand(3, -1))
    blocks = {
        "encoder block": encoder_block(width, heads, 0.1),
        "decoder block": decoder_block(width, heads, heads // 2, 2 * width, 0.1),
    }
    turn = rotary_cos_sin(torch.arange(time_).expand(3, -1), width // heads)
    for name, block in blocks.items():
        x = drawn(3, time_, width).requires_grad_()
        out = block(x, None, turn, noise=noise)
        out.square().sum().backward()
        there, y = block.to(device), x.detach().to(device).requires_grad_()
        moved = DropoutKey(*(part.to(device) for part in noise))
        found = there(y, None, tuple(part.to(device) for part in turn), noise=moved)
        found.square().sum().backward()
        assert x.grad is not None and y.grad is not None
        yield row(f"{name}, forward", apart(found, out), f"<= {FP32}")
        yield row(f"{name}, gradient", apart(y.grad, x.grad), f"<= {FP32}")
        with torch.autocast(device.type, torch.bfloat16):
            half = there(y, None, tuple(part.to(device) for part in turn), noise=moved)
        yield row(f"{name}, bf16", apart(half, out), f"<= {BF16}")
    drop, ones = Dropout(0.3).train(), torch.ones(3, time_, width)
    same = (drop(ones, noise) == drop(ones.to(device), DropoutKey(*(p.to(device) for p in noise))).cpu()).all()
    yield row("dropout drops the same", float(same), ">= 1")


def losses(device: torch.device, small: bool) -> Rows:
    n, width, words = (24, 16, 50) if small else (2_048, 512, TEXT_IDS)
    a, b = (torch.nn.functional.normalize(drawn(n, width, seed=seed), dim=1) for seed in (1, 2))
    same, scale, bias = torch.arange(n) // 2, torch.tensor(10.0), torch.tensor(-5.0)
    states, table, labels = drawn(n, width), drawn(words, width) / width**0.5, torch.arange(n) % words
    ways: dict[str, Callable[[Tensor, Tensor, torch.device], Tensor]] = {
        "softmax contrast": lambda a, b, d: softmax_contrast(a, b, same, scale.to(d, a.dtype)),
        "sigmoid contrast": lambda a, b, d: sigmoid_contrast(a, b, same, scale.to(d, a.dtype), bias.to(d, a.dtype)),
        "cross-entropy": lambda a, b, d: linear_cross_entropy(a, b, labels.to(d)) / n,
    }
    for name, way in ways.items():
        given = (states, table) if name == "cross-entropy" else (a, b)
        exact = [x.double().detach().requires_grad_() for x in given]
        expected = way(exact[0], exact[1], CPU)
        expected.backward()
        kinds = [(torch.float32, FP32)] + [(torch.bfloat16, BF16)] * (name == "cross-entropy")
        for kind, bound in kinds:
            mine = [x.to(device, kind).clone().requires_grad_() for x in given]
            found = way(mine[0], mine[1], device)
            found.backward()
            told = f"{name}, {str(kind).removeprefix('torch.')}"
            yield row(f"{told}, value", apart(found, expected), f"<= {bound}")
            for x, y in zip(mine, exact, strict=True):
                assert x.grad is not None and y.grad is not None
                yield row(f"{told}, gradient", apart(x.grad, y.grad), f"<= {bound}")


def codecs(device: torch.device, small: bool) -> Rows:
    """Ids are of the nearest levels: where two are as near, rounding decides, so that a few may differ."""
    model = build(model_of(small=True, codes=True), 20).eval()
    pixels = (drawn(4, 1, 16, 16).sigmoid() * 255).to(torch.uint8)
    waves = drawn(4, 8_000) / 10
    given = {
        "image": (pixels, torch.ones(4, 1).bool()),
        "audio": (waves, torch.arange(8_000) < torch.tensor([[8_000]] * 4)),
    }
    for name, (x, keep) in given.items():
        codec = model.codec(name)
        ids, real = codec.encode(x, keep)
        decoded = codec.decode(ids, real)[0]
        there = build(model_of(small=True, codes=True), 20).eval()
        there.load_state_dict(model.state_dict())
        other = there.to(device).codec(name)
        found = other.encode(x.to(device), keep.to(device))
        yield row(f"{name} codec, equal codes", float((found.ids.cpu() == ids).float().mean()), ">= 0.99")
        if name == "image":  # a vocoder finds phases by many rounds, in which rounding grows
            again = other.decode(ids.to(device), real.to(device))[0]
            yield row(
                f"{name} codec, decoded", float((again.cpu().int() - decoded.int()).abs().max()), "<= 1", "of 255"
            )


# The trunk, three ways


def attention(device: torch.device, small: bool) -> Rows:
    """Sentences of sources and a causal target, some sources hidden: padded, packed, and by the kernel."""
    width, heads, longest = (32, 2, 12) if small else (512, 8, 400)
    block = decoder_block(width, heads, heads // 2, 2 * width).to(device)
    n = 16
    lengths = 4 + (drawn(n, seed=3).abs() * longest / 3).long().clamp(max=longest - 4)
    real = torch.arange(longest) < lengths[:, None]
    segment = (torch.arange(longest) >= lengths[:, None] // 2).long()
    visible = Visibility(segment, segment == 1, (torch.arange(n) % 4 == 0)[:, None] & (segment == 0))
    x = drawn(n, longest, width).to(device)
    turn = rotary_cos_sin(torch.arange(longest, device=device).expand(n, -1), width // heads)
    earlier = (segment[:, None] < segment[:, :, None]) & ~visible.hidden[:, None]
    back = torch.ones(longest, longest).bool().tril()
    own = (segment[:, None] == segment[:, :, None]) & (back | ~visible.causal[:, :, None])
    mask = ((earlier | own) & real[:, None])[:, None].to(device)
    padded = block(x, mask, turn)[real.to(device)]
    row_of = pack([Places(real, visible)], device)
    flat, angles = (
        x.flatten(0, 1)[row_of.source][None],
        rotary_cos_sin(row_of.of(positions(real).to(device)), width // heads),
    )

    def packed(how: Any) -> Tensor:
        out = block(flat, how.packed, angles)[0]
        return pad_packed(out, how.source, (n, longest))[real.to(device)]

    yield row("trunk block, packed against padded", apart(packed(row_of), padded), f"<= {FP32}")
    with torch.autocast(device.type, torch.bfloat16):
        yield row("trunk block, packed in bf16", apart(packed(row_of), padded), f"<= {BF16}")
        if takes_kernel(x, width // heads):
            by_kernel = pack([Places(real, visible)], device, kernel=True)
            yield row("trunk block, by the kernel in bf16", apart(packed(by_kernel), padded), f"<= {BF16}")
            gain = timed(lambda: packed(row_of), device) / timed(lambda: packed(by_kernel), device)
            yield row("trunk block, padded attention over the kernel's", gain, unit="x")


def positions(real: Tensor) -> Tensor:
    return (real.long().cumsum(1) - 1).clamp(min=0)


# A whole step


def model_of(small: bool, codes: bool = False, size: str = "p1") -> Model:
    """p1: towers as ViT-S/32 and CLIP's small text transformer. large: about 300 million parameters."""
    if small:
        parts: dict[str, Any] = {
            "image": config.Vit(height_px=16, width_px=16, patch_px=4, channels=1, width=16, depth=2, heads=2),
            "text": config.TextTower(width=16, depth=2, heads=2),
            "audio": None,
            "trunk": config.Trunk(width=16, depth=2, heads=2, kv_heads=1),
        }
        if codes:
            how = {"width": 16, "levels": (3, 3)}
            parts["image_codec"] = config.ImageCodec(height_px=16, width_px=16, patch_px=4, channels=1, **how)
            parts["audio_codec"] = config.AudioCodec(mel=config.Mel(bins=16), num_codebooks=2, **how)
        return Model(**parts, embed_dim=16)
    width, depth, heads = (384, 12, 6) if size == "p1" else (1_024, 8, 16)
    patch = 32 if size == "p1" else 16
    side = {"height_px": 224, "width_px": 224, "patch_px": patch, "channels": 3}
    return Model(
        image=config.Vit(**side, width=width, depth=depth, heads=heads),
        text=config.TextTower(width=width, depth=depth, heads=heads),
        audio=None,
        trunk=config.Trunk(width=width, depth=1 if size == "p1" else 8, heads=heads, kv_heads=heads),
        embed_dim=width,
    )


def batch_of(model: Model, size: int, words: int) -> Batch:
    """Pictures, each with a caption of 5 to 20 tokens."""
    assert isinstance(model.image, config.Vit)
    shape = (size, model.image.channels, model.image.height_px, model.image.width_px)
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(5, 21, (size,), generator=draw)
    keep = torch.arange(int(lengths.max())) < lengths[:, None]
    each = torch.arange(size)
    draws = torch.rand(size, 64, generator=draw)
    pixels = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
    text = torch.randint(0, words, keep.shape, generator=draw)
    items = {
        "image": Items(x=pixels, keep=torch.ones(size, 1).bool(), rows=each, draws=draws),
        "text": Items(x=text, keep=keep, rows=each, draws=draws),
    }
    return Batch(size=size, items=items, positive_ids=each)


def step_of(cfg: Model, words: int, dropout: float = 0.0) -> Objectives:
    torch.manual_seed(0)
    pairs, tasks = (Contrastive(pair=("image", "text")),), (Generative(task="image>text"),)
    run = Run(name="check", model=replace(cfg, dropout=dropout), contrastive=pairs, generative=tasks)
    return Objectives(build(run.model, words, pairs).train(), run)


def gradients(step: Objectives, batch: Batch, half: bool = False) -> tuple[Tensor, Tensor]:
    """The sum of the losses, and all gradients in one row."""
    step.zero_grad()
    with torch.autocast(step.model.device.type, torch.bfloat16) if half else nullcontext():
        total = step.total(step(batch))
    total.backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in step.parameters()]
    return total.detach(), torch.cat([x.flatten() for x in found])


def whole_step(device: torch.device, small: bool) -> Rows:
    cfg, words = model_of(small), 20 if small else TEXT_IDS
    step, batch = step_of(cfg, words, dropout=0.1), batch_of(cfg, 8, words)
    expected = gradients(step, batch)
    step, there = step.to(device), batch.to(device)
    found, again = gradients(step, there), gradients(step, there)
    half, half_again = gradients(step, there, half=True), gradients(step, there, half=True)
    for name, x, y in zip(("loss", "gradients"), found, expected, strict=True):
        yield row(f"joint step, {name}", apart(x, y), f"<= {10 * FP32}")
    for name, x, y in zip(("loss", "gradients"), half, expected, strict=True):
        yield row(f"joint step in bf16, {name}", apart(x, y), f"<= {2 * BF16}")
    equal = all(torch.equal(x, y) for x, y in zip((*found, *half), (*again, *half_again), strict=True))
    yield row("two steps are equal to the bit", float(equal), unit="1: yes")
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            gradients(step, there)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        yield row("a step asks the GPU nothing", 1.0, ">= 1")


def compiled(device: torch.device, small: bool) -> Rows:
    width, heads, time_ = (32, 2, 7) if small else (512, 8, 300)
    block = encoder_block(width, heads).to(device)
    x = drawn(4, time_, width).to(device)
    eager = block(x)
    fast = torch.compile(block, dynamic=True)
    yield row("compiled block", apart(fast(x), eager), f"<= {FP32}")
    with torch.no_grad():
        yield row(
            "eager block over compiled", timed(lambda: block(x), device) / timed(lambda: fast(x), device), unit="x"
        )


# Memory and speed


def timed(run: Callable[[], Any], device: torch.device, count: int = 5) -> float:
    """Seconds of one of `count` calls, after two."""
    for _ in range(2):
        run()
    waited(device)
    start = time.perf_counter()
    for _ in range(count):
        run()
    waited(device)
    return (time.perf_counter() - start) / count


def waited(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_flops(device: torch.device, kind: torch.dtype, size: int) -> float:
    """Of a square matrix product, a second: what MFU is a fraction of."""
    a = torch.randn(size, size, device=device, dtype=kind)
    return 2 * size**3 / timed(lambda: a @ a, device, 20)


def flops_of(step: Objectives, batch: Batch) -> int:
    """Forward and backward, by torch's counter; the tiles of the losses are counted as they are computed."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        gradients(step, batch)
    return counter.get_total_flops()


def speed(device: torch.device, small: bool) -> Rows:
    sizes = [("toy", 8)] if small else [("p1", 256), ("large", 64)]
    peak = peak_flops(device, torch.bfloat16, 128 if small else 8_192)
    yield row("matrix product in bf16", peak / 1e12, unit="TFLOP/s")
    for name, size in sizes:
        cfg, words = model_of(small, size=name), 20 if small else TEXT_IDS
        step, batch = step_of(cfg, words).to(device), batch_of(cfg, size, words).to(device)
        count = sum(p.numel() for p in step.parameters())
        yield row(f"{name}: parameters", count / 1e6, unit="million")
        flops = flops_of(step, batch)
        optimizer = torch.optim.AdamW(step.parameters(), fused=device.type == "cuda")

        def once(step: Objectives = step, batch: Batch = batch, optimizer: Any = optimizer) -> None:
            gradients(step, batch, half=True)
            optimizer.step()

        took = timed(once, device, 2 if small else 20)
        yield row(f"{name}: steps of {size} samples", 1 / took, unit="/s")
        yield row(f"{name}: samples", size / took, unit="/s")
        yield row(f"{name}: MFU in bf16", flops / took / peak)
        if device.type == "cuda":
            for again in (False, True):
                step.model.set_grad_checkpointing(again)
                torch.cuda.reset_peak_memory_stats(device)
                gradients(step, batch, half=True)
                told = "activations computed again" if again else "all activations held"
                yield row(f"{name}: peak memory, {told}", torch.cuda.max_memory_allocated(device) / 2**30, unit="GiB")


CHECKS = {
    "layers": layers, "losses": losses, "codecs": codecs, "attention": attention, "step": whole_step,
    "compile": compiled, "speed": speed,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="toy sizes")
    parser.add_argument("--only", nargs="*", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--out", type=Path, default=Path("tools/gpu_check.json"))
    asked = parser.parse_args(argv)
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU here: give --device cpu for what runs on a CPU", file=sys.stderr)
        return 2
    found: list[dict[str, Any]] = []
    for name in asked.only:
        try:
            with exact_products():
                found += CHECKS[name](device, asked.small)
        except Exception as why:  # the other checks still say what they find
            found.append({"name": name, "ok": False, "error": f"{type(why).__name__}: {why}"[:500]})
            print(f"FAIL {name}: {found[-1]['error']}", flush=True)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    versions = {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
    write_report(asked.out, found, versions, device=gpu or asked.device, not_installed=STANDING_IN)
    return 0 if all(each["ok"] for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
