"""How many bytes a rank sends in a step, by formula: rings, which send each byte once (Patarasuk & Yuan, 2009).

Letters: n ranks, of which s hold one copy of the weights between them (FSDP); n / s copies of it (HSDP).
"""

from dataclasses import dataclass

Bytes = int | float


def all_gather(size: Bytes, n: int) -> float:
    """Bytes sent by each of n ranks until all hold `size` bytes, of which each had a part. A reduce-scatter is the same
    backwards."""
    return size * (n - 1) / n


def all_reduce(size: Bytes, n: int) -> float:
    """A reduce-scatter and an all-gather."""
    return 2 * all_gather(size, n)


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that a rank sends in a step. gradients: reduced; weights: gathered; contrast: embeddings of all ranks, and
    what is asked of them."""

    gradients: float
    weights: float
    contrast: float

    @property
    def total(self) -> float:
        return self.gradients + self.weights + self.contrast


def step_traffic(
    n: int,
    *,
    weights: Bytes,
    gradients: Bytes,
    contrast: Bytes = 0,
    sharded: bool = False,
    replicas: int = 1,
    reshard: bool = True,
    parts: int = 1,
) -> Traffic:
    """weights, gradients: bytes of the whole model. contrast: of one side of the embeddings that are compared, of all
    ranks, which is gathered, and what all ask of it reduced to its owners.

    sharded: FSDP, over n / replicas ranks; reshard: the weights are gathered for the backward anew. parts: of a step,
    each read twice where there are several (GradCache); DDP reduces their gradients once, and FSDP those of each.
    """
    asked = 2 * all_gather(contrast, n)
    if not sharded:
        return Traffic(gradients=all_reduce(gradients, n), weights=0.0, contrast=asked)
    s = n // replicas
    forwards = 1 if parts == 1 else 2
    times = parts * (forwards + reshard)
    reduced = parts * (all_gather(gradients, s) + all_reduce(gradients / s, replicas))
    return Traffic(gradients=reduced, weights=times * all_gather(weights, s), contrast=asked)
