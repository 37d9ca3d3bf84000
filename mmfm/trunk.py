"""The unified transformer. It reads a sentence of segments: sources first, each seen whole, then a causal target.

A segment sees itself and all before it, so the first source is the same whatever follows. Positions count real tokens
only. The shape is Llama's, so that a pretrained causal language model can stand here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmfm import config
from mmfm.batch import Tokens
from mmfm.config import UserError
from mmfm.layers import KeyMask, LayerCache, Noise, decoder_block, rotary


class Segment(NamedTuple):
    """Tokens that enter together. A causal one (the target) sees itself only backwards.

    hidden: rows in which no other segment sees this one, as if it were not there.
    """

    tokens: Tokens
    causal: bool = False
    hidden: Bool[Tensor, " batch"] | None = None


class Cache:
    """What the trunk has read so far: keys and values of every layer, and which of them are real."""

    def __init__(self, depth: int) -> None:
        self.layers = [LayerCache() for _ in range(depth)]
        self.keep: Bool[Tensor, "batch time"] | None = None


def sees(segments: Sequence[Segment]) -> Bool[Tensor, "query key"]:
    """Which place may look at which, before padding."""
    lengths = [segment.tokens.keep.shape[1] for segment in segments]
    device = segments[0].tokens.keep.device
    total = sum(lengths)
    allowed = torch.zeros(total, total, dtype=torch.bool, device=device)
    start = 0
    for length, segment in zip(lengths, segments, strict=True):
        stop = start + length
        own = torch.ones(length, length, dtype=torch.bool, device=device)
        allowed[start:stop, :start] = True
        allowed[start:stop, start:stop] = own.tril() if segment.causal else own
        start = stop
    return allowed


class UnifiedTransformer(nn.Module):
    def __init__(self, cfg: config.Trunk, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, self.head_dim = cfg.width, cfg.head_dim or cfg.width // cfg.heads
        self.rope, self.window, self.tied = (cfg.rope_base, cfg.rope_stretch), cfg.window, cfg.tied
        self.blocks = nn.ModuleList(
            decoder_block(
                cfg.width,
                cfg.heads,
                cfg.kv_heads,
                cfg.hidden or round(cfg.mlp_ratio * cfg.width),
                dropout,
                dim=self.head_dim,
                eps=cfg.eps,
                qkv_bias=cfg.qkv_bias,
                out_bias=cfg.out_bias,
                qk_norm=cfg.qk_norm,
                activation=cfg.activation,
            )
            for _ in range(cfg.depth)
        )
        self.norm = nn.RMSNorm(cfg.width, eps=cfg.eps)

    def forward(
        self, segments: Sequence[Segment], cache: Cache | None = None, seeds: Int[Tensor, " batch"] | None = None
    ) -> list[Float[Tensor, "batch time width"]]:
        """The normed states of each segment. With a cache, all that it holds comes before and is seen by all.

        `seeds`: of dropout, one for each row.
        """
        x = torch.cat([segment.tokens.x for segment in segments], dim=1)
        keep = torch.cat([segment.tokens.keep for segment in segments], dim=1)
        past = None if cache is None else cache.keep
        every = keep if past is None else torch.cat([past, keep], dim=1)
        if self.window and every.shape[1] > self.window:
            raise UserError(
                f"a sentence of {every.shape[1]} tokens is longer than Trunk.window={self.window}, beyond which the "
                "source of this trunk did not look back; give shorter ones"
            )
        mask = self._mask(segments, every, past)
        positions = (every.long().cumsum(1) - 1).clamp(min=0)[:, every.shape[1] - keep.shape[1] :]
        noise = None if seeds is None else Noise(seeds, positions)
        x = self.run(x, mask, positions, None if cache is None else cache.layers, noise)
        if cache is not None:
            cache.keep = every
        return list(x.split([segment.tokens.keep.shape[1] for segment in segments], dim=1))

    def run(
        self,
        x: Float[Tensor, "batch time width"],
        mask: KeyMask,
        positions: Int[Tensor, "batch time"],
        layers: Sequence[LayerCache] | None = None,
        noise: Noise | None = None,
    ) -> Float[Tensor, "batch time width"]:
        """The normed states of tokens at these positions. `layers`: of a cache, one for each block."""
        turn = rotary(positions, self.head_dim, *self.rope)
        for i, block in enumerate(self.blocks):
            x = block(x, mask, turn, None if layers is None else layers[i], noise=noise)
        return self.norm(x)

    @staticmethod
    def _mask(segments: Sequence[Segment], every: Bool[Tensor, "batch time"], past: Tensor | None) -> KeyMask:
        allowed = sees(segments)
        if past is not None:
            allowed = torch.cat([allowed.new_ones(len(allowed), past.shape[1]), allowed], dim=1)
        mask = allowed & every[:, None, :]
        stop = every.shape[1] - len(allowed)
        for segment in segments:
            start, stop = stop, stop + segment.tokens.keep.shape[1]
            if segment.hidden is not None:
                own = torch.arange(len(allowed), device=mask.device) + every.shape[1] - len(allowed)
                others = (own < start) | (own >= stop)
                mask[:, :, start:stop] &= ~(segment.hidden[:, None, None] & others[None, :, None])
        return mask.unsqueeze(1)

    def new_cache(self) -> Cache:
        return Cache(len(self.blocks))
