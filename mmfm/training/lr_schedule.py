"""The learning rate of each step: linear warm-up, then one of four shapes."""

import math
from bisect import bisect_right
from collections.abc import Callable

from mmfm.config import Optim


def rate_factor(step: int, optim: Optim) -> float:
    """Of the peak rate. Each schedule that follows another one rises from where that ended to the peak, and falls."""
    ends = (*optim.extends, optim.steps)
    place = bisect_right(ends[:-1], step)
    begins = (0, *ends)
    here = step - begins[place]
    if place and here < optim.warmup_steps:
        before = _shape(ends[place - 1] - begins[place - 1], ends[place - 1] - begins[place - 1], optim)
        return before + (1 - before) * here / optim.warmup_steps
    return _shape(here, ends[place] - begins[place], optim)


def _shape(step: int, total: int, optim: Optim) -> float:
    """0 -> 1 over the warm-up, then the shape of `optim.schedule` until `total`, never below `optim.min_lr_ratio`."""
    warmup, floor = optim.warmup_steps, optim.min_lr_ratio
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return floor + (1 - floor) * SHAPES[optim.schedule](step - warmup, max(total - warmup, 1), optim)


def cosine(step: int, total: int, optim: Optim) -> float:
    """Half a cosine (SGDR, arXiv 1608.03983, eq. 5)."""
    return (1 + math.cos(math.pi * min(1.0, step / total))) / 2


def wsd(step: int, total: int, optim: Optim) -> float:
    """Warm-up, stable, decay: the peak, and over the last `optim.decay_fraction` one minus a square root (arXiv
    2405.18392, eq. 1)."""
    decay = max(total * optim.decay_fraction, 1e-9)
    return 1 - math.sqrt(min(1.0, max(0.0, (step - (total - decay)) / decay)))


def constant(step: int, total: int, optim: Optim) -> float:
    return 1.0


def inverse_sqrt(step: int, total: int, optim: Optim) -> float:
    """One over the square root of the steps, of which the warm-up is the first (arXiv 1706.03762, eq. 3)."""
    first = max(optim.warmup_steps, 1)
    return math.sqrt(first / (step + first))


SHAPES: dict[str, Callable[[int, int, Optim], float]] = {
    "cosine": cosine,
    "wsd": wsd,
    "constant": constant,
    "inverse_sqrt": inverse_sqrt,
}
