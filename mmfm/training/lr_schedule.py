"""The learning rate of each step: linear warm-up, then a cosine down to a floor, or a constant."""

import math
from bisect import bisect_right

from mmfm.config import Optim


def rate_factor(step: int, optim: Optim) -> float:
    """Of the peak rate. Each schedule that follows another one rises from its floor to the peak, and falls again."""
    ends = (*optim.extends, optim.steps)
    place = bisect_right(ends[:-1], step)
    begin, floor = (0, *ends)[place], optim.min_lr_ratio
    here = step - begin
    if place and here < optim.warmup_steps:
        return floor + (1 - floor) * here / optim.warmup_steps
    return warm_cosine(here, warmup=optim.warmup_steps, total=ends[place] - begin, floor=floor)


def warm_cosine(step: int, *, warmup: int, total: int, floor: float) -> float:
    """Factor of the peak rate: 0 -> 1 over `warmup` steps, then half a cosine down to `floor` at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(total - warmup, 1))
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
