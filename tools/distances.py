"""How far two sets of features lie apart: Frechet's distance and the kernel distance. Letters: n, m items, d features.

What they mean depends on the features, which are given: any function from a batch to [n, d], such as an imported
encoder (`mmfm.load_encoder`), a classifier's last layer, or `speaker`. Of pictures the two are called FID and KID, of
sounds Frechet audio distance. Neither is comparable between other features or other numbers of items.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmfm.config import require
from mmfm.pretrained.encoder import rested

SUBSETS, SUBSET = 100, 1_000


class Distance(NamedTuple):
    """A value with the middle 95 % of what subsets of the items give."""

    value: float
    low: float
    high: float
    subset: int  # items of a subset


def features(module: Callable[[Any], Tensor], batches: Iterable[Any]) -> Float[np.ndarray, "n d"]:
    """What `module` makes of all batches, in float64. A network is asked without gradients and in evaluation mode.

    Errors:
        UserError: no batch, or features that are not [n, d] or not finite.
    """
    with torch.no_grad(), rested(module) if isinstance(module, nn.Module) else nullcontext():
        made = [module(batch).detach().double().cpu().numpy() for batch in batches]
    require(bool(made), "there is no batch to make features of; give at least one")
    flat = all(part.ndim == 2 and part.shape[1] == made[0].shape[1] for part in made)
    require(flat, f"features have shapes {sorted({part.shape for part in made})}; a module must give [n, d]")
    whole = np.concatenate(made)
    require(bool(np.isfinite(whole).all()), "features hold values that are not finite; leave out what they are of")
    return whole


def frechet(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m _"]) -> float:
    """Squared 2-Wasserstein distance of normal distributions with the sets' means and covariances (arXiv 1706.08500).

    |mean a - mean b|^2 + Tr(A + B - 2 (A B)^(1/2)). With A = R'R and B = S'S the last trace is the sum of the singular
    values of R S', so no root of a nearly singular product is taken. Biased upwards where n or m is not far above d.
    """
    _checked(a, b)
    r, s = (_factor(x) for x in (a, b))
    shared = np.linalg.svd(r @ s.T, compute_uv=False).sum()
    gap = a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)
    return float(max(0.0, gap @ gap + (r * r).sum() + (s * s).sum() - 2 * shared))


def _factor(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "rows d"]:
    """R with R'R the unbiased covariance."""
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    return np.linalg.qr(centred, mode="r") / np.sqrt(len(x) - 1)


def mmd(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m _"]) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x.y / d + 1)^3 (arXiv 1801.01401, section 4)."""
    _checked(a, b)
    n, m = len(a), len(b)
    own, theirs = _kernel(a, a), _kernel(b, b)
    inside = (own.sum() - np.trace(own)) / (n * (n - 1)) + (theirs.sum() - np.trace(theirs)) / (m * (m - 1))
    return float(inside - 2 * _kernel(a, b).mean())


def _kernel(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m _"]) -> Float[np.ndarray, "n m"]:
    return (a.astype(np.float64) @ b.astype(np.float64).T / a.shape[1] + 1) ** 3


def kid(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m _"],
    *,
    subsets: int = SUBSETS,
    size: int = SUBSET,
    seed: int = 0,
) -> Distance:
    """The mean of `mmd` over random subsets of each set, drawn without replacement; it may be below zero.

    size: of a subset; of smaller sets, half of the smaller one, so that subsets differ.
    """
    _checked(a, b)
    require(subsets > 0 and size > 1, f"{subsets=} and {size=}: there must be one subset of two items at least")
    own = min(size, max(2, min(len(a), len(b)) // 2))
    generator = np.random.Generator(np.random.Philox(seed))
    values = [
        mmd(a[generator.permutation(len(a))[:own]], b[generator.permutation(len(b))[:own]]) for _ in range(subsets)
    ]
    low, high = np.quantile(values, (0.025, 0.975))
    return Distance(float(np.mean(values)), float(low), float(high), own)


def _checked(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m _"]) -> None:
    require(a.shape[1] == b.shape[1], f"features of {a.shape[1]} and of {b.shape[1]} numbers; use one module for both")
    require(min(len(a), len(b)) > 1, f"sets of {len(a)} and {len(b)} items; a distance needs at least two of each")
