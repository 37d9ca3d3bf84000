"""From scores to ids. Chance is a hash of the row's seed, the step and the id: no neighbour in a batch can change it.

Letters: n rows, v ids that may be chosen. A drawn id is the first to ring of clocks whose rates are the chances
(exponential race; the same as adding Gumbel noise to logits).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmfm.generation.generation_config import GenerationConfig
from mmfm.runtime.randomness import GOLDEN, splitmix64

FEW = 256  # ids that mostly hold top_p of the chance: a sort of all takes several times as long


def sample(
    scores: Float[Tensor, "n v"],
    ids: Int[Tensor, " v"],
    seeds: Int[Tensor, " n"],
    step: int,
    how: GenerationConfig,
) -> Int[Tensor, " n"]:
    """The column chosen for each row. ids: of the vocabulary, one for each column."""
    if how.temperature == 0:
        return scores.argmax(-1)
    scores = scores / how.temperature
    chances = scores.masked_fill(~filtered_logits(scores, how), -torch.inf).softmax(-1)
    return (chances / waits(seeds, step, ids)).argmax(-1)


def filtered_logits(scores: Float[Tensor, "n v"], how: GenerationConfig) -> Bool[Tensor, "n v"]:
    """What may be drawn: top_k, then of what is left top_p, then min_p. The likeliest always may."""
    keep = torch.ones_like(scores, dtype=torch.bool)
    if how.top_k and how.top_k < scores.shape[-1]:
        keep = scores >= scores.topk(how.top_k).values[:, -1:]
    if how.top_p < 1:
        chances = scores.masked_fill(~keep, -torch.inf).softmax(-1)
        values = chances.topk(min(FEW, chances.shape[-1])).values
        if not bool((values.sum(-1) >= how.top_p).all()):
            values = chances.sort(descending=True).values
        inside = values.cumsum(-1) - values < how.top_p
        least = values.masked_fill(~inside, torch.inf).amin(-1, keepdim=True)
        keep = keep & (chances >= least)  # those as likely as the last are in too: no order of equals decides
    if how.min_p:
        chances = scores.masked_fill(~keep, -torch.inf).softmax(-1)
        keep = keep & (chances >= how.min_p * chances.amax(-1, keepdim=True))
    return keep


def waits(seeds: Int[Tensor, " n"], step: int, ids: Int[Tensor, " v"]) -> Float[Tensor, "n v"]:
    """Exponential waiting times of mean 1, one for each seed, step and id; never 0."""
    rows = splitmix64(splitmix64(seeds) + step)
    bits = splitmix64(rows[:, None] + splitmix64(ids * GOLDEN)) & (2**53 - 1)
    return -torch.log1p(-(bits.float() + 0.5) * 2.0**-53)


def drawn_seeds(seeds: Int[Tensor, " n"], draws: int) -> Int[Tensor, " m"]:
    """Each row's seeds of its draws, side by side; the first is the row's own."""
    others = torch.arange(draws, device=seeds.device)
    each = seeds[:, None] + others * GOLDEN
    return torch.where(others == 0, each, splitmix64(each)).flatten()
