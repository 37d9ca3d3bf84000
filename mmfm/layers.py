"""The parts that every tower and the trunk are built from. Mathematics is pure; modules only hold parameters.

Masks say where a key may be seen: True = seen. `keep` is True where a token is real.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

KeyMask = Bool[Tensor, "batch 1 #query key"]


def key_mask(keep: Bool[Tensor, "batch time"]) -> KeyMask:
    """Everything real is seen by everyone."""
    return keep[:, None, None, :]


def rotary(
    positions: Int[Tensor, "batch time"], dim: int, base: float = 10_000.0
) -> tuple[Float[Tensor, "batch 1 time half"], Float[Tensor, "batch 1 time half"]]:
    """Cosine and sine of RoPE (arXiv 2104.09864, eq. 15), for the halves of a head of size `dim`."""
    rates = base ** (-torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    angle = positions[:, None, :, None].float() * rates
    return angle.cos(), angle.sin()


def rotate(
    x: Float[Tensor, "batch heads time dim"],
    turn: tuple[Float[Tensor, "batch 1 time half"], Float[Tensor, "batch 1 time half"]],
) -> Float[Tensor, "batch heads time dim"]:
    """Turn each pair (x_i, x_{i + dim/2}) by the angle of its position (the half-split layout of Llama)."""
    cos, sin = (part.to(x.dtype) for part in turn)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class Attention(nn.Module):
    """Multi-head attention with a fused projection; fewer key heads than query heads is grouped-query attention."""

    def __init__(self, width: int, heads: int, kv_heads: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads or heads, width // heads
        self.qkv = nn.Linear(width, (heads + 2 * self.kv_heads) * self.dim, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)

    def forward(
        self, x, mask: KeyMask | None = None, turn=None, cache: "LayerCache | None" = None, causal: bool = False
    ):
        """x [batch, time, width]. `turn`: of `rotary`. `cache`: earlier keys and values, to which these are added."""
        batch, time, width = x.shape
        sizes = [self.heads, self.kv_heads, self.kv_heads]
        q, k, v = self.qkv(x).view(batch, time, -1, self.dim).transpose(1, 2).split(sizes, dim=1)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        if cache is not None:
            k, v = cache.extend(k, v)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.heads != self.kv_heads
        )
        return self.proj(out.transpose(1, 2).reshape(batch, time, width))


class LayerCache:
    """The keys and values of one layer so far."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values


class Mlp(nn.Module):
    """Two layers with an exact GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*any width"]) -> Float[Tensor, "*any width"]:
        return self.fc2(F.gelu(self.fc1(x)))


class Swiglu(nn.Module):
    """Gated MLP with SiLU (arXiv 2002.05202), without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "*any width"]) -> Float[Tensor, "*any width"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Noise(NamedTuple):
    """Whose randomness a pass takes: a number for each row, and each token's place among the real ones of its row."""

    rows: Int[Tensor, " batch"]
    places: Int[Tensor, "batch time"]


class Dropout(nn.Module):
    """Dropout whose mask is a hash of row, place, channel and layer: no rank, padding or neighbour can change it.

    Without `noise` it draws from the global generator, as torch's does.
    """

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance, self.layer = chance, 0  # `number_dropouts` tells layers apart

    def forward(self, x: Float[Tensor, "batch time width"], noise: Noise | None) -> Float[Tensor, "batch time width"]:
        if not self.training or self.chance == 0:
            return x
        if noise is None:
            return F.dropout(x, self.chance)
        channels = torch.arange(x.shape[2], device=x.device)
        rows = mix(mix(noise.rows) + self.layer)
        drawn = mix(mix(rows[:, None] + noise.places * GOLDEN)[:, :, None] + channels * GOLDEN)
        keep = (drawn & (2**24 - 1)) >= self.chance * 2**24
        return x * (keep.to(x.dtype) / (1 - self.chance))


GOLDEN = -7046029254386353131  # 2^64 over the golden ratio, as a signed number


def mix(x: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), on int64 that wraps around."""
    x = (x ^ (x >> 30 & 2**34 - 1)) * -4658895280553007687
    x = (x ^ (x >> 27 & 2**37 - 1)) * -7723592293110705685
    return x ^ (x >> 31 & 2**33 - 1)


def number_dropouts(model: nn.Module) -> None:
    """Each of the model's dropouts gets a number of its own, by its place in the model."""
    for number, module in enumerate(part for part in model.modules() if isinstance(part, Dropout)):
        module.layer = number


class Block(nn.Module):
    """Pre-norm transformer block. `norm`, `attention` and `mlp` are passed in; `dropout` acts on both branches."""

    def __init__(self, norms: tuple[nn.Module, nn.Module], attn: Attention, mlp: nn.Module, dropout: float = 0.0):
        super().__init__()
        self.norm1, self.norm2 = norms
        self.attn, self.mlp = attn, mlp
        self.dropouts = nn.ModuleList(Dropout(dropout) for _ in range(2))

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        mask: KeyMask | None = None,
        turn=None,
        cache: LayerCache | None = None,
        causal: bool = False,
        noise: Noise | None = None,
    ) -> Float[Tensor, "batch time width"]:
        x = x + self.dropouts[0](self.attn(self.norm1(x), mask, turn, cache, causal), noise)
        return x + self.dropouts[1](self.mlp(self.norm2(x)), noise)


def encoder_block(width: int, heads: int, dropout: float = 0.0) -> Block:
    """The block of ViT, CLIP and BERT-like towers: LayerNorm, biases, GELU, four times as wide inside."""
    norms = (nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6))
    return Block(norms, Attention(width, heads), Mlp(width, 4 * width), dropout)


def decoder_block(width: int, heads: int, kv_heads: int, hidden: int, dropout: float = 0.0) -> Block:
    """The block of Llama: RMSNorm, no biases, SwiGLU, grouped-query attention."""
    norms = (nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6))
    return Block(norms, Attention(width, heads, kv_heads, bias=False), Swiglu(width, hidden), dropout)


def positions_of(keep: Bool[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """0, 1, 2, ... over the real tokens only, so that padding moves nothing."""
    return (keep.long().cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Linear maps keep the variance of what they read, at any width (LeCun, 1998); a table's rows have length one.

    A fixed deviation such as 0.02 suits a width of 768 and starves a narrow model: its branches start near zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
