"""Linear maps in 8 bits, for writing on a processor: a step reads every weight once, and that is what it waits for.

Weights have a scale for each output, inputs one for each call (dynamic quantisation, as in torch's `quantize_dynamic`).
Inputs have 7 bits, also as there: without VNNI a processor adds two products in 16 bits, which 8 by 8 bits overflow.
"""

import warnings
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmfm.compat.torch import quantised_rows
from mmfm.config import require
from mmfm.models.adapters import merge

Kind = TypeVar("Kind", bound=nn.Module)
REDUCED = True  # inputs in 7 bits, whatever the processor: the same numbers on all, and right ones


class Int8Linear(nn.Module):
    """y = W x + b with W rounded to 8 bits. Inputs are fp32, on a CPU; it has no gradient."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Int[Tensor, "out width"], scale: Float[Tensor, " out"], bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.packed: Any = None
        self.parts: dict[tuple[range, tuple[int, ...]], Int8Linear] = {}

    @staticmethod
    def of(weight: Float[Tensor, "out width"], bias: Tensor | None = None) -> "Int8Linear":
        weight = weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        return Int8Linear(rounded, scale, None if bias is None else bias.detach().float())

    def rows(self, span: range, more: tuple[int, ...] = ()) -> "Int8Linear":
        """These outputs alone; packed once, whoever asks."""
        if (span, more) not in self.parts:
            index = torch.tensor([*span, *more])
            bias = None if self.bias is None else self.bias[index]
            self.parts[span, more] = Int8Linear(self.weight[index], self.scale[index], bias)
        return self.parts[span, more]

    def forward(self, x: Float[Tensor, "*any width"]) -> Float[Tensor, "*any out"]:
        if self.packed is None:
            self.packed = _pack(self.weight, self.scale, self.bias)
        return torch.ops.quantized.linear_dynamic.default(x, self.packed, REDUCED)


def _pack(weight: Tensor, scale: Tensor, bias: Tensor | None) -> Any:
    with warnings.catch_warnings():  # torch deprecates the type of the tensor that its kernel is packed from
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor", category=UserWarning)
        whole = quantised_rows(weight, scale)
    return torch.ops.quantized.linear_prepack(whole, bias)


def int8(model: Kind) -> Kind:
    """The same model, changed: trunk and output are in 8 bits from now on, towers and heads as they are; adapters
    are merged.

    model: a `UnifiedModel`, or what holds one as `core`. UserError: not on a CPU, or not in fp32.
    """
    core: Any = getattr(model, "core", model)
    told = f"8 bits are for a model on a CPU in fp32, and this one is {core.dtype} on {core.device}; move it there"
    require(core.device.type == "cpu" and core.dtype == torch.float32, told)
    merge(core)
    core.requires_grad_(False).eval()
    core.output = Int8Linear.of(core.embedding.weight if core.output is None else core.output.weight)
    for part in list(core.trunk.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.Linear):
                setattr(part, name, Int8Linear.of(child.weight, child.bias))
    return model
