"""One token of each row through the trunk, in few operations: what `UnifiedTransformer.step` computes.

At one token a step the weights are read once and little else happens, so that calls of modules and small operations
count. Here queries and keys are turned at once, by a roll of their halves, and a norm takes four operations. Letters: n
rows, h heads.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmfm.compat.torch import hooked
from mmfm.generation.int8 import Int8Linear
from mmfm.models.adapters import LoraLinear
from mmfm.models.kv_cache import KVCache
from mmfm.models.layers import ACTIVATIONS, Attention, Block, Swiglu
from mmfm.models.transformer import UnifiedTransformer

Map = Callable[[Tensor], Tensor]


class Layer(NamedTuple):
    """A block as functions of [n, width]; `head_norms` of the queries and of the keys."""

    norms: tuple[Map, Map]
    qkv: Map
    head_norms: tuple[Map, Map] | None
    proj: Map
    gate_up: Map
    activation: Map
    down: Map


def stepper(trunk: UnifiedTransformer) -> Callable[[Float[Tensor, "n width"], KVCache], Float[Tensor, "n width"]]:
    """The step of a trunk; the plain one for a trunk of other parts, in training, or in half precision."""
    weight = trunk.norm.weight
    half = weight.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(weight.device.type)
    if half or trunk.training or not all(_known(block) for block in trunk.blocks):
        return lambda x, cache: trunk.step(x[:, None], cache)[:, 0]
    layers, last = [_layer(block) for block in trunk.blocks], _norm(trunk.norm)
    attention: Any = trunk.blocks[0].attn
    heads = attention.heads, attention.kv_heads, attention.dim

    def step(x: Float[Tensor, "n width"], cache: KVCache) -> Float[Tensor, "n width"]:
        (cos, sin), mask = trunk.next(len(x), cache)
        turn = (torch.cat([cos, cos], -1)[:, 0].to(x.dtype), torch.cat([-sin, sin], -1)[:, 0].to(x.dtype))
        return last(_through(layers, x, turn, mask, cache, heads))

    return step


def _through(
    layers: Sequence[Layer],
    x: Float[Tensor, "n width"],
    turn: tuple[Float[Tensor, "n 1 dim"], Float[Tensor, "n 1 dim"]],
    mask: Tensor | None,
    cache: KVCache,
    heads: tuple[int, int, int],
) -> Float[Tensor, "n width"]:
    (cos, sin), (queries, keys, dim), n = turn, heads, len(x)
    grouped = queries != keys
    for layer, past in zip(layers, cache.layers, strict=True):
        qkv = layer.qkv(layer.norms[0](x)).view(n, -1, dim)
        qk = qkv.narrow(1, 0, queries + keys)
        if layer.head_norms is not None:
            of_q, of_k = layer.head_norms
            qk = torch.cat([of_q(qk.narrow(1, 0, queries)), of_k(qk.narrow(1, queries, keys))], 1)
        qk = torch.addcmul(qk * cos, qk.roll(dim // 2, -1), sin).unsqueeze(2)
        k, v = past.extend(qk.narrow(1, queries, keys), qkv.narrow(1, queries + keys, keys).unsqueeze(2))
        seen = F.scaled_dot_product_attention(qk.narrow(1, 0, queries), k, v, mask, enable_gqa=grouped)
        x = x + layer.proj(seen.reshape(n, -1))
        gate, up = layer.gate_up(layer.norms[1](x)).chunk(2, -1)
        x = x + layer.down(layer.activation(gate) * up)
    return x


def _known(block: Any) -> bool:
    """Whether `_layer` says all that this block does."""
    scales = (block.scale1, block.scale2) if type(block) is Block else ()
    return (
        len(scales) == 2
        and all(type(scale) is nn.Identity for scale in scales)
        and type(block.attn) is Attention
        and block.attn.relative is None
        and type(block.mlp) is Swiglu
        and not any(hooked(part) for part in (block, block.attn, block.mlp))
    )


def _layer(block: Any) -> Layer:
    attn, mlp = block.attn, block.mlp
    plain = type(attn.q_norm) is nn.Identity
    return Layer(
        norms=(_norm(block.norm1), _norm(block.norm2)),
        qkv=_linear(attn.qkv),
        head_norms=None if plain else (attn.q_norm, attn.k_norm),
        proj=_linear(attn.proj),
        gate_up=_linear(mlp.gate_up),
        activation=ACTIVATIONS[mlp.activation],
        down=_linear(mlp.down),
    )


def _linear(module: nn.Module) -> Map:
    """The map alone where the module is no more than that: adapters are merged for the while, and modules with hooks
    called as they are."""
    if hooked(module):
        return module
    if type(module) is Int8Linear:
        return module.forward
    if type(module) is LoraLinear:
        whole = module.merged()
        return lambda x: F.linear(x, whole.weight, whole.bias)
    if type(module) is nn.Linear:
        weight, bias = module.weight, module.bias
        return lambda x: F.linear(x, weight, bias)
    return module


def _norm(module: nn.Module) -> Map:
    """x w / sqrt(mean x^2 + eps), by a length and a hypotenuse."""
    if type(module) is not nn.RMSNorm or module.eps is None or hooked(module):
        return module
    size = module.normalized_shape[0]
    weight, least = module.weight * size**0.5, module.weight.new_tensor((size * module.eps) ** 0.5)

    def norm(x: Tensor) -> Tensor:
        return x * weight / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(least)

    return norm
