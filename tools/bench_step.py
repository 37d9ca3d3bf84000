"""The product's own contrastive training step against open_clip's: samples/s of one over the other, and of the peak.

One process, the same images and captions, towers of equal sizes with equal weights: ViT-S/32 at 224 px and a causal
text transformer of 12 layers, 64 pairs. Ours is what `mmfm train` does with them: uint8 pixels, texts padded to the
longest, towers, connectors, a trunk of one block whose pool token gives the embedding, loss, backward, clipping, AdamW.
Theirs is as its trainer makes it (texts padded to 77, AdamW without options). The models are not one function, as
open_clip has no trunk: how far the towers' tokens are apart, and the losses and sizes of both, are told with the
figures. Steps and matmuls take turns, so that a busy machine slows all alike; medians over rounds, with 95 % bootstrap
intervals. `wall` rows are what one waits; `cpu` rows count the process's CPU time, which others disturb less.

    python tools/bench_step.py [--rounds 5] [--threads 1] [--precisions fp32 bf16] [--out tools/bench_step.json]
"""

import argparse
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from mmfm.config import Contrastive, Data, Model, Optim, Run, TextTower, Trunk, Vit
from mmfm.data.batch import Batch, Items
from mmfm.models.mappings import Foreign, convert
from mmfm.models.model import build
from mmfm.models.vit import normalise
from mmfm.runtime.machine import cores
from mmfm.training.module import JointModule

SHAPES = {
    "embed_dim": 384,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 384, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 384, "heads": 6, "layers": 12},
}
RATE, DECAY, BETAS = 1e-4, 0.2, (0.9, 0.98)  # decay and betas of open_clip's trainer
MAX_SCALE = math.log(100)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
APART = 1e-4  # of the towers' tokens
PEAK_SIZES, PEAK_SECONDS = (1024, 2048, 4096), 0.3

Step = Callable[[], float]
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def precision_context(precision: str) -> AbstractContextManager:
    return nullcontext() if precision == "fp32" else torch.autocast("cpu", DTYPES[precision])


def our_run(reference: open_clip.CLIP) -> tuple[Run, dict[str, Any]]:
    """A run of towers that take open_clip's weights, and these weights under our names."""
    cfg = {**SHAPES, "quick_gelu": False}
    state = reference.state_dict()
    image, text = (
        convert(Foreign(library="open_clip", architecture=cfg, modality=name), state) for name in ("image", "text")
    )
    assert isinstance(image.part, Vit) and isinstance(text.part, TextTower)
    width = SHAPES["embed_dim"]
    trunk = Trunk(width=width, depth=1, heads=width // 64, kv_heads=width // 64)
    model = Model(image=image.part, text=text.part, audio=None, trunk=trunk, embed_dim=width)
    optim = Optim(lr=RATE, weight_decay=DECAY, betas=BETAS)
    run = Run(name="bench", data=Data(), model=model, contrastive=(Contrastive(pair=("image", "text")),), optim=optim)
    weights = {f"towers.image.{name}": value for name, value in image.weights.items()}
    return run, weights | {f"towers.text.{name}": value for name, value in text.weights.items()}


def our_module(reference: open_clip.CLIP) -> JointModule:
    run, weights = our_run(reference)
    core = build(run.model, SHAPES["text_cfg"]["vocab_size"], run.contrastive)
    missing, extra = core.load_state_dict(weights, strict=False)
    assert not extra and not any(name.startswith("towers.") for name in missing)
    return JointModule(run, core).train()


def batch_of(pixels: Tensor, ids: Tensor) -> Batch:
    """As the loader gives it: bytes, and texts as long as the longest of them."""
    rows = torch.arange(len(ids))
    lengths = ids.argmax(1) + 1  # the end mark has the largest id
    keep = torch.arange(int(lengths.max())) < lengths[:, None]
    image = Items(x=pixels, keep=torch.ones(len(ids), 1, dtype=torch.bool), rows=rows)
    text = Items(x=ids[:, : keep.shape[1]] * keep, keep=keep, rows=rows)
    return Batch(size=len(ids), items={"image": image, "text": text}, positive_ids=rows)


def our_step(module: JointModule, batch: Batch, precision: str) -> Step:
    """What Lightning's loop asks of the module, in its order."""
    made: Any = module.configure_optimizers()
    optimizer = made["optimizer"]

    def step() -> float:
        optimizer.zero_grad()
        with precision_context(precision):
            value = module.objectives.total(module.objectives(batch))
        value.backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        return value.item()

    return step


@torch.no_grad()
def towers_apart(module: JointModule, reference: open_clip.CLIP, batch: Batch, pixels: Tensor, ids: Tensor) -> float:
    """Largest difference of the towers' tokens, as a fraction of the largest number."""
    model, text = module.objectives.model, batch.items["text"]
    found = model.tokens("text", text)
    theirs = reference.transformer(
        reference.token_embedding(ids) + reference.positional_embedding, attn_mask=reference.attn_mask
    )
    theirs = reference.ln_final(theirs)[:, : text.keep.shape[1]]
    texts = float((found.x - theirs)[text.keep].abs().max() / theirs[text.keep].abs().max())
    out = reference.visual.forward_intermediates(
        pixels, 1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
    )
    wanted = torch.cat([out["image_intermediates_prefix"][-1], out["image_intermediates"][-1]], 1)
    images = float((model.tokens("image", batch.items["image"]).x - wanted).abs().max() / wanted.abs().max())
    return max(texts, images)


def train(optimizer: torch.optim.Optimizer, scale: nn.Parameter, precision: str, loss: Callable[[], Tensor]) -> Step:
    def step() -> float:
        optimizer.zero_grad()
        with precision_context(precision):
            value = loss()
        value.backward()
        optimizer.step()
        with torch.no_grad():
            scale.clamp_(0, MAX_SCALE)
        return value.item()

    return step


def open_clip_step(model: open_clip.CLIP, pixels: Tensor, ids: Tensor, precision: str) -> Step:
    plain = [p for name, p in model.named_parameters() if p.ndim < 2 or "ln" in name or "bias" in name]
    plain_ids = {id(p) for p in plain}
    decayed = [p for p in model.parameters() if id(p) not in plain_ids]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": DECAY}]
    contrast = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=1e-6)
    return train(optimizer, model.logit_scale, precision, lambda: contrast(**model(pixels, ids)))


def count_flops(step: Step) -> tuple[int, float]:
    """FLOPs of one step's matrix products, both ways, and its loss. The counter lacks the CPU's attention."""
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    mapping = {
        forward: lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v),
        backward: lambda grad, q, k, v, *_, out_shape=None, **__: sdpa_backward_flop_count(grad, q, k, v),
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        loss = step()
    return counter.get_total_flops(), loss


def elapsed(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds on every clock."""
    start = {name: clock() for name, clock in CLOCKS.items()}
    run()
    return {name: clock() - start[name] for name, clock in CLOCKS.items()}


class Matmul:
    """A square product into its own place: the best of PEAK_SECONDS is the peak."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.size = size
        self.a, self.b, self.out = (torch.randn(size, size).to(dtype) for _ in range(3))

    def flops_per_s(self) -> dict[str, float]:
        times, end = [], time.perf_counter() + PEAK_SECONDS
        while not times or time.perf_counter() < end:
            times.append(elapsed(lambda: torch.mm(self.a, self.b, out=self.out)))
        return {name: 2 * self.size**3 / min(taken[name] for taken in times) for name in CLOCKS}


class Round(NamedTuple):
    """Seconds of both steps and FLOP/s of the matmul, on every clock."""

    ours: dict[str, float]
    theirs: dict[str, float]
    peak: dict[str, float]


def run_round(steps: list[Step], matmul: Matmul, swap: bool) -> Round:
    """Either side goes first in every other round; the peak is the best of before, between and after."""
    times: list[dict[str, float]] = [{}, {}]
    peaks = [matmul.flops_per_s()]
    for side in (1, 0) if swap else (0, 1):
        times[side] = elapsed(steps[side])
        peaks.append(matmul.flops_per_s())
    return Round(times[0], times[1], {name: max(peak[name] for peak in peaks) for name in CLOCKS})


def median_interval(values: list[float], draws: int = 2000) -> dict[str, float]:
    """Median and 95 % bootstrap interval."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    low, high = medians[int(0.025 * draws)], medians[int(0.975 * draws)]
    return {"value": round(statistics.median(values), 4), "low": round(low, 4), "high": round(high, 4)}


def trained(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that a step moves: of ours, not the table from which nothing is written here."""
    return [
        p for name, p in module.named_parameters() if p.requires_grad and not name.endswith("model.embedding.weight")
    ]


def summary(clock: str, rounds: list[Round], flops: list[int], batch: int) -> dict[str, Any]:
    return {
        "clock": clock,
        "samples_per_s": median_interval([batch / r.ours[clock] for r in rounds]),
        "samples_per_s_open_clip": median_interval([batch / r.theirs[clock] for r in rounds]),
        "ratio": median_interval([r.theirs[clock] / r.ours[clock] for r in rounds]),
        "of_peak": median_interval([flops[0] / r.ours[clock] / r.peak[clock] for r in rounds]),
        "of_peak_open_clip": median_interval([flops[1] / r.theirs[clock] / r.peak[clock] for r in rounds]),
        "peak_gflop_per_s": median_interval([r.peak[clock] / 1e9 for r in rounds]),
    }


def measure(precision: str, count: int, pixels: Tensor, ids: Tensor) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    reference = open_clip.CLIP(**SHAPES, output_dict=True).train()
    ours, batch = our_module(reference), batch_of(pixels, ids)
    seen = normalise(pixels, torch.float32)
    apart = towers_apart(ours, reference, batch, seen, ids)
    if not apart <= APART:
        sys.exit(f"the towers' tokens differ by {apart:.1e} of the largest number: nothing to compare")
    sizes = [sum(p.numel() for p in trained(module)) for module in (ours, reference)]
    steps = [our_step(ours, batch, precision), open_clip_step(reference, seen, ids, precision)]
    (flops, losses) = zip(*(count_flops(step) for step in steps), strict=True)  # this step also warms up
    matmul = max((Matmul(size, DTYPES[precision]) for size in PEAK_SIZES), key=lambda m: m.flops_per_s()["cpu"])
    rounds = [run_round(steps, matmul, swap=bool(i % 2)) for i in range(count)]
    after = [step() for step in steps]
    shared = {
        "precision": precision,
        "threads": torch.get_num_threads(),
        "rounds": count,
        "batch": len(ids),
        "towers_apart": float(f"{apart:.2g}"),
        "parameters_trained": {"ours": sizes[0], "open_clip": sizes[1]},
        "text_tokens": {"ours": batch.items["text"].x.numel(), "open_clip": ids.numel()},
        "gflop_per_step": {"ours": round(flops[0] / 1e9, 1), "open_clip": round(flops[1] / 1e9, 1)},
        "peak_matmul_size": matmul.size,
        "loss_at_first": {"ours": losses[0], "open_clip": losses[1]},
        f"loss_after_{count + 1}_steps": {"ours": after[0], "open_clip": after[1]},
    }
    return [shared | summary(clock, rounds, list(flops), len(ids)) for clock in CLOCKS]


def hardware() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    wanted = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": cores(),
        "isa": wanted,
    }


def commit() -> str:
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return described.stdout.strip() or "unknown"


def line(row: dict[str, Any]) -> str:
    ratio, peak = row["ratio"], row["of_peak"]
    return (
        f"{row['precision']} {row['clock']:4}: {row['samples_per_s']['value']:.1f} samples/s, {ratio['value']:.2f}x of "
        f"open_clip's ({ratio['low']:.2f} to {ratio['high']:.2f}), at {peak['value']:.2f} ({peak['low']:.2f} to "
        f"{peak['high']:.2f}) of the matmul peak; open_clip at {row['of_peak_open_clip']['value']:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precisions", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--out", type=Path, default=Path("tools/bench_step.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (len(CAPTIONS), 3, 224, 224), dtype=torch.uint8, generator=draw)
    ids = open_clip.tokenize(list(CAPTIONS))
    rows = []
    for precision in options.precisions:
        rows += measure(precision, options.rounds, pixels, ids)
        print(*(line(row) for row in rows[-len(CLOCKS) :]), sep="\n", flush=True)
    report = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "hardware": {**hardware(), "load_at_end": round(os.getloadavg()[0], 2)},
        "date": date.today().isoformat(),
        "rows": rows,
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n")


CAPTIONS = """
A brown dog runs along the wet beach with a long stick in its mouth.
Two children build a tall tower of wooden blocks on the carpet.
The old stone bridge crosses a quiet river below green hills and a ruined castle.
A red bicycle leans against a yellow wall beside a blue door.
Three sailing boats race past the lighthouse on a windy afternoon in late summer.
A woman in a straw hat picks ripe tomatoes in her garden.
Snow covers the roofs of the village at the foot of the mountain.
An elderly man reads a newspaper on a bench in the park.
A bowl of hot noodle soup with a boiled egg, mushrooms and spring onions.
Cars wait at a crossing while a tram passes in the rain.
A black cat sleeps on top of a warm radiator.
Fresh loaves of bread are stacked in the window of the bakery.
The baker pulls a tray of golden rolls out of the oven before the shop opens.
A football player kicks the ball over the heads of two defenders and the referee.
Several hot air balloons float above the desert at sunrise.
A small plane flies low over fields of ripe wheat.
Girls in green shirts play volleyball on a sandy court next to the sea.
An owl with bright orange eyes looks straight into the camera.
A street musician plays the violin in front of an empty shop.
Wooden chairs stand around a long table that has been set for a wedding dinner.
A fisherman mends his nets on the deck of a blue boat.
The kitchen has white cupboards, a gas stove and a round clock above the door.
A herd of elephants walks slowly towards the water hole.
People with umbrellas hurry across the square in front of the station.
A little boy in yellow rubber boots jumps into a muddy puddle with both feet.
Ripe lemons hang from the branches of a tree by the sea.
A chef cuts red peppers on a board with a large knife.
The night train stands at the platform with all of its lights on.
A surfer rides a huge green wave close to the rocks.
Bookshelves reach up to the ceiling of the narrow library.
A white horse looks over the fence of a snowy meadow.
Workers in orange jackets repair the road next to the school while children look on.
A glass of orange juice and a croissant on a café table.
Old fishing huts on wooden stilts line the edge of the lake.
A girl with braided hair blows soap bubbles in the yard.
The scientist looks through a microscope at a drop of pond water.
A group of hikers rests near the top of a steep trail.
Colourful paper lanterns hang between the houses of the old town during the spring festival.
A delivery van is parked in front of a flower shop.
A mother duck leads seven ducklings across the busy street as all the cars wait.
Purple clouds gather over the harbour before the storm.
A goalkeeper in yellow dives to the left to save a penalty in the last minute.
Someone has written a long equation on the classroom blackboard.
A plate of pancakes with blueberries, honey and whipped cream.
The farmer drives an old green tractor through the orchard.
Two zebras drink from a pond while a third one watches the tall grass behind them.
A grandmother teaches her grandson how to knit a woollen scarf.
An astronaut floats outside the space station, high above the blue Earth.
A rusty ship lies on its side on the empty shore.
Skaters glide over the frozen canal on a bright winter morning.
A young man repairs an electric guitar in a cluttered workshop full of spare parts.
The waterfall drops into a clear pool surrounded by ferns.
A stack of old suitcases stands in the corner of the attic.
Six runners cross the finish line within a single second.
A parrot with red and blue feathers sits on a branch and eats a nut.
Market stalls full of spices, nuts and dried fruit in bright colours.
A doctor listens to the heartbeat of a nervous puppy.
The skyline of the city glows orange behind the dark bridge.
A girl in a wheelchair throws a basketball at the hoop while her team cheers.
Candles burn on a birthday cake shaped like a steam engine.
A lone cyclist climbs a winding road between vineyards on a hot day.
Teenagers paint a large mural of a whale on the garage wall.
A squirrel holds an acorn on the snowy window sill and looks inside.
Three pairs of muddy boots stand in a row outside the tent.
""".strip().splitlines()  # 10 to 18 tokens each, 12 to 20 with the marks of start and end

if __name__ == "__main__":
    main()
