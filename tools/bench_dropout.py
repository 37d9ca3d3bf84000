"""Dropout by a hash of the place in 32 bits against the same in 64, and against torch's generator: time and memory; and
what an image tower costs that leaves out half of the patches.

Forward and backward of one mask over rows of tokens, and of a tower of the size of ViT-S/16 with four blocks, each in
turn in one process; what is held for the backward is counted by autograd's own hooks.

    python tools/bench_dropout.py [--rounds 9] [--out tools/bench_dropout.json]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import in_turns, ratios, row, seconds, write_report
from torch import Tensor

from mmfm.config import Vit
from mmfm.models.dropout import Dropout, DropoutKey
from mmfm.models.token_dropout import patch_subset
from mmfm.models.vit import VisionTransformer
from mmfm.runtime.randomness import GOLDEN, splitmix64

TOKENS, WIDTH, CHANCE, PICTURES = 4_096, 384, 0.1, 8
KEY = DropoutKey(torch.arange(TOKENS // 64).repeat_interleave(64)[None], torch.arange(64).repeat(TOKENS // 64)[None])


def wide(x: Tensor) -> Tensor:
    """A hash of 64 bits for each channel, as it was before."""
    rows = splitmix64(splitmix64(KEY.rows))
    channels = torch.arange(x.shape[2]) * GOLDEN
    drawn = splitmix64(splitmix64(rows + KEY.places * GOLDEN)[:, :, None] + channels)
    keep = (drawn & (2**24 - 1)) >= CHANCE * 2**24
    return x * (keep.to(x.dtype) / (1 - CHANCE))


def ways() -> dict[str, Callable[[Tensor], Tensor]]:
    hashed = Dropout(CHANCE).train()
    return {"32 bits": lambda x: hashed(x, KEY), "64 bits": wide, "generator": lambda x: F.dropout(x, CHANCE)}


def held(way: Callable[[Tensor], Tensor]) -> float:
    """Bytes a number that autograd keeps for the backward."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    x = torch.randn(1, TOKENS, WIDTH, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = way(x)
    assert out.requires_grad
    return sum(kept.values()) / x.numel()


def step(way: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], float]:
    gradient = torch.ones_like(x)
    return lambda: seconds(lambda: way(x).backward(gradient))


def tower_steps() -> dict[str, Callable[[], float]]:
    """Of all patches, and of half of them."""
    torch.manual_seed(0)
    tower = VisionTransformer(Vit(height_px=224, width_px=224, patch_px=16, width=384, depth=4, heads=6))
    pixels = torch.randn(PICTURES, 3, 224, 224)
    half = patch_subset(torch.arange(PICTURES), len(tower.position), 0.5)
    return {
        name: (lambda read=read: seconds(lambda: tower(pixels, None, read).x.square().sum().backward()))
        for name, read in (("all", None), ("half", half))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(1, TOKENS, WIDTH, requires_grad=True)
    steps = {name: step(way, x) for name, way in ways().items()}
    for once in steps.values():
        once()
    found = in_turns(steps, args.rounds)
    size = f"{TOKENS:,} x {WIDTH}"
    rows = [
        row(
            f"dropout of {size}: time over 64 bits", ratios(found["32 bits"], found["64 bits"]), unit="x", goal="<= 0.5"
        ),
        row(f"dropout of {size}: time over torch's", ratios(found["32 bits"], found["generator"]), unit="x"),
        *(row(f"held for the backward, {name}", [held(way)], unit="bytes") for name, way in ways().items()),
    ]
    towers = tower_steps()
    for once in towers.values():
        once()
    found = in_turns(towers, args.rounds)
    rows.append(
        row("image tower: half of the patches over all", ratios(found["half"], found["all"]), unit="x", goal="<= 0.55")
    )
    write_report(args.out, rows, {"torch": torch.__version__})


if __name__ == "__main__":
    main()
