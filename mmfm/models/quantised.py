"""Locked weights in few bits: a matrix as rows of bytes, and the map that reads them.

Each row holds all that it needs, so that rows can be cut and put together as those of the matrix; bytes are what no
change of a model's dtype touches. Packing what was unpacked gives the same bytes again.

    int8  a scale (fp32), then a byte for each number
    nf4   for each 64 numbers their largest (fp32) and 32 bytes, two numbers each (QLoRA, arXiv 2305.14314)
    q4_1  for each 32 numbers scale and minimum (fp16) and 16 bytes, as in gguf: lossless for what came from there
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from mmfm.config import UserError, require

Matrix = Float[Tensor, "out width"]
Packed = UInt8[Tensor, "out bytes"]
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip  # quantiles of the normal distribution, of the paper's appendix E
NF4_BLOCK, Q4_BLOCK = 64, 32


def pack_int8(weight: Matrix) -> Packed:
    """The scale is rounded up to 16 bits, so that 127 of it are exact and packing again changes nothing."""
    largest = weight.abs().amax(1)
    fraction, exponent = torch.frexp(torch.where(largest > 0, largest / 127, 1.0))
    scale = torch.ldexp((fraction * 2**16).ceil() / 2**16, exponent)
    codes = (weight / scale[:, None]).round().to(torch.int8)
    return torch.cat([_bytes(scale[:, None]), codes.view(torch.uint8)], 1)


def unpack_int8(packed: Packed) -> Matrix:
    return packed[:, 4:].view(torch.int8).float() * _numbers(packed[:, :4], torch.float32)


def pack_nf4(weight: Matrix) -> Packed:
    blocks = weight.reshape(len(weight), -1, NF4_BLOCK)
    largest = blocks.abs().amax(2, keepdim=True)
    table = torch.tensor(NF4, device=weight.device)
    middles = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize(blocks / torch.where(largest > 0, largest, 1.0), middles).to(torch.uint8)
    return torch.cat([_bytes(largest), codes[..., ::2] << 4 | codes[..., 1::2]], 2).flatten(1)


def unpack_nf4(packed: Packed, codebook: Tensor | None = None) -> Matrix:
    """codebook: `nf4_codebook` where the weight is; a new one would make the host wait for the device."""
    blocks = packed.view(len(packed), -1, 4 + NF4_BLOCK // 2)
    pairs = (nf4_codebook().to(packed.device) if codebook is None else codebook).view(torch.int64).flatten()
    # Each byte takes its two numbers as one of 64 bits: of pairs of floats this takes several times as long.
    both = pairs.index_select(0, blocks[..., 4:].int().flatten())
    numbers = both.view(torch.float32).view(*blocks.shape[:2], NF4_BLOCK)
    return (numbers * _numbers(blocks[..., :4], torch.float32)).flatten(1)


def nf4_codebook() -> Int32[Tensor, "256 2"]:
    """Of each byte the bits of its two numbers, as whole numbers, which no change of a model's dtype touches."""
    table = torch.tensor(NF4, device="cpu")
    return torch.stack([table.repeat_interleave(16), table.repeat(16)], 1).view(torch.int32)


def pack_q4_1(weight: Matrix) -> Packed:
    """The blocks that these numbers were once read from: the least number of each is its minimum, and the sixteenth
    part of its span its scale. UserError where they are no such numbers to the bit."""
    blocks = weight.reshape(len(weight), -1, Q4_BLOCK)
    least, most = blocks.amin(2, keepdim=True), blocks.amax(2, keepdim=True)
    low, near = least.half(), ((most - least) / 15).half()
    scale, codes = near, _codes(blocks, low, near)
    for step in (-1, 1):  # an fp16 beside it
        other = (near.view(torch.int16) + step).view(torch.float16)
        better = ~_same(blocks, codes, low, scale)
        found = _codes(blocks, low, other)
        scale, codes = torch.where(better, other, scale), torch.where(better, found, codes)
    wrong = int((~_same(blocks, codes, low, scale)).sum())
    told = f'base="q4_1" keeps 4 bits that the source had, and {wrong} of {low.numel()} blocks of 32 are not such'
    require(not wrong, f'{told}; take base="nf4"')
    return torch.cat([_bytes(scale), _bytes(low), codes[..., :16] | codes[..., 16:] << 4], 2).flatten(1)


def unpack_q4_1(packed: Packed) -> Matrix:
    blocks = packed.view(len(packed), -1, 4 + Q4_BLOCK // 2)
    scale, low = _numbers(blocks[..., :4], torch.float16).float().split(1, 2)
    codes = torch.cat([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], 2)
    return (codes * scale + low).flatten(1)


def _codes(blocks: Tensor, low: Tensor, scale: Tensor) -> Tensor:
    size = scale.float()
    codes = ((blocks - low.float()) / torch.where(size > 0, size, 1.0)).nan_to_num(0.0)
    return codes.round().clamp(0, 15).to(torch.uint8)


def _same(blocks: Tensor, codes: Tensor, low: Tensor, scale: Tensor) -> Tensor:
    return (codes * scale.float() + low.float() == blocks).all(2, keepdim=True)


def _bytes(numbers: Tensor) -> Tensor:
    return numbers.contiguous().view(torch.uint8)


def _numbers(data: Tensor, dtype: torch.dtype) -> Tensor:
    return data.contiguous().view(dtype)


class Format(NamedTuple):
    """How a matrix of which `block` divides the width is packed; `row_bytes` of a row of so many numbers."""

    pack: Callable[[Tensor], Tensor]
    unpack: Callable[..., Tensor]
    block: int
    row_bytes: Callable[[int], int]


FORMATS = {
    "int8": Format(pack_int8, unpack_int8, 1, lambda width: 4 + width),
    "nf4": Format(pack_nf4, unpack_nf4, NF4_BLOCK, lambda width: width // NF4_BLOCK * (4 + NF4_BLOCK // 2)),
    "q4_1": Format(pack_q4_1, unpack_q4_1, Q4_BLOCK, lambda width: width // Q4_BLOCK * (4 + Q4_BLOCK // 2)),
}


def kept(weight: Matrix, base: str, name: str) -> Tensor:
    """The weight as a base of this kind keeps it. UserError where it cannot, with the layer's name."""
    if base not in FORMATS:
        return weight.to(torch.bfloat16) if base == "bf16" else weight
    if weight.is_meta:
        return weight.new_empty(len(weight), FORMATS[base].row_bytes(weight.shape[1]), dtype=torch.uint8)
    try:
        return FORMATS[base].pack(weight.detach().float())
    except UserError as why:
        raise UserError(f"{name}: {why}") from None


def dense(weight: Tensor, base: str, codebook: Tensor | None = None) -> Matrix:
    """The weight as numbers again, in fp32 or better."""
    if base == "nf4":
        return unpack_nf4(weight, codebook)
    if base in FORMATS:
        return FORMATS[base].unpack(weight)
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


class _Locked(torch.autograd.Function):
    """x W^T + b of a weight that is unpacked in the forward and, for the gradient of x, again in the backward: nothing
    but its bytes is kept in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, base: str, codebook: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, *(() if codebook is None else (codebook,)))
        ctx.base = base
        return F.linear(x, dense(weight, base, codebook).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None, None, None]:
        (gradient,), (weight, *codebook) = gradients, ctx.saved_tensors
        back = gradient @ dense(weight, ctx.base, *codebook).to(gradient.dtype) if ctx.needs_input_grad[0] else None
        bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return back, None, bias, None, None


def locked_linear(
    x: Float[Tensor, "*any width"], weight: Tensor, bias: Tensor | None, base: str, codebook: Tensor | None = None
) -> Float[Tensor, "*any out"]:
    """x W^T + b of a locked weight, in autocast's type where that is on."""
    kind = x.device.type
    cast = not x.is_meta and torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if cast else x.dtype
    if base not in FORMATS and (base != "bf16" or dtype == weight.dtype):
        return F.linear(x, weight, bias)
    return _Locked.apply(x.to(dtype), weight, None if bias is None else bias.to(dtype), base, codebook)
