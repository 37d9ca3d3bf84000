"""The parts that every tower and the trunk are built from. Mathematics is pure; modules only hold parameters.

Masks say where a key may be seen: True = seen. `keep` is True where a token is real.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmfm.models.adapters import through
from mmfm.models.dropout import Dropout, DropoutKey
from mmfm.models.execution import TrainedBlock
from mmfm.models.kv_cache import LayerCache
from mmfm.models.packing import Packed
from mmfm.models.varlen import take

KeyMask = Bool[Tensor, "batch 1 #query key"]


def rows_of(x: Float[Tensor, "batch time width"], only: Int[Tensor, " some"] | None) -> Float[Tensor, "batch m width"]:
    """These tokens of the only row; None: all tokens of all rows."""
    return x if only is None else take(x[0], only)[None]


def quick_gelu(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """What the first CLIP was trained with in place of GELU; up to 0.02 away from it."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "silu": F.silu,
}


def key_mask(keep: Bool[Tensor, "batch time"]) -> KeyMask:
    """Everything real is seen by everyone."""
    return keep[:, None, None, :]


def rotary_cos_sin(
    positions: Int[Tensor, "batch time"], dim: int, base: float = 10_000.0, stretch: tuple[float, ...] = ()
) -> tuple[Float[Tensor, "batch 1 time half"], Float[Tensor, "batch 1 time half"]]:
    """Cosine and sine of RoPE (arXiv 2104.09864, eq. 15), for the halves of a head of size `dim`.

    stretch: factor, low, high, context of Llama 3.1: what turns less than `low` times within `context` turns `factor`
    times slower, what turns more than `high` times as ever, what lies between in proportion.
    """
    rates = base ** (-torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    if stretch:
        factor, low, high, context = stretch
        fast = ((context * rates / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        rates = rates * (fast + (1 - fast) / factor)
    angle = positions[:, None, :, None].float() * rates
    return angle.cos(), angle.sin()


def apply_rotary(
    x: Float[Tensor, "batch heads time dim"],
    turn: tuple[Float[Tensor, "batch 1 time half"], Float[Tensor, "batch 1 time half"]],
) -> Float[Tensor, "batch heads time dim"]:
    """Turn each pair (x_i, x_{i + dim/2}) by the angle of its position (the half-split layout of Llama), in single
    precision or better."""
    cos, sin = (part.to(torch.promote_types(x.dtype, torch.float32)) for part in turn)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)


class RelativeKeys(nn.Module):
    """How much a query minds a key's distance, up to `left` before it and `right` after (arXiv 1803.02155, eq. 4)."""

    def __init__(self, dim: int, left: int, right: int) -> None:
        super().__init__()
        self.left, self.right, self.table = left, right, nn.Embedding(left + 1 + right, dim)

    def forward(
        self, q: Float[Tensor, "batch heads time dim"], mask: KeyMask | None
    ) -> Float[Tensor, "batch heads time time"]:
        """What is added to the scores, the mask included."""
        place = torch.arange(q.shape[2], device=q.device)
        distance = (place - place[:, None]).clamp(-self.left, self.right) + self.left
        scores = q @ self.table.weight.T * q.shape[-1] ** -0.5  # of each distance, then of each key
        bias = scores.gather(-1, distance.expand(*scores.shape[:2], -1, -1))
        return bias if mask is None else bias.masked_fill(~mask, torch.finfo(bias.dtype).min)


class Attention(nn.Module):
    """Multi-head attention with a fused projection; fewer key heads than query heads is grouped-query attention.

    dim: of a head; 0: width / heads. norms: of a head's queries and of its keys, before they are turned.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        bias: bool = True,
        *,
        dim: int = 0,
        out_bias: bool = True,
        norms: tuple[nn.Module, nn.Module] | None = None,
        relative: RelativeKeys | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads or heads, dim or width // heads
        self.qkv = nn.Linear(width, (heads + 2 * self.kv_heads) * self.dim, bias=bias)
        self.q_norm, self.k_norm = norms or (nn.Identity(), nn.Identity())
        self.relative = relative
        self.proj = nn.Linear(heads * self.dim, width, bias=out_bias)

    def forward(
        self,
        x,
        mask: KeyMask | Packed | None = None,
        turn=None,
        cache: "LayerCache | None" = None,
        only: Int[Tensor, " some"] | None = None,
    ):
        """x [batch, time, width]. `turn`: of `rotary`. `cache`: earlier keys and values, to which these are added.

        mask: which keys are seen; or where the sentences of one row stand, each of which sees itself alone. only: the
        tokens of the one row for which an output is wanted; None: all.
        """
        return self.proj(rows_of(self.attend(*self.project(x, turn), mask, cache), only))

    def project(
        self, x: Float[Tensor, "batch time width"], turn: tuple[Tensor, Tensor] | None, noise: DropoutKey | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [batch, heads, time, dim], normed and turned. noise: of an adapter's dropout."""
        sizes = [self.heads, self.kv_heads, self.kv_heads]
        q, k, v = through(self.qkv, x, noise).unflatten(2, (sum(sizes), self.dim)).transpose(1, 2).split(sizes, dim=1)
        q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if turn is None else (apply_rotary(q, turn), apply_rotary(k, turn), v)

    def attend(
        self,
        q: Float[Tensor, "batch heads time dim"],
        k: Float[Tensor, "batch kv_heads time dim"],
        v: Float[Tensor, "batch kv_heads time dim"],
        mask: KeyMask | Packed | None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch time inner"]:
        """What the heads read, side by side."""
        if cache is not None:
            k, v = cache.extend(k, v)
        if isinstance(mask, Packed):
            assert self.relative is None
            out = mask.attend(q, k, v)
        else:
            bias = mask if self.relative is None else self.relative(q, mask)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=self.heads != self.kv_heads)
        return out.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Two layers with a function of `ACTIVATIONS` between."""

    def __init__(self, width: int, hidden: int, activation: str = "gelu") -> None:
        super().__init__()
        self.fc1, self.fc2, self.activation = nn.Linear(width, hidden), nn.Linear(hidden, width), activation

    def forward(self, x: Float[Tensor, "*any width"], noise: DropoutKey | None = None) -> Float[Tensor, "*any width"]:
        return through(self.fc2, ACTIVATIONS[self.activation](through(self.fc1, x, noise)), noise)


class Swiglu(nn.Module):
    """Gated MLP without biases (arXiv 2002.05202); the gate is SiLU or another of `ACTIVATIONS`."""

    def __init__(self, width: int, hidden: int, activation: str = "silu") -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.activation = activation

    def forward(self, x: Float[Tensor, "*any width"], noise: DropoutKey | None = None) -> Float[Tensor, "*any width"]:
        gate, up = through(self.gate_up, x, noise).chunk(2, dim=-1)
        return through(self.down, ACTIVATIONS[self.activation](gate) * up, noise)


class Scale(nn.Module):
    """One learned factor per channel, `start` at first (LayerScale, arXiv 2103.17239)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Float[Tensor, "*any width"]) -> Float[Tensor, "*any width"]:
        return x * self.gamma


class Block(TrainedBlock):
    """Pre-norm transformer block. Its parts are passed in; `dropout` and `scales` act on both branches."""

    PIECES = ("_project", "_finish")

    def __init__(
        self,
        norms: tuple[nn.Module, nn.Module],
        attn: Attention,
        mlp: nn.Module,
        dropout: float = 0.0,
        scales: tuple[nn.Module, nn.Module] | None = None,
    ):
        super().__init__()
        self.norm1, self.norm2 = norms
        self.attn, self.mlp = attn, mlp
        self.scale1, self.scale2 = scales or (nn.Identity(), nn.Identity())
        self.dropouts = nn.ModuleList(Dropout(dropout) for _ in range(2))

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        mask: KeyMask | Packed | None = None,
        turn=None,
        cache: LayerCache | None = None,
        noise: DropoutKey | None = None,
        only: Int[Tensor, " some"] | None = None,
    ) -> Float[Tensor, "batch m width"]:
        """only: as `Attention` takes it; what comes after attention is then not computed for the others."""
        if cache is not None:
            return self._forward(x, mask, turn, cache, noise)
        return self.through(self._forward, x, mask, turn, None, noise, only, draws=noise is None)

    def _forward(self, x, mask, turn, cache, noise, only=None):
        q, k, v = self.piece("_project")(x, turn, noise)
        read = self.attn.attend(q, k, v, mask, cache)
        noise = None if noise is None else noise.of(only)
        return self.piece("_finish")(rows_of(x, only), rows_of(read, only), noise)

    def _project(self, x, turn, noise):
        return self.attn.project(self.norm1(x), turn, noise)

    def _finish(self, x, read, noise):
        x = x + self.dropouts[0](self.scale1(through(self.attn.proj, read, noise)), noise)
        return x + self.dropouts[1](self.scale2(self.mlp(self.norm2(x), noise)), noise)


def encoder_block(
    width: int,
    heads: int,
    dropout: float = 0.0,
    *,
    hidden: int = 0,
    eps: float = 1e-6,
    activation: str = "gelu",
    layer_scale: float = 0.0,
) -> Block:
    """The block of ViT, CLIP and BERT-like towers: LayerNorm, biases, GELU, four times as wide inside unless said."""
    norms = (nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps))
    scales = (Scale(width, layer_scale), Scale(width, layer_scale)) if layer_scale else None
    return Block(norms, Attention(width, heads), Mlp(width, hidden or 4 * width, activation), dropout, scales)


def decoder_block(
    width: int,
    heads: int,
    kv_heads: int,
    hidden: int,
    dropout: float = 0.0,
    *,
    dim: int = 0,
    eps: float = 1e-6,
    qkv_bias: bool = False,
    out_bias: bool = False,
    qk_norm: bool = False,
    activation: str = "silu",
) -> Block:
    """The block of Llama: RMSNorm, no biases, SwiGLU, grouped-query attention; Qwen's biases and norms if said."""
    dim = dim or width // heads
    norms = (nn.RMSNorm(dim, eps=eps), nn.RMSNorm(dim, eps=eps)) if qk_norm else None
    attn = Attention(width, heads, kv_heads, qkv_bias, dim=dim, out_bias=out_bias, norms=norms)
    outer = (nn.RMSNorm(width, eps=eps), nn.RMSNorm(width, eps=eps))
    return Block(outer, attn, Swiglu(width, hidden, activation), dropout)


def positions_of(keep: Bool[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """0, 1, 2, ... over the real tokens only, so that padding moves nothing."""
    return (keep.long().cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def init_weights(model: nn.Module, but: Sequence[nn.Module] = ()) -> None:
    """Linear maps keep the variance of what they read, at any width (LeCun, 1998); a table's rows have length one.

    A fixed deviation such as 0.02 suits a width of 768 and starves a narrow model: its branches start near zero. What
    is in `but` stays as it is.
    """
    others = {part for module in but for part in module.modules()}
    for module in (part for part in model.modules() if part not in others):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
