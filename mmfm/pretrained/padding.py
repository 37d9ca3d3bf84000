"""Whether an encoder minds padding: measured on it, since no library says so and few promise it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mmfm.pretrained.encoder import Encoder

NOISE_SECONDS = (1.0, 0.6)


@torch.no_grad()
def padding_gap(encoder: Encoder, seed: int = 0) -> float:
    """How far the real tokens of a padded item are from those of the same item alone, as a fraction of the largest.

    About 1e-6 where the padding is not seen; above 1e-3 where it is (a group norm or a convolution over time, a window
    whose filling is attended to). Pictures are never padded: 0.
    """
    draw = torch.Generator().manual_seed(seed)
    made = encoder.blueprint
    if made.words is not None:
        room = made.words.context - len(made.words.begin) - len(made.words.end)
        long, short = (min(count, room) for count in (12, 5))
        inner = torch.randint(0, 4, (2, long), generator=draw)
        first, last = (torch.tensor(marks).long().expand(2, -1) for marks in (made.words.begin, made.words.end))
        x = torch.cat([first, inner, last], 1)
        keep = torch.arange(x.shape[1]) < torch.tensor([[x.shape[1]], [short + first.shape[1]]])
        return _gap(encoder, (x, keep), (x[1:, : int(keep[1].sum())], keep[1:, : int(keep[1].sum())]))
    if made.sound is not None:
        long, short = (round(made.sound.rate_hz * seconds) for seconds in NOISE_SECONDS)
        waves = torch.randn(2, long, generator=draw)
        keep = torch.arange(long) < torch.tensor([[long], [short]])
        alone = encoder.features(waves[1:, :short], keep[1:, :short])
        return _gap(encoder, encoder.features(waves, keep), alone)
    return 0.0


def _gap(encoder: Encoder, padded: tuple[torch.Tensor, ...], alone: tuple[torch.Tensor, ...]) -> float:
    """Of the second item of a batch and of it alone."""
    with rested(encoder):
        both, one = encoder(*padded), encoder(*alone)
    ours, theirs = both.x[1][both.keep[1]], one.x[0][one.keep[0]]
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max() / theirs.abs().max())


@contextmanager
def rested(module: nn.Module) -> Iterator[None]:
    """In evaluation mode; afterwards each of its parts has the mode that it had, frozen ones at rest among others."""
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training
